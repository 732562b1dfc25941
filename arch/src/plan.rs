//! The machine as data: what the user asked for, and what the machine will be.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::PlanError;
use crate::lean::{GuestKernel, Lean, LeanChoice};

/// A global system interrupt: an input line of the interrupt chip, numbered as KVM does.
pub type Gsi = u32;

/// What the user asked for, as far as the machine's shape depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Guest RAM in bytes.
    pub memory: u64,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// The kernel command line.
    pub cmdline: Cmdline,
    /// Whether the machine has a serial console.
    pub serial: bool,
    /// Bytes at the beginning of the window for devices that are the embedder's: no planned device is there.
    #[serde(default)]
    pub own_window: u64,
    /// Its virtio devices, in order.
    #[serde(default)]
    pub virtio: Vec<VirtioKind>,
    /// How they reach the guest.
    #[serde(default)]
    pub transport: Transport,
    /// Whether what current kernels can do without is left out (on x86_64: what KVM has of a PC's
    /// interrupt controllers and its interval timer).
    #[serde(default)]
    pub lean: Lean,
    /// What is known of the kernel.
    #[serde(default)]
    pub kernel: GuestKernel,
    /// Whether the machine has a generation ID.
    #[serde(default)]
    pub vmgenid: bool,
    /// Whether a keyboard is told of, on platforms that have one ([`DeviceKind::I8042`]).
    #[serde(default)]
    pub keyboard: bool,
    /// Whether the command line names virtio devices on [`Transport::Mmio`] whatever else it says, where a guest may
    /// have them from nowhere else (x86_64 without ACPI).
    #[serde(default)]
    pub announce_virtio: bool,
}

/// How virtio devices reach the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Each as a device of its own, with registers and a wired interrupt (VIRTIO 1.3, 4.2).
    #[default]
    Mmio,
    /// As functions of one PCI bus, with MSI-X (VIRTIO 1.3, 4.1).
    Pci,
}

/// An amount of memory as configurations have it: `1024M`, `5K`; bytes where no unit fits.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 20) {
        format!("{}M", bytes >> 20)
    } else if bytes.is_multiple_of(1 << 10) {
        format!("{}K", bytes >> 10)
    } else {
        format!("{bytes} bytes")
    }
}

/// The least RAM that a machine can have, in bytes, on every platform.
pub const LEAST_MEMORY: u64 = 16 << 20;

/// What a platform offers on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most RAM in bytes: what `address_bits` leave for it.
    pub max_memory: u64,
    /// Bits of a guest physical address.
    pub address_bits: u8,
    /// The most vCPUs.
    pub max_vcpus: u32,
}

/// RAM is counted in these.
const PAGE: u64 = 4096;

impl Limits {
    /// Refuses what the platform does not offer.
    ///
    /// # Errors
    /// [`PlanError::Config`] names the field, the value, the cause and the cure.
    pub fn check(&self, config: &MachineConfig) -> Result<(), PlanError> {
        check_memory(config.memory)?;
        if config.memory > self.max_memory {
            let cause = format!(
                "more than the host's {} address bits reach",
                self.address_bits
            );
            return Err(refused_memory(
                config.memory,
                &cause,
                format!("give at most {} MiB", self.max_memory >> 20),
            ));
        }
        if config.vcpus == 0 || config.vcpus > self.max_vcpus {
            return Err(PlanError::Config {
                field: "vcpus".into(),
                value: config.vcpus.to_string(),
                cause: format!("this host offers 1 to {} vCPUs", self.max_vcpus),
                cure: "choose a number in between".to_owned(),
            });
        }
        Ok(())
    }
}

/// Refuses bytes of RAM and numbers of vCPUs that no platform has.
///
/// # Errors
/// As [`Limits::check`].
pub fn check_amounts(memory: u64, vcpus: u32) -> Result<(), PlanError> {
    check_memory(memory)?;
    if vcpus == 0 {
        return Err(PlanError::Config {
            field: "vcpus".into(),
            value: "0".to_owned(),
            cause: "a machine has 1 vCPU at least".to_owned(),
            cure: "give 1 or more".to_owned(),
        });
    }
    Ok(())
}

fn check_memory(memory: u64) -> Result<(), PlanError> {
    if memory < LEAST_MEMORY {
        let cure = format!("give at least {} MiB", LEAST_MEMORY >> 20);
        return Err(refused_memory(memory, "too little", cure));
    }
    if !memory.is_multiple_of(PAGE) {
        let cure = format!("give a multiple of {PAGE} bytes");
        return Err(refused_memory(memory, "not whole pages", cure));
    }
    Ok(())
}

fn refused_memory(memory: u64, cause: &str, cure: String) -> PlanError {
    PlanError::Config {
        field: "guest-memory".into(),
        value: size_text(memory),
        cause: cause.to_owned(),
        cure,
    }
}

/// The kernel command line as the user gave it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cmdline {
    /// Replaces the platform's default text.
    pub base: Option<String>,
    /// Added after the base text.
    pub append: Option<String>,
}

impl Cmdline {
    /// The text the guest gets when the platform's own default is `default`.
    #[must_use]
    pub fn text(&self, default: &str) -> String {
        let base = self.base.as_deref().unwrap_or(default);
        match self.append.as_deref() {
            Some(append) if base.is_empty() => append.to_owned(),
            Some(append) if !append.is_empty() => format!("{base} {append}"),
            _ => base.to_owned(),
        }
    }
}

/// A non-empty range of guest physical addresses or of I/O ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressRange {
    /// The first address.
    pub base: u64,
    /// The length in bytes (ports, for I/O ports).
    #[serde(rename = "len_bytes")]
    pub len: u64,
}

impl AddressRange {
    /// The range `base..base + len`.
    #[must_use]
    pub const fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// The first address after the range; saturates at the end of the address space.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.len)
    }

    /// Whether the two ranges share an address.
    #[must_use]
    pub const fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    /// Whether all of `other` lies inside this range.
    #[must_use]
    pub const fn contains(&self, other: &Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }
}

/// The address space a device lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Space {
    /// Guest physical memory addresses.
    Mmio,
    /// I/O ports; no device is planned here on architectures without them.
    Pio,
}

/// What a virtio device is (VIRTIO 1.3, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VirtioKind {
    /// A disk.
    Block,
    /// A network device.
    Net,
    /// Sockets between host and guest.
    Vsock,
    /// A console.
    Console,
    /// A source of random bytes.
    Rng,
    /// A memory balloon.
    Balloon,
}

impl VirtioKind {
    /// What options and ids of devices call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "blk",
            Self::Net => "net",
            Self::Vsock => "vsock",
            Self::Console => "console",
            Self::Rng => "rng",
            Self::Balloon => "balloon",
        }
    }
}

/// What a planned device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// A 16550A compatible UART.
    Uart16550,
    /// The i8042 keyboard controller, by which a guest resets the machine. With an interrupt it has a keyboard, for
    /// Ctrl-Alt-Del.
    I8042,
    /// The MC146818 real-time clock and its CMOS memory.
    Cmos,
    /// The register by which a guest says that it has panicked.
    Pvpanic,
    /// ACPI sleep control and status registers (one byte each), followed by the reset register and
    /// the register of the events that its interrupt tells of: bit 0 is the power button, bit 1 another
    /// generation ID.
    AcpiPower,
    /// An Arm PrimeCell UART.
    Pl011,
    /// An Arm PrimeCell real-time clock.
    Pl031,
    /// The real-time clock of Android's emulator.
    GoldfishRtc,
    /// An Arm PrimeCell GPIO controller; line 3, high while it is pressed, is the power button.
    Pl061,
    /// An I/O APIC that the kernel's interrupt chip does not have: pin n is GSI n, an edge.
    IoApic {
        /// Its pins.
        pins: u8,
    },
    /// A virtio device behind the MMIO transport.
    VirtioMmio(VirtioKind),
    /// The memory-mapped configuration space of PCI bus 0 (ECAM), host bridge in slot 0 included.
    PciEcam,
    /// The same by way of an address and a data port (PCI Local Bus Specification 3.0, 3.2.2.3.2).
    PciPorts,
    /// A virtio device behind the PCI transport. Its range is where BAR 0, a 32-bit memory BAR of
    /// [`VIRTIO_PCI_BAR`] bytes, is at first; the guest may move it. It has no wired interrupt.
    VirtioPci {
        /// What it is.
        kind: VirtioKind,
        /// Its device number on bus 0, from 1 on; function 0.
        slot: u8,
    },
}

impl DeviceKind {
    /// Which virtio device it is, if it is one, whatever its transport.
    #[must_use]
    pub fn virtio(self) -> Option<VirtioKind> {
        match self {
            Self::VirtioMmio(kind) | Self::VirtioPci { kind, .. } => Some(kind),
            _ => None,
        }
    }
}

/// Bytes of the one BAR of a virtio PCI device.
pub const VIRTIO_PCI_BAR: u64 = 0x8000;

impl fmt::Display for VirtioKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "virtio block device",
            Self::Net => "virtio network device",
            Self::Vsock => "virtio sockets",
            Self::Console => "virtio console",
            Self::Rng => "virtio entropy source",
            Self::Balloon => "virtio memory balloon",
        })
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uart16550 => "16550A UART (serial console)",
            Self::I8042 => "i8042 keyboard controller",
            Self::Cmos => "MC146818 clock and CMOS memory",
            Self::Pvpanic => "pvpanic (the guest's panic)",
            Self::AcpiPower => "ACPI sleep control, reset and power button",
            Self::Pl011 => "PL011 UART (serial console)",
            Self::Pl031 => "PL031 real-time clock",
            Self::GoldfishRtc => "goldfish real-time clock",
            Self::Pl061 => "PL061 GPIO controller (power button)",
            Self::IoApic { pins } => return write!(f, "I/O APIC with {pins} pins"),
            Self::VirtioMmio(kind) => return kind.fmt(f),
            Self::PciEcam => "PCI configuration space, host bridge at 00:00.0",
            Self::PciPorts => "PCI configuration ports",
            Self::VirtioPci { kind, slot } => return write!(f, "{kind} at 00:{slot:02x}.0"),
        })
    }
}

/// One emulated device: where it is and which interrupt it raises.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// The name that commands give it; a planner leaves it to whoever knows the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// What it is.
    pub kind: DeviceKind,
    /// The address space of `range`.
    pub space: Space,
    /// Its registers.
    pub range: AddressRange,
    /// Its interrupt, raised as an edge.
    pub irq: Option<Gsi>,
    /// Its messages (MSI-X), of a function on the PCI bus; left to whoever knows the configuration, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Messages>,
}

/// GSIs of a device's messages, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Messages {
    /// The first one.
    pub first: Gsi,
    /// How many: one for each queue, one for the configuration.
    pub count: u32,
}

/// A part of guest physical memory with a purpose of its own: never offered to the guest as free
/// RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// What it is for.
    pub name: Cow<'static, str>,
    /// Where it is.
    pub range: AddressRange,
}

/// The PCI bus of a machine: segment 0, bus 0, no bridges but the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciPlan {
    /// The configuration space of the bus, 4 KiB per function: the range of
    /// [`DeviceKind::PciEcam`].
    pub ecam: AddressRange,
    /// Guest physical addresses below 4 GiB for the BARs of the bus, the same as seen from it.
    pub window32: AddressRange,
    /// More of them above RAM, where the guest's address bits leave room.
    pub window64: Option<AddressRange>,
    /// The first GSI that is no line of the interrupt chip: from here on they stand for messages
    /// (MSI-X), as KVM_SET_GSI_ROUTING maps them.
    pub first_msi_gsi: Gsi,
}

/// Where a machine has its generation ID, and how its guest learns of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationId {
    /// Its [`GenerationId::LEN`] bytes: RAM, in a reserved range.
    pub range: AddressRange,
    /// The interrupt that tells of another one, raised as an edge. Without one it is an event of
    /// [`DeviceKind::AcpiPower`].
    pub irq: Option<Gsi>,
}

/// The whole machine, computed before anything is created.
///
/// `devices` is the one source of truth: the same slice is what the core puts on the bus and what
/// the backend describes to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePlan {
    /// Name of the architecture, as `uname -m` gives it.
    pub arch: Cow<'static, str>,
    /// RAM regions in ascending order; each becomes one memslot.
    pub ram: Vec<AddressRange>,
    /// Ranges with a purpose of their own, inside or outside RAM.
    pub reserved: Vec<Reserved>,
    /// The part of RAM in which kernel and initrd are placed.
    pub kernel_window: AddressRange,
    /// Guest physical addresses from which devices get theirs.
    pub mmio_window: AddressRange,
    /// The emulated devices.
    pub devices: Vec<DevicePlan>,
    /// The PCI bus, on machines whose transport is [`Transport::Pci`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci: Option<PciPlan>,
    /// Its generation ID, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmgenid: Option<GenerationId>,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether the machine is lean, on architectures where that makes a difference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lean: Option<LeanChoice>,
    /// The complete kernel command line.
    pub cmdline: String,
    /// What the user should know: the command line asks Linux for what cannot work on this machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

/// The words of a kernel command line that are for the kernel: up to `--`, after which come arguments for
/// init. Quotes keep blanks in a word (Linux lib/cmdline.c, `next_arg`).
pub fn kernel_parameters(cmdline: &str) -> impl Iterator<Item = &str> {
    words(cmdline)
        .map(|(_, word)| word)
        .take_while(|word| *word != INIT_ARGUMENTS)
}

/// What ends a kernel's own parameters.
const INIT_ARGUMENTS: &str = "--";

/// Words with their places.
fn words(cmdline: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = cmdline;
    std::iter::from_fn(move || {
        rest = rest.trim_ascii_start();
        let mut quoted = false;
        let end = rest.find(|character: char| {
            quoted ^= character == '"';
            !quoted && character.is_ascii_whitespace()
        });
        let at = cmdline.len() - rest.len();
        let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some((at, word))
    })
}

/// Adds parameters after those that a kernel command line has, before the arguments for init.
#[must_use]
pub fn add_parameters(cmdline: &str, more: &str) -> String {
    let end = words(cmdline).find(|(_, word)| *word == INIT_ARGUMENTS);
    let (kernel, init) = cmdline.split_at(end.map_or(cmdline.len(), |(at, _)| at));
    let parts = [kernel.trim_ascii_end(), more, init];
    let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

/// Whether a word stands among the parameters of a kernel command line.
#[must_use]
pub fn has_word(cmdline: &str, word: &str) -> bool {
    kernel_parameters(cmdline).any(|found| found == word)
}

impl MachineConfig {
    /// [`MachinePlan::remarks`] that are true on every architecture, for a complete command line.
    #[must_use]
    pub fn remarks(&self, cmdline: &str) -> Vec<String> {
        let on_pci = self.transport == Transport::Pci && !self.virtio.is_empty();
        let mut remarks = Vec::new();
        if on_pci && has_word(cmdline, "pci=nomsi") {
            remarks.push(
                "pci=nomsi: devices on the PCI bus of this machine have no interrupts but messages, \
                 so a Linux guest cannot use its virtio devices; leave it away, or use \
                 transport=mmio"
                    .to_owned(),
            );
        }
        if on_pci && has_word(cmdline, "pci=off") {
            remarks.push(
                "pci=off: the virtio devices of this machine are on a PCI bus, where a Linux guest \
                 does not look then; leave it away, or use transport=mmio"
                    .to_owned(),
            );
        }
        remarks
    }
}

impl MachinePlan {
    /// Total RAM in bytes.
    #[must_use]
    pub fn ram_size(&self) -> u64 {
        self.ram.iter().map(|range| range.len).sum()
    }

    /// Whether what current kernels can do without is left out.
    #[must_use]
    pub fn is_lean(&self) -> bool {
        self.lean.as_ref().is_some_and(|choice| choice.lean)
    }

    /// The lowest address of RAM.
    #[must_use]
    pub fn ram_start(&self) -> u64 {
        self.ram.first().map_or(0, |range| range.base)
    }

    /// The first planned device of a kind.
    #[must_use]
    pub fn device(&self, kind: DeviceKind) -> Option<&DevicePlan> {
        self.devices.iter().find(|device| device.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_end_where_the_arguments_of_init_begin() {
        let of = |cmdline| kernel_parameters(cmdline).collect::<Vec<_>>();
        assert_eq!(of("  a b=1\t--c -- d"), ["a", "b=1", "--c"]);
        assert_eq!(of("a=\"b -- c\" d\" e"), ["a=\"b -- c\"", "d\" e"]);
        assert_eq!(of("-- a"), [""; 0]);
        assert_eq!(of(""), [""; 0]);
        assert!(has_word("quiet acpi=off", "acpi=off"));
        assert!(!has_word("quiet -- acpi=off", "acpi=off"));
        assert!(!has_word("a=\"b acpi=off\"", "acpi=off"));
    }

    #[test]
    fn added_parameters_are_for_the_kernel() {
        for (cmdline, expected) in [
            ("", "x=1"),
            ("quiet", "quiet x=1"),
            ("quiet  -- single", "quiet x=1 -- single"),
            ("-- single", "x=1 -- single"),
            ("a=\" -- \" b --", "a=\" -- \" b x=1 --"),
        ] {
            assert_eq!(add_parameters(cmdline, "x=1"), expected);
        }
        assert_eq!(add_parameters("quiet -- a", ""), "quiet -- a");
    }
}
