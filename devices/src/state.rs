//! What of a device on the bus goes on after it was saved and restored, as data.
//!
//! Each device has a type of its own, apart from its model: what a file holds is what stands here, and a later version
//! reads it. Bytes that wait for the host (a console's output) are not a device's.

#[cfg(feature = "virtio")]
mod virtio;

use serde::{Deserialize, Serialize};

#[cfg(feature = "virtio")]
pub use virtio::*;

/// The state of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DeviceState {
    /// None: what the device shows follows from the machine alone.
    Stateless {},
    /// A 16550A.
    Uart16550(Uart16550State),
    /// A PL011.
    Pl011(Pl011State),
    /// The PC's clock.
    Cmos(CmosState),
    /// A PC's keyboard controller, and its keyboard.
    I8042(I8042State),
    /// ACPI's power button and sleep registers.
    AcpiPower(AcpiPowerState),
    /// An I/O APIC of the VMM.
    IoApic(IoApicState),
    /// A PL031.
    Pl031(Pl031State),
    /// A PL061.
    Pl061(Pl061State),
    /// The clock of Android's emulator.
    GoldfishRtc(GoldfishRtcState),
    /// A PC's ports of the PCI configuration.
    PciPorts(PciPortsState),
    /// A virtio device, or what leads to some: they are saved by their ids.
    ById {},
}

impl DeviceState {
    /// That of a device which is saved by its id.
    #[cfg_attr(not(feature = "virtio"), allow(dead_code))]
    pub(crate) fn is_by_id(&self) -> Result<(), StateError> {
        match self {
            Self::ById {} => Ok(()),
            _ => Err(StateError::Foreign),
        }
    }
}

/// Why a state cannot be saved or loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// It is another device's, or the device cannot load any.
    #[error("it is not the state of such a device")]
    Foreign,
    /// A part of it cannot be.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// The host refused what it takes.
    #[error("the host refused what it takes")]
    Host,
    /// The file behind a disk cannot be brought to its disk, or looked at.
    #[error("the file {0}: {1}")]
    File(String, String),
    /// The device is of a kind that cannot be saved.
    #[error("it is of a kind that cannot be saved")]
    Unknown,
    /// The file behind a disk has another size than the guest knows, or other blocks.
    #[error(
        "the file {path} has {sectors} sectors of 512 bytes in blocks of {block}, and its guest knows {} in blocks of {}",
        .known.0, .known.1
    )]
    Size {
        /// The file.
        path: String,
        /// What it has.
        sectors: u64,
        /// Bytes of its blocks.
        block: u32,
        /// Both, as the guest knows them.
        known: (u64, u32),
    },
    /// The driver took features that the device does not offer here, a bit each.
    #[error("its driver uses features that it has not here: {0:#x}")]
    Features(u64),
    /// The file behind a disk is not as it was.
    #[error("the file {0} has changed since, which its guest knows nothing of")]
    Changed(String),
    /// A fault of the VMM has lost the device.
    #[error("a fault of the VMM has lost it")]
    Lost,
}

/// Registers of a 16550A, and input that the guest has not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the data sheet's.
pub struct Uart16550State {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// At most 64 bytes.
    pub received: Vec<u8>,
}

/// Registers of a PL011, and input that the guest has not read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the manual's.
pub struct Pl011State {
    /// At most 32 bytes.
    pub received: Vec<u8>,
    /// The transmit interrupt is pending.
    pub sent: bool,
    /// The guest has read the interrupt status since the last pulse.
    pub looked: bool,
    pub ilpr: u32,
    pub ibrd: u32,
    pub fbrd: u32,
    pub dmacr: u32,
    pub lcr_h: u32,
    pub cr: u32,
    pub ifls: u32,
    pub imsc: u32,
}

/// The PC's clock, whose time is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CmosState {
    /// The byte that the data port is.
    pub index: u8,
    /// All 128 bytes of memory.
    pub memory: Vec<u8>,
}

/// Events that the guest has not read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcpiPowerState {
    /// A bit for each.
    pub events: u8,
}

/// A PC's keyboard controller, and its keyboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042State {
    /// The command byte.
    pub control: u8,
    /// A command of the controller that waits for its byte.
    pub command: Option<u8>,
    /// What the controller has answered and the guest has not read.
    pub answer: Option<u8>,
    /// Whether the keyboard tells of keys.
    pub scanning: bool,
    /// A command of the keyboard that waits for its value.
    pub keyboard_command: Option<u8>,
    /// What the keyboard has said and the guest has not read.
    pub typed: Vec<u8>,
}

/// Registers of an I/O APIC.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoApicState {
    /// The register that the window is.
    pub select: u8,
    /// The identification.
    pub id: u32,
    /// The low and the high word of each pin.
    pub pins: Vec<(u32, u32)>,
}

/// Registers of a PL031.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the manual's.
pub struct Pl031State {
    pub lr: u32,
    /// What the guest's time is ahead of the host's, in seconds.
    pub ahead: i64,
    pub mr: u32,
    pub imsc: u32,
    pub ris: u32,
}

/// Registers of a PL061, a bit for each line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the manual's, see the model.
pub struct Pl061State {
    pub input: u8,
    pub output: u8,
    pub direction: u8,
    pub sense: u8,
    pub both_edges: u8,
    pub event: u8,
    pub enable: u8,
    pub edges: u8,
    pub mode: u8,
}

/// Registers of the clock of Android's emulator.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldfishRtcState {
    /// What the guest's time is ahead of the host's, in nanoseconds, modulo 2^64.
    pub ahead: u64,
    /// The high word of the time, as it was last read or written.
    pub time_high: u32,
    /// Both words of the alarm.
    pub alarm: [u32; 2],
    /// Whether it interrupts.
    pub interrupt_enabled: u32,
}

/// A PC's ports of the PCI configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciPortsState {
    /// The address that the data port is connected to.
    pub address: u32,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
