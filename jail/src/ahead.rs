//! Namespaces that another process makes while this one does something else.
//!
//! Most of what a sandbox costs is the kernel making namespaces; joining them is quick. The other process shares this
//! one's memory and descriptors, as one of vfork(2) does, since a copy of its memory would cost more than it saves.
//! It has the same thread-local storage, too: it does nothing but system calls without errno, on memory that was
//! allocated before, and takes no signals. Whatever it cannot do, [`Jail::enter`](crate::Jail::enter) does again by
//! itself, and so finds out which part is missing.

use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Refusal;
use crate::namespaces::{self, Ids};
use crate::report::{Part, Report};
use crate::root;

/// The user namespace first: it gives the rights to join the others. The mounts last: with them the root is another.
const KINDS: [(Part, LinkNameSpaceType, &CStr); 5] = [
    (
        Part::UserNamespace,
        LinkNameSpaceType::User,
        c"/proc/self/ns/user",
    ),
    (
        Part::Network,
        LinkNameSpaceType::Network,
        c"/proc/self/ns/net",
    ),
    (
        Part::Ipc,
        LinkNameSpaceType::InterProcessCommunication,
        c"/proc/self/ns/ipc",
    ),
    (
        Part::HostName,
        LinkNameSpaceType::HostNameAndNISDomainName,
        c"/proc/self/ns/uts",
    ),
    (Part::Root, LinkNameSpaceType::Mount, c"/proc/self/ns/mnt"),
];

/// Numbers of descriptors from here on: low ones are those that a program is started with, or forgot to be.
const HIGH: i32 = 200;

/// Those that were made.
#[derive(Default)]
pub(crate) struct Namespaces {
    each: [Option<OwnedFd>; KINDS.len()],
    /// A file system that may become the root of who has joined them.
    pub(crate) root: Option<OwnedFd>,
}

impl Namespaces {
    /// Moves this process to them, which has one thread; its working directory is the root then. False: it has not moved
    /// at all.
    pub(crate) fn join(&self, report: &mut Report) -> bool {
        for ((part, kind, _), fd) in KINDS.iter().zip(&self.each) {
            let moved = fd.as_ref().map_or(Err(Errno::BADF), |fd| {
                move_into_link_name_space(fd.as_fd(), Some(*kind))
            });
            if *part == Part::UserNamespace && moved.is_err() {
                return false;
            }
            report.note(*part, moved.map_err(Refusal::of("join its namespace")));
        }
        true
    }
}

/// What the other process is to do, and has done.
struct Plan {
    ids: Ids,
    made: Namespaces,
}

impl Plan {
    /// In the other process. Nothing in here allocates, or sets errno.
    fn make(&mut self) -> Result<(), Errno> {
        namespaces::make_all()?;
        self.ids.map()?;
        namespaces::name_host()?;
        for (made, (_, _, path)) in self.made.each.iter_mut().zip(KINDS) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let fd = openat(CWD, path, flags, Mode::empty())?;
            *made = Some(fcntl_dupfd_cloexec(fd, HIGH)?);
        }
        // Without it, whoever joins them makes one.
        let root = root::make().ok();
        self.made.root = root.and_then(|root| fcntl_dupfd_cloexec(root, HIGH).ok());
        Ok(())
    }
}

/// Namespaces that are being made by another process, for [`Jail::enter`](crate::Jail::enter). That process shares memory
/// with this one, and ends by itself; dropping this waits for it.
#[derive(Debug)]
pub struct Ahead {
    /// Until it is known to have ended.
    child: Option<Child>,
}

impl Ahead {
    /// Begins, and returns at once. The namespaces have the rights of this process' user. `None`: this host does not let
    /// another process do it.
    pub fn start() -> Option<Self> {
        let child = Child::start().ok()?;
        Some(Self { child: Some(child) })
    }

    /// Waits until they are made. `None`: they could not be made.
    pub(crate) fn made(mut self) -> Option<Namespaces> {
        self.child.take()?.end()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            child.end();
        }
    }
}

/// The other process. What it works on is lost, rather than freed, unless it is known to have ended.
struct Child {
    pid: Pid,
    /// Its own until it has ended.
    plan: NonNull<Plan>,
    stack: ManuallyDrop<Stack>,
}

// SAFETY: nothing but the other process uses the plan until that has ended, whichever thread waits for it.
unsafe impl Send for Child {}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl Child {
    fn start() -> Result<Self, Errno> {
        let stack = Stack::new()?;
        let plan = NonNull::from(Box::leak(Box::new(Plan {
            ids: Ids::own(),
            made: Namespaces::default(),
        })));
        match start(&stack, plan) {
            Ok(pid) => Ok(Self {
                pid,
                plan,
                stack: ManuallyDrop::new(stack),
            }),
            Err(refused) => {
                // SAFETY: it comes from a box, and there is no other process.
                drop(unsafe { Box::from_raw(plan.as_ptr()) });
                Err(refused)
            }
        }
    }

    /// Waits for its end, and gives what it has made.
    fn end(self) -> Option<Namespaces> {
        // It sends no SIGCHLD at its end, and is waited for only with this.
        const WALL: WaitOptions = WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        let ended = retry_on_intr(|| waitpid(Some(self.pid), WALL));
        let Ok(Some((_, status))) = ended else {
            // Nobody else waits for it: this does not happen.
            return None;
        };
        // SAFETY: it comes from a box, and the other process has ended.
        let plan = unsafe { Box::from_raw(self.plan.as_ptr()) };
        drop(ManuallyDrop::into_inner(self.stack));
        (status.exit_status() == Some(0)).then_some(plan.made)
    }
}

fn start(stack: &Stack, plan: NonNull<Plan>) -> Result<Pid, Errno> {
    const FLAGS: c_int = libc::CLONE_VM | libc::CLONE_FILES;
    let masked = Masked::all();
    // SAFETY: the stack is this process' alone, and lives until it has ended, as the plan does. What it does, `work`
    // says.
    let pid = unsafe { libc::clone(work, stack.top(), FLAGS, plan.as_ptr().cast()) };
    let refused = Errno::from_io_error(&std::io::Error::last_os_error());
    drop(masked);
    // rustix' type takes no negative one.
    let pid = u32::try_from(pid).ok().and_then(|_| Pid::from_raw(pid));
    pid.ok_or(refused.unwrap_or(Errno::NOSYS))
}

/// The other process, from its beginning to its end. Its memory is the caller's.
extern "C" fn work(plan: *mut c_void) -> c_int {
    // SAFETY: nothing else uses the plan before this process has ended.
    let plan = unsafe { &mut *plan.cast::<Plan>() };
    c_int::from(plan.make().is_err())
}

/// A stack, above a page that cannot be written.
struct Stack {
    bottom: *mut c_void,
}

// SAFETY: it is an address of memory that nothing else has.
unsafe impl Send for Stack {}

impl Stack {
    /// Of which pages are used as they are touched.
    const BYTES: usize = 256 << 10;

    fn new() -> Result<Self, Errno> {
        let (access, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK,
        );
        // SAFETY: new memory, wherever there is room.
        let bottom = unsafe { mmap_anonymous(ptr::null_mut(), Self::BYTES, access, flags) }?;
        let stack = Self { bottom };
        // SAFETY: nothing has used it yet.
        unsafe { mprotect(bottom, rustix::param::page_size(), MprotectFlags::empty()) }?;
        Ok(stack)
    }

    fn top(&self) -> *mut c_void {
        self.bottom.wrapping_byte_add(Self::BYTES)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: it was mapped like this, and who used it has ended.
        let _ = unsafe { munmap(self.bottom, Self::BYTES) };
    }
}

/// This thread gets no signals, as long as it lives.
struct Masked(libc::sigset_t);

impl Masked {
    fn all() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the first call fills the first set, the second the other.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for Masked {
    fn drop(&mut self) {
        // SAFETY: the set is one of before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
