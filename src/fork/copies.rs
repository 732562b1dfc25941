//! The disks of a fork that are copied, by a thread of its own while the machine stands still.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::order::Order;
use super::told::Told;
use crate::confinement::ThreadRole;
use crate::control::handle::VmHandle;
use crate::control::saving::{CopiedDisk, SavingStatus};
use crate::snapshot::disk::Copying;
use crate::snapshot::progress::Progress;
use crate::snapshot::saving::{Tells, cancel};

/// Disks that are copied.
#[derive(Debug)]
pub(crate) struct Copies {
    thread: JoinHandle<io::Result<Vec<CopiedDisk>>>,
    progress: Arc<Progress>,
    len: u64,
    pub(crate) order: Order,
    pub(crate) told: Told,
}

impl Copies {
    /// Begins; the main loop is told of the end.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub(crate) fn new(
        mut copies: Vec<Copying>,
        order: Order,
        told: Told,
        handle: VmHandle,
    ) -> io::Result<Self> {
        let progress = Arc::new(Progress::default());
        let len = copies.iter().map(|copying| copying.len).sum();
        let threads = handle.confined().threads(ThreadRole::Snapshot);
        let tells = Tells::new(Arc::clone(&progress), handle);
        let thread = threads.spawn("snapshot", "copies", move || {
            let mut place = 0;
            let mut copied = Vec::new();
            for copying in &mut copies {
                copied.push(copying.run(place, tells.progress())?);
                place += copying.len;
            }
            Ok(copied)
        })?;
        Ok(Self {
            thread,
            progress,
            len,
            order,
            told,
        })
    }

    pub(crate) fn status(&self) -> SavingStatus {
        SavingStatus {
            done_bytes: self.progress.done(),
            total_bytes: self.len,
        }
    }

    /// Whether nothing is left to wait for.
    pub(crate) fn is_over(&self) -> bool {
        self.progress.is_over()
    }

    /// Waits for the end.
    pub(crate) fn finish(self) -> (Order, Told, io::Result<Vec<CopiedDisk>>) {
        let copied = self.thread.join();
        let copied = copied.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        (self.order, self.told, copied)
    }

    /// Nobody wants it any more.
    pub(crate) fn cancel(self) {
        cancel(&self.thread, &self.progress);
    }
}
