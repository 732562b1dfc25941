//! The writing of a saved machine by a thread of its own: a disk may take its time, or not answer at all, and whoever asks
//! for something else meanwhile, or for the end, does not wait for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arch::GuestRam;
use devices::micros;

use super::chain::{Chain, Next};
use super::disk::Copying;
use super::memory::Content;
use super::present::Present;
use super::progress::Progress;
use super::ranges::{Ranges, total};
use super::saved::Parts;
use crate::confinement::ThreadRole;
use crate::control::answer::Answer;
use crate::control::command::CommandError;
use crate::control::handle::VmHandle;
use crate::control::saving::{CopiedDisk, SavingStatus, Written};
use crate::memory::image::MemoryImage;
use crate::memory::proc_files::ProcFiles;

/// How long the end of a VM waits for a disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(1);

pub(super) fn host(source: io::Error) -> CommandError {
    CommandError::Host {
        command: "snapshot",
        source,
    }
}

/// Where what is written of RAM goes in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// One run behind the other, without zeros.
    Behind,
    /// To its place in RAM, zeros too.
    Own,
    /// The same, after all that the file has is gone.
    OwnAnew,
}

/// What there is to write.
#[derive(Debug)]
pub(crate) struct Writing {
    pub(super) parts: Parts,
    /// The state, as it is if no disk is copied.
    pub(super) bytes: Vec<u8>,
    pub(super) ram: GuestRam,
    /// What of RAM is written.
    pub(super) runs: Ranges,
    /// Where in the file.
    pub(super) place: Place,
    /// What RAM had at first, if it is mapped to files.
    pub(super) origin: Option<Arc<MemoryImage>>,
    /// Another process brings its pages.
    pub(super) is_handled: bool,
    /// For the state, for RAM.
    pub(super) files: [File; 2],
    pub(super) copies: Vec<Copying>,
}

/// What was written.
#[derive(Debug)]
struct Done {
    /// Bytes of RAM that are no zeros.
    memory: u64,
    copies: Vec<CopiedDisk>,
}

impl Writing {
    /// Bytes of the file with RAM.
    fn memory_len(&self) -> u64 {
        match self.place {
            Place::Behind => total(&self.runs),
            Place::Own | Place::OwnAnew => self.parts.plan.ram_size(),
        }
    }

    fn write(&mut self, progress: &Progress, files: &ProcFiles) -> io::Result<Done> {
        let present = if self.is_handled {
            Present::Anywhere
        } else {
            Present::look(files)
        };
        let [state, file] = &self.files;
        let content = Content {
            ram: &self.ram,
            layout: &self.parts.memory,
            origin: self.origin.as_deref(),
            present: &present,
        };
        if self.place == Place::OwnAnew {
            file.set_len(0)?;
        }
        let memory = match self.place {
            Place::Behind => content.write(&self.runs, file, progress)?,
            Place::Own | Place::OwnAnew => content.write_in_place(&self.runs, file, progress)?,
        };
        let mut copies = Vec::new();
        let mut place = self.memory_len();
        for copying in &mut self.copies {
            copies.push(copying.run(place, progress)?);
            place += copying.len;
            copying
                .take_over(&mut self.parts)
                .map_err(io::Error::other)?;
        }
        if !copies.is_empty() {
            self.bytes = self.parts.to_bytes().map_err(io::Error::other)?;
        }
        state.write_all_at(&self.bytes, 0)?;
        state.sync_data()?;
        Ok(Done { memory, copies })
    }
}

/// Tells the main loop of the end, also of one by a panic.
pub(crate) struct Tells {
    progress: Arc<Progress>,
    handle: VmHandle,
}

impl Tells {
    pub(crate) fn new(progress: Arc<Progress>, handle: VmHandle) -> Self {
        Self { progress, handle }
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl Drop for Tells {
    fn drop(&mut self) {
        self.progress.end();
        self.handle.requested().set();
    }
}

/// A machine that is written.
#[derive(Debug)]
pub(crate) struct Saving {
    thread: JoinHandle<io::Result<Done>>,
    progress: Arc<Progress>,
    begin: Instant,
    id: String,
    /// Bytes of the file with RAM, and of the disks that are copied.
    len: u64,
    layers: u32,
    next: Option<Next>,
    /// The guest goes on afterwards.
    pub(crate) goes_on: bool,
    /// Whoever waits for it. Without it they hear that the machine has ended.
    pub(crate) answer: Option<Answer>,
}

impl Saving {
    /// Begins; the main loop is told of the end.
    pub(crate) fn new(
        mut writing: Writing,
        next: Option<Next>,
        begin: Instant,
        goes_on: bool,
        handle: VmHandle,
    ) -> Result<Self, CommandError> {
        let progress = Arc::new(Progress::default());
        let id = writing.parts.about.id.clone();
        let disks = writing.copies.iter().map(|copying| copying.len);
        let len = writing.memory_len() + disks.sum::<u64>();
        let layers = u32::try_from(writing.parts.memory.layers.len()).unwrap_or(u32::MAX);
        let tells = Tells {
            progress: Arc::clone(&progress),
            handle,
        };
        let threads = tells.handle.confined().threads(ThreadRole::Snapshot);
        let thread = threads.spawn("snapshot", "snapshot", move || {
            let written = writing.write(&tells.progress, tells.handle.proc_files());
            // It lets go of RAM before anybody hears of it.
            drop(writing);
            drop(tells);
            written
        });
        Ok(Self {
            thread: thread.map_err(host)?,
            progress,
            begin,
            id,
            len,
            layers,
            next,
            goes_on,
            answer: None,
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

    /// Waits for its end. From now on the chain knows it.
    pub(crate) fn finish(self, ram: &GuestRam, chain: &mut Chain) -> Result<Written, CommandError> {
        let written = self.thread.join();
        let written = written.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        let Done { memory, copies } = written.map_err(host)?;
        if let Some(next) = self.next {
            chain.saved(ram, &self.id, next).map_err(host)?;
        }
        Ok(Written {
            still_us: micros(self.begin.elapsed()),
            memory_bytes: memory,
            layers: self.layers,
            copies,
        })
    }

    /// Nobody wants it any more.
    pub(crate) fn cancel(self) {
        cancel(&self.thread, &self.progress);
    }
}

/// Nobody wants any more what a thread writes, which may wait for a disk.
pub(crate) fn cancel<T>(thread: &JoinHandle<T>, progress: &Progress) {
    progress.cancel();
    let begin = Instant::now();
    while !thread.is_finished() {
        if begin.elapsed() > PATIENCE {
            log::warn!(
                "the disk that the VM is saved or copied to does not answer; it is left alone"
            );
            return;
        }
        thread::sleep(LOOK);
    }
}
