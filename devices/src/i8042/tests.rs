use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::BusDevice;

fn device() -> I8042 {
    I8042::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
}

fn read(device: &I8042, register: u8) -> u8 {
    let mut data = [0xff];
    device.read(register.into(), &mut data);
    data[0]
}

fn write(device: &I8042, register: u8, value: u8) {
    assert_eq!(device.write(register.into(), &[value]), Outcome::Continue);
}

/// All that can be read.
fn bytes(device: &I8042) -> Vec<u8> {
    let mut bytes = Vec::new();
    while read(device, COMMAND) & OUTPUT_FULL != 0 {
        bytes.push(read(device, DATA));
    }
    assert_eq!(read(device, DATA), 0, "nothing is left");
    bytes
}

/// What the controller answers to a command.
fn asked(device: &I8042, command: u8) -> Vec<u8> {
    write(device, COMMAND, command);
    bytes(device)
}

/// What the keyboard answers.
fn told(device: &I8042, byte: u8) -> Vec<u8> {
    write(device, DATA, byte);
    bytes(device)
}

fn set_control(device: &I8042, control: u8) {
    write(device, COMMAND, 0x60);
    write(device, DATA, control);
}

fn pulses(device: &I8042) -> u64 {
    device.interrupt.read().unwrap_or(0)
}

/// The order in which Linux (drivers/input/serio/i8042.c, drivers/input/keyboard/atkbd.c) finds out what is there.
#[test]
fn a_driver_finds_a_controller_with_a_keyboard_and_no_mouse() {
    let device = device();
    assert_eq!(asked(&device, 0x20), [SYSTEM | TRANSLATE]);
    assert_eq!(asked(&device, 0xaa), [0x55]);
    assert_eq!(asked(&device, 0xab), [0]);
    // Nothing that is written to the mouse's side comes back from there.
    write(&device, COMMAND, 0xd3);
    write(&device, DATA, 0x5a);
    assert_eq!(read(&device, COMMAND) & (OUTPUT_FULL | 1 << 5), OUTPUT_FULL);
    assert_eq!(bytes(&device), [0x5a]);
    assert_eq!(asked(&device, 0xa9), [1]);
    write(&device, COMMAND, 0xd4);
    assert_eq!(told(&device, 0xff), [0u8; 0]);
    for (command, control) in [(0xa7, 0x64), (0xad, 0x74), (0xa8, 0x54), (0xae, 0x44)] {
        write(&device, COMMAND, command);
        assert_eq!(asked(&device, 0x20), [control], "{command:#x}");
    }
    // Address line 20 is on, and cannot be switched off; a null command.
    write(&device, COMMAND, 0xd1);
    write(&device, DATA, 0xdf);
    assert_eq!(asked(&device, 0xd0), [3]);
    assert_eq!(asked(&device, 0xff), [0u8; 0]);
    set_control(&device, 0x41);
    assert_eq!(asked(&device, 0x20), [0x41]);
    assert_eq!(told(&device, 0xf2), [0xfa, 0xab, 0x41]);
    set_control(&device, 0x01);
    for (byte, answer) in [
        (0xf2, &[0xfa, 0xab, 0x83][..]),
        (0xed, &[0xfa]),
        (0x07, &[0xfa]),
        (0xf3, &[0xfa]),
        (0x00, &[0xfa]),
        (0xf0, &[0xfa]),
        (0x00, &[0xfa, 2]),
        (0xf0, &[0xfa]),
        (0x02, &[0xfa]),
        (0xf0, &[0xfa]),
        (0x03, &[0xfe]),
        (0xed, &[0xfa]),
        // A command instead of the value.
        (0xf4, &[0xfa]),
        (0xee, &[0xee]),
        (0xf5, &[0xfa]),
        (0xf6, &[0xfa]),
        (0xff, &[0xfa, 0xaa]),
        (0x12, &[0xfe]),
    ] {
        assert_eq!(told(&device, byte), answer, "{byte:#x}");
    }
}

#[test]
fn ctrl_alt_del_is_typed_in_the_codes_that_the_driver_wants_with_an_interrupt_for_each() {
    let device = device();
    for (control, codes) in [
        (
            0x05,
            &[
                0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
            ][..],
        ),
        (0x45, &[0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]),
    ] {
        set_control(&device, control);
        assert_eq!(pulses(&device), 0);
        assert!(device.ctrl_alt_del());
        for code in codes {
            assert_eq!(pulses(&device), 1, "{code:#x}");
            assert_eq!(read(&device, COMMAND) & OUTPUT_FULL, OUTPUT_FULL);
            assert_eq!(read(&device, DATA), *code);
        }
        assert_eq!(pulses(&device), 0);
        assert_eq!(bytes(&device), [0u8; 0]);
    }
}

#[test]
fn a_guest_without_a_driver_hears_of_no_ctrl_alt_del() {
    let device = device();
    assert!(!device.ctrl_alt_del(), "no interrupts, as at the start");
    set_control(&device, INTERRUPT | KEYBOARD_OFF);
    assert!(!device.ctrl_alt_del(), "the keyboard is off");
    set_control(&device, INTERRUPT);
    assert_eq!(told(&device, 0xf5), [0xfa]);
    assert!(!device.ctrl_alt_del(), "keys are not told of");
    assert_eq!(told(&device, 0xf4), [0xfa]);
    assert!(device.ctrl_alt_del());
    assert!(!device.ctrl_alt_del(), "nobody reads");
    assert_eq!(bytes(&device).len(), 11);
    assert!(device.ctrl_alt_del());
}

#[test]
fn what_waits_is_told_of_when_it_can_be_read() {
    let device = device();
    write(&device, DATA, 0xf2);
    write(&device, COMMAND, 0xad);
    assert_eq!(read(&device, COMMAND) & OUTPUT_FULL, 0, "it is off");
    set_control(&device, INTERRUPT | KEYBOARD_OFF);
    assert_eq!(pulses(&device), 0);
    // The controller's own answers come before what waits.
    write(&device, COMMAND, 0xaa);
    assert_eq!(pulses(&device), 1);
    assert_eq!(read(&device, DATA), 0x55);
    assert_eq!(pulses(&device), 0);
    write(&device, COMMAND, 0xae);
    assert_eq!(pulses(&device), 1);
    assert_eq!(bytes(&device), [0xfa, 0xab, 0x41]);
}

#[test]
fn only_the_reset_line_resets() {
    for register in 0..5 {
        for value in 0..=u8::MAX {
            let device = device();
            let reset = register == COMMAND && value == 0xfe;
            let expected = if reset {
                Outcome::Reset
            } else {
                Outcome::Continue
            };
            let found = device.write(register.into(), &[value]);
            assert_eq!(found, expected, "{register} {value:#x}");
        }
    }
    let device = device();
    write(&device, COMMAND, 0xd1);
    assert_eq!(device.write(0, &[0xde]), Outcome::Reset);
}

proptest! {
    #[test]
    fn whatever_a_guest_does_little_waits(
        accesses in proptest::collection::vec((0u8..6, any::<u8>(), any::<bool>()), 0..200),
    ) {
        let device = device();
        for (register, value, is_read) in accesses {
            if register == 5 {
                let _ = device.ctrl_alt_del();
            } else if is_read {
                read(&device, register);
            } else {
                let _ = device.write(register.into(), &[value]);
            }
            let DeviceState::I8042(state) = device.save().unwrap() else {
                panic!();
            };
            prop_assert!(state.typed.len() <= Keyboard::BYTES);
            // It can be saved and loaded at any time.
            let other = self::device();
            other.load(&DeviceState::I8042(state.clone())).unwrap();
            prop_assert_eq!(other.save(), Some(DeviceState::I8042(state)));
        }
    }
}
