//! The block device (VIRTIO 1.3, 5.2), on a file or a block device of the host.
//!
//! The format is raw and never guessed from content. Requests are parsed from the chain's sizes,
//! not from what the header claims; whatever the guest asks for beyond the disk is an I/O error.
//!
//! Reads, writes and flushes go to the host's kernel straight on the guest's buffers, through
//! io_uring or one by one; what is rare (discard, zeroes) is done at once.

mod acl;
mod counts;
mod erase;
mod error;
mod facts;
mod file;
mod lock;
mod parse;
mod replace;
mod request;
mod sys;
mod uring;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::fdatasync;
use rustix::io::retry_on_intr;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use self::counts::{Answer, Clock, Counts, Kind};
use self::erase::Erase;
pub use self::error::BlockError;
use self::file::{Opened, Shape};
use self::request::{Job, Parsed, Refusal, Request};
use self::uring::Uring;
use super::iovec::{Direction, Vectors};
use super::limit::Limiter;
use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, Ring, VirtioDevice};
use crate::config::{BlkConfig, BlkEngine};
use crate::{Change, ChangeError, Rare};

/// Disks for which there was no io_uring.
static FELL_BACK: Rare = Rare::new();

/// The unit of every size and place in a request.
const SECTOR_BYTES: u32 = 512;
const SECTOR: u64 = SECTOR_BYTES as u64;

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
        let Opened {
            file,
            buffered,
            alignment,
            shape,
        } = Opened::new(config)?.lock(config)?;
        let zeros = zeros(&shape)?;
        let queues = config.queues.max(1);
        let queue_size = config.queue_size.max(2);
        let capacity = usize::from(queues) * usize::from(queue_size);
        let uring = match config.engine {
            BlkEngine::Sync => None,
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

    /// `struct virtio_blk_config` (5.2.4) up to write_zeroes_may_unmap.
    fn describe(&self, shape: &Shape) -> Vec<u8> {
        // Header and status have buffers of their own.
        let segments = u32::from(self.queue_size.saturating_sub(2).max(1));
        let mut config = self.sectors.to_le_bytes().to_vec();
        let word = |config: &mut Vec<u8>, values: &[u32]| {
            config.extend(values.iter().copied().flat_map(u32::to_le_bytes));
        };
        // size_max, seg_max, geometry, blk_size.
        word(&mut config, &[0, segments, 0, shape.block]);
        // Topology: logical blocks in a physical one (a power of two), its offset, the least and the
        // best size of I/O in logical blocks.
        let blocks = (shape.best / shape.block).max(1);
        let exponent = u8::try_from(blocks.ilog2()).unwrap_or(0);
        let least = u16::try_from(blocks).unwrap_or(1).to_le_bytes();
        config.extend([exponent, 0, least[0], least[1], 0, 0, 0, 0]);
        // writeback, unused, num_queues.
        let queues = self.queues.to_le_bytes();
        config.extend([0, 0, queues[0], queues[1]]);
        // Discard: most sectors, most ranges, alignment. Zeroes: most sectors, most ranges, holes.
        let (sectors, ranges) = Erase::Discard.limits();
        word(&mut config, &[sectors, ranges, shape.block / SECTOR_BYTES]);
        let (sectors, ranges) = Erase::Zero.limits();
        word(&mut config, &[sectors, ranges, self.discard.into()]);
        config
    }

    /// Calls `tell` when the first request comes.
    pub fn on_first_request(&mut self, tell: impl FnOnce() + Send + 'static) {
        self.first_request = Some(Tell(Box::new(tell)));
    }

    /// Begins what a queue has, as far as there is room and the limits allow it. Says whether there
    /// may be more.
    fn pull(&mut self, queue: usize, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(ring) = queues.ring(queue) else {
            return Ok(false);
        };
        let moved = self.moved;
        for _ in 0..ring.size() {
            if self.moved.wrapping_sub(moved) > MOST_MOVED {
                return Ok(true);
            }
            let uring = self.uring.as_ref();
            let room = uring.is_none_or(|uring| uring.has_room() && uring.bytes() < MOST_IN_FLIGHT);
            let allowed = self.limiter.allows();
            if !(room && allowed) {
                match ring.has_more()? {
                    true if allowed => self.counts.monitor.stalls.add(1),
                    true => self.limiter.hold(),
                    false => {}
                }
                return Ok(false);
            }
            if !ring.pop(&mut self.chain)? {
                return Ok(false);
            }
            self.begin(queue, ring)?;
            self.turn = queue + 1;
        }
        Ok(true)
    }

    /// Begins the request in `chain`, and ends it if it is not one for io_uring.
    fn begin(&mut self, queue: usize, ring: &mut Ring) -> Result<(), QueueError> {
        if let Some(Tell(tell)) = self.first_request.take() {
            tell();
        }
        let head = self.chain.head();
        let begun = self.clock.now();
        // The last byte that the device may write is the status. Without one there is no answer.
        let Some(status) = self.chain.take_last_byte() else {
            self.counts.of(Kind::Other).fail();
            return ring.complete(head, 0);
        };
        (self.zeroed, self.erased, self.kind) = (0, 0, Kind::Other);
        let parsed = self.parse(ring);
        let answer = Answer {
            head,
            status,
            kind: self.kind,
            begun,
        };
        self.limiter.charge(match parsed {
            Ok(Parsed::Job(_, len)) => len.into(),
            _ => self.zeroed,
        });
        let mut bytes = self.erased;
        let result = match parsed {
            Ok(Parsed::Done(written)) => Ok(written),
            Ok(Parsed::Job(job, len)) => {
                bytes = len.into();
                let request = Request {
                    queue,
                    answer,
                    len,
                    job,
                };
                let file = match (&job, &self.buffered) {
                    (
                        Job::Transfer {
                            unaligned: true, ..
                        },
                        Some(buffered),
                    ) => buffered,
                    _ => &self.file,
                };
                if let Some(uring) = &mut self.uring
                    && uring.push(request, file, ring.ram(), &mut self.vectors)
                {
                    return Ok(());
                }
                self.perform(&request, 0)
            }
            Err(refusal) => Err(refusal),
        };
        // Whatever it was, it was done now.
        self.clock.turn();
        self.end(ring, &answer, bytes, result)
    }

    /// Does a request's I/O, but for the first bytes, and waits for it.
    fn perform(&mut self, request: &Request, done: usize) -> Result<u32, Refusal> {
        self.clock.turn();
        match request.job {
            Job::Flush => self.sync()?,
            Job::Transfer {
                direction,
                offset,
                unaligned,
                durable,
            } => {
                self.moved = self.moved.wrapping_add(request.len.into());
                let file = match &self.buffered {
                    Some(buffered) if unaligned => buffered,
                    _ => &self.file,
                };
                let moved = self.vectors.transfer(file, offset, done, direction)?;
                if moved < request.len as usize {
                    self.fill(offset + moved as u64, direction)?;
                }
                if durable {
                    self.sync()?;
                }
            }
        }
        Ok(request.written())
    }

    /// The file has ended at a place: what is left in the vectors, of its last sector, reads as zeros.
    fn fill(&mut self, end: u64, direction: Direction) -> io::Result<()> {
        match &self.zeros {
            Some(zeros) if direction == Direction::Read && end >= self.size => {
                self.vectors.transfer(zeros, 0, 0, direction).map(drop)
            }
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Brings everything to the disk.
    fn sync(&mut self) -> io::Result<()> {
        self.moved = self.moved.wrapping_add(STEP);
        Ok(retry_on_intr(|| fdatasync(&self.file))?)
    }

    /// Answers a request that has moved so many bytes, if it did not fail.
    fn end(
        &mut self,
        ring: &mut Ring,
        answer: &Answer,
        bytes: u64,
        result: Result<u32, Refusal>,
    ) -> Result<(), QueueError> {
        let bytes = result.is_ok().then_some(bytes);
        self.counts.answered(answer, bytes, self.clock.now());
        let (code, written) = match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Io(error)) => {
                if is_the_host_s(&error) {
                    self.counts.monitor.notices.host_error(&error);
                }
                if let Some(times) = self.errors.again() {
                    let path = self.path.display();
                    log::warn!("the disk {path} failed, {times} times so far: {error}");
                }
                (VIRTIO_BLK_S_IOERR, 0)
            }
        };
        let code = u8::try_from(code).unwrap_or(u8::MAX);
        ring.ram().write_obj(code, answer.status)?;
        ring.complete(answer.head, written.saturating_add(1))
    }

    /// Answers what io_uring has ended.
    fn reap(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        while let Some((request, result)) = self
            .uring
            .as_mut()
            .and_then(|uring| uring.take_ended(&mut self.vectors))
        {
            let result = match result {
                Ok(moved) if moved == request.len as usize => Ok(request.written()),
                // Cut short, by a signal or at the end of the file: the rest will tell.
                Ok(moved) => self.perform(&request, moved),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                    ) =>
                {
                    self.perform(&request, 0)
                }
                Err(error) => Err(error.into()),
            };
            if let Some(ring) = queues.ring(request.queue) {
                self.end(ring, &request.answer, request.len.into(), result)?;
            }
        }
        Ok(())
    }
}

/// For the rest of a last sector that the file has only a part of.
fn zeros(shape: &Shape) -> io::Result<Option<File>> {
    (shape.sectors * SECTOR > shape.size)
        .then(|| File::open("/dev/zero"))
        .transpose()
}

/// Whether an error comes from the host's kernel, and not from what the driver asks for.
fn is_the_host_s(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.kind() != io::ErrorKind::Other
}

/// Most requests at once.
const MAX_IN_FLIGHT: usize = 1024;
/// With so many bytes in flight no request begins: a reset waits for them.
const MOST_IN_FLIGHT: u64 = 256 << 20;
/// What a call that moves no data may take of the host's time, in bytes that could have been moved.
const STEP: u64 = 8 << 20;
/// After so many bytes without io_uring other events have their turn, the end among them.
const MOST_MOVED: u64 = 64 << 20;

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

    fn change(&mut self, change: &Change, _: Option<&Queues>) -> Result<(), ChangeError> {
        match change {
            Change::Limits(limits) => {
                self.limiter.change(limits);
                Ok(())
            }
            _ => Err(ChangeError::Foreign),
        }
    }

    fn replace_file(
        &mut self,
        file: OwnedFd,
        name: &str,
        queues: Option<&mut Queues>,
    ) -> Result<(), ChangeError> {
        self.replace(file.into(), name, queues)
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
