//! The way of a request through the disk: begun as far as room and limits allow, done by io_uring or here, answered.

use std::io;

use rustix::fs::fdatasync;
use rustix::io::retry_on_intr;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vm_memory::Bytes;

use super::bounds::{MOST_IN_FLIGHT, MOST_MOVED, STEP};
use super::counts::{Answer, Kind};
use super::request::{Job, Parsed, Refusal, Request};
use super::{Block, Tell};
use crate::virtio::iovec::Direction;
use crate::virtio::{QueueError, Queues, Ring};

impl Block {
    /// Begins what a queue has, as far as there is room and the limits allow it. Says whether there
    /// may be more.
    pub(super) fn pull(&mut self, queue: usize, queues: &mut Queues) -> Result<bool, QueueError> {
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
    pub(super) fn sync(&mut self) -> io::Result<()> {
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
    pub(super) fn reap(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
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

/// Whether an error comes from the host's kernel, and not from what the driver asks for.
fn is_the_host_s(error: &io::Error) -> bool {
    error.raw_os_error().is_some() || error.kind() != io::ErrorKind::Other
}
