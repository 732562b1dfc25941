//! The function on the bus: its configuration space, its BAR, and the way to the one through the
//! other.

use core::mem;
use core::ops::Range;

use guest::ports::{self, PCI_ADDRESS, PCI_DATA};

use super::super::pci::{Function, MSIX, VENDOR_SPECIFIC};
use super::super::registers::*;
use super::chains::{begin_long, ended_by};
use super::driver::{Disk, IN, SECTOR, SIZE, WRITE, put, ram_end};
use super::{Disks, Place};

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;
/// Memory accesses are answered, the function may access memory.
pub const ON: u16 = 6;
/// The function may access memory, and answers nowhere.
const UNSEEN: u16 = 4;
/// What a function has of the configuration space, and what it could have.
const CONFIG_LEN: u64 = 0x100;
const EXTENDED_LEN: u64 = 0x1000;
/// Functions of the bus.
const FUNCTIONS: u64 = 256;
/// Bytes of the BAR.
const BAR_LEN: u64 = 0x8000;
/// Where the VMM has BARs answer.
const WINDOW: Range<u32> = 0xc000_0000..0xe000_0000;
/// The type of the capability for accesses to the BAR, and in it: BAR, offset, length, data
/// (VIRTIO 1.3, 4.1.4.9).
const ACCESS: u16 = 5;
const ACCESS_BAR: u64 = 4;
const ACCESS_OFFSET: u64 = 8;
const ACCESS_LEN: u64 = 12;
const ACCESS_DATA: u64 = 16;
/// The control word of the MSI-X capability.
pub const MSIX_CONTROL: u64 = 2;
/// Fields of the common configuration.
const DEVICE_STATUS: u32 = 0x14;
const QUEUE_SIZE_FIELD: u32 = 0x18;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_DESC: u32 = 0x20;

pub fn places(disks: &Disks) -> [Place; 2] {
    disks.places.expect("the disks are on the bus")
}

/// Where the capability for accesses is in the memory-mapped space.
fn access(function: Function) -> u64 {
    function.config(
        function
            .capability(|found| found.id == VENDOR_SPECIFIC && found.private_header >> 8 == ACCESS),
    )
}

impl Place {
    pub fn msix(self) -> u64 {
        self.function
            .config(self.function.capability(|found| found.id == MSIX))
    }

    /// The function is where it was, does not send messages, and aims at nothing.
    pub fn restore(self) {
        write(self.function.config(COMMAND), UNSEEN);
        write(self.function.config(BAR0), self.bar as u32);
        write(self.function.config(COMMAND), ON);
        write(self.msix() + MSIX_CONTROL, 0u16);
        write(access(self.function) + ACCESS_LEN, 0u32);
        assert_eq!(self.function.bar(0), self.bar);
    }

    pub fn move_to(self, bar: u32) {
        write(self.function.config(BAR0), bar);
    }
}

/// Aims at a part of the BAR.
fn aim(capability: u64, bar: u8, offset: u32, len: u32) {
    write(capability + ACCESS_BAR, bar);
    write(capability + ACCESS_OFFSET, offset);
    write(capability + ACCESS_LEN, len);
}

/// Writes and reads, with every width that there is.
fn any_width(address: u64, value: u64) {
    write(address, value as u8);
    read::<u8>(address);
    write(address, value as u16);
    read::<u16>(address);
    write(address, value as u32);
    read::<u32>(address);
    write(address, value);
    read::<u64>(address);
}

/// What is fixed while the device runs is fixed from there too, and what is not in the BAR is not
/// reached.
pub fn r7_r24_access(disks: &mut Disks) {
    let [place, _] = places(disks);
    let disk = &mut disks.disk;
    let capability = access(place.function);
    let data = capability + ACCESS_DATA;
    for (field, len) in [
        (QUEUE_SIZE_FIELD, 2),
        (QUEUE_ENABLE, 2),
        (QUEUE_DESC, 4),
        (QUEUE_DESC + 4, 4),
        (0x0c, 4),
    ] {
        for value in [u32::MAX, 3, 0] {
            aim(capability, 0, field, len);
            write(data, value);
        }
    }
    disk.reads(5);
    // A zero for the status that must not get there.
    let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    let bars = [1, 5, 6, 7, 0xff].map(|bar| (bar, DEVICE_STATUS, 1));
    let lens = [0, 3, 5, 8, 0x100, u32::MAX].map(|len| (0, DEVICE_STATUS, len));
    let offsets = [
        BAR_LEN as u32,
        BAR_LEN as u32 - 1,
        BAR_LEN as u32 + DEVICE_STATUS,
        0x8000_0000,
        u32::MAX - 3,
        u32::MAX,
    ];
    for (bar, offset, len) in bars.into_iter().chain(lens).chain(
        offsets
            .into_iter()
            .flat_map(|offset| [1, 2, 4].map(|len| (0, offset, len))),
    ) {
        aim(capability, bar, offset, len);
        any_width(data, 0);
        // Partly the data, partly what is before it and behind it.
        for around in data - 7..data + 4 {
            read::<u64>(around);
        }
        assert_eq!(disk.registers.read(STATUS), running, "{len} at {offset:#x}");
    }
    aim(capability, 0, DEVICE_STATUS, 1);
    assert_eq!(u32::from(read::<u8>(data)), running);
    place.restore();
    disk.reads(6);
}

/// A reset through the configuration space is one: nothing is written afterwards.
pub fn r12(disks: &mut Disks) {
    let [place, _] = places(disks);
    aim(access(place.function), 0, DEVICE_STATUS, 1);
    ended_by(&mut disks.disk, |registers| {
        write(access(place.function) + ACCESS_DATA, 0u8);
        assert_eq!(registers.read(STATUS), 0);
    });
    place.restore();
}

/// Once the function may not access memory, it writes nothing, whatever is asked of it, until it was
/// reset.
pub fn r12_master(disks: &mut Disks) {
    let [place, _] = places(disks);
    ended_by(&mut disks.disk, |registers| {
        let command = place.function.config(COMMAND);
        write(command, ON & !UNSEEN);
        assert_ne!(registers.read(STATUS) & NEEDS_RESET, 0);
        write(command, ON);
        registers.write(QUEUE_NOTIFY, 0);
        registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert_ne!(registers.read(STATUS) & NEEDS_RESET, 0);
    });
}

/// Where a BAR can be put and nobody looks for it: on RAM and its rings, on a BAR, on what the
/// machine has of its own, and beyond all windows.
fn elsewhere(disk: &Disk, other: Place) -> [u32; 13] {
    [
        disk.area as u32,
        disk.data() as u32,
        0x10_0000,
        ram_end() as u32 - BAR_LEN as u32,
        other.bar as u32,
        (disk.registers.address() + 16 * BAR_LEN) as u32,
        0xdfff_8000,
        0xe000_0000,
        0xfec0_0000,
        0xfee0_0000,
        0xffff_8000,
        0x8000_0000,
        0,
    ]
}

/// The BAR goes anywhere while the rings run: the request in flight ends, other devices serve where
/// it does not hide them, and it is found where it came from.
pub fn r24_bar(disks: &mut Disks) {
    let [place, other] = places(disks);
    let Disks {
        disk,
        other: second,
        ..
    } = disks;
    for bar in elsewhere(disk, other) {
        disk.ask(IN, 7);
        let buffers = [disk.header(), (disk.data(), SECTOR, WRITE), disk.status()];
        Disk::chain(disk.area, 0, &buffers);
        disk.offer(0);
        disk.notify();
        place.move_to(bar);
        // It may hide the other one, which is then not asked.
        if u64::from(bar) != other.bar {
            second.reads(8);
            if WINDOW.contains(&bar) {
                // Where it was, nothing answers.
                let home = mem::replace(&mut disk.registers, Registers::Pci(bar.into()));
                assert_eq!(disk.ended(), Some((0, SECTOR + 1)));
                disk.offer(0);
                disk.notify();
                disk.registers = home;
            }
        }
        for command in [UNSEEN, ON, 0xffff, UNSEEN, ON] {
            write(place.function.config(COMMAND), command);
        }
        place.restore();
        assert_eq!(disk.ended(), Some((0, SECTOR + 1)), "the BAR at {bar:#x}");
        disk.shows(disk.data(), 7);
    }
    // Both in one place, and one of them runs and stops there.
    place.move_to(other.bar as u32);
    let there = Registers::Pci(other.bar);
    there.reset();
    there.write(STATUS, ACKNOWLEDGE);
    there.reset();
    other.restore();
    place.restore();
    // Which of them was reset is not said.
    second.begin();
}

/// While no BAR answers, what is in flight ends; a driver that comes back finds the device running.
pub fn r24_nowhere(disks: &mut Disks) {
    let [place, _] = places(disks);
    let disk = &mut disks.disk;
    for _ in 0..8 {
        disk.begin();
        begin_long(disk, IN, 0);
        write(place.function.config(COMMAND), UNSEEN);
        assert_eq!(disk.registers.read(CONFIG), u32::MAX, "nobody answers");
        disk.notify();
        disk.registers.write(STATUS, 0);
        for _ in 0..SIZE / 3 {
            let ended = super::driver::wait("a read without a BAR", || {
                let index = disk.used_index();
                (index != disk.used).then_some(index)
            });
            assert!(ended.wrapping_sub(disk.used) <= SIZE / 3);
            disk.used = disk.used.wrapping_add(1);
        }
        place.restore();
        disk.reads(10);
    }
}

/// Every register of every function takes any access, and what may be written can be put right.
pub fn r25_configuration(disks: &mut Disks) {
    let [place, other] = places(disks);
    let bus = place.function.config(0) & !(FUNCTIONS * EXTENDED_LEN - 1);
    for value in [0, u64::MAX, 0x5aa5_0ff0_a55a_f00f] {
        for offset in 0..CONFIG_LEN {
            any_width(place.function.config(offset), value);
        }
        place.restore();
    }
    for offset in (CONFIG_LEN..EXTENDED_LEN).step_by(509) {
        any_width(place.function.config(offset), u64::MAX);
    }
    assert_eq!(read::<u32>(place.function.config(CONFIG_LEN)), 0);
    // From the end of one function into the next one.
    any_width(place.function.config(EXTENDED_LEN - 1), u64::MAX);
    // All the others: the bridge, and functions and slots that are not there.
    let used = [place, other].map(|place| place.function.config(0));
    for function in (0..FUNCTIONS).map(|number| bus + number * EXTENDED_LEN) {
        if !used.contains(&function) {
            let ids: u32 = read(function);
            any_width(function, u64::MAX);
            any_width(function + BAR0, u64::MAX);
            assert_eq!(read::<u32>(function), ids, "at {function:#x}");
        }
    }
    any_width(bus + FUNCTIONS * EXTENDED_LEN - 1, u64::MAX);
    place.restore();
    // It was told that it may not access memory, among others.
    disks.disk.begin();
    disks.disk.reads(12);
}

/// The ports take any access. Bit 2 at the second one resets the machine, so it stays clear there.
pub fn r25_ports(disks: &mut Disks) {
    const RESET: u16 = PCI_ADDRESS + 1;
    let [place, _] = places(disks);
    let slot = place.function.0.device;
    let addresses = [
        0,
        0x7fff_fffc,
        u32::MAX,
        0x80ff_0000,
        0x8000_fffc,
        0x8000_0003,
    ];
    for address in addresses {
        for port in PCI_ADDRESS..PCI_DATA + 4 {
            ports::out32(PCI_ADDRESS, address);
            if port != RESET {
                guest::machine::port_out(port, 0xff);
            }
            guest::machine::port_in(port);
            ports::out16(port, 0xffff);
            ports::in16(port);
            ports::out32(port, u32::MAX);
            ports::in32(port);
        }
    }
    guest::machine::port_out(RESET, 0xfb);
    // Every register of this function, through the ports.
    for register in (0..CONFIG_LEN).step_by(4) {
        for value in [0, u32::MAX] {
            ports::pci_select(slot, register as u8);
            for port in PCI_DATA..PCI_DATA + 4 {
                guest::machine::port_out(port, value as u8);
                ports::out16(port, value as u16);
                ports::out32(port, value);
                guest::machine::port_in(port);
                ports::in16(port);
                ports::in32(port);
            }
        }
    }
    ports::rep_in8(PCI_DATA, &mut [0; 64]);
    ports::rep_out8(PCI_DATA, &[0xff; 64]);
    place.restore();
    // Both ways lead to the same registers.
    ports::pci_select(slot, 0);
    assert_eq!(ports::in32(PCI_DATA), read(place.function.config(0)));
    ports::pci_select(slot, BAR0 as u8);
    assert_eq!(u64::from(ports::in32(PCI_DATA)), place.bar);
    disks.disk.begin();
    disks.disk.reads(13);
}

/// Registers, messages, pending bits and what is between them take any access, while the device
/// runs and while it does not.
pub fn r25_bar(disks: &mut Disks) {
    let [place, _] = places(disks);
    let disk = &mut disks.disk;
    for value in [0, u64::MAX, 0x0101_0101_0101_0101] {
        disk.begin();
        for page in (0..BAR_LEN).step_by(0x1000) {
            for offset in (0..0x40).chain([0x7f9, 0xffc, 0xfff]) {
                any_width(place.bar + page + offset, value);
            }
        }
        disk.registers.reset();
        for message in super::messages::ENTRIES {
            super::messages::mask(place, message);
        }
        place.restore();
    }
    // A request that is told of with a byte or with eight is told of.
    for told in [write_byte as fn(u64), write_long] {
        disk.begin();
        disk.ask(IN, 14);
        let buffers = [disk.header(), (disk.data(), SECTOR, WRITE), disk.status()];
        Disk::chain(disk.area, 0, &buffers);
        put(disk.data(), 0u64);
        disk.offer(0);
        told(place.bar + NOTIFY_PART);
        assert_eq!(disk.ended(), Some((0, SECTOR + 1)));
        disk.shows(disk.data(), 14);
    }
}

fn write_byte(address: u64) {
    write(address, 0u8);
}

fn write_long(address: u64) {
    write(address, 0u64);
}
