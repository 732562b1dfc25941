//! The bounded buffer between a guest's console and whoever reads it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::lock;

/// Bytes kept for [`OutputRing::tail`] after they were read.
/// A kernel's panic with its call trace has about three thousand.
const HISTORY: usize = 8192;

#[derive(Debug)]
struct State {
    bytes: VecDeque<u8>,
    history: VecDeque<u8>,
    capacity: usize,
    /// The position of the first byte in all that was ever written.
    position: u64,
    dropped: u64,
    /// The next byte wakes the reader.
    armed: bool,
}

/// A bounded buffer that a guest fills and a main loop empties; clones share it.
///
/// Writing never waits and never fails: when the reader is too slow, the oldest bytes go. The reader is
/// woken by the first byte after [`Self::arm`] and when half of the buffer is full, so that one who
/// comes by itself now and then costs the writer no wake-ups.
#[derive(Debug, Clone)]
pub struct OutputRing(Arc<(Mutex<State>, EventFd)>);

impl OutputRing {
    /// A ring of `capacity` bytes; `wake` is written for the first byte, and as often as the reader asks.
    #[must_use]
    pub fn new(capacity: usize, wake: EventFd) -> Self {
        let state = State {
            bytes: VecDeque::new(),
            history: VecDeque::new(),
            capacity: capacity.max(1),
            position: 0,
            dropped: 0,
            armed: true,
        };
        Self(Arc::new((Mutex::new(state), wake)))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.0.0)
    }

    /// Copies the oldest bytes to `buffer`; says how many, and the position of the first in all
    /// that was ever written. They stay until [`Self::consume`].
    #[must_use]
    pub fn peek(&self, buffer: &mut [u8]) -> (usize, u64) {
        let state = self.state();
        let len = buffer.len().min(state.bytes.len());
        for (to, from) in buffer.iter_mut().zip(&state.bytes) {
            *to = *from;
        }
        (len, state.position)
    }

    /// Removes everything before a position; what was dropped meanwhile is gone already.
    pub fn consume(&self, position: u64) {
        let mut state = self.state();
        let read = position.saturating_sub(state.position);
        let read =
            usize::try_from(read).map_or(state.bytes.len(), |read| read.min(state.bytes.len()));
        state.bytes.drain(..read);
        state.position = state.position.saturating_add(read as u64);
    }

    /// Asks to be woken by the next byte. `false` when there are bytes already: then none will wake.
    #[must_use]
    pub fn arm(&self) -> bool {
        let mut state = self.state();
        state.armed = state.bytes.is_empty();
        state.armed
    }

    /// Whether everything was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state().bytes.is_empty()
    }

    /// The last 8 KiB ever written, as text.
    #[must_use]
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.state().history.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many bytes wait to be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state().bytes.len()
    }

    /// How many bytes were lost to a slow reader.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }
}

/// Appends and drops the oldest beyond `capacity`; says how many.
fn push(queue: &mut VecDeque<u8>, bytes: &[u8], capacity: usize) -> usize {
    queue.extend(bytes);
    let excess = queue.len().saturating_sub(capacity);
    queue.drain(..excess);
    excess
}

impl Write for OutputRing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        let capacity = state.capacity;
        let half = capacity / 2;
        let before = state.bytes.len();
        push(&mut state.history, bytes, HISTORY);
        let dropped = push(&mut state.bytes, bytes, capacity);
        state.dropped = state.dropped.saturating_add(dropped as u64);
        state.position = state.position.saturating_add(dropped as u64);
        let fills = before <= half && state.bytes.len() > half;
        let first = !bytes.is_empty() && std::mem::take(&mut state.armed);
        drop(state);
        if first || fills {
            // The counter of a non-blocking eventfd is full only when nobody ever reads it.
            let _ = self.0.1.write(1);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

    use super::*;

    fn ring(capacity: usize) -> (OutputRing, EventFd) {
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        (OutputRing::new(capacity, wake.try_clone().unwrap()), wake)
    }

    fn drain(ring: &OutputRing) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), [0; 3]);
        while !ring.is_empty() {
            let (len, position) = ring.peek(&mut buffer);
            all.extend_from_slice(&buffer[..len]);
            ring.consume(position + len as u64);
        }
        all
    }

    #[test]
    fn r3_a_slow_reader_loses_the_oldest_bytes_and_the_writer_never_waits() {
        let (mut ring, _wake) = ring(8);
        for byte in 0..100u8 {
            ring.write_all(&[byte]).unwrap();
        }
        assert_eq!(ring.dropped(), 92);
        assert_eq!(drain(&ring), (92..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_reader_is_woken_by_the_first_byte_after_it_asked() {
        let (mut ring, wake) = ring(8);
        ring.write_all(b"").unwrap();
        assert!(wake.read().is_err());
        ring.write_all(b"ab").unwrap();
        ring.write_all(b"cd").unwrap();
        assert_eq!(wake.read().unwrap(), 1);
        assert!(!ring.arm(), "there is something to read");
        drain(&ring);
        ring.write_all(b"e").unwrap();
        assert!(wake.read().is_err(), "nobody asked");
        drain(&ring);
        assert!(ring.arm());
        ring.write_all(b"f").unwrap();
        assert_eq!(wake.read().unwrap(), 1);
    }

    #[test]
    fn a_buffer_that_fills_wakes_the_reader_once() {
        let (mut ring, wake) = ring(8);
        ring.write_all(b"a").unwrap();
        wake.read().unwrap();
        ring.write_all(b"bcd").unwrap();
        assert!(wake.read().is_err());
        for byte in b"efghijkl" {
            ring.write_all(&[*byte]).unwrap();
        }
        assert_eq!(wake.read().unwrap(), 1);
    }

    #[test]
    fn what_is_dropped_between_a_look_and_its_end_is_not_removed_twice() {
        let (mut ring, _wake) = ring(8);
        ring.write_all(b"01234567").unwrap();
        let mut buffer = [0; 4];
        assert_eq!(ring.peek(&mut buffer), (4, 0));
        ring.write_all(b"ab").unwrap();
        ring.consume(4);
        assert_eq!(drain(&ring), b"4567ab");
        ring.write_all(b"0123456789").unwrap();
        ring.consume(1);
        assert_eq!(drain(&ring), b"23456789");
    }

    #[test]
    fn the_tail_outlives_the_reading_and_a_look_removes_nothing() {
        let (mut ring, _wake) = ring(8);
        ring.write_all(b"hello").unwrap();
        assert_eq!(ring.peek(&mut [0; 9]), (5, 0));
        assert_eq!(drain(&ring), b"hello");
        assert_eq!(ring.tail(), "hello");
        for _ in 0..1000 {
            ring.write_all(b"0123456789").unwrap();
        }
        assert_eq!(ring.tail().len(), HISTORY);
    }
}
