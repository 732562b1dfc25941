//! The host half: reads the host's facts and applies plans through KVM.

mod convert;
mod lists;
mod report;
mod state;

#[cfg(any(feature = "bzimage", feature = "elf"))]
use arch::kernel::FileReader;
use arch::kernel::{KernelHeader, KernelImage};
use arch::{BootError, GuestRam, KernelPlacement, KvmError, KvmIrqChip, KvmPlatform, ProbeProgram};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_enable_cap,
    kvm_irqchip, kvm_lapic_state, kvm_pit_config, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use self::lists::{set_cpuid, set_msrs};
use crate::cpuid::CpuidEntry;
use crate::facts::X86_64;
use crate::irqchip::{IO_APIC, IoApic, Keeper, PIC_MASK, PIC_MASTER, PIC_SLAVE};
use crate::map;
use crate::registers::{BootRegisters, DeliveryMode, VcpuSetup};
use crate::state::{ChipState, ClockState, VcpuState};

// The numbers of the pure half are KVM's.
const _: () = assert!(
    PIC_MASTER == KVM_IRQCHIP_PIC_MASTER
        && PIC_SLAVE == KVM_IRQCHIP_PIC_SLAVE
        && IO_APIC == KVM_IRQCHIP_IOAPIC
);

/// KVM's PICs, I/O APIC and PIT, or its local APICs alone; complete as soon as they are created.
#[derive(Debug)]
pub struct KvmChip {
    /// Whether it has all of a PC's.
    is_full: bool,
}

impl KvmIrqChip for KvmChip {
    fn activate(&self, _vm: &VmFd) -> Result<(), KvmError> {
        Ok(())
    }
}

/// What the backend cannot do without.
const NEEDED: [(Cap, &str); 4] = [
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR"),
];

/// Messages name APICs by 32 bits, and 255 is one of them, not all (api.rst, KVM_CAP_X2APIC_API).
const WIDE_IDS: u64 =
    (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) as u64;

impl KvmPlatform for X86_64 {
    type Chip = KvmChip;

    fn probe(kvm: &Kvm) -> Result<Self, KvmError> {
        KvmError::check(kvm, &NEEDED)?;
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::of("KVM_GET_SUPPORTED_CPUID"))?;
        let entries = cpuid.as_slice().iter().map(CpuidEntry::from).collect();
        let msrs = kvm
            .get_msr_index_list()
            .map_err(KvmError::of("KVM_GET_MSR_INDEX_LIST"))?;
        let max_vcpus = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        let [split, full] = [Cap::SplitIrqchip, Cap::Pit2].map(|cap| kvm.check_extension(cap));
        let wide = u64::from(
            kvm.check_extension_raw(KVM_CAP_X2APIC_API.into())
                .cast_unsigned(),
        );
        Ok(Self::new(entries, max_vcpus)
            .with_chips(split, full)
            .with_wide_ids(wide & WIDE_IDS == WIDE_IDS)
            .with_msrs(msrs.as_slice().to_vec()))
    }

    #[cfg_attr(not(feature = "bzimage"), allow(unused_variables))]
    #[cfg_attr(not(feature = "elf"), allow(unused_variables))]
    fn load_kernel(
        &self,
        image: &mut KernelImage,
        header: &KernelHeader,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        match header {
            #[cfg(feature = "bzimage")]
            KernelHeader::BzImage(_) => copy_bzimage(image, kernel, ram),
            #[cfg(feature = "elf")]
            KernelHeader::Elf(_) => copy_elf(image, ram),
            #[cfg(not(feature = "bzimage"))]
            KernelHeader::BzImage(_) => Err(BootError::not_built_in(header, "bzimage")),
            other => Err(BootError::not_built_in(other, "elf")),
        }
    }

    fn prepare_vm(&self, vm: &VmFd) -> Result<(), KvmError> {
        vm.set_identity_map_address(map::KVM_IDENTITY_MAP.base)
            .map_err(KvmError::of("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let tss = usize::try_from(map::KVM_TSS.base).unwrap_or(usize::MAX);
        vm.set_tss_address(tss)
            .map_err(KvmError::of("KVM_SET_TSS_ADDR"))
    }

    fn create_irq_chip(&self, vm: &VmFd, model: &IoApic) -> Result<KvmChip, KvmError> {
        if model.keeper == Keeper::Vmm {
            if !vm.check_extension(Cap::SplitIrqchip) {
                return Err(KvmError::Lacks {
                    what: "local APICs without an I/O APIC (KVM_CAP_SPLIT_IRQCHIP)",
                    cure: "use lean=auto or lean=off, or Linux 4.5 or newer",
                });
            }
            // The argument stays 0: KVM tells of the end of interrupts on lines below it, and there is
            // nothing to do at those, since lines are edges.
            let local_apics = kvm_enable_cap {
                cap: KVM_CAP_SPLIT_IRQCHIP,
                ..kvm_enable_cap::default()
            };
            vm.enable_cap(&local_apics)
                .map_err(KvmError::of("KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP"))?;
            if model.wide_ids {
                let wide_ids = kvm_enable_cap {
                    cap: KVM_CAP_X2APIC_API,
                    args: [WIDE_IDS, 0, 0, 0],
                    ..kvm_enable_cap::default()
                };
                vm.enable_cap(&wide_ids)
                    .map_err(KvmError::of("KVM_ENABLE_CAP of KVM_CAP_X2APIC_API"))?;
            }
            return Ok(KvmChip { is_full: false });
        }
        if !vm.check_extension(Cap::Pit2) {
            return Err(KvmError::Lacks {
                what: "an interval timer (KVM_CAP_PIT2)",
                cure: "use lean=auto or lean=on, or a kernel with CONFIG_KVM_IOAPIC",
            });
        }
        vm.create_irq_chip()
            .map_err(KvmError::of("KVM_CREATE_IRQCHIP"))?;
        for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
            let mut chip = kvm_irqchip {
                chip_id,
                ..kvm_irqchip::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(KvmError::of("KVM_GET_IRQCHIP"))?;
            chip.chip.pic.imr = PIC_MASK;
            vm.set_irqchip(&chip)
                .map_err(KvmError::of("KVM_SET_IRQCHIP"))?;
        }
        // With the dummy, KVM answers the speaker port 0x61 that guests calibrate timers with.
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        vm.create_pit2(pit)
            .map_err(KvmError::of("KVM_CREATE_PIT2"))?;
        Ok(KvmChip { is_full: true })
    }

    fn apply_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd, setup: &VcpuSetup) -> Result<(), KvmError> {
        set_cpuid(vcpu, &setup.cpuid)?;
        set_msrs(vcpu, &setup.msrs)?;
        vcpu.set_fpu(&setup.fpu.into())
            .map_err(KvmError::of("KVM_SET_FPU"))?;
        set_local_inputs(vcpu, setup.lint0, setup.lint1)?;
        setup
            .boot
            .as_ref()
            .map_or(Ok(()), |boot| set_boot_registers(vcpu, boot))
    }

    fn save_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        state::save_vcpu(vm, vcpu, &self.msrs)
    }

    fn load_vcpu(&self, vm: &VmFd, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
        state::load_vcpu(vm, vcpu, state)
    }

    fn save_chip(&self, vm: &VmFd, chip: &KvmChip) -> Result<ChipState, KvmError> {
        state::save_chip(vm, chip.is_full)
    }

    fn load_chip(&self, vm: &VmFd, chip: &KvmChip, state: &ChipState) -> Result<(), KvmError> {
        state::load_chip(vm, chip.is_full, state)
    }

    fn save_clock(&self, vm: &VmFd) -> Result<ClockState, KvmError> {
        state::save_clock(vm)
    }

    fn load_clock(&self, vm: &VmFd, state: &ClockState) -> Result<(), KvmError> {
        state::load_clock(vm, *state)
    }

    fn vcpu_paused(&self, vcpu: &VcpuFd) {
        // Its watchdogs then know that it was not the guest that hung. Fails when the guest has no kvmclock.
        let _ = vcpu.kvmclock_ctrl();
    }

    fn describe_vcpu(&self, vcpu: &VcpuFd, ram: &GuestRam) -> String {
        match (vcpu.get_regs(), vcpu.get_sregs()) {
            (Ok(regs), Ok(sregs)) => report::describe(&regs, &sregs, ram),
            (Err(error), _) => format!("registers unavailable: KVM_GET_REGS: {error}"),
            (_, Err(error)) => format!("registers unavailable: KVM_GET_SREGS: {error}"),
        }
    }

    fn probe_program(&self) -> Option<ProbeProgram> {
        Some(crate::probe::PROGRAM)
    }
}

#[cfg(feature = "bzimage")]
fn copy_bzimage(
    image: &mut KernelImage,
    kernel: &KernelPlacement,
    ram: &GuestRam,
) -> Result<(), BootError> {
    use linux_loader::loader::{KernelLoader, bzimage::BzImage};
    let base = Some(vm_memory::GuestAddress(kernel.range.base));
    match image {
        KernelImage::File(file) => BzImage::load(ram, base, &mut FileReader::new(file), None),
        KernelImage::Bytes(bytes) => BzImage::load(ram, base, bytes, None),
    }
    .map(drop)
    .map_err(|error| BootError::Kernel(error.to_string()))
}

#[cfg(feature = "elf")]
fn copy_elf(image: &mut KernelImage, ram: &GuestRam) -> Result<(), BootError> {
    use linux_loader::loader::{KernelLoader, elf::Elf};
    match image {
        KernelImage::File(file) => Elf::load(ram, None, &mut FileReader::new(file), None),
        KernelImage::Bytes(bytes) => Elf::load(ram, None, bytes, None),
    }
    .map(drop)
    .map_err(|error| BootError::Kernel(error.to_string()))
}

/// Offset of the LVT LINT0 register in the local APIC (Intel SDM volume 3, table 11-1).
const LVT_LINT0: usize = 0x350;
/// Offset of the LVT LINT1 register.
const LVT_LINT1: usize = 0x360;
/// The delivery mode field of an LVT register.
const DELIVERY_MODE: u32 = 0x700;

/// Sets the delivery modes of the local APIC's two inputs and leaves all else as reset had it.
fn set_local_inputs(
    vcpu: &VcpuFd,
    lint0: DeliveryMode,
    lint1: DeliveryMode,
) -> Result<(), KvmError> {
    let mut lapic = vcpu.get_lapic().map_err(KvmError::of("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, lint0);
    set_delivery_mode(&mut lapic, LVT_LINT1, lint1);
    vcpu.set_lapic(&lapic)
        .map_err(KvmError::of("KVM_SET_LAPIC"))
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, offset: usize, mode: DeliveryMode) {
    let bytes = lapic.regs.get_mut(offset..);
    let Some(register) = bytes.and_then(<[_]>::first_chunk_mut::<4>) else {
        return;
    };
    let value = u32::from_le_bytes(register.map(i8::cast_unsigned));
    let value = (value & !DELIVERY_MODE) | ((mode as u32) << 8);
    *register = value.to_le_bytes().map(u8::cast_signed);
}

fn set_boot_registers(vcpu: &VcpuFd, boot: &BootRegisters) -> Result<(), KvmError> {
    // KVM's own values stay where a boot protocol says nothing: the APIC base above all.
    let mut sregs = vcpu.get_sregs().map_err(KvmError::of("KVM_GET_SREGS"))?;
    let data = kvm_segment::from(boot.data);
    sregs.cs = boot.code.into();
    sregs.tr = boot.task.into();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.gdt = boot.gdt.into();
    sregs.idt = boot.idt.into();
    sregs.cr0 = boot.cr0;
    sregs.cr3 = boot.cr3;
    sregs.cr4 = boot.cr4;
    sregs.efer = boot.efer;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::of("KVM_SET_SREGS"))?;
    let regs = kvm_regs {
        rip: boot.regs.rip,
        rsp: boot.regs.rsp,
        rbx: boot.regs.rbx,
        rsi: boot.regs.rsi,
        rflags: boot.regs.rflags,
        ..kvm_regs::default()
    };
    vcpu.set_regs(&regs).map_err(KvmError::of("KVM_SET_REGS"))
}

#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
