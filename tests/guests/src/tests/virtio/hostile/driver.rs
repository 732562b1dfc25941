//! A driver for disks that does what it is told, sense or nonsense. It knows one queue, and memory
//! by address only: nothing of Rust's is in reach of the device.

use core::ptr;

use guest::machine::ticks;
use guest::start_info::RAM;
use guest::{info, user};

use super::super::registers::*;

/// Entries of the queue.
pub const SIZE: u16 = 16;
/// Flags of a descriptor.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Types of requests.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
/// Statuses of requests. The last one is none: the device has not written it.
pub const OK: u8 = 0;
pub const IO_ERROR: u8 = 1;
pub const UNSUPPORTED: u8 = 2;
pub const UNTOUCHED: u8 = 0xff;

pub const SECTOR: u32 = 512;
/// The driver wants VERSION_1, and indirect descriptors.
const FEATURES: [u32; 2] = [1 << 28, 1];
/// Ticks of the time stamp counter: some seconds.
const PATIENCE: u64 = 1 << 34;

/// Where the first driver's memory begins, and the second one's: RAM that the image does not reach.
pub const AREAS: [u64; 2] = [32 << 20, 48 << 20];
/// Parts of it.
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x4000;
const HEADER: u64 = 0x6000;
const REQUEST_STATUS: u64 = 0x7000;
const DATA: u64 = 0x1_0000;
const TABLE: u64 = 0x10_0000;
const AREA_LEN: u64 = 16 << 20;

/// Memory at an address, inside the areas.
pub fn get<T: Copy>(address: u64) -> T {
    check::<T>(address);
    // SAFETY: RAM that no Rust object is in; any bytes are a T, since callers read numbers.
    unsafe { ptr::read_volatile(address as *const T) }
}

pub fn put<T: Copy>(address: u64, value: T) {
    check::<T>(address);
    // SAFETY: RAM that no Rust object is in.
    unsafe { ptr::write_volatile(address as *mut T, value) }
}

fn check<T>(address: u64) {
    let inside = address >= AREAS[0] && address + size_of::<T>() as u64 <= AREAS[1] + AREA_LEN;
    assert!(inside && address.is_multiple_of(align_of::<T>() as u64));
}

/// Fills memory, fast.
pub fn fill(address: u64, len: u64, word: u64) {
    user(|| {
        (address..address + len)
            .step_by(8)
            .for_each(|place| put(place, word))
    });
}

/// Where RAM ends, below 4 GiB.
pub fn ram_end() -> u64 {
    let info = info();
    let ram = info.memory_map().filter(|range| range.kind == RAM);
    ram.map(|range| range.base + range.len).max().expect("RAM")
}

/// Waits, no longer than some seconds.
pub fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = ticks();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(ticks() - start < PATIENCE, "waited too long for {what}");
    }
}

/// A buffer of a chain: address, length, flags.
pub type Buffer = (u64, u32, u16);

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Its status, and the length that the device says it wrote.
    Ended(u8, u32),
    NeedsReset,
}

/// A disk, and the driver's part of the queue.
pub struct Disk {
    pub registers: Registers,
    pub area: u64,
    pub available: u16,
    pub used: u16,
}

impl Disk {
    pub fn new(registers: Registers, area: u64) -> Self {
        assert!(area + AREA_LEN <= ram_end(), "this guest needs 64 MiB");
        Self {
            registers,
            area,
            available: 0,
            used: 0,
        }
    }

    /// Where descriptors, available and used ring are.
    pub fn places(&self) -> [u64; 3] {
        [self.area, self.area + AVAILABLE, self.area + USED]
    }

    /// The first byte of the buffers for data.
    pub fn data(&self) -> u64 {
        self.area + DATA
    }

    /// Memory for indirect tables, 1 MiB and more.
    pub fn table(&self) -> u64 {
        self.area + TABLE
    }

    pub fn header(&self) -> Buffer {
        (self.area + HEADER, 16, 0)
    }

    pub fn status(&self) -> Buffer {
        (self.area + REQUEST_STATUS, 1, WRITE)
    }

    /// In sectors.
    pub fn capacity(&self) -> u64 {
        self.registers.read(CONFIG).into()
    }

    /// Up to FEATURES_OK.
    pub fn negotiate(&mut self) {
        self.registers.reset();
        let mut status = 0;
        for bit in [ACKNOWLEDGE, DRIVER] {
            status |= bit;
            self.registers.write(STATUS, status);
        }
        for (half, bits) in (0..).zip(FEATURES) {
            self.registers.write(DRIVER_FEATURES_SEL, half);
            self.registers.write(DRIVER_FEATURES, bits);
        }
        self.registers.write(STATUS, status | FEATURES_OK);
        assert_eq!(self.registers.read(STATUS), status | FEATURES_OK);
    }

    /// Sets the queue up, with these places.
    pub fn set_up(&mut self, places: [u64; 3]) {
        self.registers.write(QUEUE_SEL, 0);
        self.registers.write(QUEUE_SIZE, SIZE.into());
        for (register, place) in QUEUE_PLACES.into_iter().zip(places) {
            self.registers.write(register, place as u32);
            self.registers.write(register + 4, (place >> 32) as u32);
        }
        self.registers.write(QUEUE_READY, 1);
        assert_eq!(self.registers.read(QUEUE_READY), 1);
    }

    /// DRIVER_OK.
    pub fn run(&mut self) {
        let status = self.registers.read(STATUS);
        self.registers.write(STATUS, status | DRIVER_OK);
    }

    /// From a reset to a device that runs, with empty rings.
    pub fn begin(&mut self) {
        self.negotiate();
        let [_, available, used] = self.places();
        put(available, [0u16; 2]);
        put(used, [0u16; 2]);
        (self.available, self.used) = (0, 0);
        self.set_up(self.places());
        self.run();
    }

    pub fn needs_reset(&self) -> bool {
        self.registers.read(STATUS) & NEEDS_RESET != 0
    }

    pub fn notify(&self) {
        self.registers.write(QUEUE_NOTIFY, 0);
    }

    /// Writes a descriptor of a table.
    pub fn describe(table: u64, index: u16, (address, len, flags): Buffer, next: u16) {
        let place = table + 16 * u64::from(index);
        put(place, address);
        put(place + 8, len);
        put(place + 12, [flags, next]);
    }

    /// Writes a chain of descriptors; gives the index after it.
    pub fn chain(table: u64, first: u16, buffers: &[Buffer]) -> u16 {
        let end = first + buffers.len() as u16;
        for (index, buffer) in (first..).zip(buffers) {
            let (address, len, flags) = *buffer;
            let more = if index + 1 < end { NEXT } else { 0 };
            Self::describe(table, index, (address, len, flags | more), index + 1);
        }
        end
    }

    /// Makes a head available, without a word to the device.
    pub fn offer(&mut self, head: u16) {
        let ring = self.area + AVAILABLE;
        put(ring + 4 + 2 * u64::from(self.available % SIZE), head);
        self.available = self.available.wrapping_add(1);
        put(ring + 2, self.available);
    }

    /// How many chains the device has given back since it runs.
    pub fn used_index(&self) -> u16 {
        get(self.area + USED + 2)
    }

    /// An entry of the used ring: a head, and what was written.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let place = self.area + USED + 4 + 8 * u64::from(index % SIZE);
        (get(place), get(place + 4))
    }

    /// The next chain that the device gives back: its head and what was written; `None` when the
    /// device needs a reset.
    pub fn ended(&mut self) -> Option<(u32, u32)> {
        let mut looks = 0u32;
        wait("the end of a request", || {
            if self.used_index() != self.used {
                let entry = self.used_entry(self.used);
                self.used = self.used.wrapping_add(1);
                return Some(Some(entry));
            }
            looks += 1;
            // Looking at memory costs nothing; asking the device does.
            (looks.is_multiple_of(16) && self.needs_reset()).then_some(None)
        })
    }

    /// Has the chain that begins with the first descriptor served.
    pub fn serve(&mut self) -> Outcome {
        put(self.status().0, UNTOUCHED);
        self.offer(0);
        self.notify();
        match self.ended() {
            Some((head, len)) => {
                assert_eq!(head, 0, "another chain came back");
                Outcome::Ended(get(self.status().0), len)
            }
            None => Outcome::NeedsReset,
        }
    }

    /// Writes the header of a request.
    pub fn ask(&self, kind: u32, sector: u64) {
        let header = self.area + HEADER;
        put(header, [kind, 0]);
        put(header + 8, sector);
    }

    /// A request with these buffers between header and status.
    pub fn request(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> Outcome {
        self.ask(kind, sector);
        let first = Self::chain(self.area, 0, &[self.header()]);
        let last = Self::chain(self.area, first, buffers);
        Self::describe(self.area, 0, (self.header().0, 16, NEXT), 1);
        if let Some(buffer) = buffers.last() {
            Self::describe(
                self.area,
                last - 1,
                (buffer.0, buffer.1, buffer.2 | NEXT),
                last,
            );
        }
        Self::chain(self.area, last, &[self.status()]);
        self.serve()
    }

    /// Reads a sector, and finds in it what the host has put there.
    pub fn reads(&mut self, sector: u64) {
        let data = self.data();
        put(data, [!0u64; 2]);
        put(data + u64::from(SECTOR) - 8, !0u64);
        let outcome = self.request(IN, sector, &[(data, SECTOR, WRITE)]);
        assert_eq!(outcome, Outcome::Ended(OK, SECTOR + 1), "sector {sector}");
        self.shows(data, sector);
    }

    /// The buffer has the content of a sector.
    pub fn shows(&self, data: u64, sector: u64) {
        user(|| {
            for place in 0..u64::from(SECTOR) {
                let byte: u8 = get(data + place);
                assert_eq!(
                    byte,
                    (sector + place) as u8,
                    "byte {place} of sector {sector}"
                );
            }
        });
    }
}
