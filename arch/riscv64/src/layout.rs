//! What the machines of this architecture have that other boards do not; see [`arch::device_tree::board`].

use arch::device_tree::board::Board;
use arch::{AddressRange, DeviceKind, MachineConfig, MachinePlan, PlanError};

use crate::aia::{self, APLIC_WINDOW, IMSICS, MAX_VCPUS};
use crate::facts::Riscv64;

/// Where devices get their registers that the guest learns from the device tree.
pub const DEVICE_WINDOW: AddressRange = AddressRange::new(0x1000_0000, 0x1000_0000);

/// The registers of a UART: eight of one byte.
const UART_REGISTERS: u64 = 8;
/// The registers of the clock (Documentation/devicetree/bindings/rtc/google,goldfish-rtc.yaml of Linux).
const RTC_REGISTERS: u64 = 0x1000;

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &Riscv64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let board = Board {
        arch: "riscv64",
        address_bits: facts.gpa_bits,
        max_vcpus: facts.max_vcpus.min(MAX_VCPUS),
        controllers: &[("APLIC", APLIC_WINDOW), ("IMSICs", IMSICS)],
        device_window: DEVICE_WINDOW,
        lines: 1..=aia::sources(facts.identities),
        first_msi_gsi: aia::SOURCES + 1,
        console: (DeviceKind::Uart16550, UART_REGISTERS, "ttyS0"),
        devices: &[(DeviceKind::GoldfishRtc, RTC_REGISTERS)],
    };
    board.plan(config)
}

#[cfg(test)]
mod tests {
    use arch::device_tree::board::{DEVICE_TREE, GENERATION_ID, MMIO_WINDOW, PCI_ECAM, RAM_BASE};
    use arch::{Cmdline, GuestKernel, LEAST_MEMORY, Lean, Platform, Transport};

    use super::*;

    fn config(memory: u64, vcpus: u32) -> MachineConfig {
        MachineConfig {
            lean: Lean::Off,
            kernel: GuestKernel::Unknown,
            vmgenid: true,
            own_window: 0,
            keyboard: false,
            announce_virtio: false,
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
            GENERATION_ID,
        ];
        for pair in ranges.windows(2) {
            let [low, high] = pair else { unreachable!() };
            assert!(low.end() <= high.base, "{low:x?} {high:x?}");
        }
    }

    #[test]
    fn the_controllers_of_all_vcpus_fit_their_windows() {
        let facts = Riscv64::typical();
        let plan = plan(&facts, &config(LEAST_MEMORY, MAX_VCPUS)).unwrap();
        let aia = crate::Aia::new(plan.vcpus, facts.identities);
        assert!(APLIC_WINDOW.contains(&aia.aplic));
        assert!(IMSICS.contains(&aia.imsics));
        assert!(super::plan(&facts, &config(LEAST_MEMORY, MAX_VCPUS + 1)).is_err());
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
        let error = plan(&facts, &config(most + 4096, 1)).unwrap_err();
        assert!(error.to_string().contains("41 address bits"), "{error}");
    }
}
