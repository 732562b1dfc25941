//! Registers: the queue's, the status, the configuration, and accesses of any kind.

use core::arch::asm;

use super::super::registers::*;
use super::Disks;
use super::driver::{Disk, IN, Outcome, SECTOR, SIZE, UNTOUCHED, WRITE, put, ram_end, wait};

/// Writes nonsense to all registers of the queue and for features.
fn nonsense(disk: &Disk) {
    let registers = disk.registers;
    for value in [0, 3, 4, 0xffff, 0x1_0010, u32::MAX] {
        registers.write(QUEUE_SIZE, value);
    }
    for place in QUEUE_PLACES {
        for value in [0xc000_0000, u32::MAX, 1] {
            registers.write(place, value);
            registers.write(place + 4, value);
        }
    }
    for half in [0, 1, 2, u32::MAX] {
        registers.write(DRIVER_FEATURES_SEL, half);
        registers.write(DRIVER_FEATURES, u32::MAX);
        registers.write(DRIVER_FEATURES, 0);
    }
    registers.write(QUEUE_READY, 1);
}

/// What was set up stays: nothing of the nonsense is taken, with requests in flight or without.
pub fn r7_running(disks: &mut Disks) {
    let disk = &mut disks.disk;
    nonsense(disk);
    disk.reads(3);
    disk.ask(IN, 5);
    Disk::chain(
        disk.area,
        0,
        &[disk.header(), (disk.data(), SECTOR, WRITE), disk.status()],
    );
    disk.offer(0);
    disk.notify();
    nonsense(disk);
    assert_eq!(disk.ended(), Some((0, SECTOR + 1)));
    disk.shows(disk.data(), 5);
    let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(disk.registers.read(STATUS), running);
}

/// Before the device runs, sizes that cannot be are not taken, and nothing once a queue is ready.
pub fn r7_before(disks: &mut Disks) {
    let disk = &mut disks.disk;
    disk.negotiate();
    let most = disk.registers.read(QUEUE_SIZE_MAX);
    disk.registers.write(QUEUE_SIZE, SIZE.into());
    for size in [0, 3, most + 1, 2 * most, 0x1_0000, 0x1_0010, u32::MAX] {
        disk.registers.write(QUEUE_SIZE, size);
    }
    let expected = if disk.registers.is_pci() {
        SIZE.into()
    } else {
        most
    };
    assert_eq!(disk.registers.read(QUEUE_SIZE_MAX), expected);
    put(disk.places()[1], [0u16; 2]);
    put(disk.places()[2], [0u16; 2]);
    (disk.available, disk.used) = (0, 0);
    disk.set_up(disk.places());
    nonsense(disk);
    disk.run();
    disk.reads(7);
}

/// Queues that are not there have no size and take nothing, before the device runs and afterwards.
pub fn r10(disks: &mut Disks) {
    let disk = &mut disks.disk;
    for running in [true, false] {
        for queue in [1, 7, 31, 32, 64, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
            disk.registers.write(QUEUE_SEL, queue);
            assert_eq!(disk.registers.read(QUEUE_SIZE_MAX), 0, "queue {queue}");
            assert_eq!(disk.registers.read(QUEUE_READY), 0, "queue {queue}");
            disk.registers.write(QUEUE_READY, 1);
            assert_eq!(disk.registers.read(QUEUE_READY), 0, "queue {queue}");
            nonsense(disk);
            disk.registers.write(QUEUE_NOTIFY, queue);
        }
        for half in [2, 0x8000_0000, u32::MAX] {
            disk.registers.write(DEVICE_FEATURES_SEL, half);
        }
        disk.registers.write(QUEUE_SEL, 0);
        if running {
            disk.reads(9);
            disk.negotiate();
        }
    }
}

/// Places that cannot be a ring's: the device says so, instead of running.
pub fn r23(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let end = ram_end();
    let places = [
        0xc000_0000,
        disk.registers.address(),
        0xfee0_0000,
        0xffff_f000,
        0x1_0000_0000,
        end,
        end - 16,
        !0xfff,
        !0xf,
    ];
    for part in 0..3 {
        for place in places {
            disk.negotiate();
            let mut all = disk.places();
            all[part] = place;
            disk.set_up(all);
            disk.run();
            assert!(disk.needs_reset(), "part {part} of the queue at {place:#x}");
            disk.notify();
        }
    }
    // One place for all, which is RAM: what comes of it is the driver's business.
    disk.negotiate();
    put(disk.area, [0u64; 8]);
    disk.set_up([disk.area; 3]);
    disk.run();
    disk.notify();
}

pub fn r24(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let registers = disk.registers;
    let running = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    // Bits are not cleared but by a reset, and none may be set twice.
    for status in [ACKNOWLEDGE, ACKNOWLEDGE | DRIVER, DRIVER_OK, running, 0x100] {
        registers.write(STATUS, status);
        assert_eq!(registers.read(STATUS), running);
    }
    disk.reads(11);
    configuration(disk);
    disk.reads(12);
    registers.write(STATUS, running | FAILED);
    assert_eq!(registers.read(STATUS), running | FAILED);
    // Steps that are left out.
    registers.reset();
    for status in [
        DRIVER_OK,
        FEATURES_OK,
        DRIVER,
        DRIVER_OK | FEATURES_OK | DRIVER,
    ] {
        registers.write(STATUS, status);
        assert_eq!(registers.read(STATUS) & DRIVER_OK, 0, "by {status}");
        registers.reset();
    }
    // Features that were not offered; and without VERSION_1.
    for bits in [[u32::MAX, u32::MAX], [0, 0]] {
        registers.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (half, bits) in (0..).zip(bits) {
            registers.write(DRIVER_FEATURES_SEL, half);
            registers.write(DRIVER_FEATURES, bits);
        }
        registers.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(registers.read(STATUS), ACKNOWLEDGE | DRIVER);
        registers.reset();
    }
    // A device without a queue runs, and has nothing to do.
    disk.negotiate();
    disk.run();
    assert_eq!(registers.read(STATUS), running);
    disk.notify();
    // A queue that cannot be: the driver is told, by an interrupt too, and only a reset helps.
    disk.negotiate();
    disk.set_up([ram_end(); 3]);
    disk.run();
    assert!(disk.needs_reset());
    assert_eq!(registers.read(INTERRUPT_STATUS), 2);
    for status in [running, running | NEEDS_RESET, FEATURES_OK] {
        registers.write(STATUS, status);
        disk.notify();
        assert!(disk.needs_reset());
    }
    registers.reset();
    assert_eq!(registers.read(INTERRUPT_STATUS), 0);
}

/// Outside its fields the configuration reads as zero, and it cannot be written.
fn configuration(disk: &Disk) {
    let capacity = disk.capacity();
    for place in [CONFIG + 0x80, CONFIG + 0x400, LEN - 4] {
        disk.registers.write(place, u32::MAX);
        assert_eq!(disk.registers.read(place), 0, "at {place:#x}");
    }
    disk.registers.write(CONFIG, 0);
    assert_eq!(disk.capacity(), capacity);
}

macro_rules! access {
    ($address:expr, $type:ty, $class:ident, $register:literal) => {{
        let address: u64 = $address;
        let value: $type;
        // SAFETY: a device's registers, and what is written makes it use no memory.
        unsafe {
            asm!(concat!("mov [{0}], ", $register), in(reg) address, in($class) <$type>::MAX,
                options(nostack));
            asm!(concat!("mov ", $register, ", [{0}]"), in(reg) address, out($class) value,
                options(nostack));
        }
        value as u64
    }};
}

/// `rep` with an instruction that writes, forwards, the value given: all ones.
macro_rules! store {
    ($instruction:literal, $address:expr, $count:expr) => {
        // SAFETY: a device's registers, and what is written makes it use no memory.
        unsafe {
            asm!(concat!("rep ", $instruction), inout("rdi") $address => _,
                inout("rcx") $count as u64 => _, in("rax") u64::MAX, options(nostack));
        }
    };
}

macro_rules! load {
    ($instruction:literal, $from:expr, $to:expr, $count:expr) => {
        // SAFETY: from a device's registers to memory that nobody uses.
        unsafe {
            asm!(concat!("rep ", $instruction), inout("rsi") $from => _, inout("rdi") $to => _,
                inout("rcx") $count as u64 => _, options(nostack));
        }
    };
}

/// Registers are words, and what is not an aligned word changes nothing.
pub fn r25(disks: &mut Disks) {
    let disk = &mut disks.disk;
    let base = disk.registers.address();
    for offset in (0..CONFIG + 0x20).step_by(2).chain([LEN - 2]) {
        access!(base + offset, u8, reg_byte, "{1}");
        access!(base + offset + 1, u8, reg_byte, "{1}");
        access!(base + offset, u16, reg, "{1:x}");
        access!(base + offset + 1, u16, reg, "{1:x}");
        if !offset.is_multiple_of(4) {
            access!(base + offset, u32, reg, "{1:e}");
        }
        access!(base + offset + 1, u32, reg, "{1:e}");
        access!(base + offset, u64, reg, "{1:r}");
    }
    // The configuration may be read in any way.
    let capacity = disk.capacity();
    let config = base + CONFIG;
    assert_eq!(access!(config, u8, reg_byte, "{1}"), capacity & 0xff);
    assert_eq!(access!(config + 1, u8, reg_byte, "{1}"), capacity >> 8);
    assert_eq!(access!(config, u16, reg, "{1:x}"), capacity);
    assert_eq!(access!(config, u64, reg, "{1:r}"), capacity);
    store!("stosb", base, 0x120);
    store!("stosw", base, 0x90);
    store!("stosq", base, 0x24);
    let to = disk.table();
    load!("movsb", base, to, 0x120);
    load!("movsw", base, to, 0x90);
    load!("movsq", base, to, 0x24);
    load!("movsd", base, to, 0x48);
    let copied: u32 = super::driver::get(to);
    assert_eq!(copied, u32::from_le_bytes(*b"virt"));
    disk.reads(13);
    // Whole words, to every register in turn: all status bits, and a failure.
    store!("stosd", base, 0x48);
    assert_ne!(disk.registers.read(STATUS) & FAILED, 0);
    wait("a reset", || {
        disk.registers.write(STATUS, 0);
        (disk.registers.read(STATUS) == 0).then_some(())
    });
    // A request that is told of by a part of a register only is not told of; a word does.
    disk.begin();
    disk.ask(IN, 14);
    let buffers = [disk.header(), (disk.data(), SECTOR, WRITE), disk.status()];
    Disk::chain(disk.area, 0, &buffers);
    put(disk.status().0, UNTOUCHED);
    disk.offer(0);
    // SAFETY: the notification register of a device whose queue is in order.
    unsafe { asm!("mov byte ptr [{}], 0", in(reg) base + QUEUE_NOTIFY, options(nostack)) };
    disk.notify();
    assert_eq!(disk.ended(), Some((0, SECTOR + 1)));
    disk.shows(disk.data(), 14);
    assert_ne!(disk.serve(), Outcome::NeedsReset);
}
