//! What becomes of a system call that a thread's filter does not allow. Unsafe, because it is a signal's handler.
//!
//! The kernel does not carry the call out and sends SIGSYS to the thread (SECCOMP_RET_TRAP); the handler writes one
//! line and ends the process with status 1. Why not otherwise: SECCOMP_RET_KILL_PROCESS ends it without a word, and
//! SECCOMP_RET_USER_NOTIF needs another thread that is asked, which may be the one that is asked about. What the handler
//! may not do itself, the kernel takes for a signal that cannot be delivered, since it is blocked meanwhile: the
//! process ends by SIGSYS. So it does when somebody has taken the handler away, and for calls of another architecture.
//! The handler takes no lock, allocates nothing, and needs two calls that every role has: write and exit_group.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

use super::calls::{Call, Numbers};
use crate::error::Refusal;

thread_local! {
    /// Initialized without code and dropped without any: a handler may read it.
    static ROLE: Cell<&'static str> = const { Cell::new("without a role") };
}

/// glibc counts the processors, by a file, to know among how many arenas threads may share memory; and looks into
/// another one before it gives back memory of any but the first. With one it does neither, and a thread begins with
/// fewer calls.
#[cfg(target_env = "gnu")]
const ARENAS: c_int = 1;

/// What else is done before the end.
static LAST: OnceLock<fn()> = OnceLock::new();

pub(super) fn set_role(role: &'static str) {
    ROLE.set(role);
}

/// Whether this kernel filters system calls, and tells a process of those that were refused.
pub(crate) fn available() -> Result<(), Refusal> {
    let action: u32 = libc::SECCOMP_RET_TRAP;
    // SAFETY: the kernel reads the 4 bytes behind the pointer, and changes nothing.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    if answer == 0 {
        return Ok(());
    }
    let refused = Refusal::of("filter system calls")(io::Error::last_os_error());
    Err(refused.with_cure(Some("the kernel needs CONFIG_SECCOMP_FILTER")))
}

/// Has libraries find out about the system what they find out once, by calls that no thread needs afterwards. Before the
/// first filter, and before there are threads.
pub fn warm_up() {
    // rustix reads the auxiliary vector, and finds the vDSO in it.
    let _ = rustix::param::page_size();
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS)
    };
}

/// Makes a process ready for filters. From now on a violation of any thread writes a line to stderr and ends the
/// process with status 1. `last` is called before the end, by a signal handler: it takes no lock, allocates nothing,
/// and makes only calls that every role may make. Once in a process; a second `last` is not heeded.
///
/// A program with a handler of its own calls [`warm_up`] instead, and asks [`Violation::of`] in that.
///
/// # Errors
/// When the kernel takes no handler.
pub fn prepare(last: fn()) -> io::Result<()> {
    let _ = LAST.set(last);
    warm_up();
    // SAFETY: all zeros is a valid sigaction, without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what handlers may.
    let set = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The part of a siginfo_t that SIGSYS has (include/uapi/asm-generic/siginfo.h, 64 bits).
#[repr(C)]
struct Refused {
    signal: c_int,
    errno: c_int,
    code: c_int,
    address: *mut c_void,
    call: c_int,
    arch: u32,
}

/// SYS_SECCOMP of include/uapi/asm-generic/siginfo.h.
const BY_FILTER: c_int = 1;

/// A system call that the filter of this thread has refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Its number on this architecture.
    pub number: i32,
    /// What the manual calls it, where tables know it.
    pub name: Option<&'static str>,
    /// What the thread is there for ([`Role::name`](super::Role::name)).
    pub role: &'static str,
}

impl Violation {
    /// What a handler of SIGSYS was called for; `None` when no filter has sent the signal. Handlers may call it, on the
    /// thread that they run on.
    pub fn of(info: &libc::siginfo_t) -> Option<Self> {
        // SAFETY: a siginfo_t is longer than this and as much aligned, and any bytes are a value of it.
        let info = unsafe { &*(&raw const *info).cast::<Refused>() };
        if info.signal != libc::SIGSYS || info.code != BY_FILTER {
            return None;
        }
        let numbers = Numbers::of(std::env::consts::ARCH);
        let call = numbers.and_then(|numbers| Call::of_number(info.call, numbers));
        Some(Self {
            number: info.call,
            name: call.map(Call::name),
            role: ROLE.get(),
        })
    }
}

extern "C" fn handle(_: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a siginfo_t.
    let violation = Violation::of(unsafe { &*info });
    let mut line = Line::default();
    if let Some(violation) = violation {
        line.add("error: the system call ");
        match violation.name {
            Some(name) => line.add(name),
            None => line.add_number(violation.number),
        }
        line.add(" is not allowed to the thread '");
        line.add(violation.role);
        line.add("': the program ends, since it has a fault or somebody has taken it over\n");
    } else {
        line.add("error: ended by a signal SIGSYS of another process\n");
    }
    if let Some(last) = LAST.get() {
        last();
    }
    // Nobody may be there to read it.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.bytes());
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(1) }
}

/// A line in a place of its own; what is too long is cut.
struct Line {
    bytes: [u8; 240],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 240],
            len: 0,
        }
    }
}

impl Line {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn add(&mut self, text: &str) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(text.bytes()) {
            *to = from;
            self.len += 1;
        }
    }

    fn add_number(&mut self, number: i32) {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut len = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b"0123456789"
                .get((rest % 10) as usize)
                .copied()
                .unwrap_or(b'?');
            rest /= 10;
            len += 1;
            if rest == 0 {
                break;
            }
        }
        if number < 0 {
            self.add("-");
        }
        let text = digits.get(digits.len() - len..).unwrap_or_default();
        self.add(str::from_utf8(text).unwrap_or("?"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_numbers_and_ends_where_its_place_does() {
        let mut line = Line::default();
        for number in [0, 7, 1024, i32::MAX, i32::MIN] {
            line.add_number(number);
            line.add(" ");
        }
        assert_eq!(line.bytes(), b"0 7 1024 2147483647 -2147483648 ");
        for _ in 0..100 {
            line.add("more");
        }
        assert_eq!(line.bytes().len(), 240);
    }

    #[test]
    fn what_is_read_of_a_signal_lies_inside_it() {
        assert!(size_of::<Refused>() <= size_of::<libc::siginfo_t>());
        assert!(align_of::<Refused>() <= align_of::<libc::siginfo_t>());
        // Behind three numbers comes the union, aligned as a pointer.
        assert_eq!(std::mem::offset_of!(Refused, call), 24);
    }
}
