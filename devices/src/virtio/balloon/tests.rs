use vm_memory::Bytes;

use super::roles::{FREE_PAGE_HINT, REPORTING, STATS_VQ};
use super::*;
use crate::virtio::testing::{AVAILABLE, DATA, Driver, QUEUE, RAM, USED, queues, ram};

mod hinting;
mod statistics;

/// Where the tests look for what is given back.
const VICTIM: u64 = 0x4_0000;
/// Every queue by its number in the specification, when the driver has taken all features.
const INFLATE: usize = 0;
const STATISTICS: usize = 2;
const HINTS: usize = 3;
const REPORTS: usize = 4;
const ALL: u64 = 1 << STATS_VQ | 1 << FREE_PAGE_HINT | 1 << REPORTING;

struct Bench {
    device: Balloon,
    queues: Queues,
    ram: GuestRam,
}

fn config() -> BalloonConfig {
    BalloonConfig {
        target: Some(RAM as u64 / 2),
        deflate_on_oom: true,
        free_page_reporting: true,
        free_page_hinting: true,
        ..BalloonConfig::default()
    }
}

/// A balloon with a driver that took these features.
fn bench_with(config: &BalloonConfig, features: u64) -> Bench {
    let ram = ram();
    ram.write_slice(&[1; 0x1_0000], GuestAddress(VICTIM))
        .unwrap();
    let mut device = Balloon::new(config, RAM as u64).unwrap();
    device.start(features);
    let queues = queues(&ram, device.queue_sizes().len());
    Bench {
        device,
        queues,
        ram,
    }
}

fn bench() -> Bench {
    bench_with(&config(), ALL)
}

impl Bench {
    /// Which of the first pages still have their content.
    fn kept(&self) -> Vec<bool> {
        let page = |page: u64| {
            let address = GuestAddress(VICTIM + (page << PAGE_SHIFT));
            self.ram.read_obj::<u8>(address).unwrap() == 1
        };
        (0..8).map(page).collect()
    }

    /// Has the device forget its queues, as if nothing had ever been in them.
    fn new_queues(&mut self) {
        let count = self.device.queue_sizes().len();
        for base in (0..count as u64).map(|queue| queue * u64::from(QUEUE)) {
            for ring in [AVAILABLE, USED] {
                let address = GuestAddress(base + ring);
                self.ram.write_obj([0u16; 2], address).unwrap();
            }
        }
        self.queues = queues(&self.ram, count);
    }

    fn inflate(&mut self, numbers: &[u32]) {
        let mut driver = Driver::of_queue(&self.ram, INFLATE);
        self.new_queues();
        for (place, number) in (0u64..).zip(numbers) {
            driver.put(DATA + 4 * place, *number);
        }
        let len = u32::try_from(4 * numbers.len()).unwrap();
        driver.request(&[(DATA, len, false)]);
        let used = driver.serve(&mut self.device, &mut self.queues);
        assert_eq!(used, [(0, 0)]);
    }

    fn serve(&mut self, queue: usize) -> Result<bool, QueueError> {
        self.device.serve(Event::Queue(queue), &mut self.queues)
    }

    /// The words of the configuration.
    fn words(&self) -> [u32; 3] {
        let mut bytes = [0; 12];
        self.device.config().read(0, &mut bytes);
        let (words, _) = bytes.as_chunks::<4>();
        [words[0], words[1], words[2]].map(u32::from_le_bytes)
    }
}

#[test]
fn the_guest_is_asked_for_what_is_above_the_target() {
    let bench = bench();
    let asked = u32::try_from((RAM / 2) >> PAGE_SHIFT).unwrap();
    assert_eq!(bench.words(), [asked, 0, 0]);
    bench.device.config().write(0, &[9; 12]);
    let given = u32::from_le_bytes([9; 4]);
    assert_eq!(
        bench.words(),
        [asked, given, 0],
        "the driver writes what it has"
    );
}

#[test]
fn pages_that_the_guest_names_are_given_back() {
    let mut bench = bench();
    let first = u32::try_from(VICTIM >> PAGE_SHIFT).unwrap();
    bench.inflate(&[first + 1, first + 2, first + 5]);
    let kept = [true, false, false, true, true, false, true, true];
    assert_eq!(bench.kept(), kept);
    let read = bench.device.monitor().read();
    let requests = |name: &str| read.operations[name].requests;
    assert_eq!(
        (requests("inflate"), requests("deflate"), requests("report")),
        (1, 0, 0)
    );
}

#[test]
fn r20_pages_beyond_ram_are_no_pages() {
    let mut bench = bench();
    bench.inflate(&[u32::MAX, 0x100, 0xff_ffff, u32::MAX - 1]);
    bench.inflate(&[]);
    assert_eq!(bench.kept(), [true; 8]);
}

/// The queue of reports by the specification, and where Linux has it, whatever else it took.
#[test]
fn reported_ranges_are_given_back_as_far_as_they_are_whole_pages() {
    for (others, by_specification, queue) in [
        (1 << STATS_VQ | 1 << FREE_PAGE_HINT, true, REPORTS),
        (1 << STATS_VQ, true, REPORTS),
        (1 << STATS_VQ, false, 3),
        (1 << FREE_PAGE_HINT, true, REPORTS),
        (1 << FREE_PAGE_HINT, false, 3),
        (0, true, REPORTS),
        (0, false, 2),
    ] {
        let mut bench = bench_with(&config(), others | 1 << REPORTING);
        if !by_specification {
            bench.queues = queues(&bench.ram, queue + 1);
        }
        let mut driver = Driver::of_queue(&bench.ram, queue);
        driver.request(&[
            (VICTIM, 0x2000, true),
            (VICTIM + 0x3100, 0x1000, true),
            (VICTIM + 0x5000, 0x1fff, true),
            (VICTIM + 0x7000, 0, true),
        ]);
        assert_eq!(driver.serve(&mut bench.device, &mut bench.queues), [(0, 0)]);
        let kept = [false, false, true, true, true, false, true, true];
        assert_eq!(bench.kept(), kept, "{others:#x}, queue {queue}");
    }
}

#[test]
fn features_and_queues_are_what_is_configured() {
    let offers = |config: &BalloonConfig| {
        let device = Balloon::new(config, RAM as u64).unwrap();
        (device.features(), device.queue_sizes().len())
    };
    let plain = BalloonConfig::default();
    assert_eq!(offers(&plain), (1 << STATS_VQ, 3));
    assert_eq!(offers(&config()), (ALL | 1 << 2, 5));
    let hinting = BalloonConfig {
        free_page_hinting: true,
        ..plain.clone()
    };
    assert_eq!(offers(&hinting), (0b1010, 4));
    let reporting = BalloonConfig {
        free_page_reporting: true,
        ..plain
    };
    assert_eq!(offers(&reporting), (0b10_0010, 5));
}

/// A queue whose feature the driver has not taken, and one of a driver that was not asked for its features.
#[test]
fn what_comes_by_a_queue_that_is_for_nothing_is_answered_and_ignored() {
    for features in [0, 1 << STATS_VQ] {
        let mut bench = bench_with(&config(), features);
        for queue in [HINTS, REPORTS] {
            bench.new_queues();
            let mut driver = Driver::of_queue(&bench.ram, queue);
            driver.request(&[(VICTIM, 0x8000, true)]);
            let used = driver.serve(&mut bench.device, &mut bench.queues);
            assert_eq!(used, [(0, 0)]);
        }
        assert_eq!(bench.kept(), [true; 8]);
    }
}

/// The number of the last queue tells how a driver counts, and the driver may have taken that one back.
#[test]
fn queues_are_for_the_same_in_a_restored_machine() {
    let features = 1 << FREE_PAGE_HINT | 1 << REPORTING;
    for (by_specification, queue, released) in [(true, REPORTS, false), (false, 3, true)] {
        let mut bench = bench_with(&config(), features);
        bench.queues = queues(&bench.ram, queue + 1);
        bench.serve(INFLATE).unwrap();
        let saved = bench.device.save().unwrap();
        let mut other = bench_with(&config(), features);
        other.device.load(&saved, true).unwrap();
        other.queues = queues(&other.ram, HINTS + 1);
        // To the one it is a hint that nobody asked for, to the other one a report.
        let mut driver = Driver::of_queue(&other.ram, HINTS);
        driver.request(&[(VICTIM, 0x1000, true)]);
        assert_eq!(driver.serve(&mut other.device, &mut other.queues), [(0, 0)]);
        assert_eq!(other.kept()[0], !released, "{by_specification}");
        assert_eq!(other.device.save().unwrap(), saved);
    }
}
