//! Disk I/O through io_uring: the requests of a batch go to the kernel in one call, and their ends come
//! back through shared memory.
//!
//! The files are not registered with the ring: the kernel lets go of registered files some time after the
//! ring's end, and until then a lock holds and a file system cannot be unmounted.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::request::{Job, Request};
use crate::virtio::GuestRam;
use crate::virtio::iovec::{Direction, Vectors};

/// A request in flight, with what the kernel reads meanwhile.
#[derive(Debug, Default)]
struct Slot {
    request: Option<Request>,
    vectors: Vectors,
}

pub(super) struct Uring {
    ring: IoUring,
    /// Written for every end; watched edge-triggered and never read.
    event: EventFd,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// The sum of the lengths of the requests in the slots.
    bytes: u64,
    /// What the requests in the slots point into, which has to outlive them.
    ram: Option<GuestRam>,
    /// Entries that the kernel has not been told of.
    waiting: bool,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

impl Uring {
    /// Room for `capacity` requests at once.
    pub(super) fn new(capacity: usize) -> io::Result<Self> {
        let entries = u32::try_from(capacity).map_err(io::Error::other)?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let ring = restricted(entries.next_power_of_two(), &event)?;
        Ok(Self {
            ring,
            event,
            slots: (0..capacity).map(|_| Slot::default()).collect(),
            free: (0..capacity).rev().collect(),
            bytes: 0,
            ram: None,
            waiting: false,
        })
    }

    /// Becomes readable when a request ends.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Bytes that the requests in flight have to move.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a request on a file, whose data lies in `vectors`, parts of `ram`; those get the content of a
    /// request that has ended. It reaches the kernel with [`Self::submit`]. `false` when there is no room.
    pub(super) fn push(
        &mut self,
        request: Request,
        file: &File,
        ram: &GuestRam,
        vectors: &mut Vectors,
    ) -> bool {
        let Some(number) = self.free.pop() else {
            return false;
        };
        let Some(slot) = self.slots.get_mut(number) else {
            return false;
        };
        std::mem::swap(&mut slot.vectors, vectors);
        let entry = match request.job {
            Job::Flush => opcode::Fsync::new(Fd(file.as_raw_fd()))
                .flags(FsyncFlags::DATASYNC)
                .build(),
            Job::Transfer {
                direction,
                offset,
                durable,
                ..
            } => transfer(&slot.vectors, file, direction, offset, durable),
        };
        slot.request = Some(request);
        self.bytes += u64::from(request.len);
        if self.ram.is_none() {
            self.ram = Some(ram.clone());
        }
        let entry = entry.user_data(number as u64);
        let mut queue = self.ring.submission();
        // SAFETY: the vectors stay in their slot, unchanged, until the request has ended; they are parts of
        // guest memory, which the ring keeps; the disk keeps its files until nothing is in flight.
        let pushed = unsafe { queue.push(&entry) };
        drop(queue);
        self.waiting = true;
        // The queue has as many entries as there are slots, and is emptied by every submission.
        debug_assert!(pushed.is_ok());
        pushed.is_ok()
    }

    /// Tells the kernel of what was pushed.
    pub(super) fn submit(&mut self) {
        if self.waiting {
            // What does not go now, for want of memory, goes with the next call.
            self.waiting = match self.ring.submit() {
                Ok(_) => !self.ring.submission().is_empty(),
                Err(_) => true,
            };
        }
    }

    /// Whether something was pushed that the kernel did not take yet.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting
    }

    /// The next request that has ended, with the bytes that were moved or the error, and its data.
    pub(super) fn take_ended(
        &mut self,
        vectors: &mut Vectors,
    ) -> Option<(Request, io::Result<usize>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let number = usize::try_from(entry.user_data()).ok()?;
            let Some(slot) = self.slots.get_mut(number) else {
                continue;
            };
            let Some(request) = slot.request.take() else {
                continue;
            };
            std::mem::swap(&mut slot.vectors, vectors);
            self.free.push(number);
            self.bytes -= u64::from(request.len);
            let result = entry.result();
            let moved = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            return Some((request, moved));
        }
    }

    /// Waits until nothing is in flight.
    pub(super) fn drain(&mut self) {
        let mut vectors = Vectors::default();
        while self.is_busy() {
            while self.take_ended(&mut vectors).is_some() {}
            if self.is_busy() {
                self.wait();
            }
        }
        self.waiting = false;
        // Another driver may come with other memory.
        self.ram = None;
    }

    /// Whether anything is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.free.len() < self.slots.len()
    }

    /// Waits until something that is in flight has ended.
    pub(super) fn wait(&mut self) {
        if let Err(error) = self.ring.submit_and_wait(1)
            && error.kind() != io::ErrorKind::Interrupted
        {
            // The kernel refuses for want of memory: there will be some.
            std::thread::yield_now();
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Guest memory may go after this.
        self.drain();
    }
}

/// A ring that takes the requests of disks and nothing else: no filter of system calls sees what goes through it.
fn restricted(entries: u32, event: &EventFd) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.dontfork();
    let (mut builder_of_disabled, event) = (builder.clone(), event.as_raw_fd());
    let ring = match builder_of_disabled.setup_r_disabled().build(entries) {
        Ok(ring) => ring,
        // Before Linux 5.10 there are no restrictions.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let ring = builder.build(entries)?;
            ring.submitter().register_eventfd(event)?;
            return Ok(ring);
        }
        Err(error) => return Err(error),
    };
    let submitter = ring.submitter();
    submitter.register_eventfd(event)?;
    let mut allowed = [
        opcode::Readv::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
    ]
    .map(Restriction::sqe_op);
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()?;
    Ok(ring)
}

fn transfer(
    vectors: &Vectors,
    file: &File,
    direction: Direction,
    offset: u64,
    durable: bool,
) -> squeue::Entry {
    let (vectors, file) = (vectors.as_slice(), Fd(file.as_raw_fd()));
    // A chain has at most as many buffers as the kernel takes.
    let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    match direction {
        Direction::Read => opcode::Readv::new(file, vectors.as_ptr(), count)
            .offset(offset)
            .build(),
        Direction::Write => opcode::Writev::new(file, vectors.as_ptr(), count)
            .offset(offset)
            .rw_flags(flags)
            .build(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_takes_the_requests_of_disks_and_no_others() {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let mut ring = match restricted(4, &event) {
            Ok(ring) => ring,
            Err(error) => return eprintln!("SKIPPED: no io_uring: {error}"),
        };
        let opened = tempfile::tempfile().unwrap();
        let file = Fd(opened.as_raw_fd());
        let flush = opcode::Fsync::new(file).build();
        let entries = [flush, opcode::Nop::new().build()];
        for (entry, expected) in entries.into_iter().zip([0, -libc::EACCES]) {
            // SAFETY: neither refers to memory, and the file is open until both have ended.
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().result(), expected);
        }
        // Nor is anything registered with it any more.
        let refused = ring.submitter().register_files(&[opened.as_raw_fd()]);
        let refused = refused.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    }
}
