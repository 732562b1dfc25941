//! Limits, and what is done at a time.

use super::*;

#[test]
fn a_limit_is_shared_by_all_queues() {
    for engine in engines() {
        let mut bench = bench_with(|config| BlkConfig {
            engine,
            queues: 2,
            limits: crate::config::Limits {
                iops: Some(200),
                iops_burst: Some(1),
                ..Default::default()
            },
            ..config
        });
        bench.queues = queues(&bench.driver.ram, 2);
        bench.header(VIRTIO_BLK_T_IN, 5);
        let mut drivers = [0, 1].map(|queue| Driver::of_queue(&bench.driver.ram, queue));
        let buffers = [(HEADER_AT, 16, false), (DATA_AT, 513, true)];
        for driver in &mut drivers {
            driver.request(&buffers);
        }
        let mut answers = [0, 0];
        // The doorbells have rung. One request may take long on a busy host, a hundred of the other
        // queue are half a second.
        let mut more = true;
        while answers[1] < 3 && answers[0] < 100 {
            if !more {
                crate::virtio::testing::wait(&bench.disk);
            }
            more = false;
            for source in 0..bench.disk.sources().len() {
                let event = Event::Source(source);
                more |= bench.disk.serve(event, &mut bench.queues).unwrap();
            }
            // The first never runs dry.
            for (driver, answers) in drivers.iter_mut().zip(&mut answers) {
                for _ in driver.used() {
                    *answers += 1;
                    driver.request(&buffers);
                }
            }
        }
        assert!(answers[1] >= 3, "{engine:?}: {answers:?}");
    }
}

#[test]
fn disks_wait_for_their_files() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(512).unwrap();
    let Opened { file: disk, .. } = Opened::new(&options(file.path(), false)).unwrap();
    let flags = fcntl_getfl(&disk).unwrap();
    assert!(!flags.contains(OFlags::NONBLOCK), "io_uring would not wait");
    assert!(flags.contains(OFlags::RDWR));
}

#[test]
fn a_disk_of_no_queues_has_one() {
    for engine in engines() {
        let mut bench = bench_with(|config| BlkConfig {
            engine,
            queues: 0,
            queue_size: 0,
            ..config
        });
        assert_eq!(bench.disk.queue_sizes(), [2]);
        assert!(bench.disk.uring.as_ref().is_none_or(Uring::has_room));
        assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true), (OK, 513));
    }
}

/// R12, R13: a reset waits for what is in flight, so there is a bound on it, in bytes too.
#[test]
fn r13_few_large_requests_are_begun_at_a_time() {
    const PARTS: u16 = 700;
    const PART: u32 = 512 << 10;
    for engine in engines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 30).unwrap();
        let config = BlkConfig {
            engine,
            ..options(file.path(), false)
        };
        let ram = ram();
        let mut bench = Bench {
            disk: Block::open(&config).unwrap(),
            queues: queues(&ram, 1),
            driver: Driver::new(&ram),
            file,
        };
        bench.header(VIRTIO_BLK_T_IN, 0);
        // Header, 350 MiB in pieces that lie on top of each other, status.
        let table = 0x2_0000;
        bench.driver.descriptor_at(table, 0, HEADER_AT, 16, NEXT, 1);
        for part in 1..=PARTS {
            let flags = NEXT | WRITE;
            bench
                .driver
                .descriptor_at(table, part, 0x8_0000, PART, flags, part + 1);
        }
        bench
            .driver
            .descriptor_at(table, PARTS + 1, STATUS_AT, 1, WRITE, 0);
        let len = 16 * (u32::from(PARTS) + 2);
        for head in [0, 1, 2] {
            bench.driver.descriptor(head, table, len, INDIRECT, 0);
            bench.driver.offer(head);
        }
        let mut more = bench.disk.pull(0, &mut bench.queues).unwrap();
        let begun = match engine {
            BlkEngine::Sync => bench.disk.moved,
            _ => bench.disk.uring.as_ref().unwrap().bytes(),
        };
        assert_eq!(begun, u64::from(PARTS) * u64::from(PART), "one of three");
        let mut answered = 0;
        while answered < 3 {
            if !more {
                if let Some(uring) = &mut bench.disk.uring {
                    uring.submit();
                }
                crate::virtio::testing::wait(&bench.disk);
            }
            let event = Event::Source(0);
            more = bench.disk.serve(event, &mut bench.queues).unwrap();
            answered += bench.driver.used().len();
        }
        assert!(
            bench
                .disk
                .uring
                .as_ref()
                .is_none_or(|uring| uring.bytes() == 0)
        );
    }
}
