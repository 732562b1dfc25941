use proptest::prelude::*;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::OutputRing;

struct Bench {
    uart: Pl011,
    interrupt: EventFd,
    ready: EventFd,
    ring: OutputRing,
}

fn bench() -> Bench {
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let (interrupt, ready) = (event(), event());
    let ring = OutputRing::new(64, event());
    let clone = |event: &EventFd| event.try_clone().unwrap();
    Bench {
        uart: Pl011::new(clone(&interrupt), clone(&ready), Box::new(ring.clone())),
        interrupt,
        ready,
        ring,
    }
}

impl Bench {
    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.uart.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        let _ = self.uart.write(register, &value.to_le_bytes());
    }

    /// Whether the interrupt was pulsed since the last call.
    fn pulsed(&self) -> bool {
        self.interrupt.read().is_ok()
    }
}

#[test]
fn drivers_recognise_the_cell() {
    let bench = bench();
    let ids: Vec<_> = (0..8).map(|n| bench.read(PERIPHERAL_ID + 4 * n)).collect();
    assert_eq!(ids, [0x11, 0x10, 0x34, 0, 0x0d, 0xf0, 0x05, 0xb1]);
}

#[test]
fn what_the_guest_sends_reaches_the_output_before_any_set_up() {
    let bench = bench();
    for byte in b"hi" {
        assert_eq!(bench.read(FR) & (TXFE | 1 << 5), TXFE, "empty, never full");
        bench.write(DR, u32::from(*byte));
    }
    assert_eq!(bench.ring.tail(9), "hi");
}

#[test]
fn r3_receive_is_bounded_and_says_when_it_has_room_again() {
    let bench = bench();
    bench.write(LCR_H, FEN);
    assert_eq!(bench.uart.receive(&[7; 100]), FIFO);
    assert_eq!(bench.read(FR) & (RXFF | RXFE), RXFF);
    assert_eq!(bench.uart.receive(&[7]), 0);
    for _ in 0..FIFO {
        assert!(bench.ready.read().is_err());
        assert_eq!(bench.read(DR), 7);
    }
    assert_eq!(bench.ready.read().unwrap(), 1);
    assert_eq!(bench.read(FR) & (RXFF | RXFE), RXFE);
    assert_eq!(bench.uart.receive(&[8]), 1);
    assert_eq!(bench.read(DR), 8);
    assert!(bench.ready.read().is_err(), "nothing was refused");
}

#[test]
fn without_fifos_there_is_room_for_one_byte() {
    let bench = bench();
    assert_eq!(bench.uart.receive(b"ab"), 1);
    assert_eq!(bench.read(RIS), RX | RT);
    assert_eq!(bench.read(DR), u32::from(b'a'));
    assert_eq!(bench.read(RIS), 0);
}

#[test]
fn input_pulses_when_it_comes_when_more_comes_and_when_it_is_unmasked() {
    let bench = bench();
    bench.write(LCR_H, FEN);
    bench.uart.receive(b"a");
    assert!(!bench.pulsed(), "masked");
    bench.write(IMSC, RT);
    assert!(bench.pulsed(), "unmasked");
    bench.uart.receive(b"b");
    assert!(bench.pulsed(), "the handler may have looked already");
    assert_eq!(bench.read(MIS), RT);
    bench.write(ICR, INTERRUPTS);
    assert_eq!(bench.read(MIS), RT, "as long as there is data");
}

#[test]
fn the_receive_interrupt_waits_for_the_trigger_level() {
    for (ifls, level) in [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28)] {
        let bench = bench();
        bench.write(LCR_H, FEN);
        bench.write(IFLS, ifls << 3);
        bench.uart.receive(&vec![0; level - 1]);
        assert_eq!(bench.read(RIS) & RX, 0);
        bench.uart.receive(&[0]);
        assert_eq!(bench.read(RIS) & RX, RX);
    }
}

#[test]
fn output_goes_on_as_long_as_the_handler_looks() {
    let bench = bench();
    bench.write(DR, 1);
    assert!(!bench.pulsed(), "masked");
    bench.write(IMSC, TX);
    assert!(bench.pulsed(), "something was sent before");
    bench.write(DR, 2);
    bench.write(DR, 3);
    assert!(
        !bench.pulsed(),
        "one pulse is enough for a handler that has not looked"
    );
    assert_eq!(bench.read(MIS), TX);
    bench.write(DR, 4);
    assert!(bench.pulsed(), "it looked, so it may be about to return");
    bench.write(ICR, TX);
    assert_eq!(bench.read(MIS), 0);
    bench.write(DR, 5);
    assert!(bench.pulsed());
}

#[test]
fn in_loopback_mode_what_is_sent_comes_back_and_the_line_is_cut() {
    let bench = bench();
    bench.write(LCR_H, FEN);
    bench.write(CR, LBE);
    bench.write(DR, 0x55);
    assert_eq!(bench.uart.receive(b"x"), 0);
    assert_eq!(bench.read(DR), 0x55);
    assert_eq!(bench.ring.tail(9), "");
    bench.write(CR, RESET_CR);
    assert_eq!(bench.ready.read().unwrap(), 1);
}

#[test]
fn r25_narrow_wide_and_misaligned_accesses_see_the_word_they_start_in() {
    let bench = bench();
    let _ = bench.uart.write(CR + 1, &[0x0b]);
    assert_eq!(bench.read(CR), 0x0b00);
    let mut data = [0xff; 8];
    bench.uart.read(CR + 1, &mut data);
    assert_eq!(data, [0x0b, 0, 0, 0, 0, 0, 0, 0]);
    bench.uart.read(0xffd, &mut data);
    let _ = bench.uart.write(0xfff, &[0xff; 16]);
}

proptest! {
    #[test]
    fn r25_any_access_is_legal_and_input_comes_once_and_in_order(
        accesses in prop::collection::vec(
            (0u64..0x1000, prop::collection::vec(any::<u8>(), 0..9), 0u8..3), 0..200),
    ) {
        let bench = bench();
        bench.write(LCR_H, FEN);
        let (mut next, mut expected) = (0u8, 0u8);
        for (offset, data, kind) in accesses {
            // Registers that change the data's way are left alone; they have tests of their own.
            let offset = if [DR, LCR_H, CR].contains(&(offset & !3)) { FR } else { offset };
            match kind {
                0 => bench.uart.read(offset, &mut data.clone()),
                1 => { let _ = bench.uart.write(offset, &data); }
                _ => {
                    let input: Vec<_> = (0..9).map(|i| next.wrapping_add(i)).take(data.len()).collect();
                    next = next.wrapping_add(u8::try_from(bench.uart.receive(&input)).unwrap());
                    if data.len() % 2 == 0 && bench.read(FR) & RXFE == 0 {
                        prop_assert_eq!(bench.read(DR), u32::from(expected));
                        expected = expected.wrapping_add(1);
                    }
                }
            }
            let (mask, raw, masked) = (bench.read(IMSC), bench.read(RIS), bench.read(MIS));
            prop_assert_eq!(masked, raw & mask);
            prop_assert!(lock(&bench.uart.0).received.len() <= FIFO);
        }
        while bench.read(FR) & RXFE == 0 {
            prop_assert_eq!(bench.read(DR), u32::from(expected));
            expected = expected.wrapping_add(1);
        }
        prop_assert_eq!(expected, next);
    }
}
