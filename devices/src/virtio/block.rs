//! The block device (VIRTIO 1.3, 5.2), on a file or a block device of the host.
//!
//! The format is raw and never guessed from content. Requests are parsed from the chain's sizes,
//! not from what the header claims; whatever the guest asks for beyond the disk is an I/O error.
//!
//! Reads, writes and flushes go to the host's kernel straight on the guest's buffers, through
//! io_uring or one by one; what is rare (discard, zeroes) is done at once.

mod acl;
mod bounds;
mod counts;
mod erase;
mod error;
mod facts;
mod file;
mod lock;
mod parse;
mod replace;
mod request;
mod saved;
mod serve;
mod shape;
mod sys;
mod uring;

use std::fmt;
use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use self::bounds::MAX_IN_FLIGHT;
use self::counts::{Clock, Counts, Kind};
pub use self::error::BlockError;
use self::file::Opened;
use self::uring::Uring;
use super::iovec::Vectors;
use super::limit::Limiter;
use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, VirtioDevice};
use crate::config::{BlkConfig, BlkEngine};
use crate::descriptor::DiskFile;
use crate::state::{StateError, VirtioDeviceState};
use crate::{Change, ChangeError, Rare};

/// Disks for which there was no io_uring.
static FELL_BACK: Rare = Rare::new();

struct Tell(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Tell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tell").finish_non_exhaustive()
    }
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    // Before the files: what is in flight ends first.
    uring: Option<Uring>,
    file: File,
    /// For requests that are not aligned as direct I/O asks.
    buffered: Option<File>,
    /// What direct I/O asks of memory and of places.
    alignment: u32,
    /// Bytes in the file when it was opened.
    size: u64,
    /// What the rest of the last sector reads as, where the file ends in the middle of it.
    zeros: Option<File>,
    sectors: u64,
    /// Bytes of a logical block.
    block: u32,
    read_only: bool,
    discard: bool,
    /// Others are kept away, from the next file too.
    lock: bool,
    /// For messages.
    path: PathBuf,
    serial: String,
    queues: u16,
    queue_size: u16,
    config: Arc<ConfigSpace>,
    limiter: Limiter,
    /// Bytes of zeroes that the request had to write itself.
    zeroed: u64,
    /// Bytes that the request has discarded or zeroed.
    erased: u64,
    /// What the request is.
    kind: Kind,
    /// Bytes that were moved without io_uring so far, or would have been in the time that other work
    /// took.
    moved: u64,
    /// The queue whose turn it is first when there is room again.
    turn: usize,
    /// The driver knows no flush: every write has to reach the disk.
    write_through: bool,
    chain: Chain,
    vectors: Vectors,
    errors: Rare,
    counts: Counts,
    clock: Clock,
    /// Whom to tell of the first request.
    first_request: Option<Tell>,
}

impl Block {
    /// Finds out whether a disk can be opened, without locking it for longer than a look takes. Gives what
    /// somebody else who has it keeps this one from, as long as that is so.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn check(config: &BlkConfig) -> Result<Option<BlockError>, BlockError> {
        Opened::new(config)?.in_use(config)
    }

    /// Opens a disk and locks it: one writer, or any number of readers.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn open(config: &BlkConfig) -> Result<Self, BlockError> {
        Self::with(Opened::new(config)?, config)
    }

    /// The same with a file that is open already, and has the configured path for a name.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn on(file: DiskFile, config: &BlkConfig) -> Result<Self, BlockError> {
        Self::with(Opened::of(file, config)?, config)
    }

    fn with(opened: Opened, config: &BlkConfig) -> Result<Self, BlockError> {
        let Opened {
            file,
            buffered,
            alignment,
            shape,
        } = opened.lock(config)?;
        let zeros = shape.zeros()?;
        let queues = config.queues.max(1);
        let queue_size = config.queue_size.max(2);
        let capacity = usize::from(queues) * usize::from(queue_size);
        let uring = match config.engine {
            BlkEngine::Sync => None,
            // What a ring does no filter of system calls sees, so a process in a sandbox makes none: the disks of a fork
            // do without.
            BlkEngine::Auto if crate::sealed::is_sealed() => None,
            engine => match Uring::new(capacity.min(MAX_IN_FLIGHT)) {
                Ok(uring) => Some(uring),
                Err(error) => {
                    let reason = error::uring_reason(&error);
                    if engine == BlkEngine::IoUring {
                        return Err(BlockError::Uring { reason });
                    }
                    // Once for all disks.
                    if FELL_BACK.again() == Some(1) {
                        log::warn!(
                            "io_uring is refused: {reason}; the disks' requests are done one by one, \
                             which engine=sync asks for without this warning"
                        );
                    }
                    None
                }
            },
        };
        let counts = Counts::default();
        let mut block = Self {
            uring,
            buffered,
            alignment,
            size: shape.size,
            zeros,
            sectors: shape.sectors,
            block: shape.block,
            read_only: config.read_only,
            discard: config.discard,
            lock: config.lock,
            path: config.path.clone(),
            serial: config.serial.clone(),
            queues,
            queue_size,
            config: Arc::new(ConfigSpace::new(Vec::new(), 0..0)),
            limiter: Limiter::new(&config.limits, &counts.monitor)?,
            zeroed: 0,
            erased: 0,
            kind: Kind::Other,
            moved: 0,
            turn: 0,
            write_through: false,
            chain: Chain::default(),
            vectors: Vectors::default(),
            errors: Rare::default(),
            counts,
            clock: Clock::default(),
            first_request: None,
            file,
        };
        block.config = Arc::new(ConfigSpace::new(block.describe(&shape), 0..0));
        block.tell();
        Ok(block)
    }

    /// Calls `tell` when the first request comes.
    pub fn on_first_request(&mut self, tell: impl FnOnce() + Send + 'static) {
        self.first_request = Some(Tell(Box::new(tell)));
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        if self.read_only {
            return features | 1 << VIRTIO_BLK_F_RO;
        }
        if self.discard {
            features |= 1 << VIRTIO_BLK_F_DISCARD;
        }
        features | 1 << VIRTIO_BLK_F_WRITE_ZEROES
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; self.queues.into()]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.counts.monitor)
    }

    /// Whatever comes first: an end of a request, or the time of the next one.
    fn sources(&self) -> Vec<RawFd> {
        let ends = self.uring.iter().map(Uring::event);
        ends.chain([self.limiter.timer()]).collect()
    }

    fn start(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        self.clock.turn();
        self.reap(queues)?;
        let mut more = false;
        match event {
            Event::Queue(queue) => more = self.pull(queue, queues)?,
            // There is room again, or time has passed: any queue may have waited for it.
            Event::Source(_) => {
                self.limiter.woken();
                // The first may take all there is, and then it is the next one's turn.
                let count = usize::from(self.queues);
                let first = self.turn.min(count);
                for queue in (first..count).chain(0..first) {
                    more |= self.pull(queue, queues)?;
                }
            }
        }
        if let Some(uring) = &mut self.uring {
            uring.submit();
            more |= uring.is_behind();
            // The kernel may have done some of it meanwhile.
            self.clock.turn();
        }
        self.reap(queues)?;
        queues.publish()?;
        Ok(more)
    }

    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        while let Some(uring) = self.uring.as_mut().filter(|uring| uring.is_busy()) {
            uring.wait();
            self.clock.turn();
            self.reap(queues)?;
        }
        queues.publish()
    }

    fn sync(&self) -> Result<(), StateError> {
        self.bring_to_disk()
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        self.state()
    }

    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        self.set_state(state, runs)
    }

    fn file(&self) -> Result<DiskFile, ChangeError> {
        self.file_again()
    }

    fn change(&mut self, change: &Change, _: Option<&Queues>) -> Result<(), ChangeError> {
        self.limiter.carry_out(change)
    }

    fn replace_file(
        &mut self,
        file: DiskFile,
        name: &str,
        queues: Option<&mut Queues>,
    ) -> Result<(), ChangeError> {
        self.replace(file, name, queues)
    }

    fn stop(&mut self) {
        if let Some(uring) = &mut self.uring {
            uring.drain();
        }
        self.limiter.stop();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
