//! The second x86_64 machine: Bochs, whose processor has Intel's VMX with EPT where QEMU's has AMD's SVM.
//!
//! It has one processor, runs some 40 million instructions a second and takes no kernel by itself (`boot`
//! gives it one). Its own times go by instructions: what waits in the machine waits several times longer
//! outside, so that time-outs in it need not change. Packages, images and guests are those of x86_64.

mod boot;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fs_err as fs;

use super::images::{self, Images};
use super::machine;
use crate::needs::Needs;
use crate::step::Result;

/// The machine's name in the lab.
pub(super) const NAME: &str = "x86_64-vmx";
const MIB: u32 = 1024;
/// A stock kernel takes a minute to boot on an idle host, a test program several.
pub(super) const PATIENCE: Duration = Duration::from_secs(900);
/// Self-tests of cryptography and the check of the kernel's own certificates take a third of the boot;
/// `loglevel` because each line on the console costs as much as 500,000 instructions.
const CMDLINE: &str = "console=ttyS0 panic=-1 quiet loglevel=0 mitigations=off tsc=reliable \
    cryptomgr.notests \
    initcall_blacklist=jent_mod_init,load_system_certificate_list,fips_signature_selftest_init";

/// The tests with micro-guests that run here. Among the others are guests that compute or wait for a device without
/// an exit and with their interrupts off, which hangs the machine: Bochs (2.7; by its sources of 2026 still) seems to
/// keep the machine's interrupts masked, as they are in KVM at VM entry, until the guest's IF changes, though KVM
/// asks for an exit on each (`setEFlags` in `VMenterLoadCheckGuestState`, cpu/vmx.cc).
pub(super) const TESTS: &str = "every_vcpu r25_ r3_ r45_ serial_input the_timer usable_memory";

/// Parameters of KVM's module that make an older processor. Without real mode in guests (before Westmere), KVM
/// needs the pages of `KVM_SET_IDENTITY_MAP_ADDR` and `KVM_SET_TSS_ADDR` for each vCPU's start but the first's;
/// without EPT, it keeps page tables of its own for the guest's.
pub(super) const OLDER: [&str; 2] = ["unrestricted_guest=0", "ept=0"];

/// Loads KVM with such a parameter.
pub(super) fn reload(parameter: &str) -> String {
    format!("rmmod kvm_intel && insmod /modules/*kvm-intel.ko {parameter} && ")
}

/// What running it needs.
pub(super) fn needs() -> Needs {
    Needs::default().tools(&[
        ("bochs", "bochs"),
        // Any display satisfies the package; with this one a graphical one is not installed.
        ("/usr/share/doc/bochs-term", "bochs-term"),
        ("/usr/share/bochs/BIOS-bochs-latest", "bochsbios"),
        ("/usr/share/vgabios/vgabios.bin", "vgabios"),
    ])
}

/// Bochs with what it reads in `folder`, and the machine's console as its terminal.
pub(super) fn emulator(folder: &Path, images: &Images) -> Result<Command> {
    fs::create_dir_all(folder)?;
    let boot = boot::Boot::new(
        &images::vmlinux(&fs::read(&images.kernel)?)?,
        &fs::read(&images.initramfs)?,
        CMDLINE,
        MIB,
    )?;
    fs::write(folder.join("disk"), boot.disk)?;
    fs::write(folder.join("loader"), boot.loader)?;
    // Debian's build starts in its debugger.
    fs::write(folder.join("commands"), "continue\n")?;
    // Haswell: later models tell a frequency of their clock that it does not have. The more `ips`, the
    // slower the machine's clock goes. A display is a must; this one waits for nobody to look at it.
    let config = format!(
        "cpu: model=corei7_haswell_4770, count=1, ips=200000000\n\
         megs: {MIB}\n\
         clock: sync=none, time0=utc\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/vgabios/vgabios.bin\n\
         optromimage1: file=loader, address={:#x}\n\
         ata0-master: type=disk, path=disk, mode=flat\n\
         com1: enabled=1, mode=term, dev=/dev/tty\n\
         display_library: rfb, options=\"timeout=0\"\n\
         panic: action=fatal\n\
         log: log\n",
        boot::LOADER
    );
    fs::write(folder.join("config"), config)?;
    // A network of its own, because the display listens on a port; a terminal of its own for the console. As
    // `script` starts a session, only the namespace of its processes makes sure that they end with this one.
    let mut command = machine::ending_with_this("unshare");
    command
        .args([
            "--map-root-user",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["script", "--quiet", "--return"])
        .args(["--command", "bochs -unlock -f config -rc commands"])
        .arg("/dev/null")
        .current_dir(folder);
    Ok(command)
}
