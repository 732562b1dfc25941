//! The lab: for each architecture a first-level machine under full emulation that offers a real
//! (nested) KVM, our binary in it, and stock kernels as its guests.

mod devices;
mod images;
mod machine;
mod system;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use machine::Machine;

use crate::apt;
use crate::step::Result;

/// Makes a guest's kernel of the packaged one.
type Convert = fn(&[u8]) -> Result<Vec<u8>>;

/// One architecture: another one is another row of [`ARCHITECTURES`].
#[derive(Debug)]
pub(crate) struct Architecture {
    /// Rust's name.
    pub(crate) name: &'static str,
    /// Debian's name.
    pub(crate) debian: &'static str,
    qemu: &'static str,
    qemu_package: &'static str,
    qemu_arguments: &'static str,
    qemu_cmdline: &'static str,
    /// Where its packages come from, the first that can be had; none: the machine's own release.
    suites: &'static [&'static str],
    /// The metapackage of the kernel, both of the machine and of its guests.
    kernel_package: &'static str,
    /// The metapackage of the kernels of the stock systems among its guests, where the release has them.
    pub(crate) system_kernel: Option<&'static str>,
    /// Kernel parameters that keep a stock system from its disk on PCI.
    without_disk: &'static [&'static str],
    /// Modules for /dev/kvm, taps and the stock systems' disk.
    modules: &'static [&'static str],
    /// What guests load besides: this architecture's own devices, what its kernel has not built in.
    guest_modules: &'static [&'static str],
    /// Whether the kernel has a driver that tells of panics.
    has_pvpanic: bool,
    /// Whether the machine has a power button that the kernel knows.
    has_power_button: bool,
    /// The static build.
    pub(crate) target: &'static str,
    /// Target and package of the micro-guests.
    guests: (&'static str, &'static str),
    /// Devices that a guest must find in its device tree or ACPI name space.
    devices: &'static [&'static str],
    /// Machines with less.
    lesser: &'static [Lesser],
    /// The guests' kernels, by file name.
    guest_kernels: &'static [(&'static str, Convert)],
}

/// A first-level machine with less than the architecture's own.
#[derive(Debug)]
struct Lesser {
    name: &'static str,
    qemu_arguments: &'static str,
    /// What the VMM says that it lacks; otherwise guests run all the same.
    lacks: Option<&'static str>,
}

pub(crate) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "x86_64",
        debian: "amd64",
        qemu: "qemu-system-x86_64",
        qemu_package: "qemu-system-x86",
        qemu_arguments: "-M q35 -accel tcg,thread=multi -cpu max -smp 2 -m 2048",
        qemu_cmdline: "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable",
        suites: &[],
        kernel_package: "linux-image-cloud-amd64",
        system_kernel: Some("linux-image-cloud-amd64"),
        // Message-signalled interrupts are the only ones there; without ACPI the kernel has no APIC.
        without_disk: &["acpi=off", "pci=nomsi"],
        modules: &["kvm-amd", "tun", "virtio_blk"],
        guest_modules: &["button", "evdev", "pvpanic-mmio"],
        has_pvpanic: true,
        has_power_button: true,
        target: "x86_64-unknown-linux-musl",
        guests: ("x86_64-unknown-none", "micro-guest"),
        devices: &["ACPI0007:00", "PNP0501:00", "PNP0B00:00"],
        lesser: &[],
        guest_kernels: &[("bzImage", images::packaged), ("vmlinux", images::vmlinux)],
    },
    Architecture {
        name: "aarch64",
        debian: "arm64",
        qemu: "qemu-system-aarch64",
        qemu_package: "qemu-system-arm",
        qemu_arguments: "-M virt,virtualization=on,gic-version=3 -accel tcg,thread=multi \
            -cpu max,pauth-impdef=on -smp 2 -m 2048",
        qemu_cmdline: "console=ttyAMA0 panic=-1 quiet",
        suites: &[],
        // Unlike the cloud kernel it has a driver for keys on GPIO lines.
        kernel_package: "linux-image-arm64",
        system_kernel: Some("linux-image-cloud-arm64"),
        without_disk: &["pci=nomsi"],
        modules: &["tun", "virtio_blk", "ext4"],
        guest_modules: &["evdev", "gpio_keys", "ext4"],
        has_pvpanic: false,
        has_power_button: true,
        target: "aarch64-unknown-linux-musl",
        guests: ("aarch64-unknown-none-softfloat", "micro-guest-aarch64"),
        devices: &[
            "interrupt-controller@8000000",
            "psci",
            "pmu",
            "rtc@9001000",
            "serial@9000000",
            "timer",
        ],
        lesser: &[Lesser {
            name: "GICv2",
            qemu_arguments: "-M virt,virtualization=on,gic-version=2 -accel tcg,thread=multi \
                -cpu max,pauth-impdef=on -smp 2 -m 2048",
            lacks: Some("an interrupt controller GICv3"),
        }],
        guest_kernels: &[
            ("Image", images::packaged),
            ("Image.gz", images::gzip),
            ("vmlinuz.efi", images::zboot),
        ],
    },
    Architecture {
        name: "riscv64",
        debian: "riscv64",
        qemu: "qemu-system-riscv64",
        qemu_package: "qemu-system-misc",
        qemu_arguments: "-M virt,aia=aplic-imsic,aia-guests=4 -accel tcg,thread=multi -cpu max \
            -smp 2 -m 2048",
        qemu_cmdline: "console=ttyS0 panic=-1 quiet",
        // The older release has no such packages.
        suites: &["trixie", "forky", "sid"],
        kernel_package: "linux-image-riscv64",
        system_kernel: None,
        without_disk: &["pci=nomsi"],
        modules: &["kvm", "tun"],
        guest_modules: &["ext4"],
        has_pvpanic: false,
        has_power_button: false,
        target: "riscv64gc-unknown-linux-gnu",
        guests: ("riscv64gc-unknown-none-elf", "micro-guest-riscv64"),
        devices: &[
            "interrupt-controller@28000000",
            "interrupt-controller@d000000",
            "soc",
        ],
        lesser: &[
            Lesser {
                name: "no guest interrupt files",
                qemu_arguments: "-M virt,aia=aplic-imsic -accel tcg,thread=multi -cpu max -smp 2 \
                    -m 2048",
                lacks: None,
            },
            Lesser {
                name: "no AIA",
                qemu_arguments: "-M virt -accel tcg,thread=multi -cpu max,smaia=off,ssaia=off -smp 2 \
                    -m 2048",
                lacks: Some("the interrupt architecture AIA"),
            },
        ],
        guest_kernels: &[
            ("Image", images::packaged),
            ("Image.gz", images::gzip),
            ("vmlinuz.efi", images::zboot),
        ],
    },
];

/// How a guest is ended.
#[derive(Debug, Clone, Copy)]
enum End {
    PowerOff,
    Reset,
}

/// Runs the guests of one architecture: a few, or all combinations.
pub(crate) fn run(arch: &Architecture, full: bool, only: Option<&str>) -> Result<()> {
    apt::install_qemu(arch.qemu, arch.qemu_package)?;
    apt::install(&[
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        ("mke2fs", "e2fsprogs"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
    ])?;
    // Building one for another architecture takes ten minutes.
    let system = match arch.system_kernel {
        Some(kernel) if full || arch.name == std::env::consts::ARCH => {
            Some(crate::system::prepare(arch.debian, kernel)?)
        }
        _ => None,
    };
    let images = images::prepare(arch)?;
    println!("==> lab {}", arch.name);
    let start = Instant::now();
    let disk = system.as_ref().map(|system| system.disk.as_path());
    let mut machine = Machine::start(arch, arch.qemu_arguments, &images, disk, only)?;
    println!("    machine up, {:.1} s", start.elapsed().as_secs_f64());

    for vcpus in [1, 2] {
        hello(&mut machine, arch, vcpus)?;
    }
    for (number, (kernel, _)) in arch.guest_kernels.iter().enumerate() {
        if full {
            for (vcpus, mib) in [(1, 256), (4, 256), (1, 1024), (4, 1024)] {
                linux(&mut machine, arch, kernel, vcpus, mib, End::PowerOff)?;
            }
            linux(&mut machine, arch, kernel, 1, 256, End::Reset)?;
        } else if number == 0 {
            linux(&mut machine, arch, kernel, 2, 256, End::PowerOff)?;
        } else {
            linux(&mut machine, arch, kernel, 1, 1024, End::Reset)?;
        }
    }
    if let Some((kernel, _)) = arch.guest_kernels.first() {
        let lean = format!("{kernel} --lean=on");
        linux(&mut machine, arch, &lean, 2, 256, End::PowerOff)?;
    }
    devices::run(&mut machine, arch, full)?;
    match &system {
        Some(system) => system::run(&mut machine, arch, system, full)?,
        None if arch.system_kernel.is_some() => {
            println!("    stock systems were left out: --full runs them");
        }
        None => {}
    }
    // On its own architecture the host has run them on its own KVM.
    if full || arch.name != std::env::consts::ARCH {
        integration_tests(&mut machine)?;
    }
    drop(machine);
    for lesser in arch.lesser {
        less(arch, lesser, &images, only)?;
    }
    println!(
        "    lab {} passed, {:.1} s",
        arch.name,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// On a machine with less the VMM does with less, or says in one line what it lacks and in another what
/// to do.
fn less(
    arch: &Architecture,
    lesser: &Lesser,
    images: &images::Images,
    only: Option<&str>,
) -> Result<()> {
    let name = format!("{}: built-in guest", lesser.name);
    let mut machine = Machine::start(arch, lesser.qemu_arguments, images, None, only)?;
    let Some(lacks) = lesser.lacks else {
        let command = "/vmm-reference --vcpus=2";
        case(&mut machine, &name, command, &[], |output| {
            expect(output.contains("hello from vmm-reference"), "the guest")
        })?;
        return devices::briefly(&mut machine, arch);
    };
    // The status says that the VMM failed, and so does `doctor`.
    let command = "/vmm-reference; [ $? = 1 ] && (/vmm-reference doctor; [ $? = 1 ])";
    case(&mut machine, &name, command, &[], |output| {
        let error = format!("error: this host's KVM does not have {lacks}\n  cure: use a host ");
        expect(output.contains(&error), &error)?;
        let check = format!(": this host's KVM does not have {lacks}");
        let failed = |line: &str| line.starts_with("FAIL  ") && line.ends_with(&check);
        expect(output.lines().any(failed), "doctor's line")
    })
}

/// The built-in guest.
fn hello(machine: &mut Machine, arch: &Architecture, vcpus: u32) -> Result<()> {
    let name = format!("built-in guest, {vcpus} vCPUs");
    let command = format!("/vmm-reference --vcpus={vcpus}");
    let line = format!(
        "hello from vmm-reference: {}, {vcpus} vCPUs, 256 MiB",
        arch.name
    );
    case(machine, &name, &command, &[], |output| {
        expect(output.contains(&line), &line)
    })
}

/// A stock kernel, by its file's name with more options behind it: what the guest sees, a dialogue with its
/// shell, and its end.
fn linux(
    machine: &mut Machine,
    arch: &Architecture,
    kernel: &str,
    vcpus: u32,
    mib: u64,
    end: End,
) -> Result<()> {
    let name = format!("{kernel}, {vcpus} vCPUs, {mib} MiB, {end:?}");
    let command = format!(
        "/vmm-reference --kernel=/{kernel} --initrd=/initrd --vcpus={vcpus} --guest-memory={mib} \
         --append='quiet from=lab'"
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
    case(machine, &name, &command, &dialogue, |output| {
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

/// The tests with micro-guests, on this machine's KVM.
fn integration_tests(machine: &mut Machine) -> Result<()> {
    let command = "VMM_TEST_BINARY=/vmm-reference VMM_TEST_GUEST=/micro-guest \
        /micro_guests --test-threads=1";
    case(machine, "tests with micro-guests", command, &[], |output| {
        expect(output.contains("test result: ok."), "all tests pass")
    })
}

fn expect(holds: bool, what: &str) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(format!("not as expected: {what}").into())
    }
}

/// Runs the VMM, expects status 0, and judges the output.
fn case(
    machine: &mut Machine,
    name: &str,
    command: &str,
    dialogue: &[(&str, &str)],
    judge: impl Fn(&str) -> Result<()>,
) -> Result<()> {
    if !machine.wants(name) {
        return Ok(());
    }
    let start = Instant::now();
    let (status, output) = machine.run(command, dialogue)?;
    let result = match status {
        0 => judge(&output),
        _ => Err(format!("exit status {status}").into()),
    };
    result.map_err(|error| machine.failure(&format!("{name}: {error}")))?;
    println!("    {name}: passed, {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
