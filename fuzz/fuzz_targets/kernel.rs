//! A kernel file from nowhere: identified, placed, loaded and described, or refused. Never a panic,
//! never more memory than the guest has.
#![no_main]

use std::fs::File;
use std::io::Write;

use arch::kernel::{KernelHeader, KernelImage, LinuxVersion};
use arch::{
    BootRequest, Cmdline, GuestKernel, GuestRam, KvmPlatform, Lean, MachineConfig, Platform,
    Transport,
};
use arch_x86_64::X86_64;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};

fuzz_target!(|data: &[u8]| {
    let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(data).expect("memory for the file");
    let mut image = KernelImage::File(file);
    let Ok(header) = KernelHeader::identify(&image) else {
        return;
    };
    let linux = header.linux_release(&image);
    let kernel = linux.and_then(|release| LinuxVersion::parse(&release));
    let platform = X86_64::typical();
    let config = MachineConfig {
        memory: 64 << 20,
        vcpus: 2,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
        lean: Lean::Auto,
        kernel: kernel.map_or(GuestKernel::Unknown, GuestKernel::Linux),
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
    };
    let plan = platform
        .setup_memory_layout(&config)
        .expect("a small machine");
    let regions: Vec<_> = plan
        .ram
        .iter()
        .map(|range| (vm_memory::GuestAddress(range.base), range.len as usize))
        .collect();
    let ram = GuestRam::from_ranges(&regions).expect("RAM");
    let Ok(kernel) = platform.place_kernel(&header, &plan) else {
        return;
    };
    assert!(plan.kernel_window.contains(&kernel.range), "{kernel:?}");
    assert!(
        kernel.range.base <= kernel.entry && kernel.entry < kernel.range.end(),
        "{kernel:?}"
    );
    if platform
        .load_kernel(&mut image, &header, &kernel, &ram)
        .is_err()
    {
        return;
    }
    let irq_chip = platform.irq_chip(&plan).expect("a chip");
    let request = BootRequest {
        plan: &plan,
        irq_chip: &irq_chip,
        kernel: &kernel,
        initrd: None,
        seed: &[0; arch::SEED],
    };
    // A setup header may ask for less than our command line needs, and is refused then.
    let _ = platform.build_boot_info(&request, &ram);
});
