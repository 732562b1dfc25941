//! fork(2), and what has to be true before it and done after it.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, getpid, getrlimit, setsid};
use rustix::thread::gettid;

/// How long the threads that were joined may take to be gone: the kernel wakes whoever waits for one a little earlier.
const PATIENCE: Duration = Duration::from_secs(1);

/// Flags of a thread that runs in the kernel only: PF_IO_WORKER, PF_USER_WORKER (include/linux/sched.h of Linux). io_uring
/// has some, and since Linux 6.13 a KVM that may have to split large pages (`kvm-nx-lpage-recovery`). They hold no lock of
/// this program, and a fork has none.
const KERNEL_ONLY: u64 = 0x10 | 0x4000;

/// Whether this process has no thread of its own but its first one, which asks. A process that is confined `sees` no
/// /proc, where it could find out that the others are the kernel's: what it was confined by has no thread that nobody
/// has joined.
fn is_alone(sees: bool) -> io::Result<bool> {
    // Linux lets only a process with one thread leave the group of its threads, which changes nothing then
    // (`check_unshare_flags` in kernel/fork.c): no /proc is needed.
    // SAFETY: the call takes a number, and with this one changes nothing.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == 0 {
        return Ok(true);
    }
    if gettid() != getpid() {
        return Ok(false);
    }
    if !sees {
        return Ok(true);
    }
    let own = getpid().as_raw_nonzero().to_string();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        if entry.file_name() == *own {
            continue;
        }
        match fs::read_to_string(entry.path().join("stat")) {
            Ok(stat) if is_kernel_only(&stat) => {}
            // It has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// Whether a thread with this /proc/PID/task/TID/stat (proc_pid_stat(5)) is the kernel's.
fn is_kernel_only(stat: &str) -> bool {
    // Behind the name, which may have any character.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let flags = fields.split_ascii_whitespace().nth(6);
    flags.is_some_and(|flags| {
        flags
            .parse::<u64>()
            .is_ok_and(|flags| flags & KERNEL_ONLY != 0)
    })
}

/// Waits until this process has no thread but its first one.
///
/// # Errors
/// When there are others, or the kernel does not tell.
pub(crate) fn wait_to_be_alone(sees: bool) -> io::Result<()> {
    let begin = Instant::now();
    while !is_alone(sees)? {
        if begin.elapsed() > PATIENCE {
            return Err(io::Error::other(
                "the process has other threads, or its first thread is not the one that runs the machine",
            ));
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// The signals that this thread does not take, until it is dropped.
pub(crate) struct Blocked(libc::sigset_t);

impl Blocked {
    /// It takes none that can be kept from it, but for those that say what it did itself.
    pub(crate) fn all() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the calls write the sets; they fail only for wrong numbers.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for fault in [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS] {
                libc::sigdelset(all.as_mut_ptr(), fault);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that there was.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

/// Forks: `None` is the child.
///
/// # Safety
/// The process has one thread. In the child nothing is used of what belongs to threads that were there before.
///
/// # Errors
/// When the host refuses a process.
pub(crate) unsafe fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: as the caller promises, so that no lock is held by anybody who is not in the child.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid => Pid::from_raw(pid.max(0))
            .map(Some)
            .ok_or_else(io::Error::last_os_error),
    }
}

/// The child of a fork leaves the terminal and the group of its parent, whose signals are not meant for it.
pub(crate) fn leave_session() {
    // It fails for the leader of a group, which a child is not.
    let _ = setsid();
}

/// Closes every descriptor from 3 on but these.
///
/// # Safety
/// Nobody uses or closes another one afterwards.
pub(crate) unsafe fn close_all_but(keep: &mut Vec<RawFd>) {
    const FIRST: RawFd = 3;
    keep.sort_unstable();
    keep.dedup();
    let mut from = FIRST;
    for kept in keep.iter().copied().filter(|fd| *fd >= FIRST) {
        if kept > from {
            // SAFETY: as the caller promises.
            unsafe { close_range(from, kept - 1) };
        }
        from = kept + 1;
    }
    // SAFETY: likewise.
    unsafe { close_range(from, RawFd::MAX) };
}

/// # Safety
/// Nobody uses or closes one of these afterwards.
unsafe fn close_range(first: RawFd, last: RawFd) {
    // SAFETY: as the caller promises.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed == 0 {
        return;
    }
    // Before Linux 5.9. None has a number beyond the limit, unless that was higher before.
    let most = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    let most = RawFd::try_from(most).unwrap_or(RawFd::MAX);
    for fd in first..=last.min(most) {
        // SAFETY: as the caller promises.
        unsafe { libc::close(fd) };
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_of_the_kernel_is_known_whatever_it_is_called() {
        let stat = |flags: u64| format!("7 (a) b) S 1 7 7 0 -1 {flags} 0 0");
        assert!(is_kernel_only(&stat(0x4000_4040 | 0x4000)));
        assert!(is_kernel_only(&stat(0x10)));
        assert!(!is_kernel_only(&stat(0x40_0040)));
        assert!(!is_kernel_only("7 (vcpu0) S"));
        assert!(!is_kernel_only(""));
    }

    /// Tests run in threads, and none of those is the first one.
    #[test]
    fn a_process_with_threads_is_not_alone() {
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || ended.recv());
        assert!(!is_alone(true).unwrap());
        let refused = wait_to_be_alone(true).unwrap_err();
        assert!(refused.to_string().contains("other threads"), "{refused}");
        drop(end);
        let _ = thread.join().unwrap();
    }
}
