//! What a disk counts and tells.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::config::Limits;
use crate::metrics::OperationMetrics;
use crate::virtio::Notice;

/// Requests, bytes and errors of each kind of request that there were.
fn counted(disk: &Block) -> BTreeMap<String, (u64, u64, u64)> {
    let operations = disk.monitor().read().operations.into_iter();
    let numbers = |read: OperationMetrics| (read.requests, read.bytes, read.errors);
    operations
        .map(|(name, read)| (name, numbers(read)))
        .filter(|(_, (requests, ..))| *requests > 0)
        .collect()
}

fn expected<const N: usize>(
    counts: [(&str, u64, u64, u64); N],
) -> BTreeMap<String, (u64, u64, u64)> {
    let all = counts.into_iter();
    all.map(|(name, requests, bytes, errors)| (name.to_owned(), (requests, bytes, errors)))
        .collect()
}

#[test]
fn every_request_is_counted_by_what_it_is_and_how_it_ended() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 1024, true).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 512, true).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, SECTORS, 512, true).0, IOERR);
        assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 7, 512, false).0, OK);
        assert_eq!(
            bench.request(VIRTIO_BLK_T_OUT, u64::MAX, 512, false).0,
            IOERR
        );
        assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, true).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, 20, true).0, OK);
        assert_eq!(bench.request(99, 0, 0, true).0, UNSUPP);
        bench.driver.put(DATA_AT, [8u32, 0, 2, 0]);
        assert_eq!(bench.request(VIRTIO_BLK_T_DISCARD, 0, 16, false).0, OK);
        assert_eq!(bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false).0, OK);
        bench.driver.put(DATA_AT, [8u32, 0, 2, 2]);
        assert_eq!(
            bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, 16, false).0,
            UNSUPP
        );
        // Cut off; without a place for an answer.
        bench.run(&[(HEADER_AT, 15, false), (STATUS_AT, 1, true)]);
        bench.run(&[(HEADER_AT, 16, false)]);
        let counts = [
            ("read", 3, 1536, 1),
            ("write", 2, 512, 1),
            ("flush", 1, 0, 0),
            ("discard", 1, 1024, 0),
            ("zero", 2, 1024, 1),
            ("identify", 1, 0, 0),
            ("other", 3, 0, 3),
        ];
        assert_eq!(counted(&bench.disk), expected(counts), "{engine:?}");
        // Each that was answered has taken its time.
        let read = bench.disk.monitor().read();
        for (name, operation) in &read.operations {
            let requests = operation.latency.as_ref().map(|latency| latency.count);
            let timed = !matches!(&**name, "identify" | "other");
            assert_eq!(requests, timed.then_some(operation.requests), "{name}");
        }
        assert_eq!(
            (read.stalls, read.limiter_waits, read.host_errors),
            (0, 0, 0)
        );
    }
}

#[test]
fn what_a_reset_takes_back_was_never_answered() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        let monitor = bench.disk.monitor();
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 512, true).0, OK);
        bench.disk.stop();
        bench.disk.start(0);
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 512, true).0, OK);
        assert_eq!(counted(&bench.disk), expected([("read", 2, 1024, 0)]));
        assert_eq!(
            monitor.read(),
            bench.disk.monitor().read(),
            "the same for life"
        );
    }
}

#[test]
fn a_request_that_limits_hold_back_is_one_wait_and_is_told_once() {
    for engine in engines() {
        // Each request then costs eight minutes, however slow this machine is.
        let limits = |bw| Limits {
            bw,
            ..Limits::default()
        };
        let mut bench = bench_with(|config| BlkConfig {
            engine,
            limits: limits(Some(1)),
            ..config
        });
        let notices = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&notices);
        let listener = Arc::new(move |notice| ear.lock().unwrap().push(notice));
        bench.disk.monitor().notices().listen(listener);
        for times in 1..3 {
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 3, 512, true).0, OK);
            // Refused, and nothing waits.
            assert_eq!(bench.disk.monitor().read().limiter_waits, times - 1);
            bench.driver.offer(0);
            for _ in 0..5 {
                let event = Event::Queue(0);
                bench.disk.serve(event, &mut bench.queues).unwrap();
            }
            assert_eq!(bench.driver.used(), []);
            bench
                .disk
                .change(&Change::Limits(limits(None)), None)
                .unwrap();
            let used = bench.driver.serve(&mut bench.disk, &mut bench.queues);
            assert_eq!(used, [(0, 513)]);
            let read = bench.disk.monitor().read();
            assert_eq!(read.limiter_waits, times);
            assert!(read.limiter_wait_us < 100_000_000, "{read:?}");
            bench
                .disk
                .change(&Change::Limits(limits(Some(1))), None)
                .unwrap();
        }
        let told: Vec<_> = (1..3).map(|times| Notice::Limited { times }).collect();
        assert_eq!(*notices.lock().unwrap(), told);
    }
}

#[test]
fn a_file_that_fails_is_the_host_s_error_and_told_at_a_pace() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        let notices = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&notices);
        let listener = Arc::new(move |notice| ear.lock().unwrap().push(notice));
        bench.disk.monitor().notices().listen(listener);
        // The driver's own fault.
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, SECTORS, 512, true).0, IOERR);
        assert!(notices.lock().unwrap().is_empty());
        bench.file.as_file().set_len(512).unwrap();
        for _ in 0..100 {
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true).0, IOERR);
        }
        let told = notices.lock().unwrap();
        assert!((8..100).contains(&told.len()), "{}", told.len());
        assert!(matches!(told[0], Notice::HostError { times: 1, .. }));
        assert_eq!(bench.disk.monitor().read().host_errors, 100);
        assert_eq!(counted(&bench.disk), expected([("read", 101, 0, 101)]));
    }
}

#[test]
fn a_disk_without_room_for_what_is_queued_stalls() {
    if !engines().contains(&BlkEngine::IoUring) {
        return;
    }
    let mut bench = bench_with(|config| BlkConfig {
        engine: BlkEngine::IoUring,
        queue_size: 2,
        ..config
    });
    bench.header(VIRTIO_BLK_T_IN, 5);
    bench
        .driver
        .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
    // As many as it has room for, and no more.
    bench.driver.offer(0);
    bench.disk.pull(0, &mut bench.queues).unwrap();
    assert_eq!(bench.disk.monitor().read().stalls, 0);
    bench.driver.offer(0);
    bench.disk.pull(0, &mut bench.queues).unwrap();
    assert_eq!(bench.disk.monitor().read().stalls, 1);
    bench.disk.quiesce(&mut bench.queues).unwrap();
    assert_eq!(counted(&bench.disk), expected([("read", 2, 1024, 0)]));
}
