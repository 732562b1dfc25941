//! userfaultfd(2): whoever has its descriptor brings the pages of a mapping when they are touched, or is told which were
//! written.
//!
//! Source of numbers and layouts: include/uapi/linux/userfaultfd.h of Linux; of what they mean:
//! Documentation/admin-guide/mm/userfaultfd.rst.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use arch::GuestRam;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, OFlags, fcntl_getfl, fcntl_setfl, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap, userfaultfd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

/// Linux 6.1. Who may open it may have the faults of the kernel's own accesses too, of which KVM's are.
const DEVICE: &str = "/dev/userfaultfd";
/// UFFD_API, which is the kind of the ioctls as well.
const API: u32 = 0xaa;
/// UFFD_FEATURE_EVENT_REMOVE: memory that is given back (MADV_DONTNEED) is told, and whoever gives it back waits until
/// that was read.
const EVENT_REMOVE: u64 = 1 << 3;
/// UFFD_FEATURE_WP_UNPOPULATED and UFFD_FEATURE_WP_ASYNC: what was not touched yet is protected too, and a write takes
/// the protection off without asking.
const TRACKING: u64 = 1 << 13 | 1 << 15;
const FLAGS: UserfaultfdFlags = UserfaultfdFlags::CLOEXEC.union(UserfaultfdFlags::NONBLOCK);
/// UFFD_USER_MODE_ONLY: the kernel's own faults are handed to nobody, so no privilege is needed.
const USER_MODE_ONLY: UserfaultfdFlags = UserfaultfdFlags::from_bits_retain(1);

/// What is done with a region (UFFDIO_REGISTER_MODE_*).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// Who touches a page that nobody has touched yet waits until it is brought.
    Missing = 1 << 0,
    /// Pages can be protected, and a write is seen.
    Protected = 1 << 1,
}
/// Bytes of a `struct uffd_msg`, and how many are read at once.
const EVENT: usize = 32;
const EVENTS: usize = 16;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

const USERFAULTFD_IOC_NEW: libc::Ioctl = libc::_IO(API, 0x00);
const UFFDIO_API: libc::Ioctl = libc::_IOWR::<Api>(API, 0x3f);
const UFFDIO_REGISTER: libc::Ioctl = libc::_IOWR::<Register>(API, 0x00);
const UFFDIO_WAKE: libc::Ioctl = libc::_IOR::<Range>(API, 0x02);

impl Range {
    fn of(region: &GuestRegionMmap) -> Self {
        Self {
            start: region.as_ptr().addr() as u64,
            len: region.len(),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// The faults of mappings of this process.
#[derive(Debug)]
pub(crate) struct Uffd {
    fd: OwnedFd,
    /// What the kernel tells of a handler's (proc_pid_fdinfo(5)). It stays open: a jail has no /proc.
    info: Option<File>,
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Uffd {
    /// For a process that brings pages, also those that the kernel touches.
    ///
    /// # Errors
    /// When neither the device nor the system call gives one: the error names both.
    pub(crate) fn for_handler() -> io::Result<Self> {
        let by_device = File::options().read(true).write(true).open(DEVICE);
        let uffd = match by_device.and_then(|device| of_device(&device)) {
            Ok(uffd) => uffd,
            Err(of_device) => {
                // SAFETY: nothing is registered with it yet.
                let by_call = unsafe { userfaultfd(FLAGS) }.map_err(io::Error::from);
                by_call.map_err(|error| {
                    let text = format!("{DEVICE}: {of_device}; userfaultfd(2): {error}");
                    io::Error::new(error.kind(), text)
                })?
            }
        };
        let mut uffd = Self::with(uffd, EVENT_REMOVE)?;
        uffd.info = File::open(format!("/proc/self/fdinfo/{}", uffd.fd.as_raw_fd())).ok();
        Ok(uffd)
    }

    /// For this process, which wants to know what is written.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub(crate) fn for_tracking() -> io::Result<Self> {
        // SAFETY: nothing is registered with it yet.
        Self::with(unsafe { userfaultfd(FLAGS | USER_MODE_ONLY) }?, TRACKING)
    }

    /// The same once more.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let info = self.info.as_ref().map(File::try_clone).transpose()?;
        let fd = self.fd.try_clone()?;
        Ok(Self { fd, info })
    }

    fn with(uffd: OwnedFd, features: u64) -> io::Result<Self> {
        let mut api = Api {
            api: API.into(),
            features,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes a `struct uffdio_api`.
        check(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(Self {
            fd: uffd,
            info: None,
        })
    }

    pub(crate) fn register(&self, region: &GuestRegionMmap, mode: Mode) -> io::Result<()> {
        let mut register = Register {
            range: Range::of(region),
            mode: mode as u64,
            ioctls: 0,
        };
        // SAFETY: the kernel reads and writes a `struct uffdio_register`. The range is guest RAM, whose content may
        // change at any time as far as this process knows; marking its pages changes nothing about them.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })?;
        Ok(())
    }

    /// Whether somebody waits for a page, or until an event was read. Where the kernel does not tell, somebody may.
    pub(crate) fn is_waited_for(&self) -> bool {
        let mut events = [PollFd::new(&self.fd, PollFlags::IN)];
        let looked = poll(&mut events, Some(&Timespec::default()));
        // It is in error for whoever polls one that blocks, which its handler may have made of it.
        if looked.is_err() || events[0].revents().contains(PollFlags::IN) {
            return true;
        }
        // What was read, and not answered yet.
        let mut text = [0; 1024];
        let read = self.info.as_ref().map(|info| info.read_at(&mut text, 0));
        let len = read.and_then(Result::ok).unwrap_or_default();
        let info = str::from_utf8(text.get(..len).unwrap_or_default()).unwrap_or_default();
        let total = info.lines().find_map(|line| line.strip_prefix("total:"));
        total.is_none_or(|total| total.trim() != "0")
    }

    /// Takes guest memory away and lets all go on that wait for a page of it. Who touches it then gets SIGBUS, or EFAULT in
    /// a system call and in KVM_RUN, but no zeros that nobody has written. `empty` takes its place: see [`empty_file`].
    pub(crate) fn lose(&self, ram: &GuestRam, empty: &OwnedFd) {
        for region in ram.iter() {
            if let Err(error) = self.lose_region(region, empty) {
                // Whoever waits would wait for ever, or find zeros.
                log::error!("guest memory that is lost cannot be taken away: {error}");
                std::process::abort();
            }
        }
    }

    fn lose_region(&self, region: &GuestRegionMmap, empty: &OwnedFd) -> io::Result<()> {
        let len = usize::try_from(region.len()).map_err(io::Error::other)?;
        let (protection, flags) = (
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
        );
        // SAFETY: the range is guest RAM, a private mapping that `ram` keeps and that is unmapped as a whole. Nobody may
        // rely on its content; there is none any more.
        unsafe { mmap(region.as_ptr().cast(), len, protection, flags, empty, 0) }?;
        let mut range = Range::of(region);
        // SAFETY: the kernel reads a `struct uffdio_range`.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &raw mut range) })?;
        Ok(())
    }

    /// Reads what nobody else reads any more: who gives memory back waits for it.
    pub(crate) fn drain(&self) {
        // The flag is the open file's, which others may have too.
        let flags = fcntl_getfl(&self.fd).unwrap_or(OFlags::empty());
        if fcntl_setfl(&self.fd, flags | OFlags::NONBLOCK).is_ok() {
            let mut events = [0; EVENT * EVENTS];
            while rustix::io::read(&self.fd, &mut events).is_ok_and(|len| len > 0) {}
        }
    }
}

/// A file without content: a mapping of it has no pages. It is made while it may still fail.
pub(crate) fn empty_file() -> io::Result<OwnedFd> {
    Ok(memfd_create("lost-memory", MemfdFlags::CLOEXEC)?)
}

fn of_device(device: &File) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument is a number.
    let fd = check(unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
