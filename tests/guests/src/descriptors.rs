//! GDT, TSS and IDT.
//!
//! The selectors of user mode are 0x33 and 0x2b, those of Linux. The TSS allows every port to user
//! mode by its I/O bitmap, because IOPL alone does not do on every KVM.

use core::arch::asm;
use core::cell::UnsafeCell;

use crate::interrupts::{GATES, gate};

pub const KERNEL_CODE: u16 = 0x08;
pub const USER_CODE: u64 = 0x33;
pub const USER_DATA: u64 = 0x2b;
const TASK: u16 = 0x38;

/// Length of a TSS without its I/O bitmap, which follows at once (Intel SDM volume 3, 8.7).
const TSS_LEN: usize = 0x68;
const BITMAP_LEN: usize = 8192;
/// The limit counts one more byte, which must be all ones.
const TSS_LIMIT: u64 = (TSS_LEN + BITMAP_LEN) as u64;

#[repr(C, packed(4))]
struct Tss {
    reserved: u32,
    /// The stack of interrupts that come from user mode.
    rsp0: u64,
    other: [u8; 90],
    bitmap_base: u16,
    bitmap: [u8; BITMAP_LEN],
    end: [u8; 4],
}

/// Data that the processor and assembly share with one vCPU.
#[repr(C, align(16))]
struct Shared<T>(UnsafeCell<T>);

// SAFETY: only the boot vCPU uses these, and only in `load` and in assembly.
unsafe impl<T> Sync for Shared<T> {}

static TSS: Shared<Tss> = Shared(UnsafeCell::new(Tss {
    reserved: 0,
    rsp0: 0,
    other: [0; 90],
    bitmap_base: TSS_LEN as u16,
    bitmap: [0; BITMAP_LEN],
    end: [0xff; 4],
}));

static GDT: Shared<[u64; 9]> = Shared(UnsafeCell::new([
    0,
    0x00af_9b00_0000_ffff, // 0x08: 64-bit code
    0x00cf_9300_0000_ffff, // 0x10: data
    0,
    0,
    0x00cf_f300_0000_ffff, // 0x28: user data
    0x00af_fb00_0000_ffff, // 0x30: 64-bit user code
    0,                     // 0x38: TSS, two entries, made by `load`
    0,
]));

static IDT: Shared<[[u64; 2]; GATES]> = Shared(UnsafeCell::new([[0; 2]; GATES]));

#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

fn pointer<T>(table: &Shared<T>) -> Pointer {
    Pointer {
        limit: (size_of::<T>() - 1) as u16,
        base: table.0.get().addr() as u64,
    }
}

/// Where the TSS has the stack pointer for interrupts from user mode.
pub fn rsp0() -> *mut u64 {
    // SAFETY: only the address of the field is taken.
    unsafe { &raw mut (*TSS.0.get()).rsp0 }
}

/// Fills and loads the tables.
pub fn load() {
    let tss = TSS.0.get().addr() as u64;
    // Available 64-bit TSS, present (Intel SDM volume 3, figure 8-4); it lies below 16 MiB.
    let low = (tss & 0xff_ffff) << 16 | 0x89 << 40 | TSS_LIMIT & 0xffff;
    let (gdt, idt) = (pointer(&GDT), pointer(&IDT));
    // SAFETY: interrupts are off and nothing else refers to the tables, which are static; the
    // descriptors are those that the running code needs.
    unsafe {
        (*GDT.0.get())[7] = low | (tss >> 24 & 0xff) << 56;
        for (vector, entry) in (*IDT.0.get()).iter_mut().enumerate() {
            *entry = gate(vector);
        }
        asm!(
            "lgdt [{gdt}]",
            "lidt [{idt}]",
            "ltr {task:x}",
            gdt = in(reg) &gdt,
            idt = in(reg) &idt,
            task = in(reg) TASK,
        );
    }
}
