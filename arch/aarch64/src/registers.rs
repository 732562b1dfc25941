//! What a vCPU needs before it runs, as data: features and registers.
//!
//! KVM names a register by 64 bits: architecture, size, group, index (Linux
//! Documentation/virt/kvm/api.rst, KVM_SET_ONE_REG). Core registers are counted in words from the
//! start of `struct kvm_regs`.

use arch::{BootInfo, Bytes, VcpuId};

use crate::facts::Aarch64;

/// Features of KVM_ARM_VCPU_INIT, by bit (KVM_ARM_VCPU_*).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Feature {
    /// The vCPU waits for PSCI CPU_ON.
    PowerOff = 0,
    /// PSCI 0.2 and later, served by KVM.
    Psci02 = 2,
    /// The performance monitors.
    PmuV3 = 3,
    /// Scalable vectors; needs KVM_ARM_VCPU_FINALIZE.
    Sve = 4,
    /// Pointer authentication with address keys.
    PtrauthAddress = 5,
    /// Pointer authentication with the generic key.
    PtrauthGeneric = 6,
}

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
    /// Features, in ascending order.
    pub features: Vec<Feature>,
    /// Registers, in the order of writing; none for a vCPU that waits.
    pub registers: Vec<Register>,
    /// The private interrupt of the performance monitors, where the vCPU has them.
    pub pmu_intid: Option<u32>,
    /// The vector lengths ([`VECTOR_LENGTHS`]), where they are not all that the host has.
    pub vector_lengths: Option<Bytes>,
}

/// The private interrupt of the performance monitors (PPI 7), as on every Arm server.
pub const PMU_INTID: u32 = 23;

/// KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE.
const CORE: u64 = 0x6000_0000_0000_0000 | 0x0030_0000_0000_0000 | 0x0010_0000;
/// Offsets in `struct kvm_regs`, in words of 32 bits.
const X0_OFFSET: u64 = 0;
const SP_OFFSET: u64 = 31 * 2;
const PC_OFFSET: u64 = 32 * 2;
const PSTATE_OFFSET: u64 = 33 * 2;
const ELR_EL1_OFFSET: u64 = 35 * 2;

/// The general registers, `x0` to `x30`.
#[must_use]
pub const fn x(number: u8) -> u64 {
    CORE | (X0_OFFSET + 2 * number as u64)
}
/// The stack pointer of EL0.
pub const SP_EL0: u64 = CORE | SP_OFFSET;
/// The program counter.
pub const PC: u64 = CORE | PC_OFFSET;
/// The processor state.
pub const PSTATE: u64 = CORE | PSTATE_OFFSET;
/// The return address of the last exception to EL1.
pub const ELR_EL1: u64 = CORE | ELR_EL1_OFFSET;

/// A system register by its encoding (KVM_REG_ARM64_SYSREG).
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    0x6000_0000_0000_0000
        | 0x0030_0000_0000_0000
        | 0x0013_0000
        | (op0 << 14)
        | (op1 << 11)
        | (crn << 7)
        | (crm << 3)
        | op2
}
/// System control.
pub const SCTLR_EL1: u64 = system(3, 0, 1, 0, 0);
/// Base of the lower half's translation tables.
pub const TTBR0_EL1: u64 = system(3, 0, 2, 0, 0);
/// Base of the upper half's translation tables.
pub const TTBR1_EL1: u64 = system(3, 0, 2, 0, 1);
/// Translation control.
pub const TCR_EL1: u64 = system(3, 0, 2, 0, 2);
/// Why the last exception to EL1 was taken.
pub const ESR_EL1: u64 = system(3, 0, 5, 2, 0);
/// The address that caused it.
pub const FAR_EL1: u64 = system(3, 0, 6, 0, 0);
/// The vector base.
pub const VBAR_EL1: u64 = system(3, 0, 12, 0, 0);

/// A set of vector lengths, in 512 bits (KVM_REG_ARM64_SVE_VLS); cannot be changed after KVM_ARM_VCPU_FINALIZE.
pub const VECTOR_LENGTHS: u64 = 0x6060_0000_0015_ffff;
/// The counters of time that a vCPU reads, virtual and physical: KVM_REG_ARM_TIMER_CNT, which has the encoding of
/// CNTV_CVAL_EL0, and KVM_REG_ARM_PTIMER_CNT.
pub const COUNTERS: [u64; 2] = [system(3, 3, 14, 3, 2), system(3, 3, 14, 0, 1)];

/// Sizes are powers of two, in bytes; the largest are 2048 bits.
const SIZE_SHIFT: u32 = 52;
const LARGEST: u64 = 8;
/// The kind of register, and that of system registers.
const KIND: u64 = 0x0fff_0000;
const SYSTEM: u64 = 0x0013_0000;

/// The bytes of a register, by its name. `None` where there is none as large.
#[must_use]
pub const fn size(id: u64) -> Option<usize> {
    match (id >> SIZE_SHIFT) & 0xf {
        power @ 0..=LARGEST => Some(1 << power),
        _ => None,
    }
}

/// What a message calls a register: system registers as assemblers do.
#[must_use]
pub fn name(id: u64) -> String {
    if id & KIND != SYSTEM {
        return format!("the register {id:#x}");
    }
    let field = |shift: u32, bits: u32| (id >> shift) & ((1 << bits) - 1);
    let [op0, op1, crn, crm, op2] = [
        field(14, 2),
        field(11, 3),
        field(7, 4),
        field(3, 4),
        field(0, 3),
    ];
    format!("the register S{op0}_{op1}_C{crn}_C{crm}_{op2} ({id:#x})")
}

/// EL1 with its own stack pointer, all interrupts masked, as booting.rst asks for.
pub const BOOT_PSTATE: u64 = 0x3c5;

/// See [`arch::Platform::configure_vcpu`].
pub(crate) fn vcpu_setup(facts: &Aarch64, boot: Option<&BootInfo>) -> VcpuSetup {
    let authentication = facts.pointer_authentication;
    let features = [
        (Feature::PowerOff, boot.is_none()),
        (Feature::Psci02, true),
        (Feature::PmuV3, facts.pmu),
        (Feature::Sve, facts.sve),
        (Feature::PtrauthAddress, authentication),
        (Feature::PtrauthGeneric, authentication),
    ]
    .into_iter()
    .filter_map(|(feature, wanted)| wanted.then_some(feature))
    .collect();
    let registers = boot.map_or_else(Vec::new, |boot| {
        let [tree, ..] = boot.arguments;
        [(PSTATE, BOOT_PSTATE), (PC, boot.entry), (x(0), tree)]
            .map(|(id, value)| Register { id, value })
            .to_vec()
    });
    VcpuSetup {
        features,
        registers,
        pmu_intid: facts.pmu.then_some(PMU_INTID),
        vector_lengths: None,
    }
}

/// The affinity fields of a vCPU's MPIDR_EL1, as KVM assigns them: sixteen vCPUs to a cluster, the
/// most that one interrupt to a group of them can name.
#[must_use]
pub fn mpidr(id: VcpuId) -> u64 {
    let id = u64::from(id);
    (id & 0xf) | ((id >> 4) & 0xff) << 8 | ((id >> 12) & 0xff) << 16
}

#[cfg(test)]
mod tests {
    use arch::kernel::Protocol;

    use super::*;

    fn boot() -> BootInfo {
        BootInfo {
            entry: 0x8020_0000,
            arguments: [0x8000_0000, 0, 0, 0],
            protocol: Protocol::DeviceTree,
            placed: Vec::new(),
        }
    }

    #[test]
    fn the_boot_vcpu_starts_at_the_kernel_with_the_device_tree() {
        let setup = vcpu_setup(&Aarch64::typical(), Some(&boot()));
        assert!(!setup.features.contains(&Feature::PowerOff));
        let value = |id| {
            let register = setup.registers.iter().find(|register| register.id == id);
            register.map(|register| register.value)
        };
        // The names as KVM prints them: `0x6030 0000 0010 00xx`.
        assert_eq!(value(0x6030_0000_0010_0040), Some(0x8020_0000), "PC");
        assert_eq!(value(0x6030_0000_0010_0000), Some(0x8000_0000), "x0");
        assert_eq!(value(0x6030_0000_0010_0042), Some(0x3c5), "PSTATE");
    }

    #[test]
    fn the_others_wait_for_psci() {
        let setup = vcpu_setup(&Aarch64::typical(), None);
        assert!(
            setup
                .features
                .starts_with(&[Feature::PowerOff, Feature::Psci02])
        );
        assert!(setup.registers.is_empty());
    }

    #[test]
    fn a_plain_host_gets_plain_vcpus() {
        let facts = Aarch64 {
            pmu: false,
            sve: false,
            pointer_authentication: false,
            ..Aarch64::typical()
        };
        let setup = vcpu_setup(&facts, Some(&boot()));
        assert_eq!(setup.features, [Feature::Psci02]);
        assert_eq!(setup.pmu_intid, None);
    }

    #[test]
    fn affinities_are_those_of_kvm() {
        for (id, affinity) in [
            (0, 0),
            (15, 15),
            (16, 0x100),
            (511, 0x1f0f),
            (4096, 0x1_0000),
        ] {
            assert_eq!(mpidr(id), affinity, "{id}");
        }
    }

    #[test]
    fn system_registers_have_kvms_names() {
        assert_eq!(SCTLR_EL1, 0x6030_0000_0013_c080);
        assert_eq!(ESR_EL1, 0x6030_0000_0013_c290);
        assert_eq!(ELR_EL1, 0x6030_0000_0010_0046);
        assert_eq!(COUNTERS, [0x6030_0000_0013_df1a, 0x6030_0000_0013_df01]);
    }

    #[test]
    fn a_register_has_a_size_and_a_name_for_people() {
        assert_eq!([PC, VECTOR_LENGTHS].map(size), [Some(8), Some(64)]);
        assert_eq!(size(0x6080_0000_0015_0000), Some(256));
        assert_eq!(size(u64::MAX), None);
        assert_eq!(name(PC), "the register 0x6030000000100040");
        assert_eq!(
            name(ESR_EL1),
            "the register S3_0_C5_C2_0 (0x603000000013c290)"
        );
    }
}
