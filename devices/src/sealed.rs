//! Whether this process can open anything by a path any more. One in a sandbox cannot, and does not try: not even what
//! would only say more in a message.

use std::sync::atomic::{AtomicBool, Ordering};

static SEALED: AtomicBool = AtomicBool::new(false);

/// From now on it cannot, for good.
pub fn seal() {
    SEALED.store(true, Ordering::Relaxed);
}

/// Whether it cannot.
#[must_use]
pub fn is_sealed() -> bool {
    SEALED.load(Ordering::Relaxed)
}
