//! The host half: reads the host's facts and applies plans through KVM.

mod chip;
mod gic;
mod state;

use std::fmt::Write;
use std::fs;
use std::path::Path;

use arch::kernel::{KernelHeader, KernelImage};
use arch::{BootError, GuestRam, KernelPlacement, KvmError, KvmPlatform, MachinePlan, attribute};
use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, KVM_REG_ARM_CORE, KVM_REG_ARM64,
    KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs, kvm_vcpu_init, user_pt_regs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

pub use self::chip::KvmChip;
use crate::cache::{self, Cache};
use crate::facts::Aarch64;
use crate::gic::GicV3;
use crate::paging::{PagingState, translate};
use crate::registers::{self, Feature, VcpuSetup};
use crate::state::{ChipState, ClockState, VcpuState};

/// What the backend cannot do without.
const NEEDED: [(Cap, &str); 3] = [
    (Cap::OneReg, "KVM_CAP_ONE_REG"),
    (Cap::DeviceCtrl, "KVM_CAP_DEVICE_CTRL"),
    (Cap::ArmPsci02, "KVM_CAP_ARM_PSCI_0_2"),
];

/// Caches of one processor that are looked at.
const MAX_CACHES: u32 = 8;
/// The guest address bits of a KVM that has no choice of them.
const DEFAULT_IPA_BITS: u8 = 40;

// The pure half's names are KVM's.
const _: () = {
    const fn word(offset: usize) -> u64 {
        KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
    }
    let regs = std::mem::offset_of!(kvm_regs, regs);
    assert!(registers::x(0) == word(regs + std::mem::offset_of!(user_pt_regs, regs)));
    assert!(registers::SP_EL0 == word(regs + std::mem::offset_of!(user_pt_regs, sp)));
    assert!(registers::PC == word(regs + std::mem::offset_of!(user_pt_regs, pc)));
    assert!(registers::PSTATE == word(regs + std::mem::offset_of!(user_pt_regs, pstate)));
    assert!(registers::ELR_EL1 == word(std::mem::offset_of!(kvm_regs, elr_el1)));
    let system = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64;
    assert!(registers::SCTLR_EL1 & system == system);
    assert!(Feature::PowerOff as u32 == KVM_ARM_VCPU_POWER_OFF);
    assert!(Feature::Psci02 as u32 == KVM_ARM_VCPU_PSCI_0_2);
    assert!(Feature::Sve as u32 == KVM_ARM_VCPU_SVE);
    assert!(Feature::PtrauthAddress as u32 == KVM_ARM_VCPU_PTRAUTH_ADDRESS);
    assert!(Feature::PtrauthGeneric as u32 == KVM_ARM_VCPU_PTRAUTH_GENERIC);
};

impl KvmPlatform for Aarch64 {
    type Chip = KvmChip;

    fn probe(kvm: &Kvm) -> Result<Self, KvmError> {
        KvmError::check(kvm, &NEEDED)?;
        let ipa_bits = u8::try_from(kvm.check_extension_int(Cap::ArmVmIPASize)).unwrap_or(0);
        Ok(Self {
            ipa_bits: if ipa_bits == 0 {
                DEFAULT_IPA_BITS
            } else {
                ipa_bits
            },
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            pmu: kvm.check_extension(Cap::ArmPmuV3),
            sve: kvm.check_extension(Cap::ArmSve),
            pointer_authentication: kvm.check_extension(Cap::ArmPtrAuthAddress)
                && kvm.check_extension(Cap::ArmPtrAuthGeneric),
            counter_hz: counter_hz(),
            caches: host_caches(),
        })
    }

    fn vm_type(&self, plan: &MachinePlan) -> u64 {
        self.machine_type(plan)
    }

    fn load_kernel(
        &self,
        image: &mut KernelImage,
        header: &KernelHeader,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        match header {
            KernelHeader::Image(flat) if cfg!(feature = "image") => flat.copy(image, kernel, ram),
            other => Err(BootError::not_built_in(other, "image")),
        }
    }

    fn prepare_vm(&self, _vm: &VmFd) -> Result<(), KvmError> {
        Ok(())
    }

    fn create_irq_chip(&self, vm: &VmFd, model: &GicV3) -> Result<KvmChip, KvmError> {
        KvmChip::new(vm, model)
    }

    fn apply_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd, setup: &VcpuSetup) -> Result<(), KvmError> {
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init)
            .map_err(KvmError::of("KVM_ARM_PREFERRED_TARGET"))?;
        for feature in &setup.features {
            init.features[0] |= 1 << *feature as u32;
        }
        vcpu.vcpu_init(&init)
            .map_err(KvmError::of("KVM_ARM_VCPU_INIT"))?;
        if setup.features.contains(&Feature::Sve) {
            if let Some(lengths) = &setup.vector_lengths {
                state::set_register(vcpu, registers::VECTOR_LENGTHS, lengths)?;
            }
            vcpu.vcpu_finalize(&KVM_ARM_VCPU_SVE.cast_signed())
                .map_err(KvmError::of("KVM_ARM_VCPU_FINALIZE"))?;
        }
        for register in &setup.registers {
            vcpu.set_one_reg(register.id, &register.value.to_le_bytes())
                .map_err(KvmError::of("KVM_SET_ONE_REG"))?;
        }
        if let Some(intid) = setup.pmu_intid {
            let group = KVM_ARM_VCPU_PMU_V3_CTRL;
            for (number, value, operation) in [
                (
                    KVM_ARM_VCPU_PMU_V3_IRQ,
                    Some(&intid),
                    "KVM_ARM_VCPU_PMU_V3_IRQ",
                ),
                (KVM_ARM_VCPU_PMU_V3_INIT, None, "KVM_ARM_VCPU_PMU_V3_INIT"),
            ] {
                vcpu.set_device_attr(&attribute(group, number.into(), value))
                    .map_err(KvmError::of(operation))?;
            }
        }
        Ok(())
    }

    fn save_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        state::save_vcpu(vcpu)
    }

    fn load_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
        state::load_vcpu(vcpu, state)
    }

    fn save_chip(&self, _vm: &VmFd, chip: &KvmChip) -> Result<ChipState, KvmError> {
        gic::save(chip)
    }

    fn load_chip(&self, _vm: &VmFd, chip: &KvmChip, state: &ChipState) -> Result<(), KvmError> {
        gic::load(chip, state)
    }

    fn save_clock(&self, _vm: &VmFd) -> Result<ClockState, KvmError> {
        Ok(ClockState {})
    }

    fn load_clock(&self, _vm: &VmFd, _state: &ClockState) -> Result<(), KvmError> {
        Ok(())
    }

    fn describe_vcpu(&self, vcpu: &VcpuFd, ram: &GuestRam) -> String {
        describe(vcpu, ram)
    }
}

/// How fast the counter counts that all timers share.
fn counter_hz() -> u64 {
    let hz: u64;
    // SAFETY: it reads a register that Linux shows to every program, and changes nothing.
    unsafe {
        std::arch::asm!("mrs {}, cntfrq_el0", out(reg) hz, options(nomem, nostack, preserves_flags));
    }
    hz
}

/// What Linux knows of processor 0's caches; nothing is as good as unknown.
fn host_caches() -> Vec<Cache> {
    let folder = Path::new("/sys/devices/system/cpu/cpu0/cache");
    (0..MAX_CACHES)
        .map(|index| folder.join(format!("index{index}")))
        .take_while(|folder| folder.exists())
        .filter_map(|folder| cache::parse(|name| fs::read_to_string(folder.join(name)).ok()))
        .collect()
}

/// Instructions shown from the program counter on.
const INSTRUCTIONS: u64 = 4;

fn describe(vcpu: &VcpuFd, ram: &GuestRam) -> String {
    let read = |id| {
        let mut bytes = [0; 8];
        vcpu.get_one_reg(id, &mut bytes)
            .map(|_| u64::from_le_bytes(bytes))
    };
    let named = [
        ("pc ", registers::PC),
        ("pst", registers::PSTATE),
        ("sp0", registers::SP_EL0),
        ("elr", registers::ELR_EL1),
        ("esr", registers::ESR_EL1),
        ("far", registers::FAR_EL1),
        ("vbr", registers::VBAR_EL1),
        ("ctl", registers::SCTLR_EL1),
    ];
    let general = (0..31).map(|number| (format!("x{number:<2}"), registers::x(number)));
    let all = general.chain(named.map(|(name, id)| (name.to_owned(), id)));
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (place, (name, id)) in all.enumerate() {
        let separator = match place % 4 {
            _ if place == 0 => "",
            0 => "\n",
            _ => "  ",
        };
        let _ = match read(id) {
            Ok(value) => write!(text, "{separator}{name} {value:016x}"),
            Err(error) => write!(text, "{separator}{name} ({error})"),
        };
    }
    text.push_str("\ncode");
    let value = |id| read(id).unwrap_or_default();
    let state = PagingState {
        sctlr: value(registers::SCTLR_EL1),
        tcr: value(registers::TCR_EL1),
        ttbr0: value(registers::TTBR0_EL1),
        ttbr1: value(registers::TTBR1_EL1),
    };
    let pc = value(registers::PC);
    let code: Vec<u32> = (0..INSTRUCTIONS)
        .map_while(|number| {
            let address = translate(ram, state, pc.wrapping_add(4 * number))?;
            ram.read_obj(GuestAddress(address)).ok()
        })
        .collect();
    if code.is_empty() {
        text.push_str(" unreadable");
    }
    for instruction in code {
        let _ = write!(text, " {instruction:08x}");
    }
    text
}
