//! Guest memory of a restored VM may lose pages: its file was cut, that file's disk fails, or who brings them is gone.
//! Nobody can go on then, but the process says so before it ends.

use signal_hook::consts::SIGBUS;
use signal_hook::low_level;
use vmm_reference::{Error, SavedMemory};

use super::signals::signal_error;
use super::terminal;

const OF_FILE: &[u8] = b"error: guest memory is lost: the file that the VM was restored from was cut, or its disk fails
  cure: restore the VM again, from a whole copy\n";

const OF_HANDLER: &[u8] =
    b"error: guest memory is lost: the handler of its page faults is gone, or does not answer
  cure: restore the VM again, with a handler that lives as long as it\n";

/// The status of a failure of the VMM.
const STATUS: i32 = 1;

/// Has the process end so.
pub(super) fn end_with_a_message(memory: &SavedMemory) -> Result<(), Error> {
    let said = match memory {
        SavedMemory::Uffd(_) => OF_HANDLER,
        _ => OF_FILE,
    };
    let end = move || {
        terminal::restore_at_once();
        // SAFETY: both system calls are fine in a signal handler; the text is as long as it is said to be.
        unsafe {
            libc::write(libc::STDERR_FILENO, said.as_ptr().cast(), said.len());
            libc::_exit(STATUS)
        }
    };
    // SAFETY: the handler makes system calls only, takes no lock and does not return.
    let registered = unsafe { low_level::register(SIGBUS, end) };
    registered.map(drop).map_err(signal_error)
}
