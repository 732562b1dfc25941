//! A driver that breaks the rules, one case after the other. After each, the device answers again
//! once it was reset, and another disk has served all the time.

mod bus;
mod chains;
mod driver;
mod messages;
mod setup;

use driver::{AREAS, Disk};
use guest::machine::port_in;
use guest::println;
use guest::serial::{DATA, READY, STATUS};

use super::pci::Function;
use super::registers::Registers;
use super::{BLOCK, Device, devices};

/// The disk that is mistreated, just begun, and the other one.
struct Disks {
    disk: Disk,
    other: Disk,
    /// Where they are on the bus, if they are on one.
    places: Option<[Place; 2]>,
}

/// A device on the bus, and where its BAR is but for some cases.
#[derive(Clone, Copy)]
struct Place {
    function: Function,
    bar: u64,
}

type Case = (&'static str, fn(&mut Disks));

/// For every transport.
const CASES: [Case; 17] = [
    (
        "r7 queue and features while the device runs",
        setup::r7_running,
    ),
    ("r7 nonsense before it runs", setup::r7_before),
    ("r8 r15 changes while the device looks", chains::r8_r15),
    ("r10 queues that are not there", setup::r10),
    ("r11 one head many times in flight", chains::r11),
    ("r12 reset with reads in flight", chains::r12_reads),
    ("r12 reset with writes in flight", chains::r12_writes),
    ("r13 a queue that never is empty", chains::r13),
    ("r14 r1 buffers beyond RAM", chains::r14_beyond_ram),
    (
        "r14 requests of a wrong size or place",
        chains::r14_malformed,
    ),
    ("r16 ranges to discard and to zero", chains::r16),
    ("r17 writes to a read-only disk", chains::r17),
    ("r19 loops and giant chains", chains::r19),
    ("r23 rings beyond RAM", setup::r23),
    ("r24 status and configuration", setup::r24),
    ("r26 r40 an index far ahead", chains::r26_r40),
    ("r38 buffers of no length", chains::r38),
];

const ON_MMIO: [Case; 2] = [
    (
        "r12 a queue taken back with reads in flight",
        chains::r12_queue,
    ),
    ("r25 accesses of any width", setup::r25),
];

const ON_PCI: [Case; 10] = [
    (
        "r7 r24 the BAR through the configuration",
        bus::r7_r24_access,
    ),
    ("r12 reset through the configuration", bus::r12),
    ("r24 the BAR in places of others", bus::r24_bar),
    ("r24 no BAR with reads in flight", bus::r24_nowhere),
    ("r12 no bus mastering with reads in flight", bus::r12_master),
    ("r25 configuration of any width", bus::r25_configuration),
    ("r25 configuration ports of any width", bus::r25_ports),
    ("r25 the BAR at any width", bus::r25_bar),
    ("r10 messages that are not there", messages::r10),
    ("r8 messages changed while they are sent", messages::r8),
];

/// Sectors with known content.
const KNOWN: u64 = 64;

pub fn run() {
    let mut functions = [None; 2];
    let mut next = |number: usize| {
        let device = devices(BLOCK).nth(number).expect("two disks");
        let registers = match device {
            Device::Mmio { registers, .. } => registers,
            Device::Pci(function) => {
                function.enable();
                let bar = function.bar(0);
                functions[number] = Some(Place { function, bar });
                Registers::Pci(bar)
            }
        };
        Disk::new(registers, AREAS[number])
    };
    let (disk, other) = (next(0), next(1));
    let places = functions[0].zip(functions[1]).map(Into::into);
    let more = if places.is_some() {
        &ON_PCI[..]
    } else {
        &ON_MMIO
    };
    let mut disks = Disks {
        disk,
        other,
        places,
    };
    disks.other.begin();
    for ((name, case), sector) in CASES.iter().chain(more).zip(0..) {
        disks.disk.begin();
        case(&mut disks);
        disks.disk.begin();
        disks.disk.reads(sector % KNOWN);
        disks.other.reads((sector + 1) % KNOWN);
        println!("{name}");
    }
    println!("waiting");
    while port_in(STATUS) & READY == 0 {}
    port_in(DATA);
}
