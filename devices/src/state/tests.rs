use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::{
    AcpiPower, BusDevice, Cmos, CtrlAltDel, GoldfishRtc, I8042, IoApic, Message, Pl031, Pl061,
    PowerButton, Pvpanic,
};

fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
}

fn read(device: &dyn BusDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    device.read(offset, &mut data);
    data
}

/// Saves a device, loads another one, and gives what was saved, which is what the other one saves.
fn moved(from: &dyn BusDevice, to: &dyn BusDevice) -> DeviceState {
    let saved = from.save().unwrap();
    assert_ne!(to.save().unwrap(), saved, "the test changes nothing");
    to.load(&saved).unwrap();
    assert_eq!(to.save().unwrap(), saved);
    saved
}

#[cfg(feature = "serial")]
#[test]
fn a_16550a_keeps_its_registers_and_input() {
    let uart = || {
        let interrupt = event();
        let uart = crate::Uart16550::new(interrupt.try_clone().unwrap(), event(), sink());
        (uart, interrupt)
    };
    let ((one, _), (other, interrupt)) = (uart(), uart());
    let _ = one.write(1, &[1]);
    let _ = one.write(7, &[0x5a]);
    assert_eq!(one.receive(b"ab"), 2);
    let DeviceState::Uart16550(state) = moved(&one, &other) else {
        panic!();
    };
    assert_eq!(state.received, b"ab");
    assert_eq!(interrupt.read().unwrap(), 1, "input is still announced");
    assert_eq!(read(&other, 7, 1), [0x5a]);
    assert_eq!([read(&other, 0, 1), read(&other, 0, 1)], [[b'a'], [b'b']]);
    let long = Uart16550State {
        received: vec![0; 65],
        ..state
    };
    let refused = other.load(&DeviceState::Uart16550(long));
    assert_eq!(refused, Err(StateError::Range("received")));
}

#[cfg(feature = "serial")]
#[test]
fn a_16550a_goes_on_printing() {
    let ring = crate::OutputRing::new(16, event());
    let uart = crate::Uart16550::new(event(), event(), Box::new(ring.clone()));
    let _ = uart.write(0, b"a");
    uart.load(&uart.save().unwrap()).unwrap();
    let _ = uart.write(0, b"b");
    assert_eq!(ring.tail(), "ab");
}

#[cfg(feature = "serial")]
fn sink() -> Box<dyn std::io::Write + Send> {
    Box::new(std::io::sink())
}

#[cfg(feature = "serial")]
#[test]
fn a_pl011_keeps_its_registers_and_input() {
    let uart = || crate::Pl011::new(event(), event(), sink());
    let (one, other) = (uart(), uart());
    for (register, value) in [(0x24, 0x12_u32), (0x2c, 0x70), (0x38, 0x50)] {
        let _ = one.write(register, &value.to_le_bytes());
    }
    assert_eq!(one.receive(b"ab"), 2);
    let DeviceState::Pl011(state) = moved(&one, &other) else {
        panic!();
    };
    assert_eq!(read(&other, 0x24, 4), [0x12, 0, 0, 0]);
    assert_eq!([read(&other, 0, 1), read(&other, 0, 1)], [[b'a'], [b'b']]);
    let long = Pl011State {
        received: vec![0; 33],
        ..state
    };
    let refused = other.load(&DeviceState::Pl011(long));
    assert_eq!(refused, Err(StateError::Range("received")));
}

#[test]
fn clocks_keep_what_the_guest_has_set() {
    let (one, other) = (Cmos::default(), Cmos::default());
    for (port, value) in [(0, 0x40), (1, 7), (0, 0x41)] {
        let _ = one.write(port, &[value]);
    }
    let DeviceState::Cmos(state) = moved(&one, &other) else {
        panic!();
    };
    let _ = other.write(0, &[0x40]);
    assert_eq!(read(&other, 1, 1), [7]);
    let short = CmosState {
        memory: vec![0; 127],
        ..state
    };
    let refused = other.load(&DeviceState::Cmos(short));
    assert_eq!(refused, Err(StateError::Range("memory")));

    let (one, other) = (Pl031::default(), Pl031::default());
    // The load register: 1000 s since 1970; the match register.
    let _ = one.write(0x08, &1000_u32.to_le_bytes());
    let _ = one.write(0x04, &5_u32.to_le_bytes());
    let DeviceState::Pl031(state) = moved(&one, &other) else {
        panic!();
    };
    let time = u32::from_le_bytes(read(&other, 0, 4).try_into().unwrap());
    assert!((1000..2000).contains(&time), "{time}");
    for ahead in [i64::MAX, i64::MIN] {
        let far = Pl031State { ahead, ..state };
        let refused = other.load(&DeviceState::Pl031(far));
        assert_eq!(refused, Err(StateError::Range("ahead")));
        read(&other, 0, 4);
    }

    let (one, other) = (GoldfishRtc::default(), GoldfishRtc::default());
    for (register, value) in [(4, 1_u32), (0, 2), (8, 3), (12, 4), (16, 1)] {
        let _ = one.write(register, &value.to_le_bytes());
    }
    moved(&one, &other);
    assert_eq!(read(&other, 8, 4), [3, 0, 0, 0]);
    let _ = read(&other, 0, 4);
    assert_eq!(read(&other, 4, 4), [1, 0, 0, 0], "the time's high word");
}

#[test]
fn what_was_typed_is_read_behind_the_move() {
    let interrupt = event();
    let one = I8042::new(event());
    let other = I8042::new(interrupt.try_clone().unwrap());
    for (port, value) in [(4, 0x60), (0, 0x41)] {
        let _ = one.write(port, &[value]);
    }
    assert!(one.ctrl_alt_del());
    assert_eq!(read(&one, 0, 1), [0x1d]);
    let DeviceState::I8042(state) = moved(&one, &other) else {
        panic!();
    };
    assert_eq!(interrupt.read().unwrap(), 1, "a byte is still announced");
    assert_eq!([read(&other, 0, 1), read(&other, 0, 1)], [[0x38], [0xe0]]);
    let long = I8042State {
        typed: vec![0; 17],
        ..state
    };
    let refused = other.load(&DeviceState::I8042(long));
    assert_eq!(refused, Err(StateError::Range("typed")));
}

#[test]
fn a_pressed_button_stays_pressed() {
    let (one, other) = (AcpiPower::new(event()), AcpiPower::new(event()));
    one.press();
    moved(&one, &other);
    assert!(!other.was_noticed());
    assert_eq!(read(&other, 3, 1), [1]);
    assert!(other.was_noticed());
    let unknown = DeviceState::AcpiPower(AcpiPowerState { events: 4 });
    assert_eq!(other.load(&unknown), Err(StateError::Range("events")));

    let (one, other) = (Pl061::new(event()), Pl061::new(event()));
    let _ = one.write(0x410, &[8, 0, 0, 0]);
    let _ = one.write(0x408, &[8, 0, 0, 0]);
    one.press();
    let DeviceState::Pl061(state) = moved(&one, &other) else {
        panic!();
    };
    assert!(!other.was_noticed());
    assert_eq!(read(&other, 0x418, 4), [8, 0, 0, 0], "it interrupts");
    let unknown = Pl061State { input: 1, ..state };
    let refused = other.load(&DeviceState::Pl061(unknown));
    assert_eq!(refused, Err(StateError::Range("input")));
}

#[test]
fn the_lines_of_an_io_apic_send_what_they_sent() {
    type Told = Arc<Mutex<Vec<(u32, Option<Message>)>>>;
    let io_apic = |takes: bool| {
        let told = Told::default();
        let route = Arc::clone(&told);
        let route = Box::new(move |line, message| {
            route.lock().unwrap().push((line, message));
            takes
        });
        (IoApic::new(24, route), told)
    };
    let ((one, before), (other, after)) = (io_apic(true), io_apic(true));
    for (register, value) in [(0x19, 0x0100_0000_u32), (0x18, 0x31)] {
        let _ = one.write(0, &[register]);
        let _ = one.write(0x10, &value.to_le_bytes());
    }
    let DeviceState::IoApic(state) = moved(&one, &other) else {
        panic!();
    };
    assert_eq!(*before.lock().unwrap(), *after.lock().unwrap());
    assert_eq!(after.lock().unwrap().len(), 1);
    let (deaf, _) = io_apic(false);
    let saved = DeviceState::IoApic(state.clone());
    assert_eq!(deaf.load(&saved), Err(StateError::Host));
    let few = IoApicState {
        pins: vec![(0, 0); 23],
        ..state
    };
    let refused = other.load(&DeviceState::IoApic(few));
    assert_eq!(refused, Err(StateError::Range("pins")));
}

#[test]
fn a_device_takes_no_other_ones_state() {
    assert_eq!(Pvpanic.save(), Some(DeviceState::Stateless {}));
    let stateless: [&dyn BusDevice; 2] = [&I8042::new(event()), &Pvpanic];
    for device in stateless {
        device.load(&DeviceState::Stateless {}).unwrap();
        let other = Cmos::default().save().unwrap();
        assert_eq!(device.load(&other), Err(StateError::Foreign));
    }
    let devices: [&dyn BusDevice; 5] = [
        &Cmos::default(),
        &Pl031::default(),
        &Pl061::new(event()),
        &GoldfishRtc::default(),
        &AcpiPower::new(event()),
    ];
    for device in devices {
        let refused = device.load(&DeviceState::Stateless {});
        assert_eq!(refused, Err(StateError::Foreign));
    }
}
