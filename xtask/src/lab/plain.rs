//! Guests without devices of their own: the built-in one, stock kernels by every format, micro-guests,
//! and machines with less.

use std::time::{SystemTime, UNIX_EPOCH};

use super::architecture::{Architecture, Lesser};
use super::case::{Case, expect, expect_all};
use super::devices;
use super::scope::Scope;
use crate::step::Result;

/// A kernel of our own under Firecracker's interface.
const CONFIGURED: &str = r#"{"boot-source":{"kernel_image_path":"/own-kernel","boot_args":"console=ttyS0 reboot=k panic=1 pci=off acpi=off init=/bin/busybox -- sh /look"},"drives":[{"drive_id":"root","is_root_device":true,"path_on_host":"/own-root","is_read_only":true},{"drive_id":"more","is_root_device":false,"path_on_host":"/disk.ext4","is_read_only":true}],"machine-config":{"vcpu_count":2,"mem_size_mib":128}}"#;

/// How a guest is ended.
#[derive(Debug, Clone, Copy)]
enum End {
    PowerOff,
    Reset,
}

/// A few, or all combinations.
pub(super) fn cases(arch: &'static Architecture, scope: Scope) -> Vec<Case> {
    let mut cases = vec![hello(arch, 1), hello(arch, 2)];
    for (number, (kernel, _)) in arch.guest_kernels.iter().enumerate() {
        if number == 0 {
            cases.push(linux(arch, kernel, 2, 256, End::PowerOff));
        }
        if scope == Scope::Full {
            for (vcpus, mib) in [(1, 256), (4, 256), (1, 1024), (4, 1024)] {
                cases.push(linux(arch, kernel, vcpus, mib, End::PowerOff));
            }
            cases.push(linux(arch, kernel, 1, 256, End::Reset));
            cases.push(linux(arch, kernel, 1, 1024, End::Reset));
        }
    }
    cases.extend(arch.guest_kernels.iter().take(1).flat_map(|(kernel, _)| {
        let explicit = arch.lean.iter().filter(move |lean| {
            // `auto` comes to the same for this kernel.
            scope == Scope::Full || **lean != "on"
        });
        explicit.map(move |lean| {
            let kernel = format!("{kernel} --lean={lean}");
            linux(arch, &kernel, 2, 256, End::PowerOff)
        })
    }));
    if arch.other_kernel.is_some() {
        cases.push(memory_tester());
    }
    if arch.name == "x86_64" {
        let kernels = arch.guest_kernels.iter().take(1);
        cases.extend(kernels.map(|(kernel, _)| ctrl_alt_del(kernel)));
    }
    cases
}

/// A stock kernel finds the keyboard, and starts anew when Ctrl-Alt-Del is typed: nobody has told it otherwise.
fn ctrl_alt_del(kernel: &str) -> Case {
    let command = format!(
        "rm -f /keys /said; /vmm-reference --kernel=/{kernel} --initrd=/initrd --keyboard=on --control=/keys \
         --serial=file=/said --append=quiet & vm=$!; \
         until grep -q '@guest ready' /said 2>/dev/null; do sleep 1; done; \
         /vmm-reference ctl /keys metrics; /vmm-reference ctl /keys ctrl-alt-del && wait $vm && cat /said"
    );
    Case::new("ctrl-alt-del", command, &[], |output| {
        expect(output.contains("the guest was told"), "the command")?;
        expect(output.contains("@guest ready"), "the guest")
    })
}

/// The built-in guest; in the full lab every kernel, and the first on every kind of machine.
pub(super) fn once(arch: &'static Architecture, scope: Scope) -> Vec<Case> {
    let mut cases = vec![hello(arch, 1), hello(arch, 2)];
    let kernels = arch.guest_kernels.iter().map(|(kernel, _)| *kernel);
    if scope == Scope::Full {
        let first = kernels.clone().take(1);
        cases.extend(first.map(|kernel| linux(arch, kernel, 2, 256, End::PowerOff)));
        let others = kernels.clone().skip(1);
        cases.extend(others.map(|kernel| linux(arch, kernel, 1, 256, End::Reset)));
        let full = kernels.take(1).map(|kernel| format!("{kernel} --lean=off"));
        cases.extend(full.map(|kernel| linux(arch, &kernel, 2, 256, End::PowerOff)));
    }
    cases
}

/// A kernel that is no Linux gets the full machine, where it does its work until the user ends it.
fn memory_tester() -> Case {
    let command = "/vmm-reference plan --kernel=/other-kernel; \
        /vmm-reference --kernel=/other-kernel --guest-memory=64 --append=console=ttyS0,115200";
    let dialogue = [("Memtest86+", ""), ("Pass", "\x01x")];
    Case::new("memtest86+", command, &dialogue, |output| {
        expect(output.contains("\nnot lean: "), "the full machine")
    })
}

/// The built-in guest and the first kernel after a command, which says what it makes of the machine.
pub(super) fn after(arch: &'static Architecture, what: &str, command: &str) -> Vec<Case> {
    let kernel = arch.guest_kernels.iter().take(1);
    let kernel = kernel.map(|(kernel, _)| linux(arch, kernel, 2, 256, End::PowerOff));
    [hello(arch, 2).on(what, command)]
        .into_iter()
        .chain(kernel.map(|case| case.on(what, "").follows()))
        .collect()
}

/// Under `firecracker` a kernel of our own finds both processors by the MP table and its root by the command line, and ends the machine
/// by the keyboard's controller.
pub(super) fn own_kernel() -> Case {
    let command = format!(
        "printf %s '{CONFIGURED}' > /own-config && /firecracker --no-api --config-file /own-config < /dev/null"
    );
    Case::new(
        "firecracker: a kernel without ACPI and PCI",
        command,
        &[],
        |output| {
            let found = [
                "Intel MultiProcessor Specification",
                "root on /dev/root / ext4 ro",
                "2 processors",
                "virtio0",
                "virtio1",
                "exit_code=0",
            ];
            expect_all(output, &found)
        },
    )
}

/// The tests with micro-guests, on this machine's KVM, with more arguments for the test program.
pub(super) fn micro_guests(arguments: &str) -> Case {
    let command = format!(
        "VMM_TEST_BINARY=/vmm-reference VMM_TEST_GUEST=/micro-guest \
         /micro_guests --test-threads=1 {arguments}"
    );
    Case::new("tests with micro-guests", command, &[], |output| {
        expect(output.contains("test result: ok."), "all tests pass")
    })
}

/// On a machine with less the VMM does with less, or says in one line what it lacks and in another what
/// to do.
pub(super) fn lesser(
    arch: &'static Architecture,
    lesser: &'static Lesser,
    scope: Scope,
) -> Result<Vec<Case>> {
    let name = format!("{}: built-in guest", lesser.name);
    let Some(lacks) = lesser.lacks else {
        let command = "/vmm-reference --vcpus=2";
        let mut cases = vec![Case::new(name, command, &[], |output| {
            expect(output.contains("hello from vmm-reference"), "the guest")
        })];
        if scope == Scope::Full {
            cases.extend(devices::briefly(arch, lesser.name)?);
        }
        return Ok(cases);
    };
    // The status says that the VMM failed, and so does `doctor`.
    let command = "/vmm-reference; [ $? = 1 ] && (/vmm-reference doctor; [ $? = 1 ])";
    Ok(vec![Case::new(name, command, &[], move |output| {
        let error = format!("error: this host's KVM does not have {lacks}\n  cure: use a host ");
        expect(output.contains(&error), &error)?;
        let check = format!(": this host's KVM does not have {lacks}");
        let failed = |line: &str| line.starts_with("FAIL  ") && line.ends_with(&check);
        expect(output.lines().any(failed), "doctor's line")
    })])
}

/// The built-in guest.
fn hello(arch: &'static Architecture, vcpus: u32) -> Case {
    let name = format!("built-in guest, {vcpus} vCPUs");
    let command = format!("/vmm-reference --vcpus={vcpus}");
    Case::new(name, command, &[], move |output| {
        let line = format!(
            "hello from vmm-reference: {}, {vcpus} vCPUs, 256 MiB",
            arch.name
        );
        expect(output.contains(&line), &line)
    })
}

/// A stock kernel, by its file's name with more options behind it: what the guest sees, a dialogue with its
/// shell, and its end.
fn linux(arch: &'static Architecture, kernel: &str, vcpus: u32, mib: u64, end: End) -> Case {
    let name = format!("{kernel}, {vcpus} vCPUs, {mib} MiB, {end:?}");
    let command = format!(
        "/vmm-reference --kernel=/{kernel} --initrd=/initrd --vcpus={vcpus} --guest-memory={mib} \
         --overcommit --append='quiet from=lab'"
    );
    let last = match end {
        End::PowerOff => "poweroff -f\r",
        End::Reset => "reboot -f\r",
    };
    // The answer is in no command's echo.
    let dialogue = [
        ("@guest ready\n", "echo sum $((40 + 2))\r"),
        ("sum 42\n", last),
    ];
    Case::new(name, command, &dialogue, move |output| {
        let value = |name: &str| {
            output
                .lines()
                .find_map(|line| line.strip_prefix("@guest ")?.strip_prefix(name))
                .unwrap_or_default()
                .trim()
        };
        expect(value("nproc") == vcpus.to_string(), "the number of vCPUs")?;
        let kib: u64 = value("memory").parse()?;
        // The kernel keeps a part for itself before it counts.
        const KERNEL: u64 = 96;
        let counted = (mib - KERNEL) * 1024..mib * 1024;
        expect(counted.contains(&kib), "the size of RAM")?;
        let clock: u64 = value("clock").parse()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        expect(clock.abs_diff(now) < 3600, "the clock")?;
        expect(
            value("cmdline").ends_with("quiet from=lab"),
            "the command line",
        )?;
        for device in arch.devices {
            let mut found = value("devices").split(' ');
            expect(found.any(|name| name == *device), device)?;
        }
        Ok(())
    })
}
