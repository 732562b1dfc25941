//! Rings and chains: heads, indexes, buffers, requests.

use guest::machine::ticks;
use guest::user;

use super::super::registers::{QUEUE_NOTIFY, QUEUE_READY, Registers};
use super::Disks;
use super::driver::*;

/// Bytes of the reads and writes that are to be in flight for a while.
const LONG: u32 = 64 << 10;
/// How many of them fit in the queue.
const MANY: u16 = SIZE / 3;
/// The first sector of those that may be written.
const SCRATCH: u64 = 256;
const ROUNDS: u64 = 6;
const WORD: u64 = 8;

/// Each time the head comes back once, and the data is right.
pub fn r11(disks: &mut Disks) {
    let disk = &mut disks.disk;
    disk.ask(IN, 0);
    let buffers = [
        disk.header(),
        (disk.data(), 8 * SECTOR, WRITE),
        disk.status(),
    ];
    Disk::chain(disk.area, 0, &buffers);
    for told in [1, SIZE] {
        for number in 0..SIZE {
            disk.offer(0);
            if number % told == told - 1 {
                disk.notify();
            }
        }
        for _ in 0..SIZE {
            assert_eq!(disk.ended(), Some((0, 8 * SECTOR + 1)));
        }
        let last = disk.data() + 7 * u64::from(SECTOR);
        disk.shows(last, 7);
        put(last, 0u64);
    }
}

/// Offers as many long requests as there is room for, and tells the device.
pub fn begin_long(disk: &mut Disk, kind: u32, sector: u64) {
    let flags = if kind == IN { WRITE } else { 0 };
    disk.ask(kind, sector);
    for number in 0..MANY {
        let data = disk.data() + u64::from(number) * u64::from(LONG);
        let buffers = [disk.header(), (data, LONG, flags), disk.status()];
        Disk::chain(disk.area, 3 * number, &buffers);
        disk.offer(3 * number);
    }
    disk.notify();
}

/// Once the device says that it is reset, it writes nothing.
pub fn r12_reads(disks: &mut Disks) {
    ended_by(&mut disks.disk, Registers::reset);
}

/// Nor once it says that a queue is no longer ready.
pub fn r12_queue(disks: &mut Disks) {
    ended_by(&mut disks.disk, |registers| {
        registers.write(QUEUE_READY, 0);
        wait("the end of a queue", || {
            (registers.read(QUEUE_READY) == 0).then_some(())
        });
        // It does not begin again before a reset.
        registers.write(QUEUE_READY, 1);
        registers.write(QUEUE_NOTIFY, 0);
    });
}

/// Has long reads in flight ended in a way, after which neither data nor rings may be written.
pub fn ended_by(disk: &mut Disk, end: impl Fn(Registers)) {
    const MINE: u64 = 0x5a5a_5a5a_5a5a_5a5a;
    for _ in 0..ROUNDS {
        disk.begin();
        begin_long(disk, IN, 0);
        end(disk.registers);
        let all = u64::from(MANY) * u64::from(LONG);
        fill(disk.data(), all, MINE);
        let [_, _, used] = disk.places();
        put(used, [MINE; 2]);
        put(disk.status().0, UNTOUCHED);
        let start = ticks();
        while ticks() - start < 1 << 20 {}
        user(|| {
            for place in (disk.data()..disk.data() + all).step_by(WORD as usize) {
                assert_eq!(get::<u64>(place), MINE, "written at {place:#x} afterwards");
            }
        });
        assert_eq!(get::<[u64; 2]>(used), [MINE; 2]);
        assert_eq!(get::<u8>(disk.status().0), UNTOUCHED);
    }
}

/// What is in the buffers after the reset reaches no disk. The host looks at its file too.
pub fn r12_writes(disks: &mut Disks) {
    const BEFORE: u64 = 0x1111_1111_1111_1111;
    const AFTER: u64 = 0x2222_2222_2222_2222;
    let disk = &mut disks.disk;
    let all = u64::from(MANY) * u64::from(LONG);
    for _ in 0..ROUNDS {
        disk.begin();
        fill(disk.data(), all, BEFORE);
        begin_long(disk, OUT, SCRATCH);
        disk.registers.reset();
        fill(disk.data(), all, AFTER);
        disk.begin();
        let outcome = disk.request(IN, SCRATCH, &[(disk.data(), LONG, WRITE)]);
        assert_eq!(outcome, Outcome::Ended(OK, LONG + 1));
        user(|| {
            for place in (disk.data()..disk.data() + u64::from(LONG)).step_by(WORD as usize) {
                let word: u64 = get(place);
                assert!(word == 0 || word == BEFORE, "{word:#x} at {place:#x}");
            }
        });
    }
}

/// A driver that makes chains available as fast as the device serves them: other devices go on, and
/// a reset ends it.
pub fn r13(disks: &mut Disks) {
    const ENOUGH: u32 = 10_000;
    let Disks { disk, other, .. } = disks;
    disk.ask(GET_ID, 0);
    Disk::chain(
        disk.area,
        0,
        &[disk.header(), (disk.data(), 20, WRITE), disk.status()],
    );
    let [_, available, _] = disk.places();
    for slot in 0..u64::from(SIZE) {
        put(available + 4 + 2 * slot, 0u16);
    }
    other.ask(IN, 20);
    Disk::chain(
        other.area,
        0,
        &[
            other.header(),
            (other.data(), SECTOR, WRITE),
            other.status(),
        ],
    );
    user(|| {
        let (mut served, mut seen, mut quiet) = (0, 0u16, 0u32);
        wait("a busy disk and another one", || {
            if served == ENOUGH / 2 || served > ENOUGH / 2 && other.available == other.used {
                other.offer(0);
                other.notify();
            }
            let used = disk.used_index();
            served += u32::from(used.wrapping_sub(seen));
            quiet = if used == seen { quiet + 1 } else { 0 };
            seen = used;
            put(available + 2, used.wrapping_add(SIZE));
            if quiet.is_multiple_of(1024) {
                disk.notify();
            }
            if other.used_index() != other.used {
                other.used = other.used_index();
            }
            (served > ENOUGH && other.available == other.used).then_some(())
        });
    });
    other.shows(other.data(), 20);
    // The queue is full, and the device at work.
    put(available + 2, disk.used_index().wrapping_add(SIZE));
    disk.notify();
    disk.registers.reset();
}

/// Not a success, whatever else.
fn refused(outcome: Outcome, what: core::fmt::Arguments<'_>) {
    assert!(
        !matches!(outcome, Outcome::Ended(OK, _)),
        "{what}: {outcome:?}"
    );
}

pub fn r14_beyond_ram(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let end = ram_end();
    let buffers = [
        (end, SECTOR),
        (end - 8, SECTOR),
        (0xc000_0000, SECTOR),
        (disk.registers.address(), SECTOR),
        (0xfee0_0000, SECTOR),
        (0x1_0000_0000, SECTOR),
        (u64::MAX - 511, SECTOR),
        (u64::MAX - 7, SECTOR),
        (u64::MAX, 1),
        (disk.data(), u32::MAX),
        (disk.data(), u32::MAX - 511),
        (0, u32::MAX),
        (1 << 63, 0x8000_0000),
    ];
    for (address, len) in buffers {
        for (kind, flags) in [(IN, WRITE), (OUT, 0)] {
            disk.begin();
            let outcome = disk.request(kind, SCRATCH, &[(address, len, flags)]);
            refused(outcome, format_args!("data, {len} at {address:#x}"));
        }
        disk.begin();
        disk.ask(IN, 0);
        let data = (disk.data(), SECTOR, WRITE);
        Disk::chain(disk.area, 0, &[(address, len, 0), data, disk.status()]);
        refused(disk.serve(), format_args!("header, {len} at {address:#x}"));
        disk.begin();
        Disk::chain(disk.area, 0, &[disk.header(), data, (address, len, WRITE)]);
        assert_eq!(disk.serve(), Outcome::NeedsReset, "status at {address:#x}");
    }
}

/// The disk refuses, and needs no reset.
pub fn r14_malformed(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let (data, capacity) = (disk.data(), disk.capacity());
    let sector = [(data, SECTOR, WRITE)];
    for place in [capacity, capacity + 1, 1 << 55, u64::MAX / 512, u64::MAX] {
        let outcome = disk.request(IN, place, &sector);
        assert_eq!(outcome, Outcome::Ended(IO_ERROR, 1), "sector {place}");
    }
    for len in [1, 511, 513, 2 * SECTOR] {
        let outcome = disk.request(IN, capacity - 1, &[(data, len, WRITE)]);
        assert_eq!(outcome, Outcome::Ended(IO_ERROR, 1), "{len} bytes");
    }
    for kind in [2, 3, 7, 9, 0xffff, u32::MAX] {
        let outcome = disk.request(kind, 0, &sector);
        assert_eq!(outcome, Outcome::Ended(UNSUPPORTED, 1), "type {kind}");
    }
    disk.ask(IN, 0);
    for header in [1, 8, 15] {
        let header = (disk.header().0, header, 0);
        Disk::chain(disk.area, 0, &[header, sector[0], disk.status()]);
        assert_eq!(disk.serve(), Outcome::Ended(IO_ERROR, 1));
    }
    // Nowhere to answer; nothing to read; a buffer to read after one to write.
    Disk::chain(disk.area, 0, &[disk.header()]);
    assert_eq!(disk.serve(), Outcome::Ended(UNTOUCHED, 0));
    Disk::chain(disk.area, 0, &[disk.status()]);
    assert_eq!(disk.serve(), Outcome::Ended(IO_ERROR, 1));
    Disk::chain(disk.area, 0, &[disk.status(), disk.header()]);
    assert_eq!(disk.serve(), Outcome::NeedsReset);
}

/// Keeps the device at work on one chain while `change` makes something wrong and right again, at
/// full speed, until the device needs a reset or for a while. `change` gets the index of the used
/// ring.
fn meanwhile(disk: &mut Disk, change: fn(&Disk, u16, bool)) {
    const CHANGES: u32 = 400_000;
    const QUIET: u32 = 1 << 16;
    let available = disk.places()[1];
    for slot in 0..u64::from(SIZE) {
        put(available + 4 + 2 * slot, 0u16);
    }
    put(disk.status().0, UNTOUCHED);
    user(|| {
        let (mut seen, mut quiet) = (0, 0);
        for _ in 0..CHANGES {
            let used = disk.used_index();
            put(available + 2, used.wrapping_add(SIZE));
            if quiet % 1024 == 0 {
                disk.notify();
            }
            change(disk, used, true);
            change(disk, used, false);
            quiet = if used == seen { quiet + 1 } else { 1 };
            seen = used;
            if quiet == QUIET {
                break;
            }
        }
    });
}

/// What the driver changes while the device looks: a request is done as it was once, or refused.
pub fn r8_r15(disks: &mut Disks) {
    const TRIES: u32 = 3;
    /// Sector, type, address, length and next descriptor, index of the available ring.
    const CHANGES: [fn(&Disk, u16, bool); 6] = [
        |disk, _, wrong| put(disk.header().0 + 8, if wrong { u64::MAX } else { 3 }),
        |disk, _, wrong| put(disk.header().0, if wrong { u32::MAX } else { IN }),
        |disk, _, wrong| put(disk.area + 16, if wrong { !0 } else { disk.data() }),
        |disk, _, wrong| put(disk.area + 24, if wrong { u32::MAX } else { SECTOR }),
        |disk, _, wrong| put(disk.area + 30, if wrong { 1u16 } else { 2 }),
        |disk, used, wrong| {
            let ahead = if wrong { 0x4000 } else { SIZE };
            put(disk.places()[1] + 2, used.wrapping_add(ahead));
        },
    ];
    let disk = &mut disks.disk;
    let data = disk.data();
    for change in CHANGES {
        for _ in 0..TRIES {
            disk.begin();
            disk.ask(IN, 3);
            let buffers = [disk.header(), (data, SECTOR, WRITE), disk.status()];
            Disk::chain(disk.area, 0, &buffers);
            meanwhile(disk, change);
            let status: u8 = get(disk.status().0);
            assert!([OK, IO_ERROR, UNSUPPORTED, UNTOUCHED].contains(&status));
            for entry in 0..SIZE.min(disk.used_index()) {
                let (_, len) = disk.used_entry(entry);
                // A chain may have gone through the data several times.
                assert_eq!(len % SECTOR, 1, "{len} bytes written");
            }
        }
    }
}

/// Ranges: sector, number of sectors, flags.
fn ranges(disk: &mut Disk, kind: u32, ranges: &[(u64, u32, u32)], len: u32) -> Outcome {
    let place = disk.data();
    for (number, (sector, count, flags)) in (0..).zip(ranges) {
        put(place + 16 * number, *sector);
        put(place + 16 * number + 8, [*count, *flags]);
    }
    disk.request(kind, 0, &[(place, len, 0)])
}

pub fn r16(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let capacity = disk.capacity();
    for kind in [DISCARD, WRITE_ZEROES] {
        for (sector, count) in [
            (u64::MAX, 1),
            (u64::MAX, u32::MAX),
            (capacity, 1),
            (capacity - 1, 2),
            (0, u32::MAX),
            (1 << 55, 1),
        ] {
            let outcome = ranges(disk, kind, &[(sector, count, 0)], 16);
            assert_eq!(outcome, Outcome::Ended(IO_ERROR, 1), "{count} at {sector}");
        }
        let outcome = ranges(disk, kind, &[(SCRATCH, 1, 0x8000_0000)], 16);
        assert_eq!(outcome, Outcome::Ended(UNSUPPORTED, 1));
        let all = [(SCRATCH, 0, 0); 33];
        for len in [15, 17, 33 * 16] {
            let outcome = ranges(disk, kind, &all, len);
            assert_eq!(outcome, Outcome::Ended(IO_ERROR, 1), "{len} bytes");
        }
        // As many as the configuration allows.
        let most = if kind == DISCARD { 32 } else { 1 };
        assert_eq!(ranges(disk, kind, &all, most * 16), Outcome::Ended(OK, 1));
        assert_eq!(
            ranges(disk, kind, &[(SCRATCH, 8, 0)], 16),
            Outcome::Ended(OK, 1)
        );
    }
}

/// The driver has not negotiated that the disk is read-only. The host looks at its file too.
pub fn r17(disks: &mut Disks) {
    let other = &mut disks.other;
    let outcome = other.request(OUT, 1, &[(other.data(), SECTOR, 0)]);
    assert_eq!(outcome, Outcome::Ended(IO_ERROR, 1));
    for kind in [DISCARD, WRITE_ZEROES] {
        let outcome = ranges(other, kind, &[(1, 1, 0)], 16);
        refused(outcome, format_args!("type {kind}"));
    }
}

/// One descriptor that holds a table.
fn indirect(disk: &mut Disk, address: u64, len: u32, flags: u16) -> Outcome {
    disk.begin();
    Disk::describe(disk.area, 0, (address, len, INDIRECT | flags), 1);
    Disk::describe(disk.area, 1, disk.status(), 0);
    disk.serve()
}

pub fn r19(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let byte = (disk.data(), 1, WRITE | NEXT);
    // Loops of one, two and all descriptors; a next one that is not there.
    for (len, next) in [(1, 0), (2, 0), (SIZE, 0), (1, SIZE), (SIZE, 0xffff)] {
        disk.begin();
        for index in 0..len {
            let next = if index + 1 == len { next } else { index + 1 };
            Disk::describe(disk.area, index, byte, next);
        }
        assert_eq!(disk.serve(), Outcome::NeedsReset, "{len}, then {next}");
    }
    let table = disk.table();
    Disk::describe(table, 0, byte, 0);
    for len in [16, 65_535 * 16] {
        assert_eq!(indirect(disk, table, len, 0), Outcome::NeedsReset);
    }
    // Sizes and places of tables that cannot be; one in another; one with a chain behind it.
    for len in [0, 8, 17, 65_536 * 16, u32::MAX, u32::MAX - 15] {
        assert_eq!(
            indirect(disk, table, len, 0),
            Outcome::NeedsReset,
            "{len} bytes"
        );
    }
    for place in [
        ram_end(),
        ram_end() - 8,
        0xc000_0000,
        u64::MAX - 15,
        u64::MAX,
    ] {
        assert_eq!(
            indirect(disk, place, 64, 0),
            Outcome::NeedsReset,
            "at {place:#x}"
        );
    }
    assert_eq!(indirect(disk, table, 16, NEXT), Outcome::NeedsReset);
    Disk::describe(table, 0, (table, 32, INDIRECT), 0);
    assert_eq!(indirect(disk, table, 16, 0), Outcome::NeedsReset);
    // As long as a table can be; then one that is long, and legal.
    user(|| (0..=u16::MAX - 1).for_each(|index| Disk::describe(table, index, byte, index + 1)));
    assert_eq!(indirect(disk, table, 65_535 * 16, 0), Outcome::NeedsReset);
    let piece = SECTOR / 2;
    disk.ask(IN, 0);
    user(|| {
        Disk::chain(table, 0, &[disk.header(), byte]);
        for index in 1..=1000 {
            let place = disk.data() + u64::from(index - 1) * u64::from(piece);
            Disk::describe(table, index, (place, piece, WRITE | NEXT), index + 1);
        }
        Disk::chain(table, 1001, &[disk.status()]);
    });
    let outcome = indirect(disk, table, 1002 * 16, 0);
    assert_eq!(outcome, Outcome::Ended(OK, 1000 * piece + 1));
    disk.shows(disk.data() + 63 * u64::from(SECTOR), 63);
}

pub fn r26_r40(disks: &mut Disks) {
    let disk = &mut disks.disk;
    for ahead in [SIZE + 1, 2 * SIZE, 0x7fff, 0x8000, u16::MAX] {
        disk.begin();
        disk.reads(21);
        put(disk.places()[1] + 2, disk.available.wrapping_add(ahead));
        disk.notify();
        assert_eq!(disk.ended(), None, "{ahead} ahead");
    }
    // Heads that are no descriptors.
    for head in [SIZE, 0x7fff, u16::MAX] {
        disk.begin();
        disk.offer(head);
        disk.notify();
        assert_eq!(disk.ended(), None, "head {head}");
    }
}

/// They are legal anywhere in a chain, and change nothing.
pub fn r38(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let (data, half) = (disk.data(), SECTOR / 2);
    let (to, from) = ((data, 0, WRITE), (data, 0, 0));
    let rest = data + u64::from(half);
    let buffers = [
        from,
        to,
        (data, half, WRITE),
        to,
        to,
        (rest, half, WRITE),
        to,
    ];
    put(data, 0u64);
    put(rest, 0u64);
    assert_eq!(
        disk.request(IN, 23, &buffers),
        Outcome::Ended(OK, SECTOR + 1)
    );
    disk.shows(data, 23);
    // No data at all; no header; nothing but such buffers.
    assert_eq!(disk.request(IN, 0, &[to]), Outcome::Ended(OK, 1));
    assert_eq!(disk.request(OUT, SCRATCH, &[from]), Outcome::Ended(OK, 1));
    Disk::chain(disk.area, 0, &[from, to, disk.status()]);
    assert_eq!(disk.serve(), Outcome::Ended(IO_ERROR, 1));
    Disk::chain(disk.area, 0, &[disk.header(), disk.status(), to]);
    disk.ask(GET_ID, 0);
    assert_eq!(disk.serve(), Outcome::Ended(OK, 1));
    Disk::chain(disk.area, 0, &[from, from, to]);
    assert_eq!(disk.serve(), Outcome::Ended(UNTOUCHED, 0));
    // Where such a buffer is does not matter to the VMM: it may be refused, or not.
    for address in [ram_end(), 0xc000_0000, u64::MAX] {
        disk.begin();
        disk.request(IN, 23, &[(address, 0, WRITE), (data, SECTOR, WRITE)]);
    }
}
