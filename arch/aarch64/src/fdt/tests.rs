use std::io::Write;
use std::process::Command;

use ::fdt::Fdt;
use arch::kernel::Protocol;
use arch::{
    AddressRange, Cmdline, LoadedKernel, MachineConfig, Platform, SEED, Transport, VirtioKind,
};

use super::*;

fn tree_of(facts: &Aarch64, memory: usize, vcpus: u32, initrd: Option<AddressRange>) -> Vec<u8> {
    let config = MachineConfig {
        memory: memory as u64,
        vcpus,
        cmdline: Cmdline {
            base: None,
            append: Some("a=b".to_owned()),
        },
        serial: true,
        virtio: vec![VirtioKind::Block; 2],
        transport: Transport::Mmio,
    };
    let plan = facts.setup_memory_layout(&config).unwrap();
    let irq_chip = facts.irq_chip(&plan).unwrap();
    let kernel = LoadedKernel {
        entry: plan.kernel_window.base,
        range: AddressRange::new(plan.kernel_window.base, 4096),
        initrd_limit: None,
        protocol: Protocol::DeviceTree,
        setup_header: Vec::new(),
    };
    let request = BootRequest {
        plan: &plan,
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
fn dtc_takes_the_tree_without_a_remark_and_gives_the_golden_text() {
    let bytes = tree_of(&Aarch64::typical(), 256 << 20, 2, None);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let output = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts"])
        .arg(file.path())
        .output()
        .expect("dtc is needed (Debian: device-tree-compiler)");
    let remarks = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && remarks.is_empty(), "{remarks}");
    let text = String::from_utf8(output.stdout).unwrap();
    let golden = include_str!("golden.dts");
    assert_eq!(
        text, golden,
        "the tree has changed; if it should, update golden.dts"
    );
}
