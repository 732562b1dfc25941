//! A tap device of the host: frames in and out, one descriptor for each pair of queues.
//!
//! Source of flags and semantics: Documentation/networking/tuntap.rst and
//! include/uapi/linux/if_tun.h of Linux.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use super::NetError;
use super::frame::HEADER;
use super::interface::{self, Kind, check, flags, request};
use crate::descriptor;
use crate::virtio::holder;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Which work the kernel may leave to the receiver of a frame: checksums, and cutting of TCP over
/// IPv4 and IPv6 (with ECN), of UDP into fragments, of UDP into datagrams.
pub(super) mod offload {
    pub(in super::super) const CSUM: u32 = libc::TUN_F_CSUM;
    pub(in super::super) const TSO4: u32 = libc::TUN_F_TSO4;
    pub(in super::super) const TSO6: u32 = libc::TUN_F_TSO6;
    pub(in super::super) const ECN: u32 = libc::TUN_F_TSO_ECN;
    pub(in super::super) const UFO: u32 = libc::TUN_F_UFO;
    pub(in super::super) const USO4: u32 = libc::TUN_F_USO4;
    pub(in super::super) const USO6: u32 = libc::TUN_F_USO6;
}

const TAP: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// One queue of a tap device.
#[derive(Debug)]
pub(super) struct Tap(File);

impl Tap {
    /// Opens `count` queues of the tap device of this name in the network namespace of this thread;
    /// creates it if there is none, and then switches it on.
    pub(super) fn open(name: &str, count: u16) -> Result<Vec<Self>, NetError> {
        request(name).map_err(|_| NetError::Name)?;
        // Not by /sys, which shows the network namespace that it was mounted in.
        let is_new = interface::index(name)?.is_none();
        let many = count > 1;
        let mut taps = Vec::new();
        for _ in 0..count {
            let tun = open_tun().map_err(NetError::of_tun)?;
            match Self::attach(tun, name, many) {
                Ok(tap) => taps.push(tap),
                Err(error) => return Err(refused(name, count, is_new, error)),
            }
        }
        if is_new {
            if let Err(error) = interface::switch_on(name) {
                log::warn!("the tap device {name} cannot be switched on: {error}");
            }
        } else if interface::is_up(name).is_ok_and(|up| !up) {
            log::warn!(
                "the tap device {name} is down, no frame passes: run `sudo ip link set {name} up`"
            );
        }
        taps.iter().try_for_each(Self::prepare)?;
        Ok(taps)
    }

    /// The descriptor alone.
    pub(super) fn into_fd(self) -> OwnedFd {
        self.0.into()
    }

    /// A descriptor that whoever started this process has opened.
    pub(super) fn inherit(fd: RawFd) -> Result<Self, NetError> {
        let owned = descriptor::duplicate(fd).map_err(|error| NetError::Fd(error.to_string()))?;
        let tap = Self(File::from(owned));
        let flags = tap
            .flags()
            .map_err(|_| NetError::Fd("it is no tap device".to_owned()))?;
        if flags & TAP != TAP {
            let cause = "its tap device was not opened with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR";
            return Err(NetError::Fd(cause.to_owned()));
        }
        let status = fcntl_getfl(&tap.0).map_err(io::Error::from)?;
        fcntl_setfl(&tap.0, status | OFlags::NONBLOCK).map_err(io::Error::from)?;
        tap.prepare()?;
        Ok(tap)
    }

    /// Makes a descriptor one of a queue of this tap device.
    fn attach(tun: File, name: &str, multi_queue: bool) -> io::Result<Self> {
        let many = if multi_queue {
            libc::IFF_MULTI_QUEUE
        } else {
            0
        };
        let mut request = request(name)?;
        request.ifr_ifru.ifru_flags = flags(TAP | many);
        // SAFETY: the kernel reads and writes an ifreq.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
        Ok(Self(tun))
    }

    /// Every frame begins with the header of virtio 1.
    fn prepare(&self) -> Result<(), NetError> {
        let size = libc::c_int::try_from(HEADER).map_err(io::Error::other)?;
        // SAFETY: the kernel reads an int.
        check(unsafe { libc::ioctl(self.raw(), libc::TUNSETVNETHDRSZ, &size) })?;
        Ok(())
    }

    fn flags(&self) -> io::Result<libc::c_int> {
        let mut request = request("")?;
        // SAFETY: the kernel writes an ifreq.
        check(unsafe { libc::ioctl(self.raw(), libc::TUNGETIFF, &mut request) })?;
        // SAFETY: this ioctl fills in the flags.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(libc::c_int::from(flags) & 0xffff)
    }

    /// Says which work the receiver does.
    pub(super) fn set_offload(&self, offload: u32) -> io::Result<()> {
        // SAFETY: the argument is a number.
        check(unsafe {
            libc::ioctl(
                self.raw(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offload),
            )
        })
    }

    /// Whether frames come to this queue of a device with several.
    pub(super) fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        let mut request = request("")?;
        let how = if enabled {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        request.ifr_ifru.ifru_flags = flags(how);
        // SAFETY: the kernel reads an ifreq.
        check(unsafe { libc::ioctl(self.raw(), libc::TUNSETQUEUE, &request) })
    }

    /// Throws away what waits, as much as a device's queue holds by far. `scratch` gets it.
    pub(super) fn empty(&self, scratch: &mut [u8]) {
        const FRAMES: usize = 4096;
        for _ in 0..FRAMES {
            if !matches!(rustix::io::read(&self.0, &mut *scratch), Ok(1..)) {
                return;
            }
        }
    }

    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<OwnedFd> for Tap {
    fn from(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn open_tun() -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
}

/// Processes that have a tap device.
fn holders(name: &str) -> Vec<holder::Holder> {
    let key = format!("iff:\t{name}");
    holder::processes(|_, info| info.lines().any(|line| line.trim_end() == key))
}

/// That somebody has a tap device, as far as that can be seen.
pub(super) fn busy(name: &str) -> Option<NetError> {
    let holders = holders(name);
    (!holders.is_empty()).then(|| NetError::Busy {
        name: name.to_owned(),
        by: holder::by(&holders),
    })
}

/// Why a tap device was refused. `is_new`: there was no network interface of this name.
pub(super) fn refused(name: &str, count: u16, is_new: bool, error: io::Error) -> NetError {
    let (name, many) = (name.to_owned(), count > 1);
    match error.raw_os_error() {
        Some(libc::EPERM) if is_new => NetError::NoRights { name, many },
        Some(libc::EPERM) => NetError::Owner { name, many },
        Some(libc::EBUSY) => NetError::Busy {
            by: holder::by(&holders(&name)),
            name,
        },
        Some(libc::E2BIG) => NetError::NoQueueLeft,
        Some(libc::EINVAL) if !is_new => match interface::kind(&name) {
            Kind::Tap => NetError::Queues {
                name,
                wanted: count,
                has_many: !many,
            },
            kind => NetError::NotTap {
                name,
                kind: kind.to_string(),
            },
        },
        Some(libc::EINVAL) => NetError::Name,
        _ => error.into(),
    }
}
