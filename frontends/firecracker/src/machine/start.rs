//! A configuration in the library's words.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;

use vmm_reference::{
    Attachments, BalloonConfig, BlkConfig, BlkEngine, Confinement, Console, Consoles, EscapeKeys,
    HugePages, NetConfig, OwnDevice, Transport, VmConfig, VsockConfig, in_background,
};

use super::configuration::{Boot, Configuration, Network};
use super::disk::Drive;
use super::limits::limits;
use super::metadata::shown;
use super::terms::Options;
use super::timer::BootTimer;
use crate::api::bodies::{BalloonDeviceConfig, FileEngineType, HugePageConfig};
use crate::files::open_for_lines;
use crate::mmds::Service;
use crate::texts::{Fault, NO_KERNEL};

/// What a kernel is told when nobody says anything: to reset through the keyboard's controller when it reboots or has
/// panicked for a second, and not to look for what is not there.
const DEFAULT_CMDLINE: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce";
/// What commands call the balloon and the sockets.
pub(super) const BALLOON: &str = "balloon";
const VSOCK: &str = "vsock";
/// What the names of vCPUs' threads begin with, by which clients find them.
const VCPU_THREADS: &str = "fc_vcpu ";
const MIB: u64 = 1 << 20;
/// What a guest is left with by a balloon as large as its memory.
const LEAST: u64 = 4096;

/// What commands call a disk; metrics have it by this name.
pub(super) fn disk_id(id: &str) -> String {
    format!("block_{id}")
}

/// What commands call a network device; metrics have it by this name.
pub(super) fn net_id(id: &str) -> String {
    format!("net_{id}")
}

/// What a guest is left with by a balloon of this size.
pub(super) fn target(memory_mib: usize, balloon_mib: u32) -> u64 {
    let left = (memory_mib as u64).saturating_sub(balloon_mib.into());
    left.saturating_mul(MIB).max(LEAST)
}

/// Bytes in MiB.
pub(super) fn mib(bytes: u64) -> u32 {
    u32::try_from(bytes / MIB).unwrap_or(u32::MAX)
}

/// The machine that a configuration describes, and what it gets beside that. It names open descriptors of the
/// configuration, which has to last until the machine is built.
pub(super) fn prepare(
    configuration: &Configuration,
    options: &Options,
) -> Result<(VmConfig, Attachments), Fault> {
    let no_kernel = || Fault::Start(NO_KERNEL.to_owned());
    let boot = configuration.boot.as_ref().ok_or_else(no_kernel)?;
    let kernel = boot.kernel.as_ref().ok_or_else(no_kernel)?;
    let machine = &configuration.machine;
    let memory = u32::try_from(machine.mem_size_mib).map_err(|_| Fault::MemorySize)?;
    let transport = if options.pci {
        Transport::Pci
    } else {
        Transport::Mmio
    };
    let mut config = VmConfig::default()
        .with_kernel(open_path(kernel))
        .with_cmdline(cmdline(boot, configuration.drives.first(), options))
        .with_vcpus(machine.vcpu_count.into())
        .with_memory_mib(memory)
        .with_transport(transport)
        .with_keyboard()
        // What the host has not is told by the host.
        .with_overcommit()
        .with_huge_pages(huge_pages(machine.huge_pages));
    config.features.clone_from(&configuration.features);
    if !options.pci {
        // Whatever the kernel is: one without ACPI, or told to do without, finds its devices by it.
        config = config.with_announce_virtio();
    }
    if let Some(initrd) = &boot.initrd {
        config = config.with_initrd(open_path(initrd));
    }
    for drive in &configuration.drives {
        config.blk.extend(disk(drive));
    }
    config
        .net
        .extend(configuration.networks.iter().filter_map(network));
    if let Some(vsock) = &configuration.vsock
        && let Some(listener) = &vsock.listener
    {
        let (given, path) = (vsock.config.guest_cid, open_path(listener));
        let cid = vsock.cid();
        if cid != given {
            log::warn!("guest_cid {given} is reserved: the guest has {cid}.");
        }
        config = config.with_vsock(VsockConfig::new(cid, path).with_id(VSOCK));
    }
    if let Some(balloon) = &configuration.balloon {
        config = config.with_balloon(self::balloon(balloon, machine.mem_size_mib));
    }
    config.rng = configuration.entropy.is_some();
    if let Some(entropy) = &configuration.entropy {
        config.rng_limits = limits(entropy.rate_limiter.as_ref());
    }
    if options.boot_timer {
        config = config.with_own_window(BootTimer::LEN);
    }
    Ok((config, attachments_on_stdio(configuration, options)?))
}

/// What a machine gets beside its configuration, with the serial console on stdin and stdout, or where a client has it.
pub(super) fn attachments_on_stdio(
    configuration: &Configuration,
    options: &Options,
) -> Result<Attachments, Fault> {
    let console = console(configuration.serial.as_deref()).map_err(Fault::Serial)?;
    attachments(configuration, options, console.into())
}

/// What a machine with these consoles gets beside its configuration.
pub(super) fn attachments(
    configuration: &Configuration,
    options: &Options,
    consoles: Consoles,
) -> Result<Attachments, Fault> {
    let mut attachments = Attachments::default().with_vcpu_threads(VCPU_THREADS);
    attachments.consoles = consoles;
    if let Some(filters) = &options.filters {
        attachments = attachments.with_confinement(Arc::clone(filters) as Arc<dyn Confinement>);
    }
    for (id, service) in services(configuration)? {
        attachments = attachments.with_frame_hook(id, Box::new(service));
    }
    Ok(match options.boot_timer {
        true => attachments.with_device(boot_timer()),
        false => attachments,
    })
}

/// The pages of guest memory.
pub(super) fn huge_pages(config: HugePageConfig) -> HugePages {
    match config {
        HugePageConfig::None => HugePages::Off,
        HugePageConfig::Transparent => HugePages::Transparent,
        HugePageConfig::Hugetlbfs2M => HugePages::Reserved2M,
    }
}

/// The path of what is open.
pub(super) fn open_path(file: &impl AsRawFd) -> String {
    format!("/dev/fd/{}", file.as_raw_fd())
}

/// The command line: a client's words, and which disk is the root file system. What stands behind `--` is init's.
fn cmdline(boot: &Boot, first: Option<&Drive>, options: &Options) -> String {
    let words = boot.config.boot_args.as_deref().unwrap_or(DEFAULT_CMDLINE);
    let (kernel, init) = match words.split_once(" -- ") {
        Some((kernel, init)) => (kernel, Some(init)),
        None => (words, None),
    };
    let mut text = kernel.trim_end().to_owned();
    let mut add = |word: &str| {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(word);
    };
    if !options.pci && !kernel.split_whitespace().any(|word| word == "pci=off") {
        add("pci=off");
    }
    if let Some(root) = first.filter(|drive| drive.config.is_root_device) {
        match &root.config.partuuid {
            Some(uuid) => add(&format!("root=PARTUUID={uuid}")),
            None => add("root=/dev/vda"),
        }
        add(if root.is_read_only() { "ro" } else { "rw" });
    }
    if let Some(init) = init {
        add("--");
        add(init);
    }
    text
}

fn disk(drive: &Drive) -> Option<BlkConfig> {
    let file = drive.file.as_ref()?;
    let mut disk = BlkConfig::new(open_path(file))
        .with_id(disk_id(&drive.config.drive_id))
        .with_limits(limits(drive.config.rate_limiter.as_ref()))
        .with_engine(match drive.config.io_engine {
            Some(FileEngineType::Async) => BlkEngine::Auto,
            _ => BlkEngine::Sync,
        })
        // Clients put one file behind two machines, one of which has saved the other.
        .without_lock()
        .without_discard();
    if drive.is_read_only() {
        disk = disk.with_read_only();
    }
    if let Some(serial) = drive.serial() {
        disk = disk.with_serial(serial);
    }
    Some(disk)
}

fn network(network: &Network) -> Option<NetConfig> {
    let tap = network.tap.as_ref()?;
    let config = &network.config;
    let mut net = NetConfig::default()
        .with_fd(tap.as_raw_fd())
        .with_id(net_id(&config.iface_id))
        .with_rx_limits(limits(config.rx_rate_limiter.as_ref()))
        .with_tx_limits(limits(config.tx_rate_limiter.as_ref()));
    net.mac = config.guest_mac;
    net.mtu = config.mtu;
    Some(net)
}

/// The metadata service of each network device that has one, by the device's id.
fn services(configuration: &Configuration) -> Result<Vec<(String, Service)>, Fault> {
    let Some(config) = shown(&configuration.mmds) else {
        return Ok(Vec::new());
    };
    let mmds = &configuration.mmds;
    let networks = configuration.networks.iter();
    let ids = networks.map(|network| &network.config.iface_id);
    ids.filter(|id| config.network_interfaces.contains(id))
        .map(|id| {
            let service = Service::new(config.address(), Arc::clone(mmds));
            Ok((net_id(id), service.map_err(Fault::MmdsHost)?))
        })
        .collect()
}

fn balloon(config: &BalloonDeviceConfig, memory_mib: usize) -> BalloonConfig {
    let mut balloon = BalloonConfig::default()
        .with_id(BALLOON)
        .with_target(target(memory_mib, config.amount_mib))
        .with_stats_interval(config.stats_polling_interval_s.into());
    balloon.deflate_on_oom = config.deflate_on_oom;
    balloon.free_page_hinting = config.free_page_hinting;
    balloon.free_page_reporting = config.free_page_reporting;
    balloon
}

/// The serial console: stdin, and stdout or a file or FIFO instead, byte for byte. stdin and stdout may be closed.
fn console(path: Option<&Path>) -> io::Result<Console> {
    // A terminal that belongs to another job would stop whoever reads it.
    let input = match in_background(io::stdin()) {
        true => None,
        false => io::stdin().as_fd().try_clone_to_owned().ok(),
    };
    let output = match path {
        Some(path) => Some(open_for_lines(path)?.into()),
        None => io::stdout().as_fd().try_clone_to_owned().ok(),
    };
    Ok(Console::from_fds(input, output, EscapeKeys::Off))
}

fn boot_timer() -> OwnDevice {
    let timer = BootTimer::started();
    // A guest that goes on has booted.
    OwnDevice::in_memory("boot-timer", BootTimer::BASE, BootTimer::LEN, timer).without_state()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::bodies::{BlockDeviceConfig, BootSourceConfig, CacheType};

    fn boot(args: Option<&str>) -> Boot {
        Boot {
            config: BootSourceConfig {
                boot_args: args.map(str::to_owned),
                ..BootSourceConfig::default()
            },
            kernel: None,
            initrd: None,
        }
    }

    fn drive(is_root_device: bool, partuuid: Option<&str>, read_only: bool) -> Drive {
        let config = BlockDeviceConfig {
            drive_id: "a".to_owned(),
            partuuid: partuuid.map(str::to_owned),
            is_root_device,
            cache_type: CacheType::Unsafe,
            is_read_only: Some(read_only),
            path_on_host: Some("x".to_owned()),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        };
        Drive { config, file: None }
    }

    #[test]
    fn the_command_line_says_which_disk_is_the_root() {
        let pci = Options {
            pci: true,
            ..Options::default()
        };
        let mmio = Options::default();
        for (args, first, options, text) in [
            (Some("a"), None, &pci, "a"),
            (Some(""), None, &mmio, "pci=off"),
            (Some("pci=off a"), None, &mmio, "pci=off a"),
            (Some("a"), Some(drive(false, None, true)), &pci, "a"),
            (
                Some("a"),
                Some(drive(true, None, false)),
                &pci,
                "a root=/dev/vda rw",
            ),
            (
                Some("a -- single"),
                Some(drive(true, Some("0eaa-01"), true)),
                &mmio,
                "a pci=off root=PARTUUID=0eaa-01 ro -- single",
            ),
        ] {
            assert_eq!(cmdline(&boot(args), first.as_ref(), options), text);
        }
        let default = cmdline(&boot(None), None, &pci);
        assert_eq!(default, DEFAULT_CMDLINE);
    }

    #[test]
    fn a_balloon_leaves_the_guest_something() {
        assert_eq!(target(128, 28), 100 << 20);
        assert_eq!(target(128, 128), LEAST);
    }
}
