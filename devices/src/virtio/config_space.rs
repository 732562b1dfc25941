//! The configuration space of a device, which it shares with its transport.

use std::ops::Range;
use std::sync::Mutex;

use crate::lock;

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// What the driver may write.
    writable: Range<usize>,
    generation: u32,
}

/// A configuration space (VIRTIO 1.3, 2.5): any access is legal, what lies outside reads as zero.
#[derive(Debug, Default)]
pub struct ConfigSpace(Mutex<State>);

impl ConfigSpace {
    /// These bytes, of which the driver may write a range.
    #[must_use]
    pub fn new(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self(Mutex::new(State {
            bytes,
            writable,
            generation: 0,
        }))
    }

    /// The driver reads.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.0);
        data.fill(0);
        let rest = usize::try_from(offset)
            .ok()
            .and_then(|offset| state.bytes.get(offset..));
        for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// The driver writes. What it may not write stays.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut state = lock(&self.0);
        let Ok(offset) = usize::try_from(offset) else {
            return;
        };
        let writable = state.writable.clone();
        let places = state.bytes.iter_mut().enumerate();
        for ((place, to), from) in places.skip(offset).zip(data) {
            if writable.contains(&place) {
                *to = *from;
            }
        }
    }

    /// The device changes a part; drivers see by the generation that they have to read again.
    pub fn update(&self, offset: usize, data: &[u8]) {
        let mut state = lock(&self.0);
        for (to, from) in state.bytes.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
        state.generation = state.generation.wrapping_add(1);
    }

    /// A device that goes on after it was saved shows this in a part; drivers have seen it.
    pub fn load(&self, offset: usize, data: &[u8]) {
        let mut state = lock(&self.0);
        for (to, from) in state.bytes.iter_mut().skip(offset).zip(data) {
            *to = *from;
        }
    }

    /// And was changed so often.
    pub(super) fn set_generation(&self, generation: u32) {
        lock(&self.0).generation = generation;
    }

    /// How often the device has changed it.
    #[must_use]
    pub fn generation(&self) -> u32 {
        lock(&self.0).generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_writes_its_part_only_and_the_device_counts_its_changes() {
        let space = ConfigSpace::new(vec![1, 2, 3, 4], 1..3);
        space.write(0, &[9, 9, 9, 9, 9]);
        let mut all = [7; 6];
        space.read(0, &mut all);
        assert_eq!((all, space.generation()), ([1, 9, 9, 4, 0, 0], 0));
        space.update(3, &[5, 6]);
        space.read(2, &mut all);
        assert_eq!((all, space.generation()), ([9, 5, 0, 0, 0, 0], 1));
        space.write(u64::MAX, &[1]);
        space.read(u64::MAX, &mut all);
        assert_eq!(all, [0; 6]);
    }
}
