//! The table of the lab: another architecture is another row.

use super::architecture::{Architecture, Lesser};
use super::images;

pub(crate) const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        name: "x86_64",
        debian: "amd64",
        qemu: "qemu-system-x86_64",
        qemu_package: "qemu-system-x86",
        // One processor: with several, guests of this emulated SVM crash now and then
        // (docs/architecture.md, known limits).
        qemu_arguments: "-M q35 -accel tcg,thread=multi -cpu max -smp 1 -m 2048",
        qemu_cmdline: "console=ttyS0 panic=-1 quiet mitigations=off tsc=reliable",
        suites: &[],
        kernel_package: "linux-image-cloud-amd64",
        system_kernel: Some("linux-image-cloud-amd64"),
        // Message-signalled interrupts are the only ones there; without ACPI the kernel has no APIC.
        without_disk: &["acpi=off", "pci=nomsi"],
        modules: &["kvm-amd", "kvm-intel", "tun", "virtio_blk"],
        guest_modules: &["button", "evdev", "pvpanic-mmio"],
        has_pvpanic: true,
        has_power_button: true,
        other_kernel: Some(("memtest86+", "boot/memtest86+x64.bin")),
        tells_changes: true,
        lean: &["on", "off"],
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
        other_kernel: None,
        tells_changes: true,
        lean: &[],
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
        // With two processors, KVM of Linux 6.12 can lose interrupts of guests that sleep: docs/architecture.md.
        qemu_arguments: "-M virt,aia=aplic-imsic,aia-guests=4 -accel tcg,thread=multi -cpu max \
            -smp 1 -m 2048",
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
        other_kernel: None,
        tells_changes: false,
        lean: &[],
        target: "riscv64gc-unknown-linux-gnu",
        guests: ("riscv64gc-unknown-none-elf", "micro-guest-riscv64"),
        devices: &[
            "interrupt-controller@28000000",
            "interrupt-controller@d000000",
            "soc",
        ],
        lesser: &[
            Lesser {
                name: "no guest interrupt files, no Sstc",
                qemu_arguments: "-M virt,aia=aplic-imsic -accel tcg,thread=multi -cpu max,sstc=off \
                    -smp 1 -m 2048",
                lacks: None,
            },
            Lesser {
                name: "no AIA",
                qemu_arguments: "-M virt -accel tcg,thread=multi -cpu max,smaia=off,ssaia=off -smp 1 \
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
