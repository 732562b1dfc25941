//! Whether a machine is lean: without KVM's I/O APIC, PICs and interval timer, which take KVM long to take
//! down.
//!
//! A kernel misses them when it has neither ACPI nor the MP table's I/O APIC to go by, or keeps its time by
//! the interval timer. What a Linux does by default is known from its version; what its command line takes
//! away, from the words below (Linux Documentation/admin-guide/kernel-parameters.txt).

use arch::kernel::LinuxVersion;
use arch::{GuestKernel, Lean, LeanChoice, MachineConfig, has_word};

use crate::facts::X86_64;
use crate::map;

/// The oldest Linux that is known to boot on a lean machine: the oldest in the lab.
const OLDEST: LinuxVersion = LinuxVersion { major: 6, minor: 1 };

/// What makes Linux go by PICs or the interval timer.
const TAKEN_AWAY: [&str; 12] = [
    "acpi=ht",
    "acpi=noirq",
    "acpi=off",
    "disableapic",
    "maxcpus=0",
    "no-kvmclock",
    "noapic",
    "noapictimer",
    "nolapic",
    "nolapic_timer",
    "nosmp",
    "notsc",
];

/// Decides.
pub(crate) fn choose(facts: &X86_64, config: &MachineConfig, cmdline: &str) -> LeanChoice {
    let (lean, why) = match config.lean {
        Lean::On => (true, "as configured".to_owned()),
        Lean::Off => (false, "as configured".to_owned()),
        Lean::Auto => automatic(facts, config, cmdline),
    };
    LeanChoice { lean, why }
}

fn automatic(facts: &X86_64, config: &MachineConfig, cmdline: &str) -> (bool, String) {
    if !facts.split_chip {
        return (false, "this host's KVM has no other machine".to_owned());
    }
    if !facts.full_chip {
        return (true, "this host's KVM has no other machine".to_owned());
    }
    if config.vcpus > map::NARROW_VCPUS {
        let why = format!("no other machine has more than {} vCPUs", map::NARROW_VCPUS);
        return (true, why);
    }
    match config.kernel {
        GuestKernel::BuiltIn => (true, "the built-in guest misses nothing".to_owned()),
        GuestKernel::Unknown => (
            false,
            "the kernel does not say that it is a Linux of a known version".to_owned(),
        ),
        GuestKernel::Linux(version) if version < OLDEST => (
            false,
            format!("Linux {version}; {OLDEST} is the oldest that is known to miss nothing"),
        ),
        GuestKernel::Linux(version) => match taken_away(cmdline) {
            Some(word) => (false, format!("{word} on the command line")),
            None => (true, format!("Linux {version} misses nothing")),
        },
    }
}

/// The first word on the command line that a lean machine does not suit.
fn taken_away(cmdline: &str) -> Option<&'static str> {
    let pci = |option: &str| {
        let mut lists = cmdline
            .split_ascii_whitespace()
            .filter_map(|word| word.strip_prefix("pci="));
        lists.any(|list| list.split(',').any(|found| found == option))
    };
    TAKEN_AWAY
        .into_iter()
        .find(|word| has_word(cmdline, word))
        .or_else(|| pci("noacpi").then_some("pci=noacpi"))
}

#[cfg(test)]
mod tests {
    use arch::{Cmdline, Transport};

    use super::*;

    fn chosen(facts: &X86_64, lean: Lean, kernel: GuestKernel, cmdline: &str) -> LeanChoice {
        let config = MachineConfig {
            memory: 256 << 20,
            vcpus: 1,
            cmdline: Cmdline {
                base: Some(cmdline.to_owned()),
                append: None,
            },
            serial: true,
            virtio: Vec::new(),
            transport: Transport::Pci,
            lean,
            kernel,
            vmgenid: true,
            own_window: 0,
            keyboard: false,
            announce_virtio: false,
        };
        choose(facts, &config, cmdline)
    }

    fn linux(text: &str) -> GuestKernel {
        GuestKernel::Linux(LinuxVersion::parse(text).unwrap())
    }

    #[test]
    fn a_kernel_that_misses_nothing_gets_a_lean_machine() {
        let facts = X86_64::typical();
        for (kernel, cmdline, lean, why) in [
            (GuestKernel::BuiltIn, "", true, "built-in"),
            (GuestKernel::Unknown, "", false, "does not say"),
            (linux("6.1.0"), "quiet", true, "Linux 6.1 misses nothing"),
            (linux("7.10"), "quiet", true, "Linux 7.10"),
            (linux("5.19"), "quiet", false, "6.1 is the oldest"),
            (linux("6.12"), "quiet acpi=off", false, "acpi=off on"),
            (linux("6.12"), "pci=nomsi,noacpi", false, "pci=noacpi on"),
            (linux("6.12"), "pci=nomsi noapicx", true, "Linux 6.12"),
        ] {
            let found = chosen(&facts, Lean::Auto, kernel, cmdline);
            assert_eq!(found.lean, lean, "{kernel:?}, {cmdline}: {found:?}");
            assert!(found.why.contains(why), "{kernel:?}, {cmdline}: {found:?}");
        }
    }

    #[test]
    fn what_was_asked_for_comes_first_and_then_what_the_host_has() {
        let facts = X86_64::typical();
        assert!(chosen(&facts, Lean::On, GuestKernel::Unknown, "acpi=off").lean);
        assert!(!chosen(&facts, Lean::Off, GuestKernel::BuiltIn, "").lean);
        let old = X86_64 {
            split_chip: false,
            ..X86_64::typical()
        };
        assert!(!chosen(&old, Lean::Auto, GuestKernel::BuiltIn, "").lean);
        let bare = X86_64 {
            full_chip: false,
            ..X86_64::typical()
        };
        assert!(chosen(&bare, Lean::Auto, GuestKernel::Unknown, "").lean);
    }
}
