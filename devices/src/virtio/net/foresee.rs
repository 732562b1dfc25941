//! What opening a tap device would say, as far as that can be known without opening or creating it.
//!
//! Source: `tun_set_iff` and `tun_not_capable` of Linux drivers/net/tun.c. What they look at is told by
//! /sys/class/net alone, which may show another network namespace: then it is left to the opening.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::geteuid;

use super::NetError;
use super::interface::{self, Kind};
use super::tap::{busy, open_tun, refused};

/// The bit of CAP_NET_ADMIN (capability.h).
const NET_ADMIN: u32 = 12;

/// Refuses a tap device that could not be opened with this many queues; gives what keeps it busy.
pub(super) fn tap(name: &str, queues: u16) -> Result<Option<NetError>, NetError> {
    interface::request(name).map_err(|_| NetError::Name)?;
    let index = interface::index(name)?;
    // A descriptor without a device: nothing has happened when it is closed.
    open_tun().map_err(NetError::of_tun)?;
    let errno = |errno| {
        let error = io::Error::from_raw_os_error(errno);
        Err(refused(name, queues, index.is_none(), error))
    };
    let Some(index) = index else {
        return if may_administer() {
            Ok(None)
        } else {
            errno(libc::EPERM)
        };
    };
    if interface::kind(name) != Kind::Tap {
        return errno(libc::EINVAL);
    }
    let network = Path::new("/sys/class/net").join(name);
    let read = |file| fs::read_to_string(network.join(file)).ok();
    let number = |file| read(file).and_then(|text| text.trim().parse::<u32>().ok());
    if number("ifindex") != Some(index) {
        return Ok(None);
    }
    let flags = read("tun_flags");
    let flags =
        flags.and_then(|text| i32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    if flags.is_some_and(|flags| (flags & libc::IFF_MULTI_QUEUE != 0) != (queues > 1)) {
        return errno(libc::EINVAL);
    }
    match number("owner") {
        Some(owner) if owner != geteuid().as_raw() && !may_administer() => errno(libc::EPERM),
        // One with several queues has room for others.
        _ if queues > 1 => Ok(None),
        _ => Ok(busy(name)),
    }
}

/// Whether this process has CAP_NET_ADMIN (proc_pid_status(5)).
fn may_administer() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> NET_ADMIN & 1 == 1)
}
