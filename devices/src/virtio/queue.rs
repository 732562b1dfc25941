//! The split virtqueue, as the device sees it (VIRTIO 1.3, 2.7).
//!
//! The queue's registers and their validation are virtio-queue's [`Queue`]; walking the rings is
//! ours: a chain that breaks a rule is an error and not the end of the chain, completions of a
//! batch are published at once, and both directions of notification are suppressed where the
//! driver allows it. Everything in guest memory is hostile: it may change at any time, so each field
//! is read once, and every loop is bounded.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use crate::state::QueueProgress;

/// Guest memory as devices see it.
pub type GuestRam = GuestMemoryMmap<()>;

/// Buffers of one chain. The most that the kernel takes in one call (IOV_MAX).
pub(super) const MAX_BUFFERS: usize = 1024;
/// Bytes of a descriptor.
const DESCRIPTOR_BYTES: u32 = 16;
const DESCRIPTOR: u64 = DESCRIPTOR_BYTES as u64;
/// Descriptor flags: another one follows; the device writes; the buffer holds descriptors.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: no interrupts, please.
const NO_INTERRUPT: u16 = 1;
/// Flag of the used ring: no notifications, please.
const NO_NOTIFY: u16 = 1;

/// How a driver broke the rules of a queue. The device needs a reset then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The queue is not ready, or its parts do not lie in RAM.
    #[error("the queue is not set up")]
    NotReady,
    /// More entries are available than the queue has.
    #[error("{0} entries are available, more than the queue has")]
    Overrun(u16),
    /// A descriptor's number is beyond its table.
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    /// A chain is longer than any can be.
    #[error("a chain has more than {MAX_BUFFERS} buffers, or a loop")]
    TooLong,
    /// An indirect table of a wrong size, or inside another.
    #[error("an indirect table of {0} bytes, or one in another")]
    Indirect(u32),
    /// A buffer that the device reads after one that it writes.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// A buffer outside RAM.
    #[error("a buffer of {len} bytes at {address:#x} is not RAM")]
    Outside {
        /// Its address.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// Guest memory could not be accessed.
    #[error("the queue's memory cannot be accessed")]
    Memory(#[from] GuestMemoryError),
}

/// A part of guest memory that the driver gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is.
    pub address: GuestAddress,
    /// Its length in bytes; 0 is legal.
    pub len: u32,
}

/// One request of the driver: what the device reads, then what it writes. All of it is RAM.
#[derive(Debug, Default)]
pub struct Chain {
    head: u16,
    buffers: Vec<Buffer>,
    readable: usize,
}

impl Chain {
    /// The number that gives it back to the driver.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device reads.
    #[must_use]
    pub fn readable(&self) -> &[Buffer] {
        self.buffers.get(..self.readable).unwrap_or_default()
    }

    /// What the device writes.
    #[must_use]
    pub fn writable(&self) -> &[Buffer] {
        self.buffers.get(self.readable..).unwrap_or_default()
    }

    /// How many bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        total(self.readable())
    }

    /// How many bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        total(self.writable())
    }

    /// The address of one of the bytes that the device may write.
    #[must_use]
    pub fn writable_at(&self, mut offset: u64) -> Option<GuestAddress> {
        for buffer in self.writable() {
            if offset < u64::from(buffer.len) {
                return Some(GuestAddress(buffer.address.0.wrapping_add(offset)));
            }
            offset -= u64::from(buffer.len);
        }
        None
    }

    /// Reads the first bytes of what the device reads, however they are cut, and takes them off.
    /// `false` when there are less.
    ///
    /// # Errors
    /// When guest memory cannot be read.
    pub fn read(&mut self, ram: &GuestRam, bytes: &mut [u8]) -> Result<bool, QueueError> {
        let mut rest = bytes;
        for buffer in self.buffers.iter_mut().take(self.readable) {
            let (part, after) = rest.split_at_mut(rest.len().min(buffer.len as usize));
            ram.read_slice(part, buffer.address)?;
            let len = u32::try_from(part.len()).unwrap_or(buffer.len);
            buffer.address = GuestAddress(buffer.address.0.wrapping_add(u64::from(len)));
            buffer.len -= len;
            rest = after;
        }
        Ok(rest.is_empty())
    }

    /// Writes to the first bytes of what the device writes, however they are cut, and takes them
    /// off; gives how many fit.
    ///
    /// # Errors
    /// When guest memory cannot be written.
    pub fn write(&mut self, ram: &GuestRam, bytes: &[u8]) -> Result<u32, QueueError> {
        let (mut rest, mut written) = (bytes, 0);
        for buffer in self.buffers.iter_mut().skip(self.readable) {
            let (part, after) = rest.split_at(rest.len().min(buffer.len as usize));
            ram.write_slice(part, buffer.address)?;
            let len = u32::try_from(part.len()).unwrap_or(buffer.len);
            buffer.address = GuestAddress(buffer.address.0.wrapping_add(u64::from(len)));
            buffer.len -= len;
            written += len;
            rest = after;
        }
        Ok(written)
    }

    /// Takes the last byte off what the device writes; gives its address. `None` when there is none.
    pub fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let writable = self.buffers.get_mut(self.readable..)?;
        let last = writable.iter_mut().rfind(|buffer| buffer.len > 0)?;
        last.len -= 1;
        Some(GuestAddress(
            last.address.0.wrapping_add(u64::from(last.len)),
        ))
    }

    fn push(&mut self, buffer: Buffer, writable: bool) -> Result<(), QueueError> {
        if self.buffers.len() >= MAX_BUFFERS {
            return Err(QueueError::TooLong);
        }
        if writable {
            self.buffers.push(buffer);
        } else if self.readable == self.buffers.len() {
            self.buffers.push(buffer);
            self.readable += 1;
        } else {
            return Err(QueueError::Order);
        }
        Ok(())
    }
}

fn total(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// A descriptor as the driver wrote it.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// An activated queue.
#[derive(Debug)]
pub struct Ring {
    ram: GuestRam,
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    event_idx: bool,
    next_available: Wrapping<u16>,
    next_used: Wrapping<u16>,
    /// `next_used` when the driver was last told.
    told: Wrapping<u16>,
    /// The last look found nothing: the driver has to notify before there is more.
    dry: bool,
    /// The driver was not asked to keep quiet.
    notifying: bool,
    /// The device was told to stop: whatever the driver has queued, nothing more is begun.
    stopping: Arc<AtomicBool>,
    /// The stop comes with the so many-th chain from now on.
    #[cfg(test)]
    pub(super) stop_with: Option<u16>,
}

impl Ring {
    /// Captures a queue that the driver has set up.
    ///
    /// # Errors
    /// When it is not ready or not in RAM.
    pub fn new(queue: &Queue, ram: GuestRam) -> Result<Self, QueueError> {
        // As virtio-queue's `is_valid`, which writes to the log.
        let size = u64::from(queue.size());
        let parts = [
            (queue.desc_table(), DESCRIPTOR * size),
            (queue.avail_ring(), 6 + 2 * size),
            (queue.used_ring(), 6 + 8 * size),
        ];
        let is_ram = |(address, len): (u64, u64)| {
            usize::try_from(len).is_ok_and(|len| ram.check_range(GuestAddress(address), len))
        };
        if !queue.ready() || size == 0 || !parts.into_iter().all(is_ram) {
            return Err(QueueError::NotReady);
        }
        Ok(Self {
            size: queue.size(),
            descriptors: queue.desc_table(),
            available: queue.avail_ring(),
            used: queue.used_ring(),
            event_idx: queue.event_idx_enabled(),
            next_available: Wrapping(queue.next_avail()),
            next_used: Wrapping(queue.next_used()),
            told: Wrapping(queue.next_used()),
            dry: false,
            notifying: true,
            stopping: Arc::default(),
            #[cfg(test)]
            stop_with: None,
            ram,
        })
    }

    /// How far it is.
    pub(super) fn progress(&self) -> QueueProgress {
        QueueProgress {
            available: self.next_available.0,
            used: self.next_used.0,
            told: self.told.0,
        }
    }

    /// It is so far.
    pub(super) fn go_on_at(&mut self, progress: QueueProgress) {
        self.next_available = Wrapping(progress.available);
        self.next_used = Wrapping(progress.used);
        self.told = Wrapping(progress.told);
    }

    /// Guest memory.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Who stops the device sets this flag.
    pub(super) fn heed(&mut self, stopping: &Arc<AtomicBool>) {
        self.stopping = Arc::clone(stopping);
    }

    /// Whether the device was told to stop: of a request that takes many steps, no further one begins.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn load(&self, base: u64, offset: u64) -> Result<u16, QueueError> {
        let address = GuestAddress(base.wrapping_add(offset));
        Ok(u16::from_le(self.ram.load(address, Ordering::Relaxed)?))
    }

    fn store(&self, base: u64, offset: u64, value: u16, order: Ordering) -> Result<(), QueueError> {
        let address = GuestAddress(base.wrapping_add(offset));
        Ok(self.ram.store(value.to_le(), address, order)?)
    }

    /// How many chains are available.
    fn pending(&self) -> Result<u16, QueueError> {
        let pending = Wrapping(self.load(self.available, 2)?) - self.next_available;
        // What the index announces was written before it.
        fence(Ordering::Acquire);
        if pending.0 > self.size {
            return Err(QueueError::Overrun(pending.0));
        }
        Ok(pending.0)
    }

    fn slot(&self, index: Wrapping<u16>) -> u64 {
        u64::from(index.0 % self.size)
    }

    /// Fetches the next chain; `false` when there is none, or the device was told to stop. The driver
    /// need not notify while the device is looking anyway.
    ///
    /// # Errors
    /// When the driver broke a rule.
    pub fn pop(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.is_stopping() {
            return Ok(false);
        }
        self.dry = self.pending()? == 0;
        if self.dry {
            return Ok(false);
        }
        self.disable_notifications()?;
        chain.buffers.clear();
        chain.readable = 0;
        chain.head = self.load(self.available, 4 + 2 * self.slot(self.next_available))?;
        self.walk(chain)?;
        self.next_available += 1;
        #[cfg(test)]
        self.stop_in_time();
        Ok(true)
    }

    /// Whether the driver has queued something that was not fetched yet.
    ///
    /// # Errors
    /// When the driver broke a rule.
    #[cfg_attr(
        not(any(feature = "virtio-blk", feature = "virtio-net", feature = "virtio-rng")),
        allow(dead_code)
    )]
    pub(super) fn has_more(&self) -> Result<bool, QueueError> {
        Ok(!self.is_stopping() && self.pending()? > 0)
    }

    #[cfg(test)]
    fn stop_in_time(&mut self) {
        if let Some(left) = &mut self.stop_with {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.stopping.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Gives the chains of the last calls of [`Self::pop`] back, as if they had not been fetched.
    pub fn undo_pop(&mut self, chains: u16) {
        self.next_available -= chains;
    }

    fn walk(&self, chain: &mut Chain) -> Result<(), QueueError> {
        let (mut table, mut entries, mut indirect) = (self.descriptors, self.size, false);
        let mut index = chain.head;
        // A chain without a loop ends before that: one step per buffer, one for the table.
        for _ in 0..=MAX_BUFFERS {
            let descriptor = self.descriptor(table, entries, index)?;
            if descriptor.flags & INDIRECT != 0 {
                let whole = descriptor.len.is_multiple_of(DESCRIPTOR_BYTES);
                let count = u16::try_from(descriptor.len / DESCRIPTOR_BYTES)
                    .ok()
                    .filter(|count| *count > 0 && whole);
                let (Some(count), false, 0) = (count, indirect, descriptor.flags & NEXT) else {
                    return Err(QueueError::Indirect(descriptor.len));
                };
                (table, entries, indirect) = (descriptor.address, count, true);
                index = 0;
                continue;
            }
            let buffer = Buffer {
                address: GuestAddress(descriptor.address),
                len: descriptor.len,
            };
            if !self.ram.check_range(buffer.address, buffer.len as usize) {
                return Err(QueueError::Outside {
                    address: descriptor.address,
                    len: descriptor.len,
                });
            }
            chain.push(buffer, descriptor.flags & WRITE != 0)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(QueueError::TooLong)
    }

    fn descriptor(&self, table: u64, entries: u16, index: u16) -> Result<Descriptor, QueueError> {
        if index >= entries {
            return Err(QueueError::Index(index));
        }
        let address = table.wrapping_add(u64::from(index) * DESCRIPTOR);
        // One read: the driver may change it meanwhile.
        let [low, high]: [u64; 2] = self.ram.read_obj(GuestAddress(address))?;
        let [len @ .., f0, f1, n0, n1] = high.to_le_bytes();
        Ok(Descriptor {
            address: u64::from_le(low),
            len: u32::from_le_bytes(len),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    /// Gives a chain back, with the number of bytes the device wrote. The driver sees it after
    /// [`Self::publish`].
    ///
    /// # Errors
    /// When the used ring cannot be written.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), QueueError> {
        let entry = [u32::from(head).to_le(), written.to_le()];
        let address = self.used.wrapping_add(4 + 8 * self.slot(self.next_used));
        self.ram.write_obj(entry, GuestAddress(address))?;
        self.next_used += 1;
        Ok(())
    }

    /// Shows the driver what was completed; says whether it wants an interrupt for it.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn publish(&mut self) -> Result<bool, QueueError> {
        let (old, new) = (self.told, self.next_used);
        if old == new {
            return Ok(false);
        }
        self.store(self.used, 2, new.0, Ordering::Release)?;
        // The driver writes its wish and then reads the index; we do the reverse.
        fence(Ordering::SeqCst);
        self.told = new;
        if !self.event_idx {
            return Ok(self.load(self.available, 0)? & NO_INTERRUPT == 0);
        }
        let event = Wrapping(self.load(self.available, 4 + 2 * u64::from(self.size))?);
        Ok(new - event - Wrapping(1) < new - old)
    }

    fn disable_notifications(&mut self) -> Result<(), QueueError> {
        // With event indices, an index that is not moved on is a wish for nothing.
        if self.notifying && !self.event_idx {
            self.store(self.used, 0, NO_NOTIFY, Ordering::Relaxed)?;
        }
        self.notifying = false;
        Ok(())
    }

    /// Asks the driver to notify, if the last look found nothing; says whether something came
    /// meanwhile, for which it will not.
    ///
    /// # Errors
    /// When the rings cannot be accessed.
    pub fn rearm(&mut self) -> Result<bool, QueueError> {
        if !self.dry {
            return Ok(false);
        }
        self.dry = false;
        self.notifying = true;
        if self.event_idx {
            let offset = 4 + 8 * u64::from(self.size);
            self.store(self.used, offset, self.next_available.0, Ordering::Relaxed)?;
        } else {
            self.store(self.used, 0, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.pending()? > 0)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
