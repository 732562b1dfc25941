//! Many requests at once: their order is free, and each is answered once, whoever takes its queue or stops the device.

use super::*;

#[test]
fn a_full_queue_goes_through_in_one_batch_and_any_order() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        // Descriptors 2n and 2n + 1: header, then data with the status behind it.
        for number in 0..8u16 {
            let header = HEADER_AT + 16 * u64::from(number);
            let data = DATA_AT + 0x400 * u64::from(number);
            bench.driver.put(header, [0u32, 0, number.into(), 0]);
            bench
                .driver
                .descriptor(2 * number, header, 16, NEXT, 2 * number + 1);
            bench.driver.descriptor(2 * number + 1, data, 513, WRITE, 0);
            bench.driver.offer(2 * number);
        }
        let mut used = Vec::new();
        while used.len() < 8 {
            used.extend(bench.driver.serve(&mut bench.disk, &mut bench.queues));
        }
        used.sort_unstable();
        let expected: Vec<_> = (0..8).map(|number| (2 * number, 513)).collect();
        assert_eq!(used, expected);
        for number in 0..8u8 {
            let data = DATA_AT + 0x400 * u64::from(number);
            assert_eq!(bench.driver.get::<u8>(data), number);
            assert_eq!(bench.driver.get::<u8>(data + 512), OK);
        }
    }
}

#[test]
fn r11_a_head_that_is_in_flight_twice_is_answered_twice() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_IN, 5);
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        for _ in 0..5 {
            bench.driver.offer(0);
        }
        let mut used = Vec::new();
        while used.len() < 6 {
            used.extend(bench.driver.serve(&mut bench.disk, &mut bench.queues));
        }
        assert_eq!(used, [(0, 513); 6]);
    }
}

#[test]
fn r12_what_is_in_flight_of_a_queue_that_is_taken_back_is_answered_first() {
    for engine in engines() {
        let mut bench = bench(engine, false);
        bench.header(VIRTIO_BLK_T_IN, 5);
        for _ in 0..3 {
            bench
                .driver
                .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
            bench.disk.pull(0, &mut bench.queues).unwrap();
        }
        bench.disk.quiesce(&mut bench.queues).unwrap();
        assert_eq!(bench.driver.used().len(), 3);
    }
}

#[test]
fn r12_nothing_is_in_flight_when_the_device_has_stopped() {
    if !engines().contains(&BlkEngine::IoUring) {
        return;
    }
    let mut bench = bench(BlkEngine::IoUring, false);
    bench.header(VIRTIO_BLK_T_IN, 5);
    for _ in 0..3 {
        bench
            .driver
            .request(&[(HEADER_AT, 16, false), (DATA_AT, 513, true)]);
        bench.disk.pull(0, &mut bench.queues).unwrap();
    }
    bench.disk.stop();
    let uring = bench.disk.uring.as_mut().unwrap();
    assert!(uring.take_ended(&mut Vectors::default()).is_none());
    assert!(!uring.is_behind());
    assert_eq!(
        bench.driver.used(),
        [],
        "what the driver gave up is not answered"
    );
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, 512, true), (OK, 513));
}
