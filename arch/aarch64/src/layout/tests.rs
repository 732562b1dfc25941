use arch::device_tree::board::{DEVICE_TREE, GENERATION_ID, MMIO_WINDOW, PCI_ECAM, RAM_BASE};
use arch::{Cmdline, GuestKernel, LEAST_MEMORY, Lean, Transport};

use super::*;

fn config(memory: u64, vcpus: u32) -> MachineConfig {
    MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory,
        vcpus,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
    }
}

fn plan_of(memory: u64) -> Result<MachinePlan, PlanError> {
    plan(&Aarch64::typical(), &config(memory, 1))
}

#[test]
fn fixed_ranges_do_not_touch() {
    let ranges = [
        GIC_DISTRIBUTOR,
        GIC_ITS,
        DEVICE_WINDOW,
        GIC_REDISTRIBUTORS,
        PCI_ECAM,
        MMIO_WINDOW,
        DEVICE_TREE,
        GENERATION_ID,
    ];
    for pair in ranges.windows(2) {
        let [low, high] = pair else { unreachable!() };
        assert!(low.end() <= high.base, "{low:x?} {high:x?}");
    }
}

#[test]
fn ram_is_one_region_as_far_as_the_address_bits_reach() {
    let most = (1 << 44) - RAM_BASE;
    assert_eq!(
        plan_of(most).unwrap().ram,
        [AddressRange::new(RAM_BASE, most)]
    );
    for (memory, text) in [
        (0, "at least 16 MiB"),
        (LEAST_MEMORY + 1, "multiple of 4096"),
        (most + 4096, "at most 16775168 MiB"),
    ] {
        let Err(PlanError::Config { field, cure, .. }) = plan_of(memory) else {
            panic!("{memory} is accepted");
        };
        assert_eq!(field, "guest-memory");
        assert!(cure.contains(text), "{cure}");
    }
}

#[test]
fn the_generation_id_has_a_line_of_its_own_after_those_of_the_devices() {
    let plan = plan_of(LEAST_MEMORY).unwrap();
    let id = plan.vmgenid.unwrap();
    assert_eq!(id.range, AddressRange::new(GENERATION_ID.end() - 16, 16));
    let lines: Vec<_> = plan
        .devices
        .iter()
        .filter_map(|device| device.irq)
        .collect();
    assert_eq!((lines, id.irq), (vec![0, 1, 2], Some(3)));
    let without = MachineConfig {
        vmgenid: false,
        ..config(LEAST_MEMORY, 1)
    };
    let without = super::plan(&Aarch64::typical(), &without).unwrap();
    assert_eq!(without.vmgenid, None);
    assert!(without.reserved.len() < plan.reserved.len());
    assert_eq!(
        (without.devices, without.kernel_window),
        (plan.devices, plan.kernel_window)
    );
}

#[test]
fn every_vcpu_has_a_redistributor() {
    let facts = Aarch64::typical();
    assert!(plan(&facts, &config(LEAST_MEMORY, MAX_VCPUS)).is_ok());
    assert!(plan(&facts, &config(LEAST_MEMORY, MAX_VCPUS + 1)).is_err());
    let gic = crate::gic::GicV3::new(MAX_VCPUS);
    assert_eq!(gic.redistributors, GIC_REDISTRIBUTORS);
}

#[test]
fn the_machine_type_names_address_bits_only_where_the_default_does_not_do() {
    let with = |ipa_bits, memory, transport| {
        let facts = Aarch64 {
            ipa_bits,
            ..Aarch64::typical()
        };
        let config = MachineConfig {
            transport,
            ..config(memory, 1)
        };
        facts.machine_type(&plan(&facts, &config).unwrap())
    };
    let mmio = |ipa_bits, memory| with(ipa_bits, memory, Transport::Mmio);
    assert_eq!(mmio(40, 1 << 30), 0);
    assert_eq!(mmio(48, 1 << 30), 0);
    assert_eq!(mmio(48, 1 << 40), 41);
    assert_eq!(mmio(36, 1 << 30), 32);
    assert_eq!(mmio(36, 1 << 35), 36);
    // BARs in the window above RAM need their bits too.
    let pci = |ipa_bits, memory| with(ipa_bits, memory, Transport::Pci);
    assert_eq!(pci(48, 1 << 30), 0);
    assert_eq!(pci(48, (1 << 40) - (4 << 30)), 41);
    assert_eq!(pci(36, 1 << 30), 36);
    assert_eq!(pci(32, 1 << 30), 32);
}
