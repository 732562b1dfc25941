//! The host half: reads the host's facts and applies plans through KVM.

mod aia;
mod chip;
mod lines;
mod state;

use std::fmt::Write;

use arch::kernel::{KernelHeader, KernelImage};
use arch::{BootError, GuestRam, KernelPlacement, KvmError, KvmPlatform};
use kvm_bindings::{
    __riscv_v_ext_state, KVM_EXIT_RISCV_CSR, KVM_EXIT_RISCV_SBI, KVM_REG_RISCV,
    KVM_REG_RISCV_CONFIG, KVM_REG_RISCV_CORE, KVM_REG_RISCV_CSR, KVM_REG_RISCV_ISA_EXT,
    KVM_REG_RISCV_SBI_EXT, KVM_REG_RISCV_TIMER, KVM_REG_RISCV_VECTOR, KVM_REG_SIZE_U64,
    kvm_riscv_config, kvm_riscv_core, kvm_riscv_csr, kvm_riscv_timer, user_regs_struct,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

pub use self::chip::KvmChip;
use crate::aia::Aia;
use crate::facts::Riscv64;
use crate::isa;
use crate::registers::{self, VcpuSetup};
use crate::state::{ChipState, ClockState, VcpuState};

/// KVM_CAP_VM_GPA_BITS (`include/uapi/linux/kvm.h`), which kvm-ioctls does not name.
const VM_GPA_BITS: u64 = 207;
/// Guest address bits of every host with the hypervisor extension (Sv39x4).
const LEAST_GPA_BITS: u8 = 41;
/// The most interrupt identities that a machine is given.
const MOST_IDENTITIES: u32 = 255;

/// The offset of `zicbop_block_size` in `struct kvm_riscv_config`, a field that kvm-bindings 0.14 does not
/// have yet.
const ZICBOP_BLOCK_SIZE: usize = 7 * 8;
/// The place of a field of a structure of `c_ulong`s.
const fn place(offset: usize) -> u64 {
    (offset / 8) as u64
}

// The pure half's names are KVM's.
const _: () = {
    const fn register(group: u32, offset: usize) -> u64 {
        KVM_REG_RISCV.cast_unsigned() | KVM_REG_SIZE_U64 | group as u64 | place(offset)
    }
    let regs = std::mem::offset_of!(kvm_riscv_core, regs);
    assert!(
        registers::PC
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, pc)
            )
    );
    assert!(
        registers::A0
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, a0)
            )
    );
    assert!(
        registers::A1
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, a1)
            )
    );
    assert!(registers::config(0) == register(KVM_REG_RISCV_CONFIG, 0));
    assert!(registers::csr(0) == register(KVM_REG_RISCV_CSR, 0));
    assert!(registers::extension(0) == register(KVM_REG_RISCV_ISA_EXT, 0));
    assert!(registers::firmware(0) == register(KVM_REG_RISCV_SBI_EXT, 0));
    assert!(registers::TIMER_FREQUENCY == register(KVM_REG_RISCV_TIMER, 0));
    let compare = std::mem::offset_of!(kvm_riscv_timer, compare);
    assert!(registers::TIMER_COMPARE == register(KVM_REG_RISCV_TIMER, compare));
    let state = std::mem::offset_of!(kvm_riscv_timer, state);
    assert!(registers::TIMER_STATE == register(KVM_REG_RISCV_TIMER, state));
    let satp_mode = std::mem::offset_of!(kvm_riscv_config, satp_mode);
    assert!(registers::SATP_MODE == register(KVM_REG_RISCV_CONFIG, satp_mode));
    let sip = std::mem::offset_of!(kvm_riscv_csr, sip);
    assert!(registers::SIP == register(KVM_REG_RISCV_CSR, sip));
    let vlenb = std::mem::offset_of!(__riscv_v_ext_state, vlenb);
    assert!(registers::VECTOR_LENGTH == register(KVM_REG_RISCV_VECTOR, vlenb));
};

/// Reads a register; 0 where this KVM does not know it.
fn read(vcpu: &VcpuFd, id: u64) -> u64 {
    let mut bytes = [0; 8];
    match vcpu.get_one_reg(id, &mut bytes) {
        Ok(_) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// A configuration register that has fewer bits than its place.
fn small<T: TryFrom<u64> + Default>(vcpu: &VcpuFd, offset: usize) -> T {
    T::try_from(read(vcpu, registers::config(place(offset)))).unwrap_or_default()
}

impl KvmPlatform for Riscv64 {
    type Chip = KvmChip;

    /// A control register that KVM leaves to the VMM (`seed`, of all) reads as 0, which is no entropy; a
    /// firmware call that it leaves to the VMM is not supported.
    const QUIET_EXITS: &'static [u32] = &[KVM_EXIT_RISCV_CSR, KVM_EXIT_RISCV_SBI];

    /// What a vCPU may have is told by vCPUs alone, so there is one, in a VM of its own.
    fn probe(kvm: &Kvm) -> Result<Self, KvmError> {
        let vm = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        let aia = chip::create_device(&vm)?;
        let vcpu = vm.create_vcpu(0).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
        let timebase = u32::try_from(read(&vcpu, registers::TIMER_FREQUENCY)).unwrap_or(0);
        if timebase == 0 {
            return Err(KvmError::Lacks {
                what: "a register for the timer's frequency",
                cure: "use a newer kernel",
            });
        }
        let gpa_bits = u8::try_from(kvm.check_extension_raw(VM_GPA_BITS)).unwrap_or(0);
        let all: Vec<_> = isa::ALL
            .iter()
            .filter(|(number, _)| read(&vcpu, registers::extension(*number)) == 1)
            .map(|&(_, name)| name)
            .collect();
        let extensions = isa::consistent(&all);
        let block = |offset, name| {
            if extensions.contains(&name) {
                small(&vcpu, offset)
            } else {
                0
            }
        };
        Ok(Self {
            gpa_bits: gpa_bits.max(LEAST_GPA_BITS),
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            timebase,
            extensions: extensions.iter().map(|&name| name.to_owned()).collect(),
            satp_mode: small(&vcpu, std::mem::offset_of!(kvm_riscv_config, satp_mode)),
            cache_blocks: [
                block(
                    std::mem::offset_of!(kvm_riscv_config, zicbom_block_size),
                    "zicbom",
                ),
                block(
                    std::mem::offset_of!(kvm_riscv_config, zicboz_block_size),
                    "zicboz",
                ),
                block(ZICBOP_BLOCK_SIZE, "zicbop"),
            ],
            identities: chip::most_identities(&aia)?.min(MOST_IDENTITIES),
        })
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

    fn create_irq_chip(&self, vm: &VmFd, model: &Aia) -> Result<KvmChip, KvmError> {
        KvmChip::new(vm, model)
    }

    fn apply_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd, setup: &VcpuSetup) -> Result<(), KvmError> {
        for register in &setup.registers {
            vcpu.set_one_reg(register.id, &register.value.to_le_bytes())
                .map_err(KvmError::of("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    fn save_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
        state::save_vcpu(vcpu)
    }

    fn load_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
        state::load_vcpu(vcpu, state)
    }

    fn save_chip(&self, vm: &VmFd, chip: &KvmChip) -> Result<ChipState, KvmError> {
        chip.save(vm)
    }

    fn load_chip(&self, _vm: &VmFd, chip: &KvmChip, state: &ChipState) -> Result<(), KvmError> {
        chip.load(state)
    }

    fn save_clock(&self, _vm: &VmFd) -> Result<ClockState, KvmError> {
        Ok(ClockState {})
    }

    fn load_clock(&self, _vm: &VmFd, _state: &ClockState) -> Result<(), KvmError> {
        Ok(())
    }

    fn describe_vcpu(&self, vcpu: &VcpuFd, _ram: &GuestRam) -> String {
        describe(vcpu)
    }
}

/// The general registers' names, from x1 on.
const NAMES: [&str; 31] = [
    "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

fn describe(vcpu: &VcpuFd) -> String {
    let control = [
        ("sstatus", std::mem::offset_of!(kvm_riscv_csr, sstatus)),
        ("stvec", std::mem::offset_of!(kvm_riscv_csr, stvec)),
        ("sepc", std::mem::offset_of!(kvm_riscv_csr, sepc)),
        ("scause", std::mem::offset_of!(kvm_riscv_csr, scause)),
        ("stval", std::mem::offset_of!(kvm_riscv_csr, stval)),
        ("satp", std::mem::offset_of!(kvm_riscv_csr, satp)),
    ];
    let general = (1..)
        .zip(NAMES)
        .map(|(number, name)| (name, registers::core(number)));
    let control = control.map(|(name, offset)| (name, registers::csr(place(offset))));
    let all = [("pc", registers::PC)]
        .into_iter()
        .chain(general)
        .chain(control);
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (number, (name, id)) in all.enumerate() {
        let separator = match number % 4 {
            _ if number == 0 => "",
            0 => "\n",
            _ => "  ",
        };
        let _ = write!(text, "{separator}{name:<7} {:016x}", read(vcpu, id));
    }
    text
}
