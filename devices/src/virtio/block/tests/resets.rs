//! Resets and the end of a VM, whatever is queued or in flight.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::*;

#[test]
fn r50_resets_with_requests_in_flight_leave_nothing_behind() {
    if !engines().contains(&BlkEngine::IoUring) {
        return;
    }
    let mut bench = bench(BlkEngine::IoUring, false);
    for _ in 0..3 {
        bench.header(VIRTIO_BLK_T_IN, 0);
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        bench.disk.pull(0, &mut bench.queues).unwrap();
        let uring = bench.disk.uring.as_ref().unwrap();
        assert_eq!(uring.bytes(), 512);
        bench.disk.stop();
        let uring = bench.disk.uring.as_ref().unwrap();
        assert_eq!(uring.bytes(), 0, "the count is the ring's own");
        assert!(uring.has_room());
    }
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true), (OK, 513));
}

#[test]
fn what_is_in_flight_keeps_guest_memory() {
    if !engines().contains(&BlkEngine::IoUring) {
        return;
    }
    let Bench {
        mut disk,
        mut queues,
        driver,
        ..
    } = {
        let mut bench = bench(BlkEngine::IoUring, false);
        bench.header(VIRTIO_BLK_T_IN, 5);
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        bench
    };
    disk.pull(0, &mut queues).unwrap();
    // An embedder may drop things in any order.
    drop((queues, driver));
    let (_, result) = loop {
        let uring = disk.uring.as_mut().unwrap();
        match uring.take_ended(&mut Vectors::default()) {
            Some(ended) => break ended,
            None => uring.wait(),
        }
    };
    assert_eq!(result.unwrap(), 512);
}

#[test]
fn r51_after_the_stop_no_further_request_begins() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.disk.start(0);
        bench.header(VIRTIO_BLK_T_OUT, 3);
        bench.driver.request(&[
            (HEADER_AT, 16, false),
            (DATA_AT, 512, false),
            (STATUS_AT, 1, true),
        ]);
        for _ in 1..8 {
            bench.driver.offer(0);
        }
        let stopping = bench.queues.stopping();
        bench
            .disk
            .on_first_request(move || stopping.store(true, Ordering::SeqCst));
        bench
            .disk
            .serve(Event::Queue(0), &mut bench.queues)
            .unwrap();
        bench
            .disk
            .serve(Event::Source(0), &mut bench.queues)
            .unwrap();
        bench.disk.stop();
        assert!(bench.driver.used().len() <= 1, "{engine:?}");
        let begun = bench
            .driver
            .get::<u16>(crate::virtio::testing::AVAILABLE + 2);
        assert_eq!(begun, 8, "eight were there");
    }
}

#[test]
fn r51_of_a_request_with_many_ranges_none_begins_after_the_stop() {
    let mut bench = bench(BlkEngine::Sync, false);
    for range in 0..4u32 {
        bench
            .driver
            .put(DATA_AT + 16 * u64::from(range), [range, 0, 1, 0]);
    }
    let before = bench.content();
    let stopping = bench.queues.stopping();
    bench
        .disk
        .on_first_request(move || stopping.store(true, Ordering::SeqCst));
    assert_eq!(
        bench.request(VIRTIO_BLK_T_DISCARD, 0, 64, false),
        (IOERR, 1)
    );
    assert_eq!(bench.content(), before);
}

#[test]
fn r51_a_turn_has_a_bound_in_work_that_moves_no_data() {
    for (kind, len) in [(VIRTIO_BLK_T_FLUSH, 0), (VIRTIO_BLK_T_DISCARD, 16)] {
        let mut bench = bench(BlkEngine::Sync, false);
        bench.disk.start(0);
        bench.driver.put(DATA_AT, [0u32, 0, 1, 0]);
        bench.header(kind, 0);
        bench.driver.request(&[
            (HEADER_AT, 16, false),
            (DATA_AT, len, false),
            (STATUS_AT, 1, true),
        ]);
        for _ in 1..16 {
            bench.driver.offer(0);
        }
        assert!(
            bench.disk.pull(0, &mut bench.queues).unwrap(),
            "more is there"
        );
        bench.queues.publish().unwrap();
        let done = bench.driver.used().len();
        assert!((1..12).contains(&done), "{done} in one turn");
    }
}

/// R61: io_uring lets go of registered files some time after the ring's end only. A thread of the kernel that has
/// answered a request lets go of its file a moment later, which may be too late now and then.
#[test]
fn r61_the_file_system_of_a_disk_can_be_unmounted_at_once_when_the_disk_is_gone() {
    const ROUNDS: usize = 10;
    for engine in engines() {
        let mut at_once = 0;
        for _ in 0..ROUNDS {
            let Some(mount) = crate::virtio::testing::Mount::new("size=1m") else {
                assert!(std::env::var_os("CI").is_none(), "no mounts");
                eprintln!("skipped: this user may not mount");
                return;
            };
            let path = mount.0.path().join("image");
            std::fs::write(&path, [7; 4096]).unwrap();
            let config = BlkConfig {
                engine,
                ..options(&path, false)
            };
            let ram = ram();
            let mut bench = Bench {
                disk: Block::open(&config).unwrap(),
                queues: queues(&ram, 1),
                driver: Driver::new(&ram),
                file: tempfile::NamedTempFile::new().unwrap(),
            };
            assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 3, 512, false), (OK, 1));
            // And one in flight.
            bench.header(VIRTIO_BLK_T_IN, 0);
            bench
                .driver
                .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
            bench.disk.pull(0, &mut bench.queues).unwrap();
            close(bench);
            if mount.unmount() {
                at_once += 1;
                continue;
            }
            let start = Instant::now();
            while !mount.unmount() {
                assert!(
                    start.elapsed() < Duration::from_secs(10),
                    "{engine:?}: busy"
                );
                thread::sleep(Duration::from_millis(1));
            }
        }
        assert!(at_once >= ROUNDS - 3, "{engine:?}: {at_once} of {ROUNDS}");
    }
}
