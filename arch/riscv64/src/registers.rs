//! What a vCPU needs before it runs, as data: registers.
//!
//! KVM names a register by 64 bits: architecture, size, group, index (Linux
//! Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG). Core registers are counted in words of 64 bits
//! from the start of `struct kvm_riscv_core`, control registers in `struct kvm_riscv_csr`.

use arch::BootInfo;

use crate::isa;

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
    RISCV | CONFIG | place
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
/// A register of the timer, by its place in `struct kvm_riscv_timer`.
const fn timer(place: u64) -> u64 {
    RISCV | 0x0400_0000 | place
}
/// The frequency of the time counter.
pub const TIMER_FREQUENCY: u64 = timer(0);
/// The time counter, which all vCPUs share.
pub const TIMER_TIME: u64 = timer(1);
/// When the timer rings; all ones while it is not set.
pub const TIMER_COMPARE: u64 = timer(2);
/// Whether KVM's own timer runs, which it has for vCPUs where the processor has none for them (Sstc).
pub const TIMER_STATE: u64 = timer(3);
/// Whether the vCPU has an extension, by [`crate::isa`]'s number.
#[must_use]
pub const fn extension(number: u64) -> u64 {
    RISCV | EXTENSION | number
}
/// Whether the vCPU has a firmware extension, by KVM_RISCV_SBI_EXT_ID.
#[must_use]
pub const fn firmware(number: u64) -> u64 {
    RISCV | FIRMWARE | number
}

/// The extension of timers that vCPUs have, by KVM's number.
pub const SSTC: u64 = 8;
/// The widest translation that the host uses: [`crate::Riscv64::satp_mode`].
pub const SATP_MODE: u64 = config(6);
/// The interrupts that are pending.
pub const SIP: u64 = csr(7);
/// The bytes of a vector register (`vlenb`).
pub const VECTOR_LENGTH: u64 = RISCV | VECTOR | 4;

/// The kinds of registers (KVM_REG_RISCV_TYPE_MASK).
const KIND: u64 = 0xff00_0000;
const CONFIG: u64 = 0x0100_0000;
const EXTENSION: u64 = 0x0700_0000;
const FIRMWARE: u64 = 0x0800_0000;
const VECTOR: u64 = 0x0900_0000;
/// The number of a register among those of its kind.
const NUMBER: u64 = 0xffff;

/// Sizes are powers of two, in bytes (KVM_REG_SIZE_SHIFT).
const SIZE_SHIFT: u32 = 52;

/// The bytes of a register, by its name.
#[must_use]
pub const fn size(id: u64) -> usize {
    1 << ((id >> SIZE_SHIFT) & 0xf)
}

/// Whether it says that the vCPU has an extension.
#[must_use]
pub const fn is_extension(id: u64) -> bool {
    matches!(id & KIND, EXTENSION | FIRMWARE)
}

/// Whether it is one of vectors.
#[must_use]
pub const fn is_vector(id: u64) -> bool {
    id & KIND == VECTOR
}

/// Whether it says what a vCPU is. Such a register cannot be written any more once the vCPU has run, and which others
/// there are follows from them.
#[must_use]
pub const fn is_promise(id: u64) -> bool {
    is_extension(id) || id & KIND == CONFIG || matches!(id, TIMER_FREQUENCY | VECTOR_LENGTH)
}

/// What a message calls a register.
#[must_use]
pub fn name(id: u64) -> String {
    let number = id & NUMBER;
    if id == VECTOR_LENGTH {
        return "the bytes of a vector register (vlenb)".to_owned();
    }
    match id & KIND {
        EXTENSION => match isa::ALL.iter().find(|(known, _)| *known == number) {
            Some((_, name)) => format!("the extension {name}"),
            None => format!("the extension {number} (KVM_RISCV_ISA_EXT_ID)"),
        },
        FIRMWARE => format!("the firmware extension {number} (KVM_RISCV_SBI_EXT_ID)"),
        _ => format!("the register {id:#x}"),
    }
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

    #[test]
    fn a_register_has_a_size_and_a_name_for_people() {
        assert_eq!([PC, 0x8020_0000_0500_0000].map(size), [8, 4]);
        assert_eq!(size(u64::MAX), 1 << 15);
        assert_eq!(name(PC), "the register 0x8030000002000000");
        assert_eq!(name(extension(17)), "the extension zba");
        assert_eq!(
            name(extension(99)),
            "the extension 99 (KVM_RISCV_ISA_EXT_ID)"
        );
        assert_eq!(
            name(firmware(10)),
            "the firmware extension 10 (KVM_RISCV_SBI_EXT_ID)"
        );
        // As KVM prints it.
        assert_eq!(VECTOR_LENGTH, 0x8030_0000_0900_0004);
    }

    #[test]
    fn what_a_vcpu_is_comes_before_what_it_does() {
        for id in [
            extension(3),
            firmware(1),
            config(2),
            TIMER_FREQUENCY,
            VECTOR_LENGTH,
        ] {
            assert!(is_promise(id), "{id:#x}");
        }
        let vstart = VECTOR_LENGTH - 4;
        for id in [PC, SIP, TIMER_COMPARE, vstart] {
            assert!(!is_promise(id), "{id:#x}");
        }
    }
}
