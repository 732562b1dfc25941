//! The least any VMM must do: memslots, one vCPU, run. It prints what the guest writes to COM1, ends
//! when it asks for a reset, and answers whatever else is read with ones.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Set in the process that is a floor, to what it has.
pub(crate) const FLOOR: &str = "FLOOR";
/// And to a file that is its memory, mapped privately.
pub(crate) const MEMORY: &str = "FLOOR_MEMORY";

const CODE: u64 = 0x1000;
/// Page tables: the first 4 GiB one to one, as the VMM has them.
const TABLES: u64 = 0x2000;
const PAGE: u64 = 0x1000;
const LARGE_PAGE: u64 = 2 << 20;
/// Entries are present and writable, those of large pages large.
const ENTRY: u64 = 3;
const LARGE: u64 = 1 << 7;

/// Memory below the devices of a PC; what it has more begins at 4 GiB.
const BELOW: u64 = 3 << 30;

/// Memory of zeros or of a file.
fn memory() -> Result<GuestMemoryMmap> {
    let Some(path) = std::env::var_os(MEMORY) else {
        return Ok(GuestMemoryMmap::from_ranges(&[(
            GuestAddress(0),
            256 << 20,
        )])?);
    };
    let file = Arc::new(File::open(path)?);
    let len = file.metadata()?.len();
    let pieces = [
        (0, 0, len.min(BELOW)),
        (4 << 30, BELOW, len.saturating_sub(BELOW)),
    ];
    let mut regions = Vec::new();
    for (address, offset, len) in pieces.into_iter().filter(|(_, _, len)| *len > 0) {
        let region = MmapRegionBuilder::new(usize::try_from(len)?)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset))
            .build()?;
        let region = GuestRegionMmap::new(region, GuestAddress(address));
        regions.push(region.ok_or("memory wraps")?);
    }
    Ok(GuestMemoryMmap::from_regions(regions)?)
}

/// Runs 64-bit code.
pub(crate) fn run(kind: &str, code: &[u8]) -> Result<()> {
    let (irqchip, cpuid) = match kind {
        "bare" => (false, false),
        "irqchip" => (true, false),
        "cpuid" => (true, true),
        other => return Err(format!("{FLOOR}={other}").into()),
    };
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let ram = memory()?;
    for (slot, region) in (0..).zip(ram.iter()) {
        let memslot = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the region outlives the VM.
        unsafe { vm.set_user_memory_region(memslot)? };
    }
    if irqchip {
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    if cpuid {
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    }
    ram.write_slice(code, GuestAddress(CODE))?;
    let [top, next, first] = [0, 1, 2].map(|page| TABLES + page * PAGE);
    ram.write_obj(next | ENTRY, GuestAddress(top))?;
    for gib in 0..4 {
        ram.write_obj((first + gib * PAGE) | ENTRY, GuestAddress(next + 8 * gib))?;
    }
    for page in 0..4 * 512 {
        let entry = (page * LARGE_PAGE) | LARGE | ENTRY;
        ram.write_obj(entry, GuestAddress(first + 8 * page))?;
    }
    let mut sregs = vcpu.get_sregs()?;
    // Protected mode and paging; 64-bit, on and in use; a code segment for that.
    sregs.cr0 = 0x8000_0001;
    sregs.cr3 = top;
    sregs.cr4 = 0x20;
    sregs.efer = 0x500;
    (sregs.cs.base, sregs.cs.selector, sregs.cs.limit) = (0, 8, u32::MAX);
    (sregs.cs.l, sregs.cs.db, sregs.cs.g) = (1, 0, 1);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (CODE, 2);
    vcpu.set_regs(&regs)?;
    let mut out = std::io::stdout();
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(0x3f8, byte) => {
                out.write_all(byte)?;
                out.flush()?;
            }
            VcpuExit::IoOut(0x64, _) => return Ok(()),
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
            other => return Err(format!("unexpected exit {other:?}").into()),
        }
    }
}
