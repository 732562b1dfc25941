//! Runs code in user mode (CPL3).
//!
//! User code returns with int3, whose gate is open to it: that works on every KVM.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::descriptors::{USER_CODE, USER_DATA, rsp0};

const STACK_LEN: usize = 64 << 10;

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; STACK_LEN]>);

// SAFETY: `user` hands it to one caller at a time.
unsafe impl Sync for Stack {}

static STACK: Stack = Stack(UnsafeCell::new([0; STACK_LEN]));
static BUSY: AtomicBool = AtomicBool::new(false);

global_asm!(
    r#"
    .section .text.user, "ax"
    // (function, argument, end of the user stack, where the TSS has RSP0)
    .global user_enter
user_enter:
    pushfq
    pop rax
    push rax
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    mov [user_kernel_stack], rsp
    mov [rcx], rsp
    sub rdx, 8
    mov qword ptr [rdx], offset user_return
    push {data}
    push rdx
    // The same interrupt flag, and ports may be used whatever the task's bitmap says: QEMU's emulation of SVM takes
    // a busy task for none (check_io), and KVM says that of every task that it has saved.
    or eax, 0x3000
    push rax
    push {code}
    push rdi
    mov rdi, rsi
    iretq
user_return:
    int3
    ud2

    .global user_breakpoint
user_breakpoint:
    mov rsp, [user_kernel_stack]
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    popfq
    ret

    .section .bss.user, "aw", @nobits
    .balign 8
user_kernel_stack:
    .skip 8
    "#,
    data = const USER_DATA,
    code = const USER_CODE,
);

unsafe extern "C" {
    fn user_enter(function: extern "C" fn(*mut ()), argument: *mut (), stack: u64, rsp0: *mut u64);
    fn user_breakpoint();
}

pub(crate) fn breakpoint_entry() -> usize {
    user_breakpoint as *const () as usize
}

struct Call<F, T> {
    function: MaybeUninit<F>,
    result: MaybeUninit<T>,
}

extern "C" fn call<F: FnOnce() -> T, T>(argument: *mut ()) {
    // SAFETY: `user` passes its own `Call`, with the function in it, and waits.
    let call = unsafe { &mut *argument.cast::<Call<F, T>>() };
    // SAFETY: as above; the function is taken once.
    let function = unsafe { call.function.assume_init_read() };
    call.result.write(function());
}

/// Runs `function` in user mode and gives its result. Where kernel mode is emulated, this is how
/// code runs at full speed. Ports, all mapped memory, printing and [`crate::exit`] work there; so
/// do interrupts, if they are on. Boot vCPU only, not nested.
pub fn user<F: FnOnce() -> T, T>(function: F) -> T {
    assert!(!BUSY.swap(true, Ordering::Relaxed), "user() does not nest");
    let mut arguments = Call {
        function: MaybeUninit::new(function),
        result: MaybeUninit::uninit(),
    };
    let argument = (&raw mut arguments).cast();
    let stack = (STACK.0.get().addr() + STACK_LEN) as u64;
    // SAFETY: descriptors are loaded, the stack is nobody else's, and `call` gets what it expects.
    unsafe { user_enter(call::<F, T>, argument, stack, rsp0()) };
    BUSY.store(false, Ordering::Relaxed);
    // SAFETY: `call` has returned, so it has written the result.
    unsafe { arguments.result.assume_init() }
}
