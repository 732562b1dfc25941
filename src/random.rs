//! Random bytes from the host's kernel.

use rustix::rand::{GetRandomFlags, getrandom};

use crate::Error;

/// As many as a guest gets at once: getrandom fills up to 256 bytes, or fails.
pub(crate) fn random<const LEN: usize>() -> Result<[u8; LEN], Error> {
    const { assert!(LEN <= 256) };
    let mut bytes = [0; LEN];
    let filled = getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| Error::host("cannot get random bytes")(errno.into()))?;
    debug_assert_eq!(filled, LEN);
    Ok(bytes)
}
