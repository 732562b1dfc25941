//! A function that loses what it works with: the guest's memory, its device.

use super::*;

#[test]
fn r12_a_function_that_may_not_access_memory_stops_and_works_again_after_a_reset() {
    const COMMAND: usize = 4;
    let mut bench = bench();
    let command = |bench: &Bench, value: u16| {
        bench.device.write_config(COMMAND, &value.to_le_bytes());
    };
    let (memory, with_master) = (1 << 1, 1 << 1 | 1 << 2);
    bench.choose_messages();
    command(&bench, with_master);
    bench.start();
    bench.works();
    bench.calls();
    command(&bench, memory);
    assert_eq!(bench.status(), UP_TO_RUNNING | NEEDS_RESET);
    let doorbell = u64::from(BASE) + NOTIFY;
    assert_eq!(bench.calls(), [Call::Connect(doorbell, false)]);
    // Nobody is there to see it.
    bench.request();
    assert!((0..3).all(|vector| bench.is_quiet(vector)));
    command(&bench, with_master);
    assert_eq!(bench.status(), UP_TO_RUNNING | NEEDS_RESET);
    assert!(bench.driver.used().is_empty());
    bench.set_status(0);
    assert_eq!(bench.status(), 0);
    bench.choose_messages();
    bench.start();
    bench.works();
}

#[test]
fn a_driver_s_reset_of_a_device_that_is_gone_ends_and_the_device_never_runs_again() {
    let mut bench = bench();
    bench.start();
    assert!(bench.device.take_device().is_some());
    bench.set_status(0);
    assert_eq!(bench.status(), 0, "a driver waits for this");
    bench.negotiate();
    bench.set_up_queue(0x3000);
    bench.set_status(UP_TO_RUNNING);
    assert_eq!(bench.status(), UP_TO_RUNNING | NEEDS_RESET);
    assert!(bench.device.take_device().is_none());
}

#[test]
fn a_device_that_is_taken_away_leaves_nothing_behind() {
    let mut bench = bench();
    bench.choose_messages();
    bench.start();
    assert_eq!(bench.device.take_device().unwrap().id(), 42);
    assert!(bench.device.take_device().is_none());
    bench.set_status(UP_TO_DRIVER);
    bench.request();
    assert_eq!(bench.driver.used(), []);
}
