//! Saves and loads the interrupt controller.

use arch::{KvmError, get_attribute, set_attribute};
use kvm_bindings::{
    KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
};
use kvm_ioctls::DeviceFd;

use super::chip::KvmChip;
use super::state::refused;
use crate::gic_registers::{
    Bank, DISTRIBUTOR, ICC_AP, ICC_CTLR, ITS, ITS_CONTROL, PRIVATE_LINES, REDISTRIBUTOR,
    SHARED_LINES, SYSTEM, active_priorities, in_order,
};
use crate::registers::mpidr;
use crate::state::{ChipState, InterfaceState, Registers};

/// A group of registers of a device.
struct Group<'a> {
    device: &'a DeviceFd,
    number: u32,
    /// For errors.
    name: &'static str,
    /// The upper half of its attributes: the affinity of a vCPU, where each has such registers.
    affinity: u64,
}

/// One whose registers belong to all vCPUs.
fn group<'a>(device: &'a DeviceFd, number: u32, name: &'static str) -> Group<'a> {
    Group {
        device,
        number,
        name,
        affinity: 0,
    }
}

/// Of all vCPUs together: registers, levels of lines.
fn shared(chip: &KvmChip) -> [Group<'_>; 2] {
    [
        group(
            &chip.gic,
            KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
            "KVM_DEV_ARM_VGIC_GRP_DIST_REGS",
        ),
        group(
            &chip.gic,
            KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
            "KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO",
        ),
    ]
}

/// Of one vCPU: its redistributor, levels of lines, system registers.
fn private(chip: &KvmChip, id: u32) -> [Group<'_>; 3] {
    [
        (
            KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
            "KVM_DEV_ARM_VGIC_GRP_REDIST_REGS",
        ),
        (
            KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
            "KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO",
        ),
        (
            KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
            "KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS",
        ),
    ]
    .map(|(number, name)| Group {
        affinity: mpidr(id) << 32,
        ..group(&chip.gic, number, name)
    })
}

fn its(chip: &KvmChip) -> Group<'_> {
    group(
        &chip.its,
        KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
        "KVM_DEV_ARM_VGIC_GRP_ITS_REGS",
    )
}

impl Group<'_> {
    fn numbered(&self, place: u32) -> u64 {
        self.affinity | u64::from(place)
    }

    fn get(&self, place: u32) -> Result<u64, KvmError> {
        let number = self.numbered(place);
        // SAFETY: no group's registers have more than 64 bits.
        unsafe { get_attribute(self.device, self.number, number, self.name) }
    }

    fn set(&self, place: u32, value: u64) -> Result<(), KvmError> {
        let number = self.numbered(place);
        set_attribute(self.device, self.number, number, Some(&value), self.name)
    }

    fn save(&self, banks: &[Bank]) -> Result<Vec<Registers>, KvmError> {
        let all = |bank: &Bank| self.save_first(bank, usize::MAX);
        banks.iter().map(all).collect()
    }

    /// The first so many of a bank.
    fn save_first(&self, bank: &Bank, count: usize) -> Result<Registers, KvmError> {
        let values = bank.places(count).map(|place| self.get(place));
        Ok((bank.first, values.collect::<Result<_, _>>()?))
    }

    fn load(&self, banks: &[Bank], saved: &[Registers]) -> Result<(), KvmError> {
        let saved = in_order(banks, saved).ok_or_else(|| refused(self.name))?;
        for (bank, values) in saved {
            for place in bank.clearing(values.len()) {
                self.set(place, u32::MAX.into())?;
            }
            for (place, value) in bank.places(values.len()).zip(values) {
                self.set(place, *value)?;
            }
        }
        Ok(())
    }
}

/// Messages that are pending and the ITS's tables go to guest memory.
pub(super) fn save(chip: &KvmChip) -> Result<ChipState, KvmError> {
    for (device, command, operation) in [
        (
            &chip.gic,
            KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES,
            "KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES",
        ),
        (
            &chip.its,
            KVM_DEV_ARM_ITS_SAVE_TABLES,
            "KVM_DEV_ARM_ITS_SAVE_TABLES",
        ),
    ] {
        let group = KVM_DEV_ARM_VGIC_GRP_CTRL;
        set_attribute::<u32>(device, group, command.into(), None, operation)?;
    }
    let [distributor, lines] = shared(chip);
    let its = its(chip);
    Ok(ChipState {
        distributor: distributor.save(&DISTRIBUTOR)?,
        lines: lines.save(&SHARED_LINES)?,
        vcpus: (0..chip.vcpus)
            .map(|id| save_private(chip, id))
            .collect::<Result<_, _>>()?,
        its: [its.save(&ITS)?, its.save(&ITS_CONTROL)?].concat(),
    })
}

fn save_private(chip: &KvmChip, id: u32) -> Result<InterfaceState, KvmError> {
    let [redistributor, lines, system] = private(chip, id);
    let active = active_priorities(system.get(ICC_CTLR)?);
    let count = |bank: &Bank| {
        if ICC_AP.contains(&bank.first) {
            active
        } else {
            usize::MAX
        }
    };
    Ok(InterfaceState {
        redistributor: redistributor.save(&REDISTRIBUTOR)?,
        lines: lines.save(&PRIVATE_LINES)?,
        system: SYSTEM
            .iter()
            .map(|bank| system.save_first(bank, count(bank)))
            .collect::<Result<_, _>>()?,
    })
}

/// Guest memory has its content, and the vCPUs their affinities. The ITS comes last: its tables name redistributors.
pub(super) fn load(chip: &KvmChip, state: &ChipState) -> Result<(), KvmError> {
    if u32::try_from(state.vcpus.len()) != Ok(chip.vcpus) {
        return Err(refused("KVM_DEV_ARM_VGIC_GRP_REDIST_REGS"));
    }
    let [distributor, lines] = shared(chip);
    distributor.load(&DISTRIBUTOR, &state.distributor)?;
    lines.load(&SHARED_LINES, &state.lines)?;
    for (id, vcpu) in (0..).zip(&state.vcpus) {
        let [redistributor, lines, system] = private(chip, id);
        redistributor.load(&REDISTRIBUTOR, &vcpu.redistributor)?;
        lines.load(&PRIVATE_LINES, &vcpu.lines)?;
        system.load(&SYSTEM, &vcpu.system)?;
    }
    let its = its(chip);
    its.load(&ITS, &state.its)?;
    set_attribute::<u32>(
        &chip.its,
        KVM_DEV_ARM_VGIC_GRP_CTRL,
        KVM_DEV_ARM_ITS_RESTORE_TABLES.into(),
        None,
        "KVM_DEV_ARM_ITS_RESTORE_TABLES",
    )?;
    its.load(&ITS_CONTROL, &state.its)
}
