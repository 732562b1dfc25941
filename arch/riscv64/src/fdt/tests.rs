use ::fdt::Fdt;
use arch::contract::decompiled;
use arch::kernel::Protocol;
use arch::{
    AddressRange, Cmdline, GuestKernel, KernelPlacement, Lean, MachineConfig, MachinePlan,
    Platform, SEED, Transport, VirtioKind,
};

use super::*;

fn plan_of(facts: &Riscv64, memory: u64, vcpus: u32, transport: Transport) -> MachinePlan {
    let config = MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory,
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

fn tree_of(facts: &Riscv64, plan: &MachinePlan) -> Vec<u8> {
    let kernel = KernelPlacement {
        entry: plan.kernel_window.base,
        range: AddressRange::new(plan.kernel_window.base, 4096),
        initrd_limit: None,
        protocol: Protocol::DeviceTree,
        setup_header: Vec::new(),
    };
    let request = BootRequest {
        plan,
        irq_chip: &facts.irq_chip(plan).unwrap(),
        kernel: &kernel,
        initrd: None,
        seed: &[7; SEED],
    };
    build(facts, &request).unwrap()
}

#[test]
fn an_independent_parser_reads_what_was_planned() {
    let facts = Riscv64::typical();
    for (memory, vcpus) in [(256 << 20, 1), (1 << 40, 17), (1 << 30, 512)] {
        let bytes = tree_of(&facts, &plan_of(&facts, memory, vcpus, Transport::Mmio));
        let tree = Fdt::new(&bytes).unwrap();
        assert_eq!(tree.cpus().count(), vcpus as usize);
        for (id, cpu) in tree.cpus().enumerate() {
            assert_eq!(cpu.ids().first(), id);
            assert_eq!(cpu.timebase_frequency(), 10_000_000);
        }
        let regions: Vec<_> = tree.memory().regions().collect();
        assert_eq!(regions[0].starting_address as u64, 0x8000_0000);
        assert_eq!(regions[0].size.map(|size| size as u64), Some(memory));
        assert_eq!(tree.chosen().bootargs(), Some("console=ttyS0 panic=-1 a=b"));
        let uart = tree.chosen().stdout().unwrap();
        assert_eq!(uart.compatible().unwrap().first(), "ns16550a");
        let imsics = tree.find_compatible(&["riscv,imsics"]).unwrap();
        let pages = imsics.reg().unwrap().next().unwrap();
        assert_eq!(pages.size, Some(0x1000 * vcpus as usize));
        let parents = imsics.property("interrupts-extended").unwrap().value;
        assert_eq!(parents.len(), 8 * vcpus as usize);
    }
}

#[test]
fn what_the_host_lacks_is_not_described() {
    let facts = Riscv64 {
        extensions: ["i", "m", "a"].map(str::to_owned).to_vec(),
        cache_blocks: [0; 3],
        satp_mode: 8,
        ..Riscv64::typical()
    };
    let bytes = tree_of(&facts, &plan_of(&facts, 1 << 30, 1, Transport::Mmio));
    let tree = Fdt::new(&bytes).unwrap();
    let cpu = tree.find_node("/cpus/cpu@0").unwrap();
    let text = |name| cpu.property(name).and_then(|property| property.as_str());
    assert_eq!(text("riscv,isa"), Some("rv64ima"));
    assert_eq!(text("mmu-type"), Some("riscv,sv39"));
    assert!(cpu.property("riscv,cbom-block-size").is_none());
    let list = cpu.property("riscv,isa-extensions").unwrap().value;
    assert_eq!(list, b"i\0m\0a\0");
}

#[test]
fn dtc_takes_the_tree_without_a_remark_and_gives_the_golden_text() {
    let facts = Riscv64::typical();
    for (transport, name, golden) in [
        (Transport::Mmio, "golden.dts", include_str!("golden.dts")),
        (
            Transport::Pci,
            "golden-pci.dts",
            include_str!("golden-pci.dts"),
        ),
    ] {
        let plan = plan_of(&facts, 256 << 20, 2, transport);
        let text = decompiled(&tree_of(&facts, &plan));
        assert_eq!(
            text, golden,
            "the tree has changed; if it should, update {name}"
        );
    }
}
