//! Free page hinting, by drivers good and bad.

use super::*;
use crate::virtio::testing::wait;
use crate::{Hinting, HintingState, HintingStatus};

const START: Change = Change::Hinting(Hinting::Start);
const HOLD: Change = Change::Hinting(Hinting::Hold);
const STOP: Change = Change::Hinting(Hinting::Stop);
/// An interrupt for a change of the configuration.
const CONFIG: u32 = 2;

impl Bench {
    fn order(&mut self, change: &Change) -> Result<(), ChangeError> {
        self.device.change(change, Some(&self.queues))
    }

    fn status(&mut self) -> HintingStatus {
        status(&mut self.device)
    }

    /// The driver's word.
    fn say(&mut self, driver: &mut Driver, word: u32) {
        driver.put(DATA, word);
        driver.request(&[(DATA, 4, false)]);
        self.serve(HINTS).unwrap();
    }

    /// The driver names so many pages from one of the first on.
    fn name(&mut self, driver: &mut Driver, page: u64, pages: u32) {
        let address = VICTIM + (page << PAGE_SHIFT);
        driver.request(&[(address, pages << PAGE_SHIFT, true)]);
        self.serve(HINTS).unwrap();
    }
}

fn status(device: &mut Balloon) -> HintingStatus {
    match device.query(Query::Hinting, None) {
        Ok(Report::Hinting(status)) => status,
        other => panic!("{other:?}"),
    }
}

fn summary(status: &HintingStatus) -> (HintingState, u32, Option<u32>, u64) {
    (
        status.state,
        status.host_command,
        status.guest_command,
        status.released_bytes >> PAGE_SHIFT,
    )
}

#[test]
fn a_run_gives_back_what_the_guest_names_and_ends_when_it_has_named_all() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    for (run, page) in [(2, 0), (3, 4)] {
        assert_eq!(bench.order(&START), Ok(()));
        assert_eq!(bench.words()[2], run);
        assert_eq!(bench.queues.interrupt_reasons() & CONFIG, CONFIG);
        assert_eq!(bench.status().state, HintingState::Waiting);
        // What was named before the driver has begun belongs to no run.
        bench.name(&mut driver, 7, 1);
        bench.say(&mut driver, run);
        bench.name(&mut driver, page, 2);
        let running = (HintingState::Running, run, Some(run), 2);
        assert_eq!(summary(&bench.status()), running);
        bench.say(&mut driver, 0);
        assert_eq!(
            summary(&bench.status()),
            (HintingState::Idle, 1, Some(0), 2)
        );
        assert_eq!(bench.words()[2], 1);
        // Late ones, too.
        bench.name(&mut driver, 7, 1);
    }
    let kept = [false, false, true, true, false, false, true, true];
    assert_eq!(bench.kept(), kept);
    let back = driver.used();
    assert_eq!((back.len(), back[0]), (10, (0, 0)));
}

#[test]
fn a_run_that_is_held_leaves_the_pages_to_the_host_until_it_is_stopped() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    bench.order(&HOLD).unwrap();
    bench.say(&mut driver, 2);
    bench.name(&mut driver, 0, 1);
    bench.say(&mut driver, 0);
    assert_eq!(
        summary(&bench.status()),
        (HintingState::Held, 2, Some(0), 1)
    );
    bench.order(&STOP).unwrap();
    assert_eq!(
        summary(&bench.status()),
        (HintingState::Idle, 1, Some(0), 1)
    );
}

#[test]
fn after_a_stop_nothing_is_given_back() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    // There is nothing to stop, and nothing to tell.
    bench.order(&STOP).unwrap();
    assert_eq!((bench.words()[2], bench.queues.interrupt_reasons()), (0, 0));
    bench.order(&START).unwrap();
    bench.say(&mut driver, 2);
    bench.order(&STOP).unwrap();
    assert_eq!(bench.words()[2], 1);
    bench.name(&mut driver, 0, 8);
    bench.say(&mut driver, 0);
    assert_eq!(
        summary(&bench.status()),
        (HintingState::Idle, 1, Some(0), 0)
    );
    assert_eq!(bench.kept(), [true; 8]);
}

#[test]
fn words_that_are_none_and_pages_of_another_run_are_ignored() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    bench.order(&START).unwrap();
    for word in [0, 1, 3, u32::MAX] {
        bench.say(&mut driver, word);
        bench.name(&mut driver, 0, 8);
        let expected = (HintingState::Waiting, 2, Some(word), 0);
        assert_eq!(summary(&bench.status()), expected);
    }
    // Too short, too long, none.
    for len in [0, 3, 5, 4096] {
        driver.put(DATA, 2u32);
        driver.request(&[(DATA, len, false), (VICTIM, 0x8000, true)]);
        bench.serve(HINTS).unwrap();
    }
    assert_eq!(bench.kept(), [true; 8]);
    // A new run in the middle of one ends that.
    bench.say(&mut driver, 2);
    bench.order(&START).unwrap();
    bench.name(&mut driver, 0, 8);
    bench.say(&mut driver, 0);
    assert_eq!(
        summary(&bench.status()),
        (HintingState::Waiting, 3, Some(0), 0)
    );
    assert_eq!(bench.kept(), [true; 8]);
}

#[test]
fn pages_outside_ram_are_a_broken_rule_and_a_flood_has_its_turns() {
    let mut bench = bench();
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    bench.order(&START).unwrap();
    bench.say(&mut driver, 2);
    driver.descriptor(0, VICTIM, 0x1_0000, 2, 0);
    for _ in 0..TURN + 1 {
        driver.offer(0);
    }
    assert!(bench.serve(HINTS).unwrap(), "the rest comes later");
    assert!(!bench.serve(HINTS).unwrap());
    assert_eq!(bench.status().released_bytes, 0x9_0000);
    driver.request(&[(RAM as u64 - 0x1000, 0x2000, true)]);
    bench.serve(HINTS).unwrap_err();
    assert_eq!(bench.status().released_bytes, 0x9_0000);
    // Runs without an end: numbers that are words are left out.
    bench.device.hints.wrap();
    bench.order(&START).unwrap();
    assert_eq!(bench.words()[2], u32::MAX);
    bench.order(&START).unwrap();
    assert_eq!(bench.words()[2], 2);
}

/// Asked for before there is a driver: the next one that takes the feature is told.
#[test]
fn a_run_without_a_driver_waits_for_one() {
    let mut bench = bench_with(&config(), ALL);
    bench.device.stop();
    bench.device.change(&START, None).unwrap();
    assert_eq!(
        summary(&bench.status()),
        (HintingState::Waiting, 2, None, 0)
    );
    assert!(!bench.status().supported);
    // Not this one.
    bench.device.start(1 << STATS_VQ);
    bench
        .device
        .serve(Event::Source(0), &mut bench.queues)
        .unwrap();
    let refused = bench.order(&START).unwrap_err().to_string();
    assert!(refused.contains("takes no part"), "{refused}");
    bench.device.stop();
    assert_eq!(bench.queues.interrupt_reasons(), 0);
    bench.device.start(ALL);
    wait(&bench.device);
    for _ in 0..2 {
        bench
            .device
            .serve(Event::Source(0), &mut bench.queues)
            .unwrap();
    }
    assert_eq!(bench.queues.interrupt_reasons(), CONFIG);
    let mut driver = Driver::of_queue(&bench.ram, HINTS);
    bench.say(&mut driver, 2);
    bench.name(&mut driver, 0, 8);
    assert_eq!(bench.kept(), [false; 8]);
    // It ends with the driver, and the next one finds nothing of it.
    bench.device.stop();
    assert_eq!(bench.words()[2], 0);
    bench.device.start(ALL);
    assert_eq!(summary(&bench.status()), (HintingState::Idle, 0, None, 8));
    bench.device.stop();
    // Taken back before a driver came.
    bench.device.change(&START, None).unwrap();
    bench.device.change(&STOP, None).unwrap();
    assert_eq!(bench.words()[2], 0);
}

#[test]
fn a_balloon_that_was_configured_without_refuses() {
    let mut device = Balloon::new(&BalloonConfig::default(), RAM as u64).unwrap();
    for change in [START, HOLD, STOP] {
        let refused = device.change(&change, None).unwrap_err().to_string();
        assert!(refused.contains("free-page-hinting"), "{refused}");
    }
    assert!(!status(&mut device).supported);
    assert_eq!(device.query(Query::Statistics, None).map(drop), Ok(()));
}
