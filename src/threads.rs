//! Threads that were there and have to be there again.

use std::io;
use std::thread;
use std::time::Duration;

/// A thread may be refused this often, with a pause in between, before it counts.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Starts a thread, and tries again where the host refuses it because there are too many just now (EAGAIN).
pub(crate) fn patiently<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut attempt = 1;
    loop {
        match start() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < ATTEMPTS => {
                attempt += 1;
                thread::sleep(PAUSE);
            }
            started => return started,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_now_is_tried_again_and_other_refusals_count() {
        let mut calls = 0;
        let started = patiently(|| {
            calls += 1;
            if calls < 3 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(calls)
        });
        assert_eq!(started.unwrap(), 3);
        let refused = patiently(|| Err::<(), _>(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mut calls = 0;
        let refused = patiently(|| {
            calls += 1;
            Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock))
        });
        assert!(refused.is_err());
        assert_eq!(calls, ATTEMPTS);
    }
}
