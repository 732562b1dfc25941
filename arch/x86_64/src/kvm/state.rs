//! Saves and loads what `crate::state` names, through KVM.

use arch::{Bytes, KvmError};
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Xsave, kvm_clock_data,
    kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::lists::{get_msrs, refused, set_msrs};
use crate::registers::Msr;
use crate::state::{ChipState, ClockState, FullChip, PicState, TSC, VcpuState};

/// Words of `kvm_xsave` without what `kvm_xsave2` may add.
const XSAVE_WORDS: usize = size_of::<kvm_xsave>() / 4;
/// IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;
/// CR4.VMXE and EFER.SVME: virtualization is on.
const VMXE: u64 = 1 << 13;
const SVME: u64 = 1 << 12;

/// Everything of a vCPU that has no access of its own pending. `msrs` are the numbers of those that KVM has.
pub(super) fn save_vcpu(vm: &VmFd, vcpu: &VcpuFd, msrs: &[u32]) -> Result<VcpuState, KvmError> {
    let system = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    // What it has of them is the host's, and not saved.
    if system.cr4 & VMXE != 0 || system.efer & SVME != 0 {
        return Err(KvmError::NotSaved("a vCPU that runs guests of its own"));
    }
    // First: what a vCPU waits for (INIT, SIPI) is taken into account by asking for it.
    let mp_state = vcpu
        .get_mp_state()
        .map_err(KvmError::of("KVM_GET_MP_STATE"))?;
    let xcrs = vcpu.get_xcrs().map_err(KvmError::of("KVM_GET_XCRS"))?;
    let count = usize::try_from(xcrs.nr_xcrs).unwrap_or(usize::MAX);
    let lapic = vcpu.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))?;
    Ok(VcpuState {
        // Where KVM does not know it, the counter is the host's.
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        registers: vcpu
            .get_regs()
            .map_err(KvmError::of("KVM_GET_REGS"))?
            .into(),
        system: system.into(),
        debug: vcpu
            .get_debug_regs()
            .map_err(KvmError::of("KVM_GET_DEBUGREGS"))?
            .into(),
        xsave: get_xsave(vm, vcpu)?,
        xcrs: xcrs
            .xcrs
            .iter()
            .take(count)
            .map(|xcr| (xcr.xcr, xcr.value))
            .collect(),
        lapic: Bytes(lapic.regs.iter().map(|byte| byte.cast_unsigned()).collect()),
        msrs: get_msrs(vcpu, msrs)?,
        events: vcpu
            .get_vcpu_events()
            .map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?
            .into(),
        mp_state: mp_state.mp_state,
    })
}

/// Makes a new vCPU, whose CPUID is set, what another one was, in the order that KVM needs: the system registers hold
/// the base of the local APIC, and a deadline of its timer needs that.
pub(super) fn load_vcpu(vm: &VmFd, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let own = vcpu.get_tsc_khz().unwrap_or(0);
    if state.tsc_khz != 0 && state.tsc_khz != own {
        // Within its tolerance KVM takes what it cannot scale, too.
        vcpu.set_tsc_khz(state.tsc_khz)
            .map_err(|_| KvmError::Lacks {
                what: "the frequency of the saved machine's time stamp counter, nor a way to scale its own",
                cure: "restore on a host with the same frequency, or with TSC scaling",
            })?;
    }
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(KvmError::of("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.registers.into())
        .map_err(KvmError::of("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.system.into())
        .map_err(KvmError::of("KVM_SET_SREGS"))?;
    set_xcrs(vcpu, &state.xcrs)?;
    set_xsave(vm, vcpu, &state.xsave)?;
    vcpu.set_debug_regs(&state.debug.into())
        .map_err(KvmError::of("KVM_SET_DEBUGREGS"))?;
    // The local APIC's timer is set against it.
    let tsc: Vec<_> = state
        .msrs
        .iter()
        .filter(|msr| msr.index == TSC)
        .copied()
        .collect();
    set_msrs(vcpu, &tsc)?;
    vcpu.set_lapic(&lapic(&state.lapic)?)
        .map_err(KvmError::of("KVM_SET_LAPIC"))?;
    let is_deadline = |msr: &&Msr| msr.index == TSC_DEADLINE;
    let others = state.msrs.iter().filter(|msr| !is_deadline(msr));
    let deadline = state.msrs.iter().filter(is_deadline);
    // It is compared with the counter, which is one of the others.
    let msrs: Vec<_> = others.chain(deadline).copied().collect();
    set_msrs(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events.into())
        .map_err(KvmError::of("KVM_SET_VCPU_EVENTS"))
}

/// The size of a vCPU's XSAVE state, in words beyond those of `kvm_xsave`.
fn more_words(vm: &VmFd) -> usize {
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
    bytes.div_ceil(4).saturating_sub(XSAVE_WORDS)
}

fn get_xsave(vm: &VmFd, vcpu: &VcpuFd) -> Result<Bytes, KvmError> {
    let mut words = Vec::new();
    if vm.check_extension_int(Cap::Xsave2) > 0 {
        let mut xsave = Xsave::new(more_words(vm)).map_err(|_| refused("KVM_GET_XSAVE2"))?;
        // SAFETY: it is as large as KVM says, and this process enables no feature dynamically.
        unsafe { vcpu.get_xsave2(&mut xsave) }.map_err(KvmError::of("KVM_GET_XSAVE2"))?;
        words.extend_from_slice(&xsave.as_fam_struct_ref().xsave.region);
        words.extend_from_slice(xsave.as_slice());
    } else {
        let xsave = vcpu.get_xsave().map_err(KvmError::of("KVM_GET_XSAVE"))?;
        words.extend_from_slice(&xsave.region);
    }
    let bytes = words.iter().flat_map(|word: &u32| word.to_le_bytes());
    Ok(Bytes(bytes.collect()))
}

fn set_xsave(vm: &VmFd, vcpu: &VcpuFd, state: &Bytes) -> Result<(), KvmError> {
    let (words, []) = state.0.as_chunks::<4>() else {
        return Err(refused("KVM_SET_XSAVE"));
    };
    if words.len() < XSAVE_WORDS {
        return Err(refused("KVM_SET_XSAVE"));
    }
    let mut words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    // KVM reads as much as this host has; what the saved one had not is as after a reset.
    words.resize(words.len().max(XSAVE_WORDS + more_words(vm)), 0);
    let (Some(first), Some(rest)) = (words.first_chunk(), words.get(XSAVE_WORDS..)) else {
        return Err(refused("KVM_SET_XSAVE"));
    };
    let mut xsave = Xsave::from_entries(rest).map_err(|_| refused("KVM_SET_XSAVE"))?;
    // SAFETY: the length of the list is left as it is.
    unsafe { xsave.as_mut_fam_struct() }.xsave.region = *first;
    // SAFETY: it is at least as large as KVM says, see above, and this process enables no feature dynamically.
    unsafe { vcpu.set_xsave2(&xsave) }.map_err(KvmError::of("KVM_SET_XSAVE"))
}

fn set_xcrs(vcpu: &VcpuFd, state: &[(u32, u64)]) -> Result<(), KvmError> {
    let mut xcrs = kvm_xcrs {
        nr_xcrs: u32::try_from(state.len()).unwrap_or(u32::MAX),
        ..kvm_xcrs::default()
    };
    if state.len() > xcrs.xcrs.len() {
        return Err(refused("KVM_SET_XCRS"));
    }
    for (place, (xcr, value)) in xcrs.xcrs.iter_mut().zip(state) {
        *place = kvm_xcr {
            xcr: *xcr,
            value: *value,
            ..kvm_xcr::default()
        };
    }
    vcpu.set_xcrs(&xcrs).map_err(KvmError::of("KVM_SET_XCRS"))
}

fn lapic(state: &Bytes) -> Result<kvm_lapic_state, KvmError> {
    let mut lapic = kvm_lapic_state::default();
    if state.0.len() != lapic.regs.len() {
        return Err(refused("KVM_SET_LAPIC"));
    }
    for (place, byte) in lapic.regs.iter_mut().zip(&state.0) {
        *place = byte.cast_signed();
    }
    Ok(lapic)
}

/// KVM's interrupt controllers and timer, if the VM has them.
pub(super) fn save_chip(vm: &VmFd, is_full: bool) -> Result<ChipState, KvmError> {
    if !is_full {
        return Ok(ChipState::default());
    }
    let get = |chip_id| {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip)
            .map_err(KvmError::of("KVM_GET_IRQCHIP"))?;
        Ok::<_, KvmError>(chip.chip)
    };
    let [first, second] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE].map(get);
    let ioapic = get(KVM_IRQCHIP_IOAPIC)?;
    let pit = vm.get_pit2().map_err(KvmError::of("KVM_GET_PIT2"))?;
    // SAFETY: each was asked for as what it is read as.
    let (pics, ioapic) = unsafe { ([first?.pic, second?.pic], ioapic.ioapic) };
    Ok(ChipState {
        full: Some(FullChip {
            pics: pics.map(PicState::from),
            ioapic: ioapic.into(),
            pit: pit.into(),
        }),
    })
}

/// Before the vCPUs, whose local APICs the I/O APIC looks at.
pub(super) fn load_chip(vm: &VmFd, is_full: bool, state: &ChipState) -> Result<(), KvmError> {
    if is_full != state.full.is_some() {
        return Err(refused("KVM_SET_IRQCHIP"));
    }
    let Some(FullChip { pics, ioapic, pit }) = &state.full else {
        return Ok(());
    };
    let set = |chip: kvm_irqchip| {
        vm.set_irqchip(&chip)
            .map_err(KvmError::of("KVM_SET_IRQCHIP"))
    };
    for (chip_id, pic) in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE]
        .into_iter()
        .zip(pics)
    {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        chip.chip.pic = (*pic).into();
        set(chip)?;
    }
    let mut chip = kvm_irqchip {
        chip_id: KVM_IRQCHIP_IOAPIC,
        ..kvm_irqchip::default()
    };
    chip.chip.ioapic = (*ioapic).into();
    set(chip)?;
    vm.set_pit2(&(*pit).into())
        .map_err(KvmError::of("KVM_SET_PIT2"))
}

pub(super) fn save_clock(vm: &VmFd) -> Result<ClockState, KvmError> {
    let clock = vm.get_clock().map_err(KvmError::of("KVM_GET_CLOCK"))?;
    Ok(ClockState {
        nanoseconds: clock.clock,
    })
}

pub(super) fn load_clock(vm: &VmFd, state: ClockState) -> Result<(), KvmError> {
    // Without flags: it goes on from there, however long that is ago.
    let clock = kvm_clock_data {
        clock: state.nanoseconds,
        ..kvm_clock_data::default()
    };
    vm.set_clock(&clock).map_err(KvmError::of("KVM_SET_CLOCK"))
}
