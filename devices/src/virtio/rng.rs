//! The entropy device (VIRTIO 1.3, 5.4): random bytes of the host's kernel.

use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, VirtioDevice};
use crate::metrics::Operation;
use crate::state::{StateError, VirtioDeviceState};

const QUEUE_SIZE: u16 = 64;
/// The most bytes of one request. The driver is told how many it got, and asks again.
const MOST: usize = 4096;

/// A source of random bytes.
#[derive(Debug)]
pub struct Rng {
    bytes: [u8; MOST],
    chain: Chain,
    monitor: Arc<Monitor>,
    reads: Arc<Operation>,
}

impl Default for Rng {
    fn default() -> Self {
        let mut monitor = Monitor::default();
        let reads = monitor.operation("read");
        Self {
            bytes: [0; MOST],
            chain: Chain::default(),
            monitor: Arc::new(monitor),
            reads,
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "virtio-rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::default()
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Ok(VirtioDeviceState::Stateless {})
    }

    fn load(&mut self, state: &VirtioDeviceState, _: bool) -> Result<(), StateError> {
        match state {
            VirtioDeviceState::Stateless {} => Ok(()),
            _ => Err(StateError::Foreign),
        }
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let Event::Queue(queue) = event else {
            return Ok(false);
        };
        let Some(ring) = queues.ring(queue) else {
            return Ok(false);
        };
        let mut more = true;
        for _ in 0..ring.size() {
            more = ring.pop(&mut self.chain)?;
            if !more {
                break;
            }
            let wanted = self.chain.writable_len().min(MOST as u64);
            let wanted = usize::try_from(wanted).unwrap_or(MOST);
            // A signal may cut it short, which is as good; it cannot fail otherwise.
            let place = self.bytes.get_mut(..wanted).unwrap_or_default();
            let got = getrandom(place, GetRandomFlags::empty());
            let bytes = self.bytes.get(..got.unwrap_or(0)).unwrap_or_default();
            let written = self.chain.write(ring.ram(), bytes)?;
            match got {
                Ok(_) => self.reads.succeed(written.into()),
                Err(_) => self.reads.fail(),
            }
            ring.complete(self.chain.head(), written)?;
        }
        queues.publish()?;
        Ok(more)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::virtio::testing::{DATA, Driver, queues, ram};

    #[test]
    fn a_request_is_filled_with_bytes_that_differ() {
        let ram = ram();
        let (mut device, mut queues) = (Rng::default(), queues(&ram, 1));
        let mut driver = Driver::new(&ram);
        let mut seen = Vec::new();
        for _ in 0..2 {
            driver.request(&[(DATA, 10, true), (DATA + 0x100, 54, true)]);
            assert_eq!(driver.serve(&mut device, &mut queues), [(0, 64)]);
            seen.push((
                driver.get::<[u8; 10]>(DATA),
                driver.get::<[u8; 32]>(DATA + 0x100),
            ));
        }
        assert_ne!(seen[0].0, seen[1].0);
        assert_ne!(seen[0].1, seen[1].1);
    }

    #[test]
    fn r19_a_giant_request_gets_a_part_and_one_without_room_nothing() {
        let ram = ram();
        let (mut device, mut queues) = (Rng::default(), queues(&ram, 1));
        let mut driver = Driver::new(&ram);
        driver.request(&[(DATA, 0x8_0000, true), (DATA, 0x8_0000, true)]);
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 4096)]);
        driver.request(&[(DATA, 64, false), (DATA, 0, true)]);
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 0)]);
        let reads = &device.monitor().read().operations["read"];
        assert_eq!((reads.requests, reads.bytes, reads.errors), (2, 4096, 0));
    }
}
