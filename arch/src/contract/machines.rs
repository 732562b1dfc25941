//! The machines that the suite plans, and what it asks of ranges.

use vm_memory::{Bytes, GuestAddress};

use crate::kernel::Protocol;
use crate::{
    AddressRange, BootError, BootInfo, BootRequest, Cmdline, GuestKernel, GuestRam,
    KernelPlacement, Lean, MachineConfig, MachinePlan, Platform, SEED, Transport, VirtioKind,
};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;
pub(super) const PAGE: u64 = 4096;
pub(super) const BASE: &str = "contract base";
pub(super) const APPEND: &str = "contract append=1";
/// The virtio devices of every machine here.
pub(super) const VIRTIO: [VirtioKind; 4] = [
    VirtioKind::Block,
    VirtioKind::Net,
    VirtioKind::Block,
    VirtioKind::Rng,
];
/// What the stand-ins for kernel and initrd are made of.
const PATTERN: u8 = 0xa5;

pub(super) fn config(memory: u64, vcpus: u32) -> MachineConfig {
    MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: true,
        announce_virtio: true,
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
pub(super) fn variants(config: &MachineConfig) -> [MachineConfig; 4] {
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
pub(super) fn plan<P: Platform>(platform: &P, config: &MachineConfig) -> MachinePlan {
    match platform.setup_memory_layout(config) {
        Ok(plan) => plan,
        Err(error) => panic!("{config:?}: {error}"),
    }
}

#[track_caller]
pub(super) fn disjoint(what: &str, ranges: &[AddressRange]) {
    for (place, range) in ranges.iter().enumerate() {
        let (_, others) = ranges.split_at(place + 1);
        apart(what, &[*range], what, others);
    }
}

#[track_caller]
pub(super) fn apart(a_name: &str, a: &[AddressRange], b_name: &str, b: &[AddressRange]) {
    for a in a {
        for b in b {
            assert!(!a.overlaps(b), "{a_name} {a:x?} overlaps {b_name} {b:x?}");
        }
    }
}

/// A machine with a kernel and an initrd in its RAM.
pub(super) struct Loaded {
    pub(super) plan: MachinePlan,
    ram: GuestRam,
    pub(super) kernel: KernelPlacement,
    pub(super) initrd: Option<AddressRange>,
}

impl Loaded {
    /// RAM is mapped lazily, so only what is written costs memory.
    pub(super) fn new<P: Platform>(
        platform: &P,
        config: &MachineConfig,
        protocol: Protocol,
    ) -> Self {
        let plan = plan(platform, config);
        let regions: Vec<_> = plan
            .ram
            .iter()
            .map(|range| (GuestAddress(range.base), size(range.len)))
            .collect();
        let ram = GuestRam::from_ranges(&regions).expect("RAM can be mapped");
        let window = plan.kernel_window;
        let base = (window.base + MIB).next_multiple_of(2 * MIB);
        let kernel = KernelPlacement {
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

    pub(super) fn occupied(&self) -> impl Iterator<Item = AddressRange> {
        [self.kernel.range].into_iter().chain(self.initrd)
    }

    fn fill(&self, range: AddressRange) {
        self.ram
            .write_slice(&vec![PATTERN; size(range.len)], GuestAddress(range.base))
            .expect("kernel and initrd lie in RAM");
    }

    pub(super) fn read(&self, range: AddressRange) -> Vec<u8> {
        let mut bytes = vec![0; size(range.len)];
        self.ram
            .read_slice(&mut bytes, GuestAddress(range.base))
            .expect("the range lies in RAM");
        bytes
    }

    pub(super) fn boot<P: Platform>(&self, platform: &P) -> Result<BootInfo, BootError> {
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

pub(super) fn size(len: u64) -> usize {
    usize::try_from(len).expect("a 64-bit host")
}
