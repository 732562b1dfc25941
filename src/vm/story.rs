//! What the log tells of a start at the level `debug`: a line for each fact that matters when a start goes
//! wrong.

use std::path::Path;

use std::thread;

use arch::{AddressRange, BootInfo, DeviceKind, KernelPlacement, MachinePlan, Space};
use devices::Rare;
use kvm_ioctls::Kvm;

use crate::VmConfig;
use crate::kernel::image::Kernel;

/// The stories of a VM's starts. A guest that resets starts again as often as it likes, so most of its
/// later starts are not told.
#[derive(Debug, Default)]
pub(crate) struct Story {
    starts: Rare,
    is_told: bool,
}

impl Story {
    /// The next start begins.
    pub(crate) fn begin(&mut self) {
        let start = self.starts.again();
        self.is_told = start.is_some() && log::log_enabled!(log::Level::Debug);
        if let Some(start @ 2..) = start {
            log::info!("the guest restarts: start {start}");
        }
    }

    /// The host.
    pub(crate) fn host(&self, kvm: &Kvm) {
        if self.is_told {
            log::debug!(
                "host: {}, {} processors; KVM allows {} vCPUs",
                crate::host::kernel_release(),
                thread::available_parallelism().map_or(1, usize::from),
                kvm.get_max_vcpus()
            );
        }
    }

    /// The file that was named, as it was found.
    pub(crate) fn kernel(&self, kernel: &Kernel) {
        if !self.is_told {
            return;
        }
        log::debug!(
            "kernel: {}, {}, {} bytes",
            kernel.name,
            kernel.header.describe(),
            kernel.image.size().unwrap_or_default()
        );
    }

    /// The machine that the configuration gives.
    pub(crate) fn plan(&self, plan: &MachinePlan, config: &VmConfig) {
        if !self.is_told {
            return;
        }
        let ram: Vec<_> = plan.ram.iter().map(range).collect();
        log::debug!(
            "plan: {}, {} vCPUs, {} MiB of RAM at {} ({}, huge pages {})",
            plan.arch,
            plan.vcpus,
            plan.ram_size() >> 20,
            ram.join(", "),
            config.memory_backing,
            config.huge_pages
        );
        if let Some(choice) = &plan.lean {
            let kind = if choice.lean { "lean" } else { "not lean" };
            log::debug!("plan: {kind}: {}", choice.why);
        }
        for device in &plan.devices {
            let space = match device.space {
                Space::Mmio => "memory",
                Space::Pio => "ports",
            };
            let irq = match (device.kind, device.irq) {
                (_, Some(gsi)) => format!(", GSI {gsi}"),
                (DeviceKind::VirtioPci { .. }, None) => ", interrupts by messages".to_owned(),
                _ => String::new(),
            };
            let place = range(&device.range);
            log::debug!("plan: {} at {space} {place}{irq}", device.kind);
        }
        log::debug!("plan: command line: {}", plan.cmdline);
    }

    /// What the guest's devices use of the host; disks tell of themselves.
    pub(crate) fn opened(&self, config: &VmConfig) {
        if !self.is_told {
            return;
        }
        for net in &config.net {
            log::debug!("opened: network device {net}");
        }
        if let Some(vsock) = &config.vsock {
            log::debug!(
                "opened: sockets at {}, CID {}",
                vsock.path.display(),
                vsock.cid
            );
        }
    }

    /// What lies in guest RAM.
    pub(crate) fn loaded(&self, kernel: &KernelPlacement, initrd: Option<(&Path, &AddressRange)>) {
        if !self.is_told {
            return;
        }
        log::debug!(
            "loaded: kernel at {}, entry {:#x}, protocol: {}",
            range(&kernel.range),
            kernel.entry,
            kernel.protocol.name()
        );
        if let Some((path, place)) = initrd {
            log::debug!(
                "loaded: initrd {} at {}, {} bytes",
                path.display(),
                range(place),
                place.len
            );
        }
    }

    /// What the kernel is told.
    pub(crate) fn told(&self, info: &BootInfo) {
        if !self.is_told {
            return;
        }
        for block in &info.placed {
            log::debug!("written: {} at {}", block.name, range(&block.range));
        }
    }
}

fn range(range: &AddressRange) -> String {
    if range.len == 0 {
        return format!("{:#x}", range.base);
    }
    format!("{:#x}-{:#x}", range.base, range.end().saturating_sub(1))
}
