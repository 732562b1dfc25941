//! What opening a tap device would say, as far as that can be known without opening or creating it.
//!
//! Source: `tun_set_iff` and `tun_not_capable` of Linux drivers/net/tun.c; /sys/class/net/NAME has what
//! they look at.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::geteuid;

use super::NetError;

/// The bit of CAP_NET_ADMIN (capability.h).
const NET_ADMIN: u32 = 12;

/// Refuses a tap device that could not be opened with this many queues.
pub(super) fn tap(name: &str, queues: u16) -> Result<(), NetError> {
    let network = Path::new("/sys/class/net").join(name);
    let is_new = !network.exists();
    let refuse = |error| Err(NetError::of_tap(name, queues, is_new, error));
    // A descriptor without a device: nothing has happened when it is closed.
    let device = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    if let Err(error) = device {
        return refuse(error);
    }
    let errno = |errno| refuse(io::Error::from_raw_os_error(errno));
    if is_new {
        return if may_administer() {
            Ok(())
        } else {
            errno(libc::EPERM)
        };
    }
    let read = |file| fs::read_to_string(network.join(file)).ok();
    let flags = read("tun_flags");
    let flags =
        flags.and_then(|text| i32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    let fits = flags.is_some_and(|flags| {
        let many = flags & libc::IFF_MULTI_QUEUE != 0;
        flags & libc::IFF_TAP != 0 && many == (queues > 1)
    });
    if !fits {
        return errno(libc::EINVAL);
    }
    let owner = read("owner").and_then(|text| text.trim().parse::<u32>().ok());
    match owner {
        Some(owner) if owner != geteuid().as_raw() && !may_administer() => errno(libc::EPERM),
        _ => Ok(()),
    }
}

/// Whether this process has CAP_NET_ADMIN (proc_pid_status(5)).
fn may_administer() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> NET_ADMIN & 1 == 1)
}
