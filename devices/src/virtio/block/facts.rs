//! What may be known of disks: whether the host has io_uring for them, and what was opened.

use std::io;

use super::Block;
use super::uring::Uring;

impl Block {
    /// Finds out whether disks can use io_uring on this host.
    ///
    /// # Errors
    /// What the host's kernel answers.
    pub fn has_io_uring() -> io::Result<()> {
        Uring::new(1).map(drop)
    }

    /// A line in the log.
    pub(super) fn tell(&self) {
        log::debug!(
            "opened: disk {}, {} sectors{}, {}",
            self.path.display(),
            self.sectors,
            if self.read_only { ", read-only" } else { "" },
            if self.uring.is_some() {
                "io_uring"
            } else {
                "one system call per request"
            }
        );
    }
}
