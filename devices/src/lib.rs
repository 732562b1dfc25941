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
mod lock;
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
mod rare;
pub mod sealed;
#[cfg(feature = "sockets")]
pub mod socket;
pub mod state;
mod threads;
#[cfg(feature = "serial")]
mod uart;
#[cfg(feature = "virtio")]
pub mod virtio;

pub use bus::{Bus, BusDevice, BusEntry, BusError, Outcome};
pub use change::{Change, ChangeError, Hinting, Link, NewFile, TerminalSize};
pub use cmos::Cmos;
pub use goldfish_rtc::GoldfishRtc;
pub use i8042::{CtrlAltDel, I8042};
pub use ioapic::{IoApic, Route};
pub(crate) use lock::lock;
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
pub use rare::Rare;
pub use threads::Threads;
#[cfg(feature = "serial")]
pub use uart::Uart16550;
