//! How a Linux guest learns of its virtio devices when it does without ACPI: from its command line.
//!
//! A kernel reads that if it was built with CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES (Linux
//! drivers/virtio/virtio_mmio.c). It is told only what it does not know from ACPI. A file does not tell
//! whether its kernel has ACPI, so the word `acpi=off` does, which kernels without ACPI ignore; or the configuration,
//! and then a kernel with both finds each device twice, and uses the first.

use arch::{DeviceKind, DevicePlan, Space, add_parameters, kernel_parameters};

/// `virtio_mmio.device=SIZE@BASE:IRQ`, once for each device.
const PARAMETER: &str = "virtio_mmio.device=";

/// Whether a command line takes ACPI away (Linux arch/x86/kernel/acpi/boot.c, `parse_acpi`): the last word
/// counts. `ht`, of older kernels, leaves the processors alone.
pub(crate) fn is_acpi_off(cmdline: &str) -> bool {
    let mut off = false;
    for word in kernel_parameters(cmdline) {
        match word.strip_prefix("acpi=") {
            Some("off" | "ht") => off = true,
            Some("force") => off = false,
            _ => {}
        }
    }
    off
}

/// Whether the command line names devices itself.
pub(crate) fn is_announced(cmdline: &str) -> bool {
    kernel_parameters(cmdline).any(|word| word.starts_with(PARAMETER))
}

/// The command line with the devices that the guest would not find otherwise, or with all of them in any case. Who
/// names devices has said all of them.
pub(crate) fn announce(cmdline: String, devices: &[DevicePlan], in_any_case: bool) -> String {
    let needed = in_any_case || is_acpi_off(&cmdline);
    if !needed || is_announced(&cmdline) {
        return cmdline;
    }
    let named: Vec<_> = devices.iter().filter_map(parameter).collect();
    add_parameters(&cmdline, &named.join(" "))
}

fn parameter(device: &DevicePlan) -> Option<String> {
    let (DeviceKind::VirtioMmio(_), Space::Mmio, Some(irq)) =
        (device.kind, device.space, device.irq)
    else {
        return None;
    };
    let (base, len) = (device.range.base, device.range.len);
    Some(format!("{PARAMETER}{len:#x}@{base:#x}:{irq}"))
}

#[cfg(test)]
mod tests {
    use arch::{AddressRange, VirtioKind};

    use super::*;

    fn device(kind: DeviceKind, base: u64, irq: u32) -> DevicePlan {
        DevicePlan {
            id: None,
            messages: None,
            kind,
            space: Space::Mmio,
            range: AddressRange::new(base, 0x1000),
            irq: Some(irq),
        }
    }

    #[test]
    fn the_last_word_on_acpi_counts() {
        for (cmdline, off) in [
            ("quiet", false),
            ("acpi=off", true),
            ("acpi=ht quiet", true),
            ("acpi=off acpi=force", false),
            ("acpi=force acpi=off", true),
            ("acpi=off acpi=strict", true),
            ("acpi=noirq", false),
            ("acpi=offx noacpi=off", false),
            ("quiet -- acpi=off", false),
        ] {
            assert_eq!(is_acpi_off(cmdline), off, "{cmdline}");
        }
    }

    #[test]
    fn a_guest_without_acpi_is_told_of_its_devices_and_no_other() {
        let devices = [
            device(DeviceKind::VirtioMmio(VirtioKind::Block), 0xc000_0000, 9),
            device(DeviceKind::IoApic { pins: 64 }, 0xfec0_0000, 1),
            device(DeviceKind::VirtioMmio(VirtioKind::Rng), 0xc000_1000, 10),
        ];
        let with = |cmdline: &str| announce(cmdline.to_owned(), &devices, false);
        let named =
            "virtio_mmio.device=0x1000@0xc0000000:9 virtio_mmio.device=0x1000@0xc0001000:10";
        assert_eq!(with("acpi=off"), format!("acpi=off {named}"));
        assert_eq!(
            with("acpi=off quiet -- single"),
            format!("acpi=off quiet {named} -- single")
        );
        for alone in [
            "quiet",
            "acpi=off acpi=force",
            "acpi=off virtio_mmio.device=4K@0xc0000000:9",
        ] {
            assert_eq!(with(alone), alone);
        }
        assert_eq!(announce("acpi=off".to_owned(), &[], true), "acpi=off");
        let asked = |cmdline: &str| announce(cmdline.to_owned(), &devices, true);
        assert_eq!(asked("quiet"), format!("quiet {named}"));
        let own = "quiet virtio_mmio.device=4K@0xc0000000:9";
        assert_eq!(asked(own), own);
    }
}
