//! A machine before its start: what requests have said, and everything that they name, open.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vmm_reference::FeatureBits;

use super::disk::{self, Drive};
use super::limits::shown;
use super::metadata;
use super::processor;
use super::terms::{Options, Outcome};
use crate::api::Action;
use crate::api::answers::FullConfig;
use crate::api::bodies::{
    BalloonDeviceConfig, BootSourceConfig, EntropyDeviceConfig, HugePageConfig, MachineConfig,
    MachineConfigUpdate, NetworkInterfaceConfig, SerialConfig, StaticCpuTemplate,
    VsockDeviceConfig,
};
use crate::mmds::{Mmds, MmdsConfig};
use crate::texts::{Fault, template_is_not_applied};
use crate::{logger, metrics};

/// The most vCPUs of a machine.
const MOST_VCPUS: u8 = 32;
/// The smallest MTU of IPv4 (RFC 791).
const LEAST_MTU: u16 = 68;
/// The longest command line of a kernel, in bytes, on x86_64 (COMMAND_LINE_SIZE of Linux).
const LONGEST_CMDLINE: usize = 2048;

/// What there is of a machine.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) machine: MachineConfig,
    /// What the guest is told of its processor otherwise than the host has it.
    pub(super) features: Vec<FeatureBits>,
    pub(super) boot: Option<Boot>,
    /// The root device first.
    pub(super) drives: Vec<Drive>,
    pub(super) networks: Vec<Network>,
    pub(super) vsock: Option<Vsock>,
    pub(crate) balloon: Option<BalloonDeviceConfig>,
    pub(super) entropy: Option<EntropyDeviceConfig>,
    /// The metadata service, and what it tells.
    pub(super) mmds: Arc<Mutex<Mmds>>,
    /// Where the serial console's output goes, instead of to stdout.
    pub(super) serial: Option<PathBuf>,
}

#[derive(Debug)]
pub(super) struct Boot {
    pub(super) config: BootSourceConfig,
    pub(super) kernel: Option<File>,
    pub(super) initrd: Option<File>,
}

#[derive(Debug)]
pub(super) struct Network {
    pub(super) config: NetworkInterfaceConfig,
    pub(super) tap: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Vsock {
    pub(super) config: VsockDeviceConfig,
    pub(super) listener: Option<UnixListener>,
}

impl Vsock {
    /// The CID of the guest. Some clients give each the same, and one that is reserved, since nobody uses it: a guest with
    /// that is told the first that there is (VIRTIO 1.3, 5.10.4).
    pub(super) fn cid(&self) -> u32 {
        const FIRST: u32 = 3;
        match self.config.guest_cid {
            0..FIRST | u32::MAX => FIRST,
            given => given,
        }
    }
}

impl Configuration {
    /// That of nothing but a metadata service.
    pub(super) fn new(mmds: Arc<Mutex<Mmds>>) -> Self {
        Self {
            machine: MachineConfig::default(),
            features: Vec::new(),
            boot: None,
            drives: Vec::new(),
            networks: Vec::new(),
            vsock: None,
            balloon: None,
            entropy: None,
            mmds,
            serial: None,
        }
    }

    /// Does what a request asks for before the start.
    pub(super) fn handle(&mut self, action: Action, options: &Options) -> Result<Outcome, Fault> {
        match action {
            Action::SetBootSource(config) => self.set_boot_source(config)?,
            Action::SetMachineConfig(config) => self.set_machine(&config)?,
            Action::SetCpuConfig(template) => self.features = processor::features(&template)?,
            Action::SetDrive(config) => disk::set(&mut self.drives, config)?,
            Action::SetNetwork(config) => self.set_network(config)?,
            Action::SetVsock(config) => self.set_vsock(config)?,
            Action::SetBalloon(config) => self.set_balloon(config)?,
            Action::SetEntropy(config) => {
                let rate_limiter = shown(config.rate_limiter);
                self.entropy = Some(EntropyDeviceConfig { rate_limiter });
            }
            Action::SetMmdsConfig(config) => self.set_metadata(config)?,
            Action::SetSerial(config) => self.set_serial(config),
            Action::SetLogger(config) => logger::configure(config).map_err(Fault::Logger)?,
            Action::SetMetrics(config) => metrics::configure(config, &options.id)?,
            _ => return Err(Fault::BeforeStart),
        }
        Ok(Outcome::Done)
    }

    fn set_boot_source(&mut self, config: BootSourceConfig) -> Result<(), Fault> {
        let kernel = disk::open(&config.kernel_image_path, true).map_err(Fault::Kernel)?;
        let initrd = config.initrd_path.as_deref();
        let initrd = initrd.map(|path| disk::open(path, true)).transpose();
        let initrd = initrd.map_err(Fault::Initrd)?;
        check_cmdline(config.boot_args.as_deref().unwrap_or_default())?;
        self.boot = Some(Boot {
            config,
            kernel: Some(kernel),
            initrd,
        });
        Ok(())
    }

    fn set_machine(&mut self, update: &MachineConfigUpdate) -> Result<(), Fault> {
        let machine = updated(&self.machine, update)?;
        let balloon = self.balloon.as_ref();
        if balloon.is_some_and(|balloon| balloon.amount_mib as usize > machine.mem_size_mib) {
            return Err(Fault::LessThanBalloon);
        }
        if let Some(template) = update.cpu_template
            && template != StaticCpuTemplate::None
        {
            log::warn!("{}", template_is_not_applied(template));
        }
        self.machine = machine;
        Ok(())
    }

    fn set_network(&mut self, mut config: NetworkInterfaceConfig) -> Result<(), Fault> {
        let id = &config.iface_id;
        let mut others = self.networks.iter().map(|network| &network.config);
        let has_mac = |other: &NetworkInterfaceConfig| {
            other.iface_id != *id
                && other.guest_mac.is_some()
                && other.guest_mac == config.guest_mac
        };
        if let Some(mac) = config.guest_mac.filter(|_| others.any(has_mac)) {
            return Err(Fault::MacInUse(mac.to_string()));
        }
        if let Some(mtu) = config.mtu.filter(|mtu| *mtu < LEAST_MTU) {
            return Err(Fault::Mtu(mtu));
        }
        let place = self
            .networks
            .iter()
            .position(|network| network.config.iface_id == *id);
        config.rx_rate_limiter = shown(config.rx_rate_limiter);
        config.tx_rate_limiter = shown(config.tx_rate_limiter);
        if !is_interface(&config.host_dev_name) {
            return Err(Fault::TapName);
        }
        // Before the tap is opened, which may be the same one.
        let place = match place {
            Some(place) => {
                log::warn!("The network device {:?} is replaced.", config.iface_id);
                self.networks.remove(place);
                place
            }
            None => self.networks.len(),
        };
        let tap = vmm_reference::open_tap(&config.host_dev_name).map_err(|error| Fault::Tap {
            error: tap_error(&error),
            name: config.host_dev_name.clone(),
        })?;
        let network = Network {
            config,
            tap: Some(tap),
        };
        self.networks.insert(place, network);
        Ok(())
    }

    fn set_vsock(&mut self, config: VsockDeviceConfig) -> Result<(), Fault> {
        if let Some(before) = self.vsock.take() {
            std::fs::remove_file(&before.config.uds_path).map_err(Fault::Vsock)?;
        }
        let listener = UnixListener::bind(&config.uds_path).map_err(Fault::Vsock)?;
        self.vsock = Some(Vsock {
            config,
            listener: Some(listener),
        });
        Ok(())
    }

    fn set_balloon(&mut self, config: BalloonDeviceConfig) -> Result<(), Fault> {
        if config.amount_mib as usize > self.machine.mem_size_mib {
            return Err(Fault::TooLargeBalloon);
        }
        self.balloon = Some(config);
        Ok(())
    }

    fn set_metadata(&self, config: MmdsConfig) -> Result<(), Fault> {
        let networks = self.networks.iter();
        let ids: Vec<_> = networks.map(|network| &*network.config.iface_id).collect();
        metadata::configure(&self.mmds, config, &ids)
    }

    fn set_serial(&mut self, config: SerialConfig) {
        if config.rate_limiter.is_some() {
            log::warn!(
                "The serial console has no rate limiter: what its reader does not take is dropped."
            );
        }
        self.serial = config.serial_out_path;
    }

    /// Closes what the machine has open by now.
    pub(super) fn close(&mut self) {
        if let Some(boot) = &mut self.boot {
            (boot.kernel, boot.initrd) = (None, None);
        }
        self.drives.iter_mut().for_each(|drive| drive.file = None);
        self.networks
            .iter_mut()
            .for_each(|network| network.tap = None);
        if let Some(vsock) = &mut self.vsock {
            vsock.listener = None;
        }
    }

    /// All of it, as a client has said it.
    pub(super) fn full(&self) -> FullConfig<'_> {
        let boot = self.boot.as_ref();
        let networks = self.networks.iter();
        let vsock = self.vsock.as_ref();
        FullConfig {
            balloon: self.balloon.as_ref(),
            drives: self.drives.iter().map(Drive::shown).collect(),
            boot_source: boot.map(|boot| boot.config.clone()).unwrap_or_default(),
            cpu_config: None,
            logger: None,
            machine_config: &self.machine,
            metrics: None,
            mmds_config: metadata::shown(&self.mmds),
            network_interfaces: networks.map(|network| &network.config).collect(),
            vsock: vsock.map(|vsock| VsockDeviceConfig {
                guest_cid: vsock.cid(),
                ..vsock.config.clone()
            }),
            entropy: self.entropy.as_ref(),
            pmem: Vec::new(),
            memory_hotplug: None,
        }
    }
}

/// Whether a network interface may have this name (IFNAMSIZ has room for its end, too).
fn is_interface(name: &str) -> bool {
    const LONGEST: usize = 15;
    name.len() <= LONGEST && !name.contains('\0')
}

/// The host's word for why a tap device was refused, and ours.
pub(super) fn tap_error(error: &vmm_reference::Error) -> String {
    const BUSY: i32 = 16;
    const NOT_PERMITTED: i32 = 1;
    const INVALID: i32 = 22;
    let number = match error.io().map(io::Error::kind) {
        Some(io::ErrorKind::ResourceBusy) => BUSY,
        Some(io::ErrorKind::PermissionDenied) => NOT_PERMITTED,
        _ => INVALID,
    };
    format!(
        "{} ({})",
        io::Error::from_raw_os_error(number),
        error.chain()
    )
}

fn updated(before: &MachineConfig, update: &MachineConfigUpdate) -> Result<MachineConfig, Fault> {
    let machine = MachineConfig {
        vcpu_count: update.vcpu_count.unwrap_or(before.vcpu_count),
        mem_size_mib: update.mem_size_mib.unwrap_or(before.mem_size_mib),
        smt: update.smt.unwrap_or(before.smt),
        cpu_template: match update.cpu_template {
            Some(StaticCpuTemplate::None) => None,
            template => template.or(before.cpu_template),
        },
        track_dirty_pages: update.track_dirty_pages.unwrap_or(before.track_dirty_pages),
        huge_pages: update.huge_pages.unwrap_or(before.huge_pages),
    };
    if machine.smt && cfg!(target_arch = "aarch64") {
        return Err(Fault::Smt);
    }
    let vcpus = machine.vcpu_count;
    let is_odd = vcpus > 1 && !vcpus.is_multiple_of(2);
    if !(1..=MOST_VCPUS).contains(&vcpus) || machine.smt && is_odd {
        return Err(Fault::Vcpus { most: MOST_VCPUS });
    }
    let is_whole =
        machine.huge_pages == HugePageConfig::None || machine.mem_size_mib.is_multiple_of(2);
    if machine.mem_size_mib == 0 || !is_whole {
        return Err(Fault::MemorySize);
    }
    Ok(machine)
}

fn check_cmdline(text: &str) -> Result<(), Fault> {
    let wrong = text.chars().find(|letter| !(' '..='~').contains(letter));
    match wrong {
        Some(letter) => Err(Fault::CommandLine(format!(
            "it has {letter:?}, and is of printable ASCII characters"
        ))),
        None if text.len() >= LONGEST_CMDLINE => Err(Fault::CommandLine(format!(
            "it has {} bytes, and fewer than {LONGEST_CMDLINE} fit",
            text.len()
        ))),
        None => Ok(()),
    }
}
