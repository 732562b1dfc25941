use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;
use crate::OutputRing;

struct Bench {
    uart: Pl011,
    interrupt: EventFd,
    ready: EventFd,
    ring: OutputRing,
}

fn bench() -> Bench {
    let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
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
    assert_eq!(bench.ring.tail(), "hi");
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
    assert_eq!(bench.ring.tail(), "");
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

#[test]
fn what_comes_back_pulses_like_any_input() {
    let bench = bench();
    bench.write(LCR_H, FEN);
    bench.write(CR, LBE);
    bench.write(IMSC, RX);
    bench.write(DR, 1);
    assert!(!bench.pulsed(), "below the trigger level");
    bench.write(IMSC, RT);
    assert!(bench.pulsed(), "unmasked");
    bench.write(DR, 2);
    assert!(bench.pulsed(), "the handler may have looked already");
}

#[test]
fn an_access_of_no_bytes_takes_and_sends_nothing() {
    let bench = bench();
    bench.uart.receive(b"a");
    bench.uart.read(DR, &mut []);
    let _ = bench.uart.write(DR, &[]);
    assert_eq!(bench.read(DR), u32::from(b'a'));
    assert_eq!(bench.ring.tail(), "");
}

#[test]
fn a_lower_trigger_level_pulses_for_what_is_there() {
    for (register, value) in [(IFLS, 0), (LCR_H, 0)] {
        let bench = bench();
        bench.write(LCR_H, FEN);
        bench.write(IMSC, RX);
        bench.uart.receive(b"12345");
        assert!(!bench.pulsed(), "below the level");
        bench.write(register, value);
        assert_eq!(bench.read(MIS), RX);
        assert!(bench.pulsed());
    }
}

#[test]
fn refused_input_is_asked_for_only_when_it_would_be_taken() {
    let bench = bench();
    assert_eq!(bench.uart.receive(b"ab"), 1);
    bench.write(CR, RESET_CR);
    assert!(bench.ready.read().is_err(), "the FIFO is full");
    bench.write(CR, LBE);
    bench.read(DR);
    assert!(bench.ready.read().is_err(), "the line is cut");
    bench.write(CR, RESET_CR);
    assert_eq!(bench.ready.read().unwrap(), 1);
}

#[test]
fn bits_that_a_register_does_not_have_read_as_zero() {
    let bench = bench();
    let bits = [
        (ILPR, 0xff),
        (IBRD, 0xffff),
        (FBRD, 0x3f),
        (LCR_H, 0xff),
        (CR, 0xff87),
        (IFLS, 0x3f),
        (IMSC, 0x7ff),
        (DMACR, 0x7),
    ];
    for (register, bits) in bits {
        bench.write(register, u32::MAX);
        assert_eq!(bench.read(register), bits, "{register:#x}");
    }
}

/// What the guest or the sender does.
#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Receive(Vec<u8>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = || prop_oneof![0u64..4, 0u64..0x4c, 0xfd0u64..0x1010, any::<u64>()];
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let step = prop_oneof![
        (offset(), 0usize..17).prop_map(|(offset, len)| Step::Read(offset, len)),
        (offset(), bytes(17)).prop_map(|(offset, data)| Step::Write(offset, data)),
        bytes(40).prop_map(Step::Receive),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    #[test]
    fn r25_any_access_is_legal_and_each_byte_is_read_once_and_in_order(steps in steps()) {
        let bench = bench();
        // What a perfect FIFO would hold.
        let mut expected = VecDeque::new();
        for step in steps {
            let (room, cut, before) = {
                let state = lock(&bench.uart.0);
                let capacity = if state.lcr_h & FEN == 0 { 1usize } else { 32 };
                let room = capacity.saturating_sub(expected.len());
                (room, state.cr & LBE != 0, state.pending())
            };
            let held = expected.len();
            match &step {
                Step::Read(offset, len) => {
                    let mut data = vec![0xff; *len];
                    bench.uart.read(*offset, &mut data);
                    if offset & !3 == DR && *len > 0 {
                        let byte = expected.pop_front().unwrap_or_default();
                        let mut whole = vec![0; *len];
                        whole[0] = if *offset == DR { byte } else { 0 };
                        prop_assert_eq!(data, whole);
                    }
                }
                Step::Write(offset, data) => {
                    let _ = bench.uart.write(*offset, data);
                    if offset & !3 == DR && !data.is_empty() && cut && room > 0 {
                        expected.push_back(if *offset == DR { data[0] } else { 0 });
                    }
                }
                Step::Receive(data) => {
                    let taken = bench.uart.receive(data);
                    prop_assert_eq!(taken, if cut { 0 } else { room.min(data.len()) });
                    expected.extend(&data[..taken]);
                }
            }
            let (pulsed, asked) = (bench.pulsed(), bench.ready.read().is_ok());
            let state = lock(&bench.uart.0);
            prop_assert!(state.received.len() <= FIFO);
            prop_assert_eq!(&state.received, &expected);
            let open = expected.is_empty() && state.cr & LBE == 0;
            prop_assert!(!asked || open, "asked for input that would be refused");
            prop_assert!(!state.refused || !open, "input is refused for good");
            let after = state.pending();
            prop_assert!(pulsed || after & !before == 0, "{step:?} raised {after:#x} unseen");
            prop_assert!(!pulsed || after != 0, "{step:?} pulsed for nothing");
            let came = expected.len() > held && after & (RX | RT) != 0;
            prop_assert!(pulsed || !came, "input came unseen");
        }
        prop_assert_eq!(bench.read(MIS), bench.read(RIS) & bench.read(IMSC));
        while bench.read(FR) & RXFE == 0 {
            prop_assert_eq!(Some(bench.read(DR)), expected.pop_front().map(u32::from));
        }
        prop_assert!(expected.is_empty());
    }
}
