//! Limits of a disk: what goes beyond them waits, and nothing else does.

use super::*;

#[test]
fn a_limit_delays_requests_and_the_timer_continues_them() {
    for engine in engines() {
        let mut bench = bench_with(|config| BlkConfig {
            engine,
            limits: crate::config::Limits {
                iops: Some(100),
                iops_burst: Some(1),
                ..Default::default()
            },
            ..config
        });
        for _ in 0..3 {
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true), (OK, 513));
        }
    }
}

#[test]
fn what_goes_beyond_a_limit_waits() {
    for engine in engines() {
        let mut bench = bench_with(|config| BlkConfig {
            engine,
            // The first request costs eight minutes, however slow this machine is.
            limits: ONE_BYTE_A_SECOND,
            ..config
        });
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true), (OK, 513));
        bench.header(VIRTIO_BLK_T_IN, 5);
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        bench
            .disk
            .serve(Event::Queue(0), &mut bench.queues)
            .unwrap();
        assert_eq!(bench.driver.used(), [], "its time has not come");
    }
}

#[test]
fn r56_zeroes_that_are_written_count_against_a_limit() {
    // Where they cannot be made.
    let Ok(mut file) = tempfile::NamedTempFile::new_in("/dev/shm") else {
        eprintln!("skipped: no /dev/shm");
        return;
    };
    file.write_all(&[1; 8192]).unwrap();
    for engine in engines() {
        let mut bench = bench_with(|config| BlkConfig {
            path: file.path().to_owned(),
            engine,
            limits: ONE_BYTE_A_SECOND,
            ..config
        });
        bench.driver.put(DATA_AT, [0u32, 0, 8, 0]);
        let zeroes = VIRTIO_BLK_T_WRITE_ZEROES;
        assert_eq!(bench.request(zeroes, 0, 16, false), (OK, 1));
        bench.header(VIRTIO_BLK_T_IN, 5);
        let read = [(HEADER_AT, 16, false), (DATA_AT, 513, true)];
        bench.driver.request(&read);
        let served = bench.disk.serve(Event::Queue(0), &mut bench.queues);
        assert!(!served.unwrap());
        assert_eq!(bench.driver.used(), [], "4096 bytes cost an hour");
    }
}
