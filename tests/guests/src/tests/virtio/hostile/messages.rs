//! Messages: their numbers, their table, their pending bits. The local APIC stays off, so that none
//! of what is sent here is taken.

use core::ops::Range;

use super::super::registers::*;
use super::bus::{MSIX_CONTROL, places};
use super::driver::{Disk, IN, SECTOR, WRITE, put, wait};
use super::{Disks, Place};

/// Parts of the BAR.
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
/// Bytes of an entry; in it the data and the control word.
const ENTRY: u64 = 16;
const ENTRY_DATA: u64 = 8;
const ENTRY_CONTROL: u64 = 12;
/// A disk has a queue and a configuration.
pub const ENTRIES: Range<u64> = 0..2;
/// Fields of the common configuration.
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_VECTOR: u64 = 0x1a;
const NO_VECTOR: u16 = 0xffff;
/// Bits of the capability's control word.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Where a message goes to no vCPU: to the local APIC with the number 0x55.
const NOBODY: u64 = 0xfee5_5000;

fn entry(place: Place, message: u64) -> u64 {
    place.bar + TABLE + ENTRY * message
}

pub fn mask(place: Place, message: u64) {
    write(entry(place, message) + ENTRY_CONTROL, 1u32);
}

fn unmask(place: Place, message: u64) {
    write(entry(place, message) + ENTRY_CONTROL, 0u32);
}

fn fill_in(place: Place, message: u64, address: u64, data: u32) {
    write(entry(place, message), address);
    write(entry(place, message) + ENTRY_DATA, data);
}

fn control(place: Place, control: u16) {
    write(place.msix() + MSIX_CONTROL, control);
}

/// Up to where the device would run, with the first message for the queue.
fn begin_with_message(disk: &mut Disk, place: Place) {
    disk.negotiate();
    let [_, available, used] = disk.places();
    put(available, [0u16; 2]);
    put(used, [0u16; 2]);
    (disk.available, disk.used) = (0, 0);
    disk.set_up(disk.places());
    write(place.bar + QUEUE_VECTOR, 0u16);
    assert_eq!(read::<u16>(place.bar + QUEUE_VECTOR), 0);
    disk.run();
}

/// Numbers beyond the table are none, and there is nothing behind it.
pub fn r10(disks: &mut Disks) {
    let [place, _] = places(disks);
    let disk = &mut disks.disk;
    for running in [false, true] {
        if !running {
            disk.negotiate();
        }
        for queue in [0, 1, 31, 64, 0x8000, 0xffff] {
            disk.registers.write(QUEUE_SEL, queue);
            for vector in [ENTRIES.end as u16, 3, 63, 64, 65, 0x7fff, 0xfffe, NO_VECTOR] {
                write(place.bar + QUEUE_VECTOR, vector);
                assert_eq!(read::<u16>(place.bar + QUEUE_VECTOR), NO_VECTOR);
                write(place.bar + CONFIG_VECTOR, vector);
                assert_eq!(read::<u16>(place.bar + CONFIG_VECTOR), NO_VECTOR);
            }
        }
        disk.registers.write(QUEUE_SEL, 0);
        let behind = [ENTRIES.end, 31, 32, 64, 255].map(|message| TABLE + ENTRY * message);
        for offset in behind
            .into_iter()
            .chain([PENDING, PENDING + 8, PENDING + 0xff8])
        {
            write(place.bar + offset, u64::MAX);
            assert_eq!(read::<u64>(place.bar + offset), 0, "at {offset:#x}");
        }
        if !running {
            disk.begin();
        }
    }
    // R7: what is chosen stays while the device runs.
    begin_with_message(disk, place);
    for vector in [1, 2, NO_VECTOR] {
        write(place.bar + QUEUE_VECTOR, vector);
        assert_eq!(read::<u16>(place.bar + QUEUE_VECTOR), 0);
    }
    disk.reads(16);
}

/// Requests go on while their message is masked, unmasked, and turned into others; what is raised
/// meanwhile is pending until it is let out, or the device reset.
pub fn r8(disks: &mut Disks) {
    const ROUNDS: u64 = 24;
    let [place, _] = places(disks);
    let disk = &mut disks.disk;
    mask(place, 1);
    // Nobody there, nonsense of all kinds, and places that are no local APIC.
    let messages = [
        (NOBODY, 0x40),
        (NOBODY, u32::MAX),
        (NOBODY | 0xc, 0x7fff),
        (NOBODY | 0xff_ffff << 40, 0x41),
        (NOBODY | 0x51 << 32, 0x41),
        (0x0005_5000, 0),
        (0xffff_ffff_fff5_5ff3, 0xffff_ff00),
    ];
    control(place, ENABLE);
    for round in 0..ROUNDS {
        begin_with_message(disk, place);
        disk.ask(IN, round);
        let buffers = [disk.header(), (disk.data(), SECTOR, WRITE), disk.status()];
        Disk::chain(disk.area, 0, &buffers);
        for (address, data) in messages {
            disk.offer(0);
            disk.notify();
            fill_in(place, 0, address, data);
            unmask(place, 0);
            control(place, ENABLE | FUNCTION_MASK);
            fill_in(place, 0, !address & 0xfff5_5fff, !data);
            control(place, ENABLE);
            mask(place, 0);
            control(place, 0);
            control(place, ENABLE);
            assert_eq!(disk.ended(), Some((0, SECTOR + 1)), "message {address:#x}");
        }
        disk.shows(disk.data(), round);
    }
    // Pending while masked; let out, once; forgotten by a reset.
    let pending = || read::<u64>(place.bar + PENDING);
    begin_with_message(disk, place);
    fill_in(place, 0, NOBODY, 0x40);
    disk.reads(17);
    wait("a pending bit", || (pending() == 1).then_some(()));
    unmask(place, 0);
    assert_eq!(pending(), 0);
    mask(place, 0);
    disk.reads(18);
    wait("a pending bit", || (pending() == 1).then_some(()));
    disk.registers.reset();
    assert_eq!(pending(), 0);
    place.restore();
}
