//! The memory map: where RAM, devices and boot information go.
//!
//! Decides every fixed address of the machine. Devices lie below 2 GiB, RAM is one region above.
//! The device tree is at the start of RAM; kernel and initrd follow in the kernel window.

use arch::{
    AddressRange, DeviceKind, DevicePlan, Gsi, Limits, MachineConfig, MachinePlan, PciPlan,
    PlanError, Reserved, Resources, Space, Transport, virtio_mmio,
};

use crate::aia::{self, APLIC_WINDOW, IMSICS, MAX_VCPUS};
use crate::facts::Riscv64;

/// The page size that memory is counted in.
pub const PAGE_SIZE: u64 = 0x1000;
/// The least RAM a machine can have, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Where devices get their registers that the guest learns from the device tree.
pub const DEVICE_WINDOW: AddressRange = AddressRange::new(0x1000_0000, 0x1000_0000);
/// The configuration space of the PCI bus.
pub const PCI_ECAM: AddressRange = AddressRange::new(0x3000_0000, PciPlan::ECAM_LEN);
/// Where virtio devices get their addresses: all of it is the window of 32-bit BARs on a machine
/// with a PCI bus.
pub const MMIO_WINDOW: AddressRange = AddressRange::new(0x4000_0000, 0x4000_0000);
/// The start of RAM.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The device tree. Linux maps it with one page of 2 MiB (Documentation/arch/riscv/boot.rst).
pub const DEVICE_TREE: AddressRange = AddressRange::new(RAM_BASE, 2 << 20);

/// The registers of a UART: eight of one byte.
const UART_REGISTERS: u64 = 8;
/// The registers of the clock (Documentation/devicetree/bindings/rtc/google,goldfish-rtc.yaml of Linux).
const RTC_REGISTERS: u64 = PAGE_SIZE;
/// What the binding of pvpanic has (Documentation/devicetree/bindings/misc/pvpanic-mmio.txt of Linux).
const PVPANIC_REGISTERS: u64 = 2;
/// The other devices have the interrupts before, virtio devices those from here on.
const FIRST_VIRTIO_GSI: Gsi = 16;

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &Riscv64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let address_space = 1u64.checked_shl(facts.gpa_bits.into()).unwrap_or(u64::MAX);
    let limits = Limits {
        min_memory: MIN_MEMORY,
        max_memory: address_space.saturating_sub(RAM_BASE),
        address_bits: facts.gpa_bits,
        max_vcpus: facts.max_vcpus.min(MAX_VCPUS),
    };
    limits.check(config)?;
    let ram = AddressRange::new(RAM_BASE, config.memory);
    // RAM may have all addresses: the upper window is made of what it leaves.
    let pci = (config.transport == Transport::Pci).then(|| PciPlan {
        ecam: PCI_ECAM,
        window32: MMIO_WINDOW,
        window64: PciPlan::window64_above(ram.end(), facts.gpa_bits),
        first_msi_gsi: aia::SOURCES + 1,
    });
    let default = if config.serial {
        "console=ttyS0 panic=-1"
    } else {
        "panic=-1"
    };
    let window = DEVICE_TREE.end();
    let cmdline = config.cmdline.text(default);
    Ok(MachinePlan {
        arch: "riscv64",
        ram: vec![ram],
        reserved: [("APLIC", APLIC_WINDOW), ("IMSICs", IMSICS)]
            .map(|(name, range)| Reserved { name, range })
            .to_vec(),
        kernel_window: AddressRange::new(window, ram.end().saturating_sub(window)),
        mmio_window: MMIO_WINDOW,
        devices: devices(facts, config, pci.as_ref())?,
        pci,
        vcpus: config.vcpus,
        lean: None,
        remarks: config.remarks(&cmdline),
        cmdline,
    })
}

fn devices(
    facts: &Riscv64,
    config: &MachineConfig,
    pci: Option<&PciPlan>,
) -> Result<Vec<DevicePlan>, PlanError> {
    let last = aia::sources(facts.identities);
    let (own, virtio) = (1..=FIRST_VIRTIO_GSI - 1, FIRST_VIRTIO_GSI..=last);
    let mut resources = Resources::new(Space::Mmio, DEVICE_WINDOW, own)?;
    let mut devices = Vec::new();
    if config.serial {
        devices.push(resources.device(DeviceKind::Uart16550, UART_REGISTERS)?);
    }
    devices.push(resources.device(DeviceKind::GoldfishRtc, RTC_REGISTERS)?);
    devices.push(DevicePlan {
        kind: DeviceKind::Pvpanic,
        space: Space::Mmio,
        range: resources.range(PVPANIC_REGISTERS)?,
        irq: None,
    });
    if let Some(pci) = pci {
        devices.extend(pci.devices(&config.virtio, None)?);
        return Ok(devices);
    }
    devices.extend(virtio_mmio(MMIO_WINDOW, virtio, &config.virtio)?);
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use arch::{Cmdline, GuestKernel, Lean, Platform, Transport};

    use super::*;

    fn config(memory: u64, vcpus: u32) -> MachineConfig {
        MachineConfig {
            lean: Lean::Off,
            kernel: GuestKernel::Unknown,
            memory,
            vcpus,
            cmdline: Cmdline::default(),
            serial: true,
            virtio: Vec::new(),
            transport: Transport::Mmio,
        }
    }

    #[test]
    fn fixed_ranges_do_not_touch() {
        let ranges = [
            APLIC_WINDOW,
            DEVICE_WINDOW,
            IMSICS,
            PCI_ECAM,
            MMIO_WINDOW,
            DEVICE_TREE,
        ];
        for pair in ranges.windows(2) {
            let [low, high] = pair else { unreachable!() };
            assert!(low.end() <= high.base, "{low:x?} {high:x?}");
        }
    }

    #[test]
    fn the_controllers_of_all_vcpus_fit_their_windows() {
        let facts = Riscv64::typical();
        let plan = plan(&facts, &config(MIN_MEMORY, MAX_VCPUS)).unwrap();
        let aia = crate::Aia::new(plan.vcpus, facts.identities);
        assert!(APLIC_WINDOW.contains(&aia.aplic));
        assert!(IMSICS.contains(&aia.imsics));
        assert!(super::plan(&facts, &config(MIN_MEMORY, MAX_VCPUS + 1)).is_err());
    }

    #[test]
    fn a_host_with_few_interrupt_identities_has_as_many_lines() {
        let facts = Riscv64 {
            identities: 63,
            ..Riscv64::typical()
        };
        let with = |devices| MachineConfig {
            virtio: vec![arch::VirtioKind::Block; devices],
            ..config(1 << 30, 1)
        };
        let plan = plan(&facts, &with(48)).unwrap();
        assert_eq!(facts.irq_chip(&plan).unwrap().sources, 63);
        assert_eq!(plan.devices.last().unwrap().irq, Some(63));
        let error = super::plan(&facts, &with(49)).unwrap_err();
        assert!(error.to_string().contains("interrupts for 48"), "{error}");
    }

    #[test]
    fn ram_is_one_region_as_far_as_the_address_bits_reach() {
        let facts = Riscv64 {
            gpa_bits: 41,
            ..Riscv64::typical()
        };
        let most = (1 << 41) - RAM_BASE;
        let ram = plan(&facts, &config(most, 1)).unwrap().ram;
        assert_eq!(ram, [AddressRange::new(RAM_BASE, most)]);
        let error = plan(&facts, &config(most + PAGE_SIZE, 1)).unwrap_err();
        assert!(error.to_string().contains("41 address bits"), "{error}");
    }
}
