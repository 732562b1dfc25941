//! Taps of the host, and frames into them.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Instant;

use crate::case::{Case, Sample, Way};
use crate::measure::{Cpu, Result};
use crate::namespace::ip;

/// In front of every frame, as virtio 1 has it.
const HEADER: usize = 12;
/// To everybody, of a type that nothing knows (IEEE 802, local experiments).
const START: [u8; 14] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5,
];

/// Nothing but this program makes frames, in taps that are made from now on.
pub(crate) fn quiet() -> Result<()> {
    Ok(fs::write(
        "/proc/sys/net/ipv6/conf/default/disable_ipv6",
        "1",
    )?)
}

/// Lets a tap keep so many frames that nobody has read.
fn prepare(name: &str, frames: u32) -> Result<()> {
    ip(&format!("link set {name} txqueuelen {}", frames + 1))?;
    ip(&format!("link set {name} up"))
}

/// Puts frames into a tap's queue.
pub(crate) fn fill(name: &str, case: &Case) -> Result<()> {
    prepare(name, case.count)?;
    let name = CString::new(name)?;
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET.try_into()?,
        // SAFETY: it reads a text.
        sll_ifindex: unsafe { libc::if_nametoindex(name.as_ptr()) }.try_into()?,
        // SAFETY: zeros are an address.
        ..unsafe { mem::zeroed() }
    };
    address.sll_halen = 6;
    // SAFETY: plain system calls; the address is a sockaddr_ll of its size.
    let mut socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        if fd < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let socket = File::from(OwnedFd::from_raw_fd(fd));
        let len = libc::socklen_t::try_from(size_of_val(&address))?;
        if libc::bind(fd, (&raw const address).cast(), len) < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        socket
    };
    let mut frame = START.to_vec();
    frame.resize(case.frame, 0);
    for _ in 0..case.count {
        socket.write_all(&frame)?;
    }
    Ok(())
}

/// Opens a tap of its own.
fn open(name: &str) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: zeros are an ifreq without a name.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from)?;
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into()?;
    let size = libc::c_int::try_from(HEADER)?;
    // SAFETY: the kernel reads and writes an ifreq, and reads an int.
    let refused = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) < 0
            || libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &size) < 0
    };
    if refused {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(file)
}

/// The floor: passes a case's frames and does nothing else.
pub(crate) fn floor(case: &Case) -> Result<Sample> {
    let mut tap = open("floor")?;
    prepare("floor", case.count)?;
    if case.way == Way::Receive {
        fill("floor", case)?;
    }
    let mut frame = vec![0; HEADER];
    frame.extend(START);
    frame.resize(HEADER + case.frame, 0);
    let mut buffer = [0; 2048];
    let task = Path::new("/proc/thread-self");
    let (start, cpu) = (Instant::now(), Cpu::of(task)?);
    for _ in 0..case.count {
        match case.way {
            Way::Send => tap.write_all(&frame)?,
            Way::Receive => {
                let len = tap.read(&mut buffer)?;
                if len != frame.len() {
                    return Err(format!("a frame of {len} bytes").into());
                }
            }
        }
    }
    // The time of a running thread is brought up to date when it stops.
    let elapsed = start.elapsed();
    std::thread::yield_now();
    let (cpu, waited) = Cpu::of(task)?.since(cpu);
    Ok(Sample {
        seconds: elapsed.as_secs_f64(),
        cpu,
        waited,
        notifications: 0.0,
    })
}
