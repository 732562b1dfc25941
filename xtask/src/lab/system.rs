//! Stock Debian systems: Debian's own kernels, initrds and systemd; a login on the serial console,
//! network and disk; the system's own way to power off and to reboot.

use super::architecture::Architecture;
use super::case::{Case, expect, expect_all};
use super::scope::Scope;
use crate::step::Result;

/// A login on the serial console, with what it ends in.
const LOGIN: [(&str, &str); 2] = [("lab login: ", "root\r"), ("Password: ", "lab\r")];
const PROMPT: &str = "root@lab:~# ";

/// One way to boot a system.
#[derive(Debug, Clone, Copy)]
struct Boot {
    /// `oldest` or `newest` of the kernels on its disk.
    kernel: &'static str,
    vcpus: u32,
    transport: &'static str,
}

/// One system boots and powers off; or so that each kernel meets each number of vCPUs and each transport, as does
/// each of these the others (a boot takes minutes), their reboot, and what keeps them from their disk.
pub(super) fn cases(arch: &'static Architecture, scope: Scope) -> Vec<Case> {
    let boot = |kernel, vcpus, transport| Boot {
        kernel,
        vcpus,
        transport,
    };
    let mut cases = vec![power_off(boot("newest", 1, "pci"))];
    if scope == Scope::Smoke {
        return cases;
    }
    cases.extend(
        [
            boot("newest", 2, "mmio"),
            boot("newest", 4, "pci"),
            boot("oldest", 1, "mmio"),
            boot("oldest", 2, "pci"),
            boot("oldest", 4, "mmio"),
        ]
        .map(power_off),
    );
    cases.extend([boot("newest", 1, "mmio"), boot("oldest", 2, "pci")].map(reboot));
    for kernel in ["oldest", "newest"] {
        for parameter in arch.without_disk {
            cases.push(without_disk(boot(kernel, 1, "pci"), parameter));
        }
    }
    cases
}

impl Boot {
    fn named(&self, case: &str) -> String {
        let Self {
            kernel,
            vcpus,
            transport,
        } = self;
        format!("system: {case}, {kernel} kernel, {vcpus} vCPUs, {transport}")
    }

    /// In a network namespace of its own, with a server of the kernels' files; at the end the host looks
    /// whether the file system was unmounted. The kernels come off the system's own disk.
    fn command(&self, append: &str, options: &str) -> String {
        let Self {
            kernel,
            vcpus,
            transport,
        } = self;
        let order = if *kernel == "oldest" { "" } else { "-r" };
        format!(
            "[ -e /boot ] || (mkdir -p /mnt /boot && mount -t ext4 -o ro /dev/vda /mnt && \
             cp /mnt/boot/vmlinuz-* /mnt/boot/initrd.img-* /boot && umount /mnt); \
             version=$(ls /boot | sed -n s/^vmlinuz-//p | sort -V {order} | head -n 1); \
             echo booting $version; export version; \
             unshare -n sh -c 'ip link set lo up; \
             (until ip addr add 10.9.0.1/24 dev vm0; do sleep 0.2; done) 2> /dev/null & \
             httpd -f -p 5000 -h /boot & server=$!; \
             /watch /tmp/c & watch=$!; /vmm-reference --control=/tmp/c --kernel=/boot/vmlinuz-$version --initrd=/boot/initrd.img-$version \
             --append=\"root=/dev/vda quiet {append}\" --blk=/dev/vda --net=vm0 --vcpus={vcpus} \
             --guest-memory=512 --transport={transport} {options}; \
             status=$?; kill $server $watch; e2fsck -n /dev/vda; exit $status'"
        )
    }
}

/// Everything in a system works, down to the file that its package brought.
fn power_off(boot: Boot) -> Case {
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
    Case::new(name, command, &dialogue, move |output| {
        let version = output
            .lines()
            .find_map(|line| line.strip_prefix("booting "))
            .ok_or("no version")?;
        let state = format!("state running, vCPUs {}, {version}\n", boot.vcpus);
        let texts = [
            state.as_str(),
            "2 received, 0% packet loss",
            "differs[]",
            "verified[]",
        ];
        expect_all(output, &texts)?;
        unmounted(output)
    })
}

/// What a system has written is there after its reboot.
fn reboot(boot: Boot) -> Case {
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
    Case::new(name, command, &dialogue, unmounted)
}

/// The file system was left as it should be: with a journal to replay, e2fsck calls it clean as well.
fn unmounted(output: &str) -> Result<()> {
    expect(output.contains("/dev/vda: clean, "), "a clean file system")?;
    expect(!output.contains("journal recovery"), "no journal to replay")
}

/// A parameter takes the disk's interrupts away: the guest says that it finds none and resets, as its
/// command line has it do (panic=-1), and that is the VM's end.
fn without_disk(boot: Boot, parameter: &'static str) -> Case {
    let name = boot.named(parameter);
    let dialogue = [("Gave up waiting for root file system device", "")];
    let command = boot.command(parameter, "");
    Case::new(name, command, &dialogue, move |output| {
        // The VMM has said so before.
        let remark = format!("{parameter}: ");
        expect_all(output, &[remark.as_str(), "reboot: Restarting system"])
    })
}
