//! A driver that breaks the rules, one case after the other. After each, the device answers again
//! once it was reset, and another disk has served all the time.

mod chains;
mod driver;
mod setup;

use driver::{AREAS, Disk};
use guest::machine::port_in;
use guest::println;
use guest::serial::{DATA, READY, STATUS};

use super::{BLOCK, Device, devices};

/// The disk that is mistreated, just begun, and the other one.
struct Disks {
    disk: Disk,
    other: Disk,
}

type Case = (&'static str, fn(&mut Disks));

const CASES: [Case; 19] = [
    (
        "r7 queue and features while the device runs",
        setup::r7_running,
    ),
    ("r7 nonsense before it runs", setup::r7_before),
    ("r8 r15 changes while the device looks", chains::r8_r15),
    ("r10 queues that are not there", setup::r10),
    ("r11 one head many times in flight", chains::r11),
    ("r12 reset with reads in flight", chains::r12_reads),
    (
        "r12 a queue taken back with reads in flight",
        chains::r12_queue,
    ),
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
    ("r25 accesses of any width", setup::r25),
    ("r26 r40 an index far ahead", chains::r26_r40),
    ("r38 buffers of no length", chains::r38),
];

/// Sectors with known content.
const KNOWN: u64 = 64;

pub fn run() {
    let mut all = devices(BLOCK).map(|device| match device {
        Device::Mmio { registers, .. } => registers,
        Device::Pci(_) => panic!("these cases are about registers of their own"),
    });
    let mut next = |area| Disk::new(all.next().expect("two disks"), area);
    let mut disks = Disks {
        disk: next(AREAS[0]),
        other: next(AREAS[1]),
    };
    disks.other.begin();
    for ((name, case), sector) in CASES.into_iter().zip(0..) {
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
