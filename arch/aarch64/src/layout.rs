//! What the machines of this architecture have that other boards do not; see [`arch::device_tree::board`].

use arch::device_tree::board::Board;
use arch::{AddressRange, DeviceKind, MachineConfig, MachinePlan, PlanError};

use crate::facts::Aarch64;
use crate::gic::{self, GIC_DISTRIBUTOR, GIC_ITS, GIC_REDISTRIBUTORS, MAX_VCPUS};

/// Where devices get their registers that the guest learns from the device tree.
pub const DEVICE_WINDOW: AddressRange = AddressRange::new(0x0900_0000, 0x0700_0000);

/// The register space of one device.
const DEVICE_REGISTERS: u64 = 0x1000;
/// The last line of the interrupt controller.
const LAST_GSI: u32 = gic::INTIDS - gic::FIRST_SPI - 1;

/// Computes the plan; see [`arch::Platform::setup_memory_layout`].
pub(crate) fn plan(facts: &Aarch64, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
    let board = Board {
        arch: "aarch64",
        address_bits: facts.ipa_bits,
        max_vcpus: facts.max_vcpus.min(MAX_VCPUS),
        controllers: &[
            ("GIC distributor", GIC_DISTRIBUTOR),
            ("GIC ITS", GIC_ITS),
            ("GIC redistributors", GIC_REDISTRIBUTORS),
        ],
        device_window: DEVICE_WINDOW,
        lines: 0..=LAST_GSI,
        first_msi_gsi: LAST_GSI + 1,
        console: (DeviceKind::Pl011, DEVICE_REGISTERS, "ttyAMA0"),
        devices: &[
            (DeviceKind::Pl031, DEVICE_REGISTERS),
            (DeviceKind::Pl061, DEVICE_REGISTERS),
        ],
    };
    board.plan(config)
}

#[cfg(test)]
mod tests;
