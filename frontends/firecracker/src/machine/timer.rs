//! A device of one byte to which the guest says that it has booted.

use std::sync::Arc;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use vmm_reference::{BusDevice, Outcome};

/// What the guest writes.
const BOOTED: u8 = 123;

/// The time since the start was asked for.
#[derive(Debug)]
pub(super) struct BootTimer {
    wall: Instant,
    /// Processor time of this process until then, in microseconds.
    cpu_us: u64,
}

impl BootTimer {
    /// The beginning of the machine's window for devices.
    pub(super) const BASE: u64 = if cfg!(target_arch = "x86_64") {
        0xc000_0000
    } else {
        0x4000_0000
    };
    /// As much as any device has there.
    pub(super) const LEN: u64 = 0x1000;

    pub(super) fn started() -> Arc<Self> {
        Arc::new(Self {
            wall: Instant::now(),
            cpu_us: cpu_us(),
        })
    }
}

/// Processor time of this process, in microseconds.
pub(crate) fn cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000 + nanos / 1000
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        if (offset, data) == (0, &[BOOTED]) {
            let wall = self.wall.elapsed().as_micros();
            let cpu = cpu_us().saturating_sub(self.cpu_us);
            log::info!(
                "Guest-boot-time = {wall:>6} us {} ms, {cpu:>6} CPU us {} CPU ms",
                wall / 1000,
                cpu / 1000
            );
        }
        Outcome::Continue
    }
}
