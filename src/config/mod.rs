//! What a user may ask for: plain data that a file can hold.

mod builders;
#[cfg(any(feature = "config-file", feature = "control", feature = "snapshot"))]
mod read;
#[cfg(test)]
mod tests;
mod values;
mod words;

use std::path::PathBuf;

use arch::{
    Cmdline, ConfigPath, DeviceKind, FeatureBits, GuestKernel, Lean, MachineConfig, MachinePlan,
    Messages, Transport, VirtioKind,
};
use devices::Overflow;
use devices::config::{
    BalloonConfig, BlkConfig, Limits, NetConfig, OptionError, VsockConfig, word,
};
use serde::{Deserialize, Serialize};

#[cfg(any(feature = "control", feature = "snapshot"))]
pub(crate) use self::read::read_json;
#[cfg(any(feature = "config-file", feature = "control", feature = "snapshot"))]
pub use self::read::{ReadError, Step, ValuePath, read_unique, read_value};
pub use self::values::{HugePages, MemoryBacking, MemorySize, OnReboot};
pub use self::words::in_plain_words;
use crate::Error;

/// A VM, as the user describes it.
///
/// ```
/// use vmm_reference::VmConfig;
///
/// let config = VmConfig::default().with_memory_mib(512).with_vcpus(2);
/// assert_eq!(config.guest_memory.bytes(), 512 << 20);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    deny_unknown_fields,
    default,
    expecting = "a table with the keys of a VM"
)]
#[non_exhaustive]
pub struct VmConfig {
    /// The kernel image; without one the built-in guest boots.
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Replaces the platform's default kernel command line.
    pub cmdline: Option<String>,
    /// Added to the kernel command line.
    pub append: Option<String>,
    /// Guest RAM.
    pub guest_memory: MemorySize,
    /// Where its pages come from.
    #[serde(deserialize_with = "word")]
    pub memory_backing: MemoryBacking,
    /// Which large pages it has.
    #[serde(deserialize_with = "word")]
    pub huge_pages: HugePages,
    /// Number of vCPUs.
    #[serde(deserialize_with = "values::vcpus")]
    pub vcpus: u32,
    /// What a guest's reset does.
    #[serde(deserialize_with = "word")]
    pub on_reboot: OnReboot,
    /// How long a guest that was asked to power off may take, in seconds; 0: it is not asked.
    #[serde(deserialize_with = "values::seconds")]
    pub shutdown_timeout: u32,
    /// How virtio devices reach the guest.
    #[serde(deserialize_with = "word")]
    pub transport: Transport,
    /// Disks, in order.
    pub blk: Vec<BlkConfig>,
    /// Network devices, in order.
    pub net: Vec<NetConfig>,
    /// Sockets between host and guest.
    pub vsock: Option<VsockConfig>,
    /// Whether the guest has a virtio console; [`Attachments`](crate::Attachments) say where it goes.
    pub console: bool,
    /// What becomes of the virtio console's output when its reader is too slow.
    #[serde(deserialize_with = "word")]
    pub console_overflow: Overflow,
    /// The memory balloon, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// Whether the guest gets random bytes of the host.
    pub rng: bool,
    /// How many of them.
    #[serde(deserialize_with = "devices::config::limits_table")]
    pub rng_limits: Limits,
    /// Whether the machine has a generation ID, by which a guest learns that it goes on from a saved state
    /// and is one of many (Linux then makes its random numbers anew).
    pub vmgenid: bool,
    /// Whether a guest on x86_64 is told of the keyboard on which [`Command::CtrlAltDel`](crate::Command::CtrlAltDel) is
    /// typed. Other architectures have none.
    pub keyboard: bool,
    /// Whether the kernel command line of a guest on x86_64 names its virtio devices on the MMIO transport in any case
    /// (`virtio_mmio.device=`), and not only when it takes ACPI away: for kernels of which nobody knows whether they have
    /// ACPI.
    pub announce_virtio: bool,
    /// Whether the machine lacks what current kernels can do without, which KVM takes long to take down:
    /// on x86_64 the interval timer (PIT) and the PICs of a PC; the VMM then has the I/O APIC, with more
    /// pins, instead of KVM. Other architectures have nothing of the kind.
    #[serde(deserialize_with = "word")]
    pub lean: Lean,
    /// The guest may have more memory than the host has: it will not use all of it.
    pub overcommit: bool,
    /// Bytes at the beginning of the machine's window for devices ([`MachinePlan`](arch::MachinePlan)) that are left free
    /// for devices of the embedder's own ([`OwnDevice`](crate::OwnDevice)), a multiple of 4096. No file has it.
    #[serde(skip)]
    pub own_window: u64,
    /// Bits of registers by which a guest knows its processor that are others than the host's. A saved machine keeps
    /// what it was shown. No file has it.
    #[serde(skip)]
    pub features: Vec<FeatureBits>,
}

impl Default for VmConfig {
    /// 256 MiB, one vCPU, the built-in guest.
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: None,
            cmdline: None,
            append: None,
            guest_memory: MemorySize::mib(256),
            memory_backing: MemoryBacking::Anonymous,
            huge_pages: HugePages::Off,
            vcpus: 1,
            on_reboot: OnReboot::Exit,
            shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
            transport: if cfg!(feature = "pci") {
                Transport::Pci
            } else {
                Transport::Mmio
            },
            blk: Vec::new(),
            net: Vec::new(),
            vsock: None,
            console: false,
            console_overflow: Overflow::Wait,
            balloon: None,
            rng: true,
            rng_limits: Limits::default(),
            vmgenid: true,
            keyboard: false,
            announce_virtio: false,
            lean: Lean::Auto,
            overcommit: false,
            own_window: 0,
            features: Vec::new(),
        }
    }
}

impl VmConfig {
    /// Refuses values that no platform takes.
    pub(crate) fn check(&self) -> Result<(), Error> {
        arch::check_amounts(self.guest_memory.bytes(), self.vcpus)?;
        self.check_cmdline()?;
        self.check_devices()
    }

    /// The same, for a kernel that is known.
    pub(crate) fn machine_for(&self, kernel: GuestKernel) -> Result<MachineConfig, Error> {
        self.check()?;
        Ok(MachineConfig {
            memory: self.guest_memory.bytes(),
            vcpus: self.vcpus,
            cmdline: Cmdline {
                base: self.cmdline.clone(),
                append: self.append_with_console(),
            },
            serial: cfg!(feature = "serial"),
            own_window: self.own_window,
            virtio: self.virtio(),
            transport: self.transport,
            lean: self.lean,
            kernel,
            vmgenid: self.vmgenid,
            keyboard: self.keyboard,
            announce_virtio: self.announce_virtio,
        })
    }

    /// A kernel command line is one line of text, for the guest and for whoever reads a plan.
    fn check_cmdline(&self) -> Result<(), Error> {
        for (field, text) in [("cmdline", &self.cmdline), ("append", &self.append)] {
            let text = text.as_deref().unwrap_or_default();
            let found = text.chars().find(|c| c.is_control() && *c != '\t');
            if let Some(found) = found {
                let name = match found {
                    '\0' => "a NUL character".to_owned(),
                    '\n' => "a line's end".to_owned(),
                    other => format!("the control character {:#04x}", u32::from(other)),
                };
                return Err(Error::Config {
                    field: field.into(),
                    value: text.escape_debug().to_string(),
                    cause: format!(
                        "it holds {name}, and a kernel command line is one line of text"
                    ),
                    cure: "separate the kernel's parameters by spaces".to_owned(),
                });
            }
        }
        Ok(())
    }

    /// The virtio devices, in the order in which the guest finds them.
    pub(crate) fn virtio(&self) -> Vec<VirtioKind> {
        let rng = self.rng && cfg!(feature = "virtio-rng");
        [
            (VirtioKind::Block, self.blk.len()),
            (VirtioKind::Net, self.net.len()),
            (VirtioKind::Vsock, self.vsock.iter().len()),
            (VirtioKind::Console, self.console.into()),
            (VirtioKind::Balloon, self.balloon.iter().len()),
            (VirtioKind::Rng, rng.into()),
        ]
        .into_iter()
        .flat_map(|(kind, count)| std::iter::repeat_n(kind, count))
        .collect()
    }

    /// The virtio devices by their ids, in the order in which the guest finds them.
    pub(crate) fn named_devices(&self) -> Vec<NamedDevice> {
        let given = |kind, place: usize| match kind {
            VirtioKind::Block => self.blk.get(place)?.id.clone(),
            VirtioKind::Net => self.net.get(place)?.id.clone(),
            VirtioKind::Vsock => self.vsock.as_ref()?.id.clone(),
            VirtioKind::Balloon => self.balloon.as_ref()?.id.clone(),
            VirtioKind::Console | VirtioKind::Rng => None,
        };
        let mut devices: Vec<NamedDevice> = Vec::new();
        for kind in self.virtio() {
            let place = devices.iter().filter(|other| other.kind == kind).count();
            let id = given(kind, place);
            devices.push(NamedDevice {
                by_default: id.is_none(),
                id: id.unwrap_or_else(|| format!("{}{place}", kind.name())),
                kind,
                place,
            });
        }
        devices
    }

    /// Gives the devices of a plan for this configuration their ids, and those on the PCI bus their messages.
    pub(crate) fn name_devices(&self, plan: &mut MachinePlan) {
        let mut next = plan.pci.map(|pci| pci.first_msi_gsi);
        let planned = plan.devices.iter_mut();
        let virtio = planned.filter(|device| device.kind.virtio().is_some());
        for (planned, named) in virtio.zip(self.named_devices()) {
            if let (DeviceKind::VirtioPci { .. }, Some(first)) = (planned.kind, next) {
                let count = self.queues(&named) + 1;
                planned.messages = Some(Messages { first, count });
                next = Some(first.saturating_add(count));
            }
            planned.id = Some(named.id);
        }
    }

    /// How many queues a device has.
    pub(crate) fn queues(&self, device: &NamedDevice) -> u32 {
        let queues = match device.kind {
            VirtioKind::Block => self.blk.get(device.place).map(BlkConfig::queue_count),
            VirtioKind::Net => self.net.get(device.place).map(NetConfig::queue_count),
            VirtioKind::Balloon => self.balloon.as_ref().map(BalloonConfig::queue_count),
            // Received, sent, events (VIRTIO 1.3, 5.10.2).
            VirtioKind::Vsock => Some(3),
            // Received, sent (5.3.2).
            VirtioKind::Console => Some(2),
            // 5.4.2.
            VirtioKind::Rng => Some(1),
        };
        queues.unwrap_or_default()
    }

    /// No two devices have the same id.
    fn check_ids(&self) -> Result<(), Error> {
        let devices = self.named_devices();
        for (number, device) in devices.iter().enumerate() {
            let mut before = devices.iter().take(number);
            let Some(other) = before.find(|other| other.id == device.id) else {
                continue;
            };
            let kind = match (other.by_default, device.by_default) {
                (true, false) => Some(other.kind),
                (false, true) => Some(device.kind),
                _ => None,
            };
            let named = if device.by_default { other } else { device };
            let path = ConfigPath::from(named.kind.name());
            let path = match named.kind {
                VirtioKind::Block | VirtioKind::Net => path.item(named.place),
                _ => path,
            };
            return Err(Error::Config {
                field: path.key("id"),
                value: device.id.clone(),
                cause: match kind {
                    Some(kind) => format!("a {kind} without an id= has this id"),
                    None => format!("the {} before it has this id", other.kind),
                },
                cure: "give each device an id of its own".to_owned(),
            });
        }
        Ok(())
    }

    /// Refuses devices that were left out of this build, and what does not fit together.
    fn check_devices(&self) -> Result<(), Error> {
        let blk = self.blk.first().map(|disk| disk.path.display().to_string());
        let net = self.net.first().map(ToString::to_string);
        let vsock = self
            .vsock
            .as_ref()
            .map(|vsock| vsock.path.display().to_string());
        let console = self.console.then(|| "true".to_owned());
        let target = self.balloon.as_ref().map(|balloon| balloon.target);
        let balloon = target.map(|target| target.map(arch::size_text).unwrap_or_default());
        for (name, value, built) in [
            ("blk", &blk, cfg!(feature = "virtio-blk")),
            ("net", &net, cfg!(feature = "virtio-net")),
            ("vsock", &vsock, cfg!(feature = "virtio-vsock")),
            ("console", &console, cfg!(feature = "virtio-console")),
            ("balloon", &balloon, cfg!(feature = "virtio-balloon")),
        ] {
            if let (Some(value), false) = (value, built) {
                return Err(Error::Config {
                    field: match name {
                        "blk" | "net" => ConfigPath::from(name).item(0),
                        _ => name.into(),
                    },
                    value: value.clone(),
                    cause: "this build has no such device".to_owned(),
                    cure: format!("build with the feature virtio-{name}"),
                });
            }
        }
        self.check_values()?;
        if self.transport == Transport::Pci && !cfg!(feature = "pci") {
            return Err(Error::Config {
                field: "transport".into(),
                value: "pci".to_owned(),
                cause: "this build has no PCI bus".to_owned(),
                cure: "use mmio, or build with the feature pci".to_owned(),
            });
        }
        if let (Some(Some(target)), Some(value)) = (target, balloon)
            && target > self.guest_memory.bytes()
        {
            return Err(Error::Config {
                field: ConfigPath::from("balloon").key("target"),
                value,
                cause: format!("the guest has {} of memory", self.guest_memory),
                cure: "give the memory that the guest is left with, or the guest more (guest-memory=SIZE)"
                    .to_owned(),
            });
        }
        self.check_own_paths()
    }

    /// Every device's own limits, and what no two of them can have.
    fn check_values(&self) -> Result<(), Error> {
        for (place, disk) in self.blk.iter().enumerate() {
            let path = ConfigPath::from("blk").item(place);
            disk.check().map_err(|error| refused(path, error))?;
        }
        for (place, net) in self.net.iter().enumerate() {
            let path = ConfigPath::from("net").item(place);
            net.check().map_err(|error| refused(path, error))?;
            let before = self.net.iter().take(place);
            if before
                .clone()
                .any(|other| (&other.tap, other.fd) == (&net.tap, net.fd))
            {
                let (field, value) = tap_of(place, net);
                return Err(Error::Config {
                    field,
                    value,
                    cause: "another network device has it already".to_owned(),
                    cure: "give each network device a tap or a descriptor of its own; for more \
                           queues write tap=NAME,queues=N"
                        .to_owned(),
                });
            }
        }
        if let Some(vsock) = &self.vsock {
            vsock
                .check()
                .map_err(|error| refused("vsock".into(), error))?;
        }
        if let Some(balloon) = &self.balloon {
            balloon
                .check()
                .map_err(|error| refused("balloon".into(), error))?;
        }
        let limits = ConfigPath::from("rng-limits");
        self.rng_limits.check().map_err(|error| match error {
            // Without `limits.` in front, as devices have it.
            OptionError::Value(key, value, cause) => Error::Config {
                field: limits.key(key),
                value,
                cause,
                cure: "give a value that it may have; docs/configuration.md lists them".to_owned(),
            },
            error => refused(limits, error),
        })?;
        self.check_ids()
    }
}

/// Why a device's configuration cannot be used; `device` is where it stands.
fn refused(device: ConfigPath, error: OptionError) -> Error {
    let path = error.path();
    let (field, value, cause, cure) = match (error, path) {
        (OptionError::Value(_, value, cause), Some(path)) => {
            let cure = "give a value that it may have; docs/configuration.md lists them".to_owned();
            (device.key(path), value, cause, cure)
        }
        (OptionError::Missing(what, form), _) => {
            let cause = format!("it has no {what}");
            (device, String::new(), cause, format!("give {form}"))
        }
        (error, _) => {
            let cure = "see docs/configuration.md for what there is".to_owned();
            (device, String::new(), error.to_string(), cure)
        }
    };
    Error::Config {
        field,
        value,
        cause,
        cure,
    }
}

/// Where the network device at this place of the list has the name or the descriptor of its tap, and which.
pub(crate) fn tap_of(place: usize, net: &NetConfig) -> (ConfigPath, String) {
    let path = ConfigPath::from("net").item(place);
    match net.fd {
        Some(fd) => (path.key("fd"), fd.to_string()),
        None => (path.key("tap"), net.tap.clone().unwrap_or_default()),
    }
}

/// A virtio device of a configuration.
#[derive(Debug)]
pub(crate) struct NamedDevice {
    pub(crate) id: String,
    /// The configuration names none.
    by_default: bool,
    pub(crate) kind: VirtioKind,
    /// How many of its kind come before it.
    pub(crate) place: usize,
}

/// As long as a container's tools wait before they kill, times three.
pub(crate) const DEFAULT_SHUTDOWN_TIMEOUT: u32 = 30;
