//! Tap devices of an ordinary user, which busybox does not make.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::Result;

/// The request's type differs between C libraries.
macro_rules! request {
    ($tap:expr, $request:expr, $argument:expr) => {
        // SAFETY: the kernel reads at most an ifreq behind the argument, and writes the name that it gives there; of the
        // other requests it is a number.
        match unsafe { libc::ioctl($tap.as_raw_fd(), $request as _, $argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
}

/// Makes a tap device that stays, and that a user may open.
pub(super) fn make(name: &str, user: u32) -> Result<String> {
    let tap = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: all zeros is a valid ifreq.
    let mut wanted: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in wanted.ifr_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as libc::c_char;
    }
    wanted.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI).try_into()?;
    request!(tap, libc::TUNSETIFF, &raw mut wanted)?;
    request!(tap, libc::TUNSETOWNER, libc::c_ulong::from(user))?;
    request!(tap, libc::TUNSETPERSIST, 1 as libc::c_ulong)?;
    Ok(format!("made {name} for {user}"))
}
