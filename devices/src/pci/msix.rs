//! MSI-X: the table of messages that a driver fills in, and their way to the guest (PCI Local Bus
//! Specification 3.0, 6.8.2).
//!
//! A message that is raised while it is masked is pending and goes out when it is unmasked. Raising
//! takes no lock: the driver's side and the device's meet in two flags of each message.
//!
//! Telling the host of messages is expensive, and a driver that sets up changes each of them more
//! than once: changes are only noted until [`Msix::commit`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::state::StateError;
use crate::{Message, Rare};

/// Bytes of a table entry: address (8), data, control.
pub(crate) const TABLE_ENTRY: u64 = 16;
/// Bytes of 64 pending bits.
pub(crate) const PBA_ENTRY: u64 = 8;
/// Bit of an entry's control word.
const MASKED: u32 = 1;
/// Bits of the capability's control word.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;

/// The host's side: how messages reach the guest.
pub trait MsiSink: Send {
    /// From now on a write to `event` sends this message.
    ///
    /// # Errors
    /// When the host refuses.
    fn set(&mut self, vector: u16, event: &EventFd, message: Message) -> io::Result<()>;

    /// Makes what was set before take effect.
    ///
    /// # Errors
    /// When the host refuses; then the device has the messages it had before.
    fn commit(&mut self) -> io::Result<()>;
}

#[derive(Debug)]
struct Vector {
    event: EventFd,
    masked: AtomicBool,
    pending: AtomicBool,
}

/// The device's side of the messages.
#[derive(Debug)]
pub(crate) struct Vectors(Vec<Vector>);

impl Vectors {
    /// Sends a message, if there is one of this number; later, if it is masked.
    pub(crate) fn raise(&self, number: u16) {
        let Some(vector) = self.0.get(usize::from(number)) else {
            return;
        };
        if vector.masked.load(Ordering::SeqCst) {
            vector.pending.store(true, Ordering::SeqCst);
            // It may have been unmasked in between, by somebody who saw nothing pending.
            if !vector.masked.load(Ordering::SeqCst) {
                vector.release();
            }
        } else {
            vector.send();
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl Vector {
    fn send(&self) {
        // A full counter means that the message is on its way.
        let _ = self.event.write(1);
    }

    fn release(&self) {
        if self.pending.swap(false, Ordering::SeqCst) {
            self.send();
        }
    }
}

/// The driver's side.
pub(crate) struct Msix {
    vectors: Arc<Vectors>,
    table: Vec<[u32; 4]>,
    /// What the host knows.
    known: Vec<Option<Message>>,
    control: u16,
    sink: Box<dyn MsiSink>,
    errors: Rare,
}

impl Msix {
    /// # Errors
    /// When there can be no eventfds.
    pub(crate) fn new(count: usize, sink: Box<dyn MsiSink>) -> io::Result<Self> {
        let vectors = (0..count).map(|_| {
            Ok(Vector {
                event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
                masked: AtomicBool::new(true),
                pending: AtomicBool::new(false),
            })
        });
        Ok(Self {
            vectors: Arc::new(Vectors(vectors.collect::<io::Result<_>>()?)),
            table: vec![[0, 0, 0, MASKED]; count],
            known: vec![None; count],
            control: 0,
            sink,
            errors: Rare::default(),
        })
    }

    pub(crate) fn vectors(&self) -> Arc<Vectors> {
        Arc::clone(&self.vectors)
    }

    /// The capability's control word is this now. Says whether it was another one.
    pub(crate) fn set_control(&mut self, control: u16) -> bool {
        std::mem::replace(&mut self.control, control) != control
    }

    fn is_masked(&self, entry: &[u32; 4]) -> bool {
        self.control & (ENABLE | FUNCTION_MASK) != ENABLE || entry[3] & MASKED != 0
    }

    pub(crate) fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let bytes = self
            .table
            .iter()
            .flatten()
            .flat_map(|word| word.to_le_bytes());
        let skipped = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(bytes.skip(skipped)) {
            *to = from;
        }
    }

    /// Words and pairs of words are written, at their places (6.8.2).
    pub(crate) fn write_table(&mut self, offset: u64, data: &[u8]) {
        let (words, rest) = data.as_chunks::<4>();
        if !offset.is_multiple_of(4) || !rest.is_empty() {
            return;
        }
        let first = usize::try_from(offset / 4).unwrap_or(usize::MAX);
        for (to, from) in self.table.iter_mut().flatten().skip(first).zip(words) {
            *to = u32::from_le_bytes(*from);
        }
    }

    /// Pending bits; the driver cannot write them.
    pub(crate) fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let bit = |number: usize| {
            let vector = self.vectors.0.get(number);
            vector.is_some_and(|vector| vector.pending.load(Ordering::SeqCst))
        };
        let first = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, byte) in data.iter_mut().zip(first..) {
            let bits = (0..8).map(|place| u8::from(bit(byte.saturating_mul(8) + place)) << place);
            *to = bits.sum();
        }
    }

    /// Tells the host of what has changed, and lets out what was pending.
    pub(crate) fn commit(&mut self) {
        let mut changed = Ok(false);
        for number in 0..self.table.len() {
            let Some(entry) = self.table.get(number).copied() else {
                continue;
            };
            let Some(vector) = self.vectors.0.get(number) else {
                continue;
            };
            let masked = self.is_masked(&entry);
            let [low, high, data, _] = entry;
            let message = Message {
                address: u64::from(low) | u64::from(high) << 32,
                data,
            };
            let known = self.known.get_mut(number).filter(|_| !masked);
            if let Some(known) = known
                && *known != Some(message)
            {
                let number = u16::try_from(number).unwrap_or(u16::MAX);
                let set = self.sink.set(number, &vector.event, message);
                changed = changed.and_then(|_| set.map(|()| true));
                *known = Some(message);
            }
        }
        let result = match changed {
            Ok(true) => self.sink.commit(),
            other => other.map(drop),
        };
        if let Err(error) = result {
            // Which of them it has is not known here: all are told anew the next time.
            self.known.fill(None);
            if let Some(times) = self.errors.again() {
                log::warn!("messages of a PCI device were refused, {times} times so far: {error}");
            }
        }
        // Nothing is begun the old way once the driver's write is done, nor before the new one is there.
        for (entry, vector) in self.table.iter().zip(&self.vectors.0) {
            let masked = self.is_masked(entry);
            vector.masked.store(masked, Ordering::SeqCst);
            if !masked {
                vector.release();
            }
        }
    }

    /// The table, and the numbers of what is pending.
    pub(crate) fn save(&self) -> (Vec<[u32; 4]>, Vec<u16>) {
        let is_pending = |vector: &Vector| vector.pending.load(Ordering::SeqCst);
        let numbered = (0..).zip(&self.vectors.0);
        let pending = numbered.filter_map(|(number, vector)| is_pending(vector).then_some(number));
        (self.table.clone(), pending.collect())
    }

    /// And back. The host is told by [`Self::commit`].
    pub(crate) fn load(&mut self, table: &[[u32; 4]], pending: &[u16]) -> Result<(), StateError> {
        if table.len() != self.table.len() {
            return Err(StateError::Range("messages"));
        }
        self.table.copy_from_slice(table);
        for number in pending {
            let vector = self.vectors.0.get(usize::from(*number));
            let vector = vector.ok_or(StateError::Range("pending"))?;
            vector.pending.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// The device is reset: nothing is pending. The table is the bus's, and stays.
    pub(crate) fn forget_pending(&self) {
        for vector in &self.vectors.0 {
            vector.pending.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// What the host refuses.
    const BAD: u64 = 0xbad0_0000;

    /// The messages of a host that loses all of them when it refuses one, as the contract allows.
    #[derive(Default)]
    struct Host(Arc<Mutex<BTreeMap<u16, Message>>>);

    impl MsiSink for Host {
        fn set(&mut self, vector: u16, _: &EventFd, message: Message) -> io::Result<()> {
            self.0.lock().unwrap().insert(vector, message);
            Ok(())
        }

        fn commit(&mut self) -> io::Result<()> {
            let mut messages = self.0.lock().unwrap();
            if messages.values().any(|message| message.address == BAD) {
                messages.clear();
                return Err(io::Error::other("refused"));
            }
            Ok(())
        }
    }

    #[test]
    fn r8_what_the_host_refused_costs_the_other_messages_nothing_once_it_is_put_right() {
        let host = Host::default();
        let messages = Arc::clone(&host.0);
        let mut msix = Msix::new(2, Box::new(host)).unwrap();
        msix.set_control(ENABLE);
        let fill_in = |msix: &mut Msix, vector: u64, address: u64| {
            let [words @ .., _, _, _, _] = address.to_le_bytes();
            msix.write_table(TABLE_ENTRY * vector, &words);
            msix.write_table(TABLE_ENTRY * vector + 12, &[0; 4]);
            msix.commit();
        };
        fill_in(&mut msix, 0, 0xfee0_0000);
        fill_in(&mut msix, 1, BAD);
        assert!(messages.lock().unwrap().is_empty(), "refused");
        fill_in(&mut msix, 1, 0xfee0_1000);
        let known: Vec<_> = messages.lock().unwrap().values().copied().collect();
        let addresses: Vec<_> = known.iter().map(|message| message.address).collect();
        assert_eq!(addresses, [0xfee0_0000, 0xfee0_1000]);
    }

    #[test]
    fn r10_what_is_beyond_the_table_is_neither_read_nor_written() {
        let mut msix = Msix::new(2, Box::<Host>::default()).unwrap();
        // Half an entry, nothing of one, the end of the page.
        for (offset, inside) in [(2 * TABLE_ENTRY - 4, 4), (2 * TABLE_ENTRY, 0), (0xff8, 0)] {
            msix.write_table(offset, &[0xff; 8]);
            let mut data = [0xaa; 8];
            msix.read_table(offset, &mut data);
            assert_eq!(data[..inside], [0xff; 8][..inside], "at {offset:#x}");
            assert_eq!(data[inside..], [0; 8][inside..], "at {offset:#x}");
            assert_eq!(msix.table[0], [0, 0, 0, MASKED]);
            msix.read_pending(offset, &mut data);
            assert_eq!(data, [0; 8]);
        }
        msix.vectors().raise(2);
        msix.vectors().raise(u16::MAX);
    }
}
