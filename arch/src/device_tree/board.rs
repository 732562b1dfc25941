//! A machine that is described by a device tree: its memory map and its plan, the same on all
//! architectures that have one. What differs, a backend says in a [`Board`].
//!
//! Devices and interrupt controllers lie below 2 GiB, RAM is one region above. The device tree is at the
//! start of RAM; kernel and initrd follow in the kernel window.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use crate::{
    AddressRange, DeviceKind, DevicePlan, GenerationId, Gsi, Limits, MachineConfig, MachinePlan,
    PciPlan, PlanError, Reserved, Resources, Space, Transport, virtio_mmio, window_above,
};

/// The configuration space of the PCI bus.
pub const PCI_ECAM: AddressRange = AddressRange::new(0x3000_0000, PciPlan::ECAM_LEN);
/// Where virtio devices get their addresses: all of it is the window of 32-bit BARs on a machine
/// with a PCI bus.
pub const MMIO_WINDOW: AddressRange = AddressRange::new(0x4000_0000, 0x4000_0000);
const PAGE: u64 = 0x1000;
/// The start of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The device tree. Linux maps it with 2 MiB (Documentation/arch/arm64/booting.rst, riscv/boot.rst).
pub const DEVICE_TREE: AddressRange = AddressRange::new(RAM_BASE, (2 << 20) - PAGE);
/// The page with the generation ID.
pub const GENERATION_ID: AddressRange = AddressRange::new(DEVICE_TREE.end(), PAGE);

/// What the binding of pvpanic has (Documentation/devicetree/bindings/misc/pvpanic-mmio.txt of Linux).
const PVPANIC_REGISTERS: u64 = 2;
/// The board's own devices have the lines before, virtio devices those from here on.
const FIRST_VIRTIO_GSI: Gsi = 16;

/// What an architecture decides about its machines.
#[derive(Debug)]
pub struct Board<'a> {
    /// Its name, as `uname -m` gives it.
    pub arch: &'static str,
    /// Bits of a guest physical address.
    pub address_bits: u8,
    /// The most vCPUs.
    pub max_vcpus: u32,
    /// What the interrupt controllers may occupy: below [`PCI_ECAM`].
    pub controllers: &'a [(&'static str, AddressRange)],
    /// Where the board's own devices are: below [`PCI_ECAM`].
    pub device_window: AddressRange,
    /// The lines of the interrupt chip that devices may have.
    pub lines: RangeInclusive<Gsi>,
    /// The first GSI that is no line of any such machine.
    pub first_msi_gsi: Gsi,
    /// The serial console: kind, bytes of registers, the name that Linux has for it.
    pub console: (DeviceKind, u64, &'static str),
    /// The other devices with a line each: kind and bytes of registers.
    pub devices: &'a [(DeviceKind, u64)],
}

impl Board<'_> {
    /// Computes the plan; see [`Platform::setup_memory_layout`](crate::Platform::setup_memory_layout).
    ///
    /// # Errors
    /// As there.
    pub fn plan(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        let bits = self.address_bits;
        let address_space = 1u64.checked_shl(bits.into()).unwrap_or(u64::MAX);
        let limits = Limits {
            max_memory: address_space.saturating_sub(RAM_BASE),
            address_bits: bits,
            max_vcpus: self.max_vcpus,
        };
        limits.check(config)?;
        let ram = AddressRange::new(RAM_BASE, config.memory);
        // RAM may have all addresses: the upper window is made of what it leaves.
        let window = window_above(MMIO_WINDOW, config.own_window)?;
        let pci = (config.transport == Transport::Pci).then(|| PciPlan {
            ecam: PCI_ECAM,
            window32: window,
            window64: PciPlan::window64_above(ram.end(), bits),
            first_msi_gsi: self.first_msi_gsi,
        });
        let default = if config.serial {
            &format!("console={} panic=-1", self.console.2)
        } else {
            "panic=-1"
        };
        let kernel_start = GENERATION_ID.end();
        let cmdline = config.cmdline.text(default);
        let reserved = |&(name, range)| Reserved {
            name: Cow::Borrowed(name),
            range,
        };
        let (devices, vmgenid) = self.devices(config, pci.as_ref())?;
        let controllers = self.controllers.iter().map(reserved);
        let page = vmgenid.map(|_| GenerationId::reserved(GENERATION_ID));
        Ok(MachinePlan {
            arch: self.arch.into(),
            ram: vec![ram],
            reserved: controllers.chain(page).collect(),
            kernel_window: AddressRange::new(kernel_start, ram.end().saturating_sub(kernel_start)),
            mmio_window: MMIO_WINDOW,
            devices,
            pci,
            vmgenid,
            vcpus: config.vcpus,
            lean: None,
            remarks: config.remarks(&cmdline),
            cmdline,
        })
    }

    /// The devices, and the generation ID, whose interrupt is the last of the board's own.
    fn devices(
        &self,
        config: &MachineConfig,
        pci: Option<&PciPlan>,
    ) -> Result<(Vec<DevicePlan>, Option<GenerationId>), PlanError> {
        let own = *self.lines.start()..=FIRST_VIRTIO_GSI - 1;
        let mut resources = Resources::new(Space::Mmio, self.device_window, own)?;
        let (console, registers, _) = self.console;
        let console = config.serial.then_some((console, registers));
        let wired = console.iter().chain(self.devices);
        let mut devices = wired
            .map(|&(kind, registers)| resources.device(kind, registers))
            .collect::<Result<Vec<_>, _>>()?;
        devices.push(DevicePlan {
            id: None,
            messages: None,
            kind: DeviceKind::Pvpanic,
            space: Space::Mmio,
            range: resources.range(PVPANIC_REGISTERS)?,
            irq: None,
        });
        let vmgenid = if config.vmgenid {
            Some(GenerationId::in_page(
                GENERATION_ID,
                Some(resources.line()?),
            ))
        } else {
            None
        };
        match pci {
            Some(pci) => devices.extend(pci.devices(&config.virtio, None)?),
            None => {
                let lines = FIRST_VIRTIO_GSI..=*self.lines.end();
                let window = window_above(MMIO_WINDOW, config.own_window)?;
                devices.extend(virtio_mmio(window, lines, &config.virtio)?);
            }
        }
        Ok((devices, vmgenid))
    }
}
