//! The contract suite: what every backend must satisfy, on every host.
//!
//! [`platform_contract!`](crate::platform_contract) turns each check into a test. The checks panic,
//! as tests do, and name the plan that broke them.

use vm_memory::{Bytes, GuestAddress};

use crate::kernel::{BzImage, Elf, FlatImage, ImageMachine, KernelHeader, Protocol, Segment};
use crate::{
    AddressRange, BootError, BootInfo, BootRequest, Cmdline, DeviceKind, DevicePlan, Gsi,
    GuestKernel, GuestRam, IrqModel, Lean, LoadedKernel, MachineConfig, MachinePlan, PlanError,
    Platform, SEED, Space, Transport, VIRTIO_PCI_BAR, VirtioKind,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const PAGE: u64 = 4096;
const BASE: &str = "contract base";
const APPEND: &str = "contract append=1";
/// The I/O ports of the architectures that have them.
const PORTS: AddressRange = AddressRange::new(0, 0x1_0000);
/// The virtio devices of every machine here.
const VIRTIO: [VirtioKind; 4] = [
    VirtioKind::Block,
    VirtioKind::Net,
    VirtioKind::Block,
    VirtioKind::Rng,
];
/// Bytes of the configuration space of one PCI bus.
const ECAM: u64 = MIB;
/// What the stand-ins for kernel and initrd are made of.
const PATTERN: u8 = 0xa5;

/// Runs the contract suite on a platform: `platform_contract!(X86_64::typical(),
/// [Protocol::Pvh])`. The second argument lists the boot protocols that its kernels use.
#[macro_export]
macro_rules! platform_contract {
    ($platform:expr, $protocols:expr) => {
        #[test]
        fn contract_plans_hold_over_all_sizes() {
            $crate::contract::plans_hold_over_all_sizes(&$platform);
        }

        #[test]
        fn contract_the_configuration_is_in_the_plan() {
            $crate::contract::the_configuration_is_in_the_plan(&$platform);
        }

        #[test]
        fn contract_bad_values_are_refused_by_name() {
            $crate::contract::bad_values_are_refused_by_name(&$platform);
        }

        #[test]
        fn contract_kernels_have_their_place() {
            $crate::contract::kernels_have_their_place(&$platform, &$protocols);
        }

        #[test]
        fn contract_boot_information_is_placed_well() {
            $crate::contract::boot_information_is_placed_well(&$platform, &$protocols);
        }

        #[test]
        fn contract_every_vcpu_can_be_configured() {
            $crate::contract::every_vcpu_can_be_configured(&$platform, &$protocols);
        }
    };
}

fn config(memory: u64, vcpus: u32) -> MachineConfig {
    MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        memory,
        vcpus,
        cmdline: Cmdline {
            base: Some(BASE.to_owned()),
            append: Some(APPEND.to_owned()),
        },
        serial: true,
        virtio: VIRTIO.to_vec(),
        transport: Transport::Mmio,
    }
}

/// The same machine with its virtio devices on a PCI bus, and both without what a lean one lacks.
fn variants(config: &MachineConfig) -> [MachineConfig; 4] {
    [
        (Transport::Mmio, Lean::Off),
        (Transport::Pci, Lean::Off),
        (Transport::Mmio, Lean::On),
        (Transport::Pci, Lean::On),
    ]
    .map(|(transport, lean)| MachineConfig {
        transport,
        lean,
        ..config.clone()
    })
}

/// A plan that the platform cannot refuse.
#[track_caller]
fn plan<P: Platform>(platform: &P, config: &MachineConfig) -> MachinePlan {
    match platform.setup_memory_layout(config) {
        Ok(plan) => plan,
        Err(error) => panic!("{config:?}: {error}"),
    }
}

/// RAM sizes around every power of two from 16 MiB to 1 TiB and every GiB up to 8, where the gaps
/// of memory maps are.
fn memory_sizes() -> impl Iterator<Item = u64> {
    let powers = (24..=40).map(|bits| 1 << bits);
    let gibs = (1..=8).map(|gib| gib * GIB);
    powers
        .chain(gibs)
        .flat_map(|size| [size - PAGE, size, size + PAGE])
        .filter(|size| *size >= 16 * MIB)
}

/// Plans over a sweep of sizes: RAM adds up, nothing overlaps, interrupts are the chip's, and the
/// same input gives the same plan.
///
/// # Panics
/// When a plan breaks a rule.
pub fn plans_hold_over_all_sizes<P: Platform>(platform: &P) {
    let mut planned = 0;
    for memory in memory_sizes() {
        for vcpus in [1, 2, 3, 8, 64, 254, 255, 256] {
            for config in variants(&config(memory, vcpus)) {
                match platform.setup_memory_layout(&config) {
                    Ok(plan) => {
                        check(platform, &config, &plan);
                        assert_eq!(Ok(plan), platform.setup_memory_layout(&config));
                        planned += 1;
                    }
                    // A host may be too small for this machine; then it says which value is too
                    // large.
                    Err(PlanError::Config { field, .. }) => {
                        assert!(["guest-memory", "vcpus"].contains(&field), "{field}");
                        assert!(memory > GIB || vcpus > 8, "{config:?} is refused");
                    }
                    Err(error) => panic!("{config:?}: {error}"),
                }
            }
        }
    }
    assert!(planned > 0);
}

fn check<P: Platform>(platform: &P, config: &MachineConfig, plan: &MachinePlan) {
    assert_eq!(plan.ram_size(), config.memory, "RAM of {plan:?}");
    assert_eq!(plan.vcpus, config.vcpus, "vCPUs of {plan:?}");
    assert!(plan.ram.is_sorted(), "RAM of {plan:?}");
    disjoint("RAM", &plan.ram);
    for range in &plan.ram {
        let whole_pages = range.base.is_multiple_of(PAGE) && range.len.is_multiple_of(PAGE);
        assert!(whole_pages && range.len > 0, "{range:?} in RAM of {plan:?}");
    }
    let reserved: Vec<_> = plan.reserved.iter().map(|part| part.range).collect();
    disjoint("reserved", &reserved);

    let window = &plan.kernel_window;
    assert!(
        plan.ram.iter().any(|range| range.contains(window)) && window.len > 0,
        "the kernel window lies outside RAM: {plan:?}"
    );
    let in_window = reserved.iter().find(|range| range.overlaps(window));
    assert_eq!(in_window, None, "reserved in the kernel window");
    apart("RAM", &plan.ram, "the MMIO window", &[plan.mmio_window]);

    for space in [Space::Mmio, Space::Pio] {
        let devices = plan.devices.iter().filter(|device| device.space == space);
        let ranges: Vec<_> = devices.map(|device| device.range).collect();
        disjoint("devices", &ranges);
        match space {
            Space::Mmio => {
                apart("RAM", &plan.ram, "devices", &ranges);
                apart("reserved", &reserved, "devices", &ranges);
            }
            Space::Pio => assert!(ranges.iter().all(|range| PORTS.contains(range))),
        }
    }
    check_interrupts(platform, plan);
    for transport in [Transport::Mmio, Transport::Pci] {
        let wanted = if config.transport == transport {
            &config.virtio[..]
        } else {
            &[]
        };
        assert_eq!(
            virtio_devices(plan, transport),
            wanted,
            "{transport:?} devices of {plan:?}"
        );
    }
    assert_eq!(
        plan.pci.is_some(),
        config.transport == Transport::Pci,
        "PCI bus of {plan:?}"
    );
    check_pci(plan, &reserved);
}

fn check_interrupts<P: Platform>(platform: &P, plan: &MachinePlan) {
    let chip = match platform.irq_chip(plan) {
        Ok(chip) => chip,
        Err(error) => panic!("no interrupt chip for {plan:?}: {error}"),
    };
    let lines = chip.lines();
    let mut gsis: Vec<_> = plan
        .devices
        .iter()
        .filter_map(|device| device.irq)
        .collect();
    assert!(
        gsis.iter().all(|gsi| lines.contains(gsi)),
        "interrupts outside {lines:?}: {gsis:?}"
    );
    let count = gsis.len();
    gsis.sort_unstable();
    gsis.dedup();
    assert_eq!(gsis.len(), count, "interrupts are shared: {plan:?}");

    let routes: Vec<_> = chip.wired_routes().iter().map(|route| route.gsi).collect();
    let by_device = plan.devices.iter().find_map(|device| match device.kind {
        DeviceKind::IoApic { pins } => Some(Gsi::from(pins)),
        _ => None,
    });
    if let Some(pins) = by_device {
        assert!(
            routes.is_empty(),
            "a device routes the lines, and so does KVM"
        );
        assert_eq!(lines, 0..pins, "the lines of a device");
    } else {
        let unwired = lines.clone().find(|line| !routes.contains(line));
        assert_eq!(unwired, None, "a line goes nowhere");
    }
    assert!(routes.iter().all(|gsi| lines.contains(gsi)), "{routes:?}");
    if let Some(pci) = &plan.pci {
        let first = pci.first_msi_gsi;
        assert!(
            first >= lines.end,
            "messages from {first} on, lines to {lines:?}"
        );
    }
}

/// The virtio devices behind a transport, in order.
fn virtio_devices(plan: &MachinePlan, transport: Transport) -> Vec<VirtioKind> {
    let kind = |device: &DevicePlan| match (device.kind, transport) {
        (DeviceKind::VirtioMmio(kind), Transport::Mmio)
        | (DeviceKind::VirtioPci { kind, .. }, Transport::Pci) => Some(kind),
        _ => None,
    };
    plan.devices.iter().filter_map(kind).collect()
}

/// The bus lies where nothing else does, and its devices lie in its window.
fn check_pci(plan: &MachinePlan, reserved: &[AddressRange]) {
    let (mut slots, mut others) = (Vec::new(), Vec::new());
    let mut bars = Vec::new();
    let mut ecam = None;
    for device in &plan.devices {
        match device.kind {
            DeviceKind::PciEcam => ecam = Some(device.range),
            DeviceKind::VirtioPci { slot, .. } => {
                slots.push(slot);
                bars.push(device.range);
            }
            _ if device.space == Space::Mmio => others.push(device.range),
            _ => {}
        }
    }
    assert_eq!(ecam, plan.pci.map(|pci| pci.ecam), "ECAM of {plan:?}");
    let Some(pci) = &plan.pci else {
        return;
    };
    let parts: Vec<_> = [pci.ecam, pci.window32]
        .into_iter()
        .chain(pci.window64)
        .collect();
    disjoint("the PCI bus", &parts);
    for (name, ranges) in [
        ("RAM", &plan.ram[..]),
        ("reserved", reserved),
        ("other devices", &others),
    ] {
        apart(name, ranges, "the PCI bus", &parts);
    }
    assert!(
        pci.ecam.len >= ECAM && pci.ecam.base.is_multiple_of(ECAM),
        "{pci:x?}"
    );
    assert!(pci.window32.end() <= 4 * GIB, "{pci:x?}");
    assert!(parts.iter().all(|part| part.len > 0), "{pci:x?}");
    for bar in bars {
        let natural = bar.len == VIRTIO_PCI_BAR && bar.base.is_multiple_of(bar.len);
        assert!(
            natural && pci.window32.contains(&bar),
            "the BAR {bar:x?} is not in {pci:x?}"
        );
    }
    assert!(slots.iter().all(|slot| (1..32).contains(slot)), "{slots:?}");
    let count = slots.len();
    slots.sort_unstable();
    slots.dedup();
    assert_eq!(slots.len(), count, "slots are shared: {plan:?}");
}

#[track_caller]
fn disjoint(what: &str, ranges: &[AddressRange]) {
    for (place, range) in ranges.iter().enumerate() {
        let (_, others) = ranges.split_at(place + 1);
        apart(what, &[*range], what, others);
    }
}

#[track_caller]
fn apart(a_name: &str, a: &[AddressRange], b_name: &str, b: &[AddressRange]) {
    for a in a {
        for b in b {
            assert!(!a.overlaps(b), "{a_name} {a:x?} overlaps {b_name} {b:x?}");
        }
    }
}

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

/// A kernel of each format, of so many bytes, that asks for `base`.
fn kernels(size: u64, base: u64) -> Vec<KernelHeader> {
    let image = |machine| {
        KernelHeader::Image(FlatImage {
            machine,
            text_offset: 0,
            entry_offset: 0,
            file_size: size,
            memory_size: size,
        })
    };
    let segment = Segment {
        offset: 0,
        file_size: size,
        address: base,
        memory_size: size,
    };
    let images = ImageMachine::ALL.iter().map(|&machine| image(machine));
    let others = [
        KernelHeader::Elf(Elf {
            entry: base,
            pvh_entry: Some(base),
            segments: vec![segment],
        }),
        KernelHeader::BzImage(BzImage {
            version: 0x20f,
            setup_size: 0x400,
            kernel_size: size,
            init_size: size,
            pref_address: base,
            relocatable: true,
            alignment: 2 * MIB,
            cmdline_size: 2047,
            initrd_addr_max: u64::from(u32::MAX),
            xloadflags: 1,
            header: Vec::new(),
        }),
    ];
    images.chain(others).collect()
}

/// A kernel goes into the kernel window as a whole and is entered inside, or is refused; one for
/// another machine is refused by its name.
///
/// # Panics
/// When it is not.
pub fn kernels_have_their_place<P: Platform>(platform: &P, protocols: &[Protocol]) {
    let mut placed = 0;
    for memory in [16 * MIB, 256 * MIB, 5 * GIB] {
        let plan = plan(platform, &config(memory, 1));
        let window = plan.kernel_window;
        let sizes = [PAGE, 7 * MIB, window.len, window.len + 1, 1 << 62, u64::MAX];
        for (size, base) in sizes.into_iter().flat_map(|size| {
            [window.base, window.end() - PAGE, 0, !(PAGE - 1)].map(|base| (size, base))
        }) {
            for header in kernels(size, base) {
                let Ok(kernel) = platform.place_kernel(&header, &plan) else {
                    continue;
                };
                let range = kernel.range;
                assert!(
                    window.contains(&range) && range.len >= size,
                    "{header:?} is placed outside the window: {kernel:x?}"
                );
                assert!(
                    range.contains(&AddressRange::new(kernel.entry, 1)),
                    "the entry lies outside the kernel: {kernel:x?}"
                );
                assert!(protocols.contains(&kernel.protocol), "{kernel:x?}");
                placed += 1;
            }
        }
        let foreign = KernelHeader::Other {
            name: "z80 ELF".to_owned(),
            architecture: None,
        };
        match platform.place_kernel(&foreign, &plan) {
            Err(error) => assert!(
                error.to_string().contains("z80 ELF"),
                "the z80 ELF is not named: {error}"
            ),
            Ok(kernel) => panic!("a z80 ELF has a place: {kernel:x?}"),
        }
    }
    assert!(placed > 0, "no kernel has a place");
}

/// A machine with a kernel and an initrd in its RAM.
struct Loaded {
    plan: MachinePlan,
    ram: GuestRam,
    kernel: LoadedKernel,
    initrd: Option<AddressRange>,
}

impl Loaded {
    /// RAM is mapped lazily, so only what is written costs memory.
    fn new<P: Platform>(platform: &P, config: &MachineConfig, protocol: Protocol) -> Self {
        let plan = plan(platform, config);
        let regions: Vec<_> = plan
            .ram
            .iter()
            .map(|range| (GuestAddress(range.base), size(range.len)))
            .collect();
        let ram = GuestRam::from_ranges(&regions).expect("RAM can be mapped");
        let window = plan.kernel_window;
        let base = (window.base + MIB).next_multiple_of(2 * MIB);
        let kernel = LoadedKernel {
            entry: base + 0x200,
            range: AddressRange::new(base, 2 * MIB),
            initrd_limit: None,
            protocol,
            setup_header: Vec::new(),
        };
        // The initrd is where the core puts one: as high as the window allows.
        let initrd = Some(AddressRange::new(window.end() - MIB, MIB - 123));
        let loaded = Self {
            plan,
            ram,
            kernel,
            initrd,
        };
        for range in loaded.occupied() {
            loaded.fill(range);
        }
        loaded
    }

    fn occupied(&self) -> impl Iterator<Item = AddressRange> {
        [self.kernel.range].into_iter().chain(self.initrd)
    }

    fn fill(&self, range: AddressRange) {
        self.ram
            .write_slice(&vec![PATTERN; size(range.len)], GuestAddress(range.base))
            .expect("kernel and initrd lie in RAM");
    }

    fn read(&self, range: AddressRange) -> Vec<u8> {
        let mut bytes = vec![0; size(range.len)];
        self.ram
            .read_slice(&mut bytes, GuestAddress(range.base))
            .expect("the range lies in RAM");
        bytes
    }

    fn boot<P: Platform>(&self, platform: &P) -> Result<BootInfo, BootError> {
        let irq_chip = platform.irq_chip(&self.plan).expect("there is a chip");
        let request = BootRequest {
            plan: &self.plan,
            irq_chip: &irq_chip,
            kernel: &self.kernel,
            initrd: self.initrd,
            seed: &[0x5e; SEED],
        };
        platform.build_boot_info(&request, &self.ram)
    }
}

fn size(len: u64) -> usize {
    usize::try_from(len).expect("a 64-bit host")
}

/// Boot information lies in RAM, clear of kernel, initrd and of itself; it says where it is, writes
/// nowhere else, carries the command line, and is the same every time.
///
/// # Panics
/// When it does not.
pub fn boot_information_is_placed_well<P: Platform>(platform: &P, protocols: &[Protocol]) {
    for &protocol in protocols {
        for memory in [16 * MIB, 256 * MIB, 5 * GIB] {
            for (vcpus, with_initrd) in [(1, true), (8, false)] {
                let some = variants(&config(memory, vcpus));
                for config in some
                    .iter()
                    .filter(|c| c.lean == Lean::Off || memory == 256 * MIB)
                {
                    let mut loaded = Loaded::new(platform, config, protocol);
                    if !with_initrd {
                        loaded.initrd = None;
                    }
                    placed_well(platform, &loaded);
                }
            }
        }
        let mut long = config(256 * MIB, 1);
        long.cmdline.append = Some("x".repeat(size(MIB)));
        let loaded = Loaded::new(platform, &long, protocol);
        assert!(
            loaded.boot(platform).is_err(),
            "a command line of 1 MiB is refused"
        );
    }
}

fn placed_well<P: Platform>(platform: &P, loaded: &Loaded) {
    let before = loaded.read(AddressRange::new(loaded.plan.ram_start(), 16 * MIB));
    let boot = match loaded.boot(platform) {
        Ok(boot) => boot,
        Err(error) => panic!("{:?}: {error}", loaded.plan),
    };
    assert_eq!(boot.entry, loaded.kernel.entry);
    let blocks: Vec<_> = boot.placed.iter().map(|block| block.range).collect();
    disjoint("boot information", &blocks);
    let occupied: Vec<_> = loaded.occupied().collect();
    apart("boot information", &blocks, "kernel or initrd", &occupied);
    for block in &blocks {
        let in_ram = loaded.plan.ram.iter().any(|range| range.contains(block));
        assert!(in_ram, "{block:x?} lies outside RAM");
    }
    assert!(
        boot.arguments.iter().any(|&argument| blocks
            .iter()
            .any(|block| block.contains(&AddressRange::new(argument, 1)))),
        "none of the arguments {:x?} points to one of {blocks:x?}",
        boot.arguments
    );
    let contents: Vec<_> = blocks.iter().map(|block| loaded.read(*block)).collect();
    let cmdline = loaded.plan.cmdline.as_bytes();
    assert!(
        contents
            .iter()
            .any(|bytes| bytes.windows(cmdline.len()).any(|text| text == cmdline)),
        "the command line is nowhere"
    );

    // The first 16 MiB hold every block that there is; outside of them nothing has changed.
    let start = loaded.plan.ram_start();
    let after = loaded.read(AddressRange::new(start, 16 * MIB));
    for (offset, (old, new)) in (0u64..).zip(before.iter().zip(&after)) {
        if old != new {
            let byte = AddressRange::new(start + offset, 1);
            let placed = blocks.iter().any(|block| block.contains(&byte));
            assert!(placed, "{:#x} was written and is in no block", byte.base);
        }
    }

    let again = loaded.boot(platform).expect("it worked before");
    assert_eq!(boot, again);
    let same = blocks.iter().map(|block| loaded.read(*block)).eq(contents);
    assert!(same, "the second boot information differs from the first");
}

/// Every vCPU gets its registers, always the same, and only the first one starts the kernel.
///
/// # Panics
/// When one does not.
pub fn every_vcpu_can_be_configured<P: Platform>(platform: &P, protocols: &[Protocol]) {
    for &protocol in protocols {
        let loaded = Loaded::new(platform, &config(256 * MIB, 8), protocol);
        let boot = loaded.boot(platform).expect("boot information fits");
        for id in 0..loaded.plan.vcpus {
            let configure = |boot| match platform.configure_vcpu(id, &loaded.plan, boot) {
                Ok(setup) => setup,
                Err(error) => panic!("vCPU {id}: {error}"),
            };
            assert_eq!(configure(None), configure(None));
            let (first, waiting) = (configure(Some(&boot)), configure(None));
            assert_ne!(first, waiting, "vCPU {id} starts the kernel or waits");
            let elsewhere = BootInfo {
                entry: boot.entry + PAGE,
                ..boot.clone()
            };
            assert_ne!(first, configure(Some(&elsewhere)), "the entry counts");
        }
    }
}
