//! System calls that are put into the threads of another process (ptrace(2)): what somebody can do who has taken one
//! over.

use std::ffi::{c_int, c_long};
use std::fs;
use std::io;
use std::ptr;

/// What has come of a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Tried {
    /// A filter has refused it.
    Refused,
    /// The kernel has carried it out, and this is what it gave.
    Returned(i64),
}

/// A thread that stands still. Dropping it lets it go on where it was.
#[derive(Debug)]
pub(crate) struct Stopped {
    process: u32,
    thread: c_int,
    before: libc::user_regs_struct,
}

/// The two bytes of the instruction `syscall`.
const SYSCALL: c_long = 0x050f;
/// A stop at a system call, with PTRACE_O_TRACESYSGOOD.
const AT_SYSCALL: c_int = libc::SIGTRAP | 0x80;
/// SYS_SECCOMP of include/uapi/asm-generic/siginfo.h.
const BY_FILTER: c_int = 1;

/// A request of ptrace, as the C library declares it.
#[cfg(target_env = "musl")]
type Request = c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

fn trace(request: Request, thread: c_int, address: u64, data: u64) -> c_long {
    // SAFETY: what the kernel writes to, the caller has made for it; without that it writes nothing of this process.
    let done = unsafe { libc::ptrace(request, thread, address, data) };
    assert_ne!(
        done,
        -1,
        "ptrace {request:#x}: {}",
        io::Error::last_os_error()
    );
    done
}

impl Stopped {
    /// Stops a thread that waits in a system call.
    pub(crate) fn new(process: u32, thread: u32) -> Self {
        let thread = c_int::try_from(thread).unwrap();
        let options = u64::try_from(libc::PTRACE_O_TRACESYSGOOD).unwrap();
        trace(libc::PTRACE_SEIZE, thread, 0, options);
        trace(libc::PTRACE_INTERRUPT, thread, 0, 0);
        // SAFETY: all zeros is a valid set of registers.
        let before = unsafe { std::mem::zeroed() };
        let mut stopped = Self {
            process,
            thread,
            before,
        };
        assert_eq!(stopped.next_stop(), libc::SIGTRAP);
        stopped.before = stopped.registers();
        let code = stopped.before.rip - 2;
        // The library's ptrace hands back what it reads, which may be any number.
        // SAFETY: nothing of this process is written to.
        let code = unsafe { libc::ptrace(libc::PTRACE_PEEKTEXT, thread, code, 0) };
        assert_eq!(code & 0xffff, SYSCALL, "it waits in no system call");
        stopped
    }

    /// The signal of the next stop.
    fn next_stop(&self) -> c_int {
        let mut status = 0;
        // SAFETY: `status` is written to.
        let thread = unsafe { libc::waitpid(self.thread, &raw mut status, libc::__WALL) };
        assert_eq!(thread, self.thread, "{}", io::Error::last_os_error());
        assert!(libc::WIFSTOPPED(status), "it has ended: {status:#x}");
        libc::WSTOPSIG(status)
    }

    fn registers(&self) -> libc::user_regs_struct {
        // SAFETY: all zeros is a valid set of registers.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        let to = ptr::from_mut(&mut registers) as u64;
        trace(libc::PTRACE_GETREGS, self.thread, 0, to);
        registers
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) {
        let from = ptr::from_ref(registers) as u64;
        trace(libc::PTRACE_SETREGS, self.thread, 0, from);
    }

    /// The thread is about to make a call.
    fn put(&self, call: c_long, arguments: &[u64]) {
        let argument = |number| arguments.get(number).copied().unwrap_or(0);
        let registers = libc::user_regs_struct {
            rip: self.before.rip - 2,
            rax: call.cast_unsigned(),
            // It is in no call that could begin again.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.before
        };
        self.set_registers(&registers);
    }

    /// Has the thread make a call, and keeps the process from hearing of one that is refused.
    pub(crate) fn attempt(&self, call: c_long, arguments: &[u64]) -> Tried {
        self.put(call, arguments);
        for at in ["begin", "end"] {
            trace(libc::PTRACE_SYSCALL, self.thread, 0, 0);
            assert_eq!(self.next_stop(), AT_SYSCALL, "at the {at} of {call}");
        }
        let path = format!("/proc/{}/task/{}/status", self.process, self.thread);
        let status = fs::read_to_string(path).unwrap();
        let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"));
        let pending = u64::from_str_radix(pending.unwrap().trim(), 16).unwrap();
        let tried = if pending >> (libc::SIGSYS - 1) & 1 == 0 {
            Tried::Returned(self.registers().rax.cast_signed())
        } else {
            trace(libc::PTRACE_CONT, self.thread, 0, 0);
            assert_eq!(self.next_stop(), libc::SIGSYS);
            // SAFETY: all zeros is a valid siginfo_t.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let to = ptr::from_mut(&mut info) as u64;
            trace(libc::PTRACE_GETSIGINFO, self.thread, 0, to);
            assert_eq!(info.si_code, BY_FILTER);
            Tried::Refused
        };
        self.set_registers(&self.before);
        tried
    }

    /// Has the thread make a call, whatever comes of it, and leaves the process alone.
    pub(crate) fn go_on_with(self, call: c_long, arguments: &[u64]) {
        self.put(call, arguments);
        trace(libc::PTRACE_DETACH, self.thread, 0, 0);
        std::mem::forget(self);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: nothing of this process is written to. The process may have ended with a test that fails.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.thread, 0, 0) };
    }
}
