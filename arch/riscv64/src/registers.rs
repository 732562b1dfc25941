//! What a vCPU needs before it runs, as data: registers.
//!
//! KVM names a register by 64 bits: architecture, size, group, index (Linux
//! Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG). Core registers are counted in words of 64 bits
//! from the start of `struct kvm_riscv_core`, control registers in `struct kvm_riscv_csr`.

use arch::BootInfo;

/// One register write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// KVM's name of it.
    pub id: u64,
    /// Its value.
    pub value: u64,
}

/// Everything that is set on one vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuSetup {
    /// Registers, in the order of writing.
    pub registers: Vec<Register>,
}

/// KVM_REG_RISCV | KVM_REG_SIZE_U64.
const RISCV: u64 = 0x8000_0000_0000_0000 | 0x0030_0000_0000_0000;

/// A configuration register, by its place in `struct kvm_riscv_config`.
#[must_use]
pub const fn config(place: u64) -> u64 {
    RISCV | 0x0100_0000 | place
}
/// A core register: 0 is the program counter, n is xn.
#[must_use]
pub const fn core(number: u64) -> u64 {
    RISCV | 0x0200_0000 | number
}
/// A control register, by its place in `struct kvm_riscv_csr`.
#[must_use]
pub const fn csr(place: u64) -> u64 {
    RISCV | 0x0300_0000 | place
}
/// The frequency of the time counter.
pub const TIMER_FREQUENCY: u64 = RISCV | 0x0400_0000;
/// Whether the vCPU has an extension, by [`crate::isa`]'s number.
#[must_use]
pub const fn extension(number: u64) -> u64 {
    RISCV | 0x0700_0000 | number
}
/// Whether the vCPU has a firmware extension, by KVM_RISCV_SBI_EXT_ID.
#[must_use]
pub const fn firmware(number: u64) -> u64 {
    RISCV | 0x0800_0000 | number
}

/// The program counter and the arguments of the boot protocol.
pub const PC: u64 = core(0);
/// The first argument.
pub const A0: u64 = core(10);
/// The second argument.
pub const A1: u64 = core(11);

/// Firmware calls that KVM would hand to the VMM: those of version 0.1 (its console, its shutdown),
/// experimental ones, a vendor's. There is nothing behind them, so the guest hears that they are
/// not there. (KVM serves the calls that matter itself: timer, interrupts, fences, start of vCPUs,
/// reset.)
const NOT_SERVED: [u64; 3] = [0, 7, 8];

/// The vCPU that boots.
pub(crate) const BOOT_HART: u64 = 0;

/// The registers of a vCPU: one that boots starts at the kernel with its number and the device tree
/// as arguments (Documentation/arch/riscv/boot.rst); the others wait for the firmware call that
/// starts them.
#[must_use]
pub(crate) fn vcpu_setup(boot: Option<&BootInfo>) -> VcpuSetup {
    let off = NOT_SERVED.map(|number| (firmware(number), 0));
    let start = boot.map(|boot| {
        let [hart, tree, ..] = boot.arguments;
        [(PC, boot.entry), (A0, hart), (A1, tree)]
    });
    let all = off.into_iter().chain(start.into_iter().flatten());
    VcpuSetup {
        registers: all.map(|(id, value)| Register { id, value }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use arch::kernel::Protocol;

    use super::*;

    #[test]
    fn the_boot_vcpu_starts_at_the_kernel_with_its_number_and_the_device_tree() {
        let boot = BootInfo {
            entry: 0x8020_0000,
            arguments: [BOOT_HART, 0x8000_0000, 0, 0],
            protocol: Protocol::DeviceTree,
            placed: Vec::new(),
        };
        let setup = vcpu_setup(Some(&boot));
        let value = |id| {
            let register = setup.registers.iter().find(|register| register.id == id);
            register.map(|register| register.value)
        };
        // The names as KVM prints them.
        assert_eq!(value(0x8030_0000_0200_0000), Some(0x8020_0000), "pc");
        assert_eq!(value(0x8030_0000_0200_000a), Some(0), "a0");
        assert_eq!(value(0x8030_0000_0200_000b), Some(0x8000_0000), "a1");
    }

    #[test]
    fn no_vcpu_has_firmware_calls_that_nobody_serves() {
        let setup = vcpu_setup(None);
        let ids: Vec<_> = setup.registers.iter().map(|register| register.id).collect();
        assert_eq!(ids, NOT_SERVED.map(firmware));
        assert!(setup.registers.iter().all(|register| register.value == 0));
    }
}
