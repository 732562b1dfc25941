//! What a configuration says is in the plan, or refused.

use super::machines::{APPEND, BASE, MIB, PAGE, VIRTIO, config, plan};
use super::plans::virtio_devices;
use crate::{Cmdline, MachineConfig, PlanError, Platform, Transport, VirtioKind};

/// The command line and the optional devices follow the configuration.
///
/// # Panics
/// When a plan ignores a part of it.
pub fn the_configuration_is_in_the_plan<P: Platform>(platform: &P) {
    let config = config(256 * MIB, 1);
    let full = plan(platform, &config);
    assert!(full.cmdline.starts_with(BASE), "{:?}", full.cmdline);
    assert!(full.cmdline.contains(APPEND), "{:?}", full.cmdline);

    let default = MachineConfig {
        cmdline: Cmdline::default(),
        ..config.clone()
    };
    let default = plan(platform, &default);
    assert!(!default.cmdline.contains(BASE));
    assert!(
        default.cmdline.contains("console="),
        "the serial console is the default"
    );

    let silent = MachineConfig {
        serial: false,
        cmdline: Cmdline::default(),
        ..config
    };
    let silent = plan(platform, &silent);
    assert!(!silent.cmdline.contains("console="), "{:?}", silent.cmdline);
    for plan in [&full, &silent] {
        assert_eq!(virtio_devices(plan, Transport::Mmio), VIRTIO);
    }
    assert!(
        silent.devices.len() < full.devices.len(),
        "no serial console, one device less"
    );
}

/// Values that no machine can have are refused with the field's name, the value and a cause.
///
/// # Panics
/// When one is accepted, or refused for something else.
pub fn bad_values_are_refused_by_name<P: Platform>(platform: &P) {
    let huge = !(PAGE - 1);
    let memory = [0, 1, PAGE, MIB, 64 * MIB + 1, huge, u64::MAX].map(|size| (size, 1));
    let vcpus = [0, u32::MAX].map(|vcpus| (256 * MIB, vcpus));
    for (wanted, values) in [("guest-memory", &memory[..]), ("vcpus", &vcpus)] {
        for &(memory, vcpus) in values {
            match platform.setup_memory_layout(&config(memory, vcpus)) {
                Err(PlanError::Config {
                    field,
                    value,
                    cause,
                    cure,
                }) => {
                    assert_eq!(field, wanted, "memory {memory}, {vcpus} vCPUs");
                    assert!([value, cause, cure].iter().all(|text| !text.is_empty()));
                }
                other => panic!("memory {memory}, {vcpus} vCPUs gave {other:?}"),
            }
        }
    }
    for (transport, count) in [(Transport::Pci, 32), (Transport::Mmio, 1000)] {
        let crowd = MachineConfig {
            virtio: vec![VirtioKind::Block; count],
            transport,
            ..config(256 * MIB, 1)
        };
        match platform.setup_memory_layout(&crowd) {
            Err(PlanError::Config { field, .. }) => assert_eq!(field, "transport"),
            other => panic!("{count} devices by {transport:?} gave {other:?}"),
        }
    }
}
