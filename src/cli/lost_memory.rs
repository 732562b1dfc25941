//! Guest memory that is a file of a saved VM may lose pages: the file was cut, or its disk fails. Nobody can go on then,
//! but the process says so before it ends.

use std::os::fd::BorrowedFd;

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;
use vmm_reference::Error;

use super::signals::signal_error;
use super::terminal;

const SAID: &[u8] = b"error: guest memory is lost: the file that the VM was restored from was cut, or its disk fails
  cure: restore the VM again, from a whole copy\n";

/// The status of a failure of the VMM.
const STATUS: i32 = 1;

/// Has the process end so.
pub(super) fn end_with_a_message() -> Result<(), Error> {
    let end = || {
        // SAFETY: nobody closes stdin. std's own has a lock.
        terminal::restore_at_once(unsafe { BorrowedFd::borrow_raw(libc::STDIN_FILENO) });
        // SAFETY: both system calls are fine in a signal handler; the text is as long as it is said to be.
        unsafe {
            libc::write(libc::STDERR_FILENO, SAID.as_ptr().cast(), SAID.len());
            libc::_exit(STATUS)
        }
    };
    // SAFETY: the handler makes system calls only, takes no lock and does not return.
    let registered = unsafe { low_level::register(SIGBUS, end) };
    registered.map(drop).map_err(signal_error)
}
