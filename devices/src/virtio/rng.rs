//! The entropy device (VIRTIO 1.3, 5.4): random bytes of the host's kernel.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::limit::Limiter;
use super::{Chain, ConfigSpace, Event, Monitor, QueueError, Queues, VirtioDevice};
use crate::config::Limits;
use crate::metrics::Operation;
use crate::state::{RngState, StateError, VirtioDeviceState};
use crate::{Change, ChangeError};

const QUEUE_SIZE: u16 = 64;
/// The most bytes of one request. The driver is told how many it got, and asks again.
const MOST: usize = 4096;

/// A source of random bytes.
#[derive(Debug)]
pub struct Rng {
    bytes: [u8; MOST],
    chain: Chain,
    limiter: Limiter,
    monitor: Arc<Monitor>,
    reads: Arc<Operation>,
}

impl Rng {
    /// A source with limits of what the guest gets.
    ///
    /// # Errors
    /// When the host refuses a timer.
    pub fn new(limits: &Limits) -> io::Result<Self> {
        let mut monitor = Monitor::default();
        let reads = monitor.operation("read");
        let monitor = Arc::new(monitor);
        Ok(Self {
            bytes: [0; MOST],
            chain: Chain::default(),
            limiter: Limiter::new(limits, &monitor)?,
            monitor,
            reads,
        })
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
        let limits = self.limiter.save();
        Ok(VirtioDeviceState::Rng(RngState { limits }))
    }

    fn load(&mut self, state: &VirtioDeviceState, _: bool) -> Result<(), StateError> {
        match state {
            VirtioDeviceState::Rng(state) => self.limiter.load(&state.limits),
            // Of a version without limits.
            VirtioDeviceState::Stateless {} => Ok(()),
            _ => Err(StateError::Foreign),
        }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.limiter.timer()]
    }

    fn change(&mut self, change: &Change, _: Option<&Queues>) -> Result<(), ChangeError> {
        self.limiter.carry_out(change)
    }

    fn stop(&mut self) {
        self.limiter.stop();
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let queue = match event {
            Event::Queue(queue) => queue,
            // There may be some again.
            Event::Source(_) => {
                self.limiter.woken();
                0
            }
        };
        let Some(ring) = queues.ring(queue) else {
            return Ok(false);
        };
        let mut more = true;
        for _ in 0..ring.size() {
            let allowed = self.limiter.allows();
            if !allowed && ring.has_more()? {
                self.limiter.hold();
            }
            more = allowed && ring.pop(&mut self.chain)?;
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
            self.limiter.charge(written.into());
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

    fn rng(limits: &Limits) -> Rng {
        Rng::new(limits).unwrap()
    }

    #[test]
    fn beyond_its_limits_the_guest_waits() {
        let ram = ram();
        let limits = Limits::default().with_bw(1).with_bw_burst(32);
        let (mut device, mut queues) = (rng(&limits), queues(&ram, 1));
        let mut driver = Driver::new(&ram);
        driver.request(&[(DATA, 64, true)]);
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 64)]);
        driver.request(&[(DATA, 64, true)]);
        device.serve(Event::Queue(0), &mut queues).unwrap();
        assert_eq!(driver.used(), []);
        assert_eq!(device.monitor().read().limiter_waits, 1);
        let saved = device.save().unwrap();
        let mut other = rng(&Limits::default());
        other.load(&saved, true).unwrap();
        assert!(!other.limiter.allows());
        other.load(&VirtioDeviceState::Stateless {}, true).unwrap();
        let change = crate::config::LimitsChange::parse(None, "bw=0").unwrap();
        device.change(&Change::AdjustLimits(change), None).unwrap();
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 64)]);
    }

    #[test]
    fn a_request_is_filled_with_bytes_that_differ() {
        let ram = ram();
        let (mut device, mut queues) = (rng(&Limits::default()), queues(&ram, 1));
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
        let (mut device, mut queues) = (rng(&Limits::default()), queues(&ram, 1));
        let mut driver = Driver::new(&ram);
        driver.request(&[(DATA, 0x8_0000, true), (DATA, 0x8_0000, true)]);
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 4096)]);
        driver.request(&[(DATA, 64, false), (DATA, 0, true)]);
        assert_eq!(driver.serve(&mut device, &mut queues), [(0, 0)]);
        let reads = &device.monitor().read().operations["read"];
        assert_eq!((reads.requests, reads.bytes, reads.errors), (2, 4096, 0));
    }
}
