//! Asks for Landlock's version. Unsafe, because no crate that is used here knows this system call.

use std::io;

/// `LANDLOCK_CREATE_RULESET_VERSION` of include/uapi/linux/landlock.h: asks, and makes no rule set.
const VERSION: libc::c_uint = 1;

/// The version of Landlock's ABI.
pub(super) fn abi() -> io::Result<libc::c_long> {
    // SAFETY: with this flag the call takes a null pointer and the size 0, and reads no memory.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0usize,
            VERSION,
        )
    };
    if version < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(version)
}
