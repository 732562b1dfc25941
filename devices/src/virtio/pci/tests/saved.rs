//! A function that goes on in another machine.

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::state::{PciRegisters, StateError, TransportRegisters, VirtioState};
use crate::virtio::testing::RAM;

/// Where a driver has moved the BAR.
const MOVED: u32 = 0xd000_0000;

fn saved(bench: &Bench) -> VirtioState {
    bench.device.pause();
    let saved = bench.device.save().unwrap();
    serde_json::from_slice(&serde_json::to_vec(&saved).unwrap()).unwrap()
}

#[test]
fn doorbells_messages_and_what_is_pending_go_on() {
    let mut one = bench();
    one.device.write_config(0x10, &MOVED.to_le_bytes());
    one.choose_messages();
    one.start();
    one.works();
    one.device.write_bar(TABLE + 12, &[1, 0, 0, 0]);
    one.request();
    while one.bar(PENDING) != [1] {
        std::thread::yield_now();
    }
    let state = saved(&one);
    let mut other = bench();
    let mut all = vec![0; RAM];
    one.driver
        .ram
        .read_slice(&mut all, GuestAddress(0))
        .unwrap();
    other.driver.ram.write_slice(&all, GuestAddress(0)).unwrap();
    other.device.load(&state).unwrap();
    assert_eq!(other.device.save().unwrap(), state);
    let doorbell = u64::from(MOVED) + NOTIFY;
    let expected = [
        Call::Connect(doorbell, true),
        Call::Set(1, message(1)),
        Call::Set(2, message(2)),
        Call::Commit,
    ];
    assert_eq!(other.calls(), expected);
    assert!((0..3).all(|vector| other.is_quiet(vector)), "it is paused");
    other.device.resume();
    other.wait(2);
    assert!(other.is_quiet(0));
    other.device.write_bar(TABLE + 12, &[0; 4]);
    other.wait(0);
    one.driver.ram = other.driver.ram;
    other.driver = one.driver;
    assert_eq!(other.driver.used(), [(0, 7)]);
    other.request();
    while other.driver.used() != [(0, 7)] {
        std::thread::yield_now();
    }
}

#[test]
fn r29_a_function_takes_no_state_with_other_lists() {
    let one = bench();
    let good = saved(&one);
    let refused = |change: fn(&mut PciRegisters)| {
        let mut state = good.clone();
        if let TransportRegisters::Pci(registers) = &mut state.registers {
            change(registers);
        }
        bench().device.load(&state).unwrap_err()
    };
    let range = StateError::Range;
    assert_eq!(
        refused(|registers| registers.config_space.truncate(9)),
        range("config_space")
    );
    assert_eq!(
        refused(|registers| registers.messages.truncate(1)),
        range("messages")
    );
    assert_eq!(
        refused(|registers| registers.pending.push(3)),
        range("pending")
    );
    assert_eq!(
        refused(|registers| registers.queue_vectors.push(0)),
        range("queue_vectors")
    );
    // What a guest may not write stays, and a message that there is not is none.
    let mut state = good.clone();
    if let TransportRegisters::Pci(registers) = &mut state.registers {
        registers.config_space[0] ^= 0xff;
        registers.queue_vectors[0] = 77;
    }
    let other = bench();
    other.device.load(&state).unwrap();
    assert_eq!(other.device.save().unwrap(), good);
}
