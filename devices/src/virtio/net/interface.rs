//! Network interfaces of the host, by their names in the network namespace of this thread (netdevice(7)).

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use super::NetError;

/// What an interface is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames go to a program.
    Tap,
    /// Packets go to a program.
    Tun,
    /// Something else, by its driver.
    Driver(String),
    Unknown,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap => f.write_str("a tap device"),
            Self::Tun => f.write_str("a tun device (packets, not frames)"),
            Self::Driver(driver) => write!(f, "one of the driver {driver}"),
            Self::Unknown => f.write_str("another kind"),
        }
    }
}

/// The index of the one of this name, if there is one.
pub(super) fn index(name: &str) -> Result<Option<u32>, NetError> {
    match netdevice::name_to_index(socket()?, name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// What an interface is.
pub(super) fn kind(name: &str) -> Kind {
    match driver(name) {
        Ok(driver) if driver == "tun" => match hardware(name) {
            Ok(libc::ARPHRD_ETHER) => Kind::Tap,
            _ => Kind::Tun,
        },
        Ok(driver) => Kind::Driver(driver),
        Err(_) => Kind::Unknown,
    }
}

/// The type of its addresses (ARPHRD_…).
fn hardware(name: &str) -> io::Result<u16> {
    let found = configure(name, libc::SIOCGIFHWADDR, |_| ())?;
    // SAFETY: this ioctl fills in the address.
    Ok(unsafe { found.ifr_ifru.ifru_hwaddr }.sa_family)
}

/// `struct ethtool_drvinfo` (include/uapi/linux/ethtool.h): the command, then 32 bytes of the driver's name.
const DRIVER_INFO: usize = 196;
const ETHTOOL_GDRVINFO: u32 = 3;
const DRIVER_NAME: std::ops::Range<usize> = 4..36;

fn driver(name: &str) -> io::Result<String> {
    let mut info = [0u8; DRIVER_INFO];
    let (command, _) = info.split_at_mut(DRIVER_NAME.start);
    command.copy_from_slice(&ETHTOOL_GDRVINFO.to_ne_bytes());
    configure(name, libc::SIOCETHTOOL, |request| {
        request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    })?;
    let name = info.get(DRIVER_NAME).unwrap_or_default();
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Whether it is switched on.
pub(super) fn is_up(name: &str) -> io::Result<bool> {
    let found = configure(name, libc::SIOCGIFFLAGS, |_| ())?;
    // SAFETY: this ioctl fills in the flags.
    let flags = unsafe { found.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
}

pub(super) fn switch_on(name: &str) -> io::Result<()> {
    configure(name, libc::SIOCSIFFLAGS, |request| {
        request.ifr_ifru.ifru_flags = flags(libc::IFF_UP | libc::IFF_RUNNING);
    })
    .map(drop)
}

/// The largest frames of a device.
pub(super) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    configure(name, libc::SIOCSIFMTU, |request| {
        request.ifr_ifru.ifru_mtu = mtu.into();
    })
    .map(drop)
}

/// Any socket serves to ask by (netdevice(7)): with one that reaches no network, filters need not allow others.
fn socket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Asks for something of an interface, or changes it; gives the answer.
fn configure(
    name: &str,
    what: libc::c_ulong,
    fill: impl FnOnce(&mut libc::ifreq),
) -> io::Result<libc::ifreq> {
    let socket = socket()?;
    let mut request = request(name)?;
    fill(&mut request);
    // The C libraries differ in the type; the numbers have 16 bits.
    #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
    let what = what as libc::Ioctl;
    // SAFETY: the kernel reads and writes an ifreq, and what it points to has the size of its kind.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), what, &mut request) })?;
    Ok(request)
}

pub(super) fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: zeros are an ifreq without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last one stays: it ends the name.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// The flags of an ifreq are 16 bits, whatever their sign.
pub(super) fn flags(flags: libc::c_int) -> libc::c_short {
    let [low, high, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([low, high])
}

pub(super) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
