//! The least any VMM must do to run a guest that prints a byte and ends.

use std::io::Write;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::Result;

/// `mov dx, 0x3f8; mov al, BYTE; out dx, al; mov al, 0xfe; out 0x64, al; hlt`, in real mode.
const CODE: [u8; 11] = [
    0xba,
    0xf8,
    0x03,
    0xb0,
    crate::BYTE,
    0xee,
    0xb0,
    0xfe,
    0xe6,
    0x64,
    0xf4,
];

/// Set in the process that is a floor, to what it has.
pub(crate) const FLOOR: &str = "FLOOR";

pub(crate) fn run(kind: &str) -> Result<()> {
    let (irqchip, cpuid) = match kind {
        "bare" => (false, false),
        "irqchip" => (true, false),
        "cpuid" => (true, true),
        other => return Err(format!("{FLOOR}={other}").into()),
    };
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 256 << 20)])?;
    let region = ram.iter().next().ok_or("no region")?;
    let memslot = kvm_userspace_memory_region {
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the region outlives the VM.
    unsafe { vm.set_user_memory_region(memslot)? };
    if irqchip {
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    if cpuid {
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    }
    ram.write_slice(&CODE, GuestAddress(0x1000))?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs)?;
    let mut out = std::io::stdout();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, byte) => {
                out.write_all(byte)?;
                out.flush()?;
            }
            VcpuExit::IoOut(0x64, _) => return Ok(()),
            other => return Err(format!("unexpected exit {other:?}").into()),
        }
    }
}
