//! The bus and the device models.
//!
//! Models know neither the architecture nor KVM: a register access comes in, an [`Outcome`] goes
//! out, an interrupt is an eventfd. The guest is hostile: any access is legal, no state grows
//! without a bound.

mod bus;
mod change;
mod cmos;
pub mod config;
pub mod descriptor;
mod goldfish_rtc;
mod i8042;
mod ioapic;
mod metrics;
mod msi;
mod output;
#[cfg(feature = "pci")]
pub mod pci;
#[cfg(feature = "serial")]
mod pl011;
mod pl031;
mod pl061;
mod power;
mod pvpanic;
mod query;
#[cfg(feature = "sockets")]
pub mod socket;
#[cfg(feature = "serial")]
mod uart;
#[cfg(feature = "virtio")]
pub mod virtio;

pub use bus::{Bus, BusDevice, BusEntry, BusError, Outcome};
pub use change::{Change, ChangeError, Hinting, Link, NewFile, TerminalSize};
pub use cmos::Cmos;
pub use goldfish_rtc::GoldfishRtc;
pub use i8042::I8042;
pub use ioapic::{IoApic, Route};
pub use metrics::{
    Bucket, Counter, DeviceMetrics, Histogram, LATENCY_BOUNDS_US, Latencies, Operation,
    OperationMetrics, micros,
};
pub use msi::Message;
pub use output::{OutputRing, Overflow};
#[cfg(feature = "serial")]
pub use pl011::Pl011;
pub use pl031::Pl031;
pub use pl061::Pl061;
pub use power::{AcpiPower, PowerButton};
pub use pvpanic::Pvpanic;
pub use query::{BalloonStatistics, GuestStatistics, HintingState, HintingStatus, Query, Report};
#[cfg(feature = "serial")]
pub use uart::Uart16550;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a device's state. A panic of another thread ends the VM anyway; until then the state is
/// as good as it was.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts what a guest can cause at will, so that it does not fill the log: the first time is worth
/// a line, then every power of two.
#[derive(Debug, Default)]
pub struct Rare(std::sync::atomic::AtomicU64);

impl Rare {
    /// It has not happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(std::sync::atomic::AtomicU64::new(0))
    }

    /// It happened again. Says how often so far when that is worth a line.
    pub fn again(&self) -> Option<u64> {
        let before = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let times = before.saturating_add(1);
        times.is_power_of_two().then_some(times)
    }

    /// As [`Self::again`], where the first `few` times are worth a line each.
    pub fn again_after(&self, few: u64) -> Option<u64> {
        let before = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let times = before.saturating_add(1);
        (times <= few || times.is_power_of_two()).then_some(times)
    }
}
