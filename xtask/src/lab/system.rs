//! Stock Debian systems: Debian's own kernels, initrds and systemd; a login on the serial console,
//! network and disk; the system's own way to power off and to reboot.

use super::machine::Machine;
use super::{Architecture, case, expect};
use crate::step::Result;
use crate::system::System;

/// A login on the serial console, with what it ends in.
const LOGIN: [(&str, &str); 2] = [("lab login: ", "root\r"), ("Password: ", "lab\r")];
const PROMPT: &str = "root@lab:~# ";

/// One way to boot a system.
#[derive(Debug, Clone, Copy)]
struct Boot<'a> {
    kernel: &'a str,
    vcpus: u32,
    transport: &'a str,
}

/// One system powers off and one reboots; or every kernel with every number of vCPUs on both
/// transports, and what keeps them from their disk.
pub(super) fn run(
    machine: &mut Machine,
    arch: &Architecture,
    system: &System,
    full: bool,
) -> Result<()> {
    // The kernels come off the system's own disk.
    let copy = "mkdir -p /mnt && mount -t ext4 -o ro /dev/vda /mnt && \
        cp /mnt/boot/vmlinuz-* /mnt/boot/initrd.img-* /tmp && umount /mnt";
    if machine.run(copy, &[])?.0 != 0 {
        return Err(machine.failure("no kernels on the system's disk"));
    }
    let (newest, oldest) = match system.kernels.as_slice() {
        [oldest, .., newest] => (newest, oldest),
        [kernel] => (kernel, kernel),
        [] => return Err("the system has no kernel".into()),
    };
    let boot = |kernel, vcpus, transport| Boot {
        kernel,
        vcpus,
        transport,
    };
    if !full {
        // On one vCPU, for a gate that holds: see docs/architecture.md, known limits.
        power_off(machine, boot(newest, 1, "pci"))?;
        return reboot(machine, boot(oldest, 1, "pci"));
    }
    for kernel in &system.kernels {
        for transport in ["pci", "mmio"] {
            for vcpus in [1, 2, 4] {
                power_off(machine, boot(kernel, vcpus, transport))?;
            }
            reboot(machine, boot(kernel, 2, transport))?;
        }
        for parameter in arch.without_disk {
            without_disk(machine, boot(kernel, 1, "pci"), parameter)?;
        }
    }
    Ok(())
}

impl Boot<'_> {
    fn named(&self, case: &str) -> String {
        let Self {
            kernel,
            vcpus,
            transport,
        } = self;
        format!("system: {case}, {kernel}, {vcpus} vCPUs, {transport}")
    }

    /// In a network namespace of its own, with a server of the files in /tmp; at the end the host looks
    /// whether the file system was unmounted.
    fn command(&self, append: &str, options: &str) -> String {
        let Self {
            kernel,
            vcpus,
            transport,
        } = self;
        format!(
            "unshare -n sh -c 'ip link set lo up; \
             (until ip addr add 10.9.0.1/24 dev vm0; do sleep 0.2; done) 2> /dev/null & \
             httpd -f -p 5000 -h /tmp & server=$!; \
             /vmm-reference --kernel=/tmp/vmlinuz-{kernel} --initrd=/tmp/initrd.img-{kernel} \
             --append=\"root=/dev/vda quiet {append}\" --blk=/dev/vda --net=vm0 --vcpus={vcpus} \
             --guest-memory=512 --transport={transport} {options}; \
             status=$?; kill $server; e2fsck -n /dev/vda; exit $status'"
        )
    }
}

/// Everything in a system works, down to the file that its package brought.
fn power_off(machine: &mut Machine, boot: Boot<'_>) -> Result<()> {
    // No text that is waited for or judged is in a command's echo.
    let look = "echo state $(systemctl is-system-running --wait), vCPUs $(nproc), $(uname -r); \
        ping -c 2 10.9.0.1; \
        /usr/lib/apt/apt-helper download-file http://10.9.0.1:5000/vmlinuz-$(uname -r) /tmp/kernel; \
        echo differs[$(cmp /tmp/kernel /boot/vmlinuz-$(uname -r) 2>&1)]; \
        echo verified[$(dpkg --verify systemd linux-image-$(uname -r) 2>&1)]; \
        echo sum $((40 + 2))\r";
    let dialogue = [
        LOGIN[0],
        LOGIN[1],
        (PROMPT, look),
        ("sum 42\n", "systemctl poweroff\r"),
    ];
    let (name, command) = (boot.named("power off"), boot.command("", ""));
    case(machine, &name, &command, &dialogue, |output| {
        let state = format!("state running, vCPUs {}, {}\n", boot.vcpus, boot.kernel);
        for text in [
            &state,
            "2 received, 0% packet loss",
            "differs[]",
            "verified[]",
        ] {
            expect(output.contains(text), text)?;
        }
        unmounted(output)
    })
}

/// What a system has written is there after its reboot.
fn reboot(machine: &mut Machine, boot: Boot<'_>) -> Result<()> {
    let dialogue = [
        LOGIN[0],
        LOGIN[1],
        (PROMPT, "echo $((40 + 2)) > /root/sum; systemctl reboot\r"),
        LOGIN[0],
        LOGIN[1],
        (PROMPT, "echo kept $(cat /root/sum)\r"),
        ("kept 42\n", "systemctl poweroff\r"),
    ];
    let (name, command) = (
        boot.named("reboot"),
        boot.command("", "--on-reboot=restart"),
    );
    case(machine, &name, &command, &dialogue, |output| {
        unmounted(output)
    })
}

/// The file system was left as it should be: with a journal to replay, e2fsck calls it clean as well.
fn unmounted(output: &str) -> Result<()> {
    expect(output.contains("/dev/vda: clean, "), "a clean file system")?;
    expect(!output.contains("journal recovery"), "no journal to replay")
}

/// A parameter takes the disk's interrupts away: the guest says that it finds none and resets, as its
/// command line has it do (panic=-1), and that is the VM's end.
fn without_disk(machine: &mut Machine, boot: Boot<'_>, parameter: &str) -> Result<()> {
    let name = boot.named(parameter);
    let dialogue = [("Gave up waiting for root file system device", "")];
    case(
        machine,
        &name,
        &boot.command(parameter, ""),
        &dialogue,
        |output| {
            // The VMM has said so before.
            let remark = format!("{parameter}: ");
            for text in [remark.as_str(), "reboot: Restarting system"] {
                expect(output.contains(text), text)?;
            }
            Ok(())
        },
    )
}
