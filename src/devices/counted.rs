//! Devices of which it is counted how often a guest reads and writes their registers: those without an id, of which
//! nothing else is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arch::DeviceKind;
use devices::state::{DeviceState, StateError};
use devices::{BusDevice, Outcome};

/// How often a device's registers were read and written, by all vCPUs.
#[derive(Debug, Default)]
pub(crate) struct Accesses {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Accesses {
    /// Reads and writes so far.
    pub(crate) fn numbers(&self) -> [u64; 2] {
        [&self.reads, &self.writes].map(|number| number.load(Ordering::Relaxed))
    }
}

/// A device that is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    device: Arc<dyn BusDevice>,
    accesses: Arc<Accesses>,
}

impl Counted {
    pub(crate) fn new(device: Arc<dyn BusDevice>, accesses: &Arc<Accesses>) -> Self {
        Self {
            device,
            accesses: Arc::clone(accesses),
        }
    }
}

impl BusDevice for Counted {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.accesses.reads.fetch_add(1, Ordering::Relaxed);
        self.device.read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        self.accesses.writes.fetch_add(1, Ordering::Relaxed);
        self.device.write(offset, data)
    }

    fn save(&self) -> Option<DeviceState> {
        self.device.save()
    }

    fn load(&self, state: &DeviceState) -> Result<(), StateError> {
        self.device.load(state)
    }
}

/// What a kind of device is called in metrics; `None`: it has an id, or nobody would look for it.
pub(crate) fn name(kind: DeviceKind) -> Option<&'static str> {
    match kind {
        DeviceKind::Uart16550 | DeviceKind::Pl011 => Some("serial"),
        DeviceKind::I8042 => Some("keyboard"),
        DeviceKind::Cmos | DeviceKind::Pl031 | DeviceKind::GoldfishRtc => Some("rtc"),
        _ => None,
    }
}
