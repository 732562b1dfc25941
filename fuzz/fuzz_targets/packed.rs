//! A packed kernel from nowhere: unpacked and identified, or refused. Never a panic, never more
//! memory than the guest has.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;

use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use vmm_reference::VmConfig;

fuzz_target!(|data: &[u8]| {
    let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(data).expect("memory for the file");
    let config = VmConfig::default()
        .with_kernel(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .with_memory_mib(16);
    let _ = config.check_images();
});
