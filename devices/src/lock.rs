//! The lock of a device's state. No device holds the one of another, and none waits for the guest under it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a device's state. A panic of another thread ends the VM anyway; until then the state is
/// as good as it was.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
