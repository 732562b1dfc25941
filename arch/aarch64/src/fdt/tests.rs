use ::fdt::Fdt;
use arch::contract::decompiled;
use arch::kernel::Protocol;
use arch::{
    AddressRange, Cmdline, GuestKernel, KernelPlacement, Lean, MachineConfig, MachinePlan,
    Platform, SEED, Transport, VirtioKind,
};

use super::*;

fn tree_of(facts: &Aarch64, memory: usize, vcpus: u32, initrd: Option<AddressRange>) -> Vec<u8> {
    let plan = plan_of(facts, memory, vcpus, Transport::Mmio);
    tree(facts, &plan, initrd)
}

fn plan_of(facts: &Aarch64, memory: usize, vcpus: u32, transport: Transport) -> MachinePlan {
    let config = MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory: memory as u64,
        vcpus,
        cmdline: Cmdline {
            base: None,
            append: Some("a=b".to_owned()),
        },
        serial: true,
        virtio: vec![VirtioKind::Block; 2],
        transport,
    };
    facts.setup_memory_layout(&config).unwrap()
}

fn tree(facts: &Aarch64, plan: &MachinePlan, initrd: Option<AddressRange>) -> Vec<u8> {
    let irq_chip = facts.irq_chip(plan).unwrap();
    let kernel = KernelPlacement {
        entry: plan.kernel_window.base,
        range: AddressRange::new(plan.kernel_window.base, 4096),
        initrd_limit: None,
        protocol: Protocol::DeviceTree,
        setup_header: Vec::new(),
    };
    let request = BootRequest {
        plan,
        irq_chip: &irq_chip,
        kernel: &kernel,
        initrd,
        seed: &[7; SEED],
    };
    build(facts, &request).unwrap()
}

#[test]
fn an_independent_parser_reads_what_was_planned() {
    for (memory, vcpus) in [(256 << 20, 1), (1 << 40, 17), (1 << 30, 512)] {
        let initrd = Some(AddressRange::new(0x8800_0000, 12345));
        let bytes = tree_of(&Aarch64::typical(), memory, vcpus, initrd);
        let tree = Fdt::new(&bytes).unwrap();
        assert_eq!(tree.cpus().count(), vcpus as usize);
        let ids: Vec<_> = tree.cpus().map(|cpu| cpu.ids().first() as u64).collect();
        assert_eq!(ids, (0..vcpus).map(mpidr).collect::<Vec<_>>());
        let regions: Vec<_> = tree.memory().regions().collect();
        assert_eq!(regions.len(), 1);
        assert_eq!(regions[0].starting_address as u64, 0x8000_0000);
        assert_eq!(regions[0].size, Some(memory));
        let chosen = tree.chosen();
        assert_eq!(chosen.bootargs(), Some("console=ttyAMA0 panic=-1 a=b"));
        let uart = chosen.stdout().unwrap();
        assert_eq!(uart.compatible().unwrap().first(), "arm,pl011");
        let registers = uart.reg().unwrap().next().unwrap();
        assert_eq!(registers.starting_address as u64, 0x0900_0000);
        let node = tree.find_node("/chosen").unwrap();
        let value = |name| node.property(name).map(|property| property.value);
        assert_eq!(
            value("linux,initrd-start"),
            Some(&0x8800_0000u64.to_be_bytes()[..])
        );
        assert_eq!(
            value("linux,initrd-end"),
            Some(&0x8800_3039u64.to_be_bytes()[..])
        );
        assert_eq!(value("kaslr-seed").map(<[u8]>::len), Some(8));
        assert_eq!(value("rng-seed").map(<[u8]>::len), Some(56));
        let gic = tree.find_compatible(&["arm,gic-v3"]).unwrap();
        let sizes: Vec<_> = gic
            .reg()
            .unwrap()
            .map(|region| region.size.unwrap())
            .collect();
        assert_eq!(sizes, [0x1_0000, 0x2_0000 * vcpus as usize]);
    }
}

#[test]
fn what_the_host_lacks_is_not_described() {
    let plain = Aarch64 {
        pmu: false,
        ..Aarch64::typical()
    };
    let bytes = tree_of(&plain, 1 << 30, 1, None);
    let tree = Fdt::new(&bytes).unwrap();
    assert!(tree.find_compatible(&["arm,armv8-pmuv3"]).is_none());
    assert!(
        tree.find_node("/chosen")
            .unwrap()
            .property("linux,initrd-start")
            .is_none()
    );
}

#[test]
fn the_pci_bus_is_described_as_it_was_planned() {
    for (ipa_bits, high) in [(44, true), (32, false)] {
        let facts = Aarch64 {
            ipa_bits,
            ..Aarch64::typical()
        };
        let plan = plan_of(&facts, 1 << 30, 1, Transport::Pci);
        let pci = plan.pci.unwrap();
        assert_eq!(pci.window64.is_some(), high);
        let bytes = tree(&facts, &plan, None);
        let tree = Fdt::new(&bytes).unwrap();
        assert!(tree.find_compatible(&["virtio,mmio"]).is_none());
        let bus = tree.find_compatible(&["pci-host-ecam-generic"]).unwrap();
        let ecam = bus.reg().unwrap().next().unwrap();
        assert_eq!(ecam.starting_address as u64, pci.ecam.base);
        assert_eq!(ecam.size.map(|size| size as u64), Some(pci.ecam.len));
        let cells = |name| -> Vec<u64> {
            let value = bus.property(name).unwrap().value.chunks_exact(4);
            let cell = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap()).into();
            value.map(cell).collect()
        };
        assert_eq!(cells("bus-range"), [0, 0]);
        let windows: Vec<_> = cells("ranges")
            .chunks_exact(7)
            .map(|cells| {
                let pair = |at: usize| cells[at] << 32 | cells[at + 1];
                assert_eq!(pair(1), pair(3), "the bus sees the same addresses");
                (cells[0], AddressRange::new(pair(3), pair(5)))
            })
            .collect();
        let planned = [(0x0200_0000, pci.window32)].into_iter();
        let planned = planned.chain(pci.window64.map(|window| (0x0300_0000, window)));
        assert_eq!(windows, planned.collect::<Vec<_>>());
        let its = tree.find_compatible(&["arm,gic-v3-its"]).unwrap();
        let phandle = its.property("phandle").unwrap().as_usize().unwrap();
        assert_eq!(cells("msi-map"), [0, phandle as u64, 0, 0x100]);
    }
}

#[test]
fn dtc_takes_the_tree_without_a_remark_and_gives_the_golden_text() {
    let text = decompiled(&tree_of(&Aarch64::typical(), 256 << 20, 2, None));
    let golden = include_str!("golden.dts");
    assert_eq!(
        text, golden,
        "the tree has changed; if it should, update golden.dts"
    );
    // A machine with a PCI bus has that in the place of its virtio devices.
    let facts = Aarch64::typical();
    let plan = plan_of(&facts, 256 << 20, 2, Transport::Pci);
    let text = decompiled(&tree(&facts, &plan, None));
    let (before, _) = golden.split_once("\tvirtio_mmio").unwrap();
    let bus = text.strip_prefix(before).unwrap();
    assert_eq!(
        bus,
        include_str!("golden-pci.dts"),
        "the bus has changed; if it should, update golden-pci.dts"
    );
}
