use std::sync::mpsc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::virtio::testing::{DATA, Driver, FEATURE, NEXT, SIZE, Sink, ram, refuse};

/// Every status bit up to and including this one.
const UP_TO_DRIVER: u32 = 3;
const UP_TO_FEATURES: u32 = 11;
const UP_TO_RUNNING: u32 = 15;

struct Bench {
    device: VirtioMmio,
    driver: Driver,
    line: EventFd,
    connected: mpsc::Receiver<(u16, bool)>,
}

fn bench() -> Bench {
    let ram = ram();
    let line = EventFd::new(0).unwrap();
    let (sender, connected) = mpsc::channel();
    let connect: Connect =
        Box::new(move |queue, _, on| sender.send((queue, on)).map_err(io::Error::other));
    let guest_line = line.try_clone().unwrap();
    let device = VirtioMmio::new(
        Box::new(Sink::default()),
        ram.clone(),
        guest_line,
        connect,
        &Threads::default(),
    );
    Bench {
        device: device.unwrap(),
        driver: Driver::new(&ram),
        line,
        connected,
    }
}

impl Bench {
    fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, register: u64, value: u32) {
        let _ = self.device.write(register, &value.to_le_bytes());
    }

    fn negotiate(&self) {
        self.write(STATUS, 1);
        self.write(STATUS, UP_TO_DRIVER);
        // VERSION_1, in the second half.
        self.write(DRIVER_FEATURES_SEL, 1);
        self.write(DRIVER_FEATURES, 1);
        self.write(STATUS, UP_TO_FEATURES);
        assert_eq!(self.read(STATUS), UP_TO_FEATURES);
    }

    fn set_up(&self, used: u32) {
        self.write(QUEUE_SEL, 0);
        self.write(QUEUE_SIZE, SIZE.into());
        for (register, value) in [
            (QUEUE_DESC_LOW, 0x1000),
            (QUEUE_DRIVER_LOW, 0x2000),
            (QUEUE_DEVICE_LOW, used),
            (QUEUE_DESC_HIGH, 0),
            (QUEUE_READY, 1),
        ] {
            self.write(register, value);
        }
        assert_eq!(self.read(QUEUE_READY), 1);
    }

    fn start(&mut self) {
        self.negotiate();
        self.set_up(0x3000);
        // After a reset the driver starts with empty rings.
        self.driver.put(0x2000, [0u16; 2]);
        self.driver.put(0x3000, [0u16; 2]);
        self.driver = Driver::new(&self.driver.ram);
        self.write(STATUS, UP_TO_RUNNING);
        assert_eq!(self.read(STATUS), UP_TO_RUNNING);
    }

    /// Sends a request through the register and waits for the interrupt.
    fn works(&mut self) {
        self.driver.request(&[(DATA, 5, false), (DATA, 7, true)]);
        self.write(QUEUE_NOTIFY, 0);
        self.line.read().unwrap();
        assert_eq!(self.read(INTERRUPT_STATUS), 1);
        self.write(INTERRUPT_ACK, 1);
        assert_eq!(self.read(INTERRUPT_STATUS), 0);
        assert_eq!(self.driver.used(), [(0, 7)]);
    }
}

#[test]
fn a_driver_recognises_the_device_and_uses_it() {
    let mut bench = bench();
    assert_eq!(bench.read(MAGIC), 0x7472_6976);
    assert_eq!((bench.read(VERSION), bench.read(DEVICE_ID)), (2, 42));
    assert_eq!(
        bench.read(DEVICE_FEATURES),
        u32::try_from(FEATURE | 1 << 28 | 1 << 29).unwrap()
    );
    bench.write(DEVICE_FEATURES_SEL, 1);
    assert_eq!(bench.read(DEVICE_FEATURES), 1);
    bench.write(DEVICE_FEATURES_SEL, 2);
    assert_eq!(bench.read(DEVICE_FEATURES), 0);
    bench.start();
    assert_eq!(
        bench.connected.recv().unwrap(),
        (0, true),
        "only the queue that is set up"
    );
    bench.works();
    bench.works();
}

#[test]
fn r37_packed_queues_are_not_offered_nor_accepted() {
    let bench = bench();
    bench.write(DEVICE_FEATURES_SEL, 1);
    // VIRTIO_F_RING_PACKED is bit 34.
    assert_eq!(bench.read(DEVICE_FEATURES) & 1 << 2, 0);
    bench.write(STATUS, UP_TO_DRIVER);
    bench.write(DRIVER_FEATURES_SEL, 1);
    bench.write(DRIVER_FEATURES, 1 | 1 << 2);
    bench.write(STATUS, UP_TO_FEATURES);
    assert_eq!(bench.read(STATUS), UP_TO_DRIVER);
}

#[test]
fn features_that_were_not_offered_do_not_stick() {
    for (low, high) in [(1, 1), (0, 0), (0, 3)] {
        let bench = bench();
        bench.write(STATUS, UP_TO_DRIVER);
        bench.write(DRIVER_FEATURES, low);
        bench.write(DRIVER_FEATURES_SEL, 1);
        bench.write(DRIVER_FEATURES, high);
        bench.write(STATUS, UP_TO_FEATURES);
        assert_eq!(bench.read(STATUS), UP_TO_DRIVER, "{low} {high}");
    }
}

#[test]
fn r24_steps_are_taken_in_order_and_never_back() {
    let mut bench = bench();
    bench.write(STATUS, UP_TO_RUNNING & !1);
    assert_eq!(bench.read(STATUS), 0, "without ACKNOWLEDGE");
    bench.start();
    for value in [1, UP_TO_DRIVER, UP_TO_FEATURES] {
        bench.write(STATUS, value);
        assert_eq!(bench.read(STATUS), UP_TO_RUNNING);
    }
    bench.works();
}

#[test]
fn r7_queues_are_frozen_while_the_device_runs() {
    let mut bench = bench();
    bench.start();
    for (register, value) in [
        (QUEUE_READY, 1),
        (QUEUE_READY, 2),
        (QUEUE_SIZE, 2),
        (QUEUE_DESC_LOW, 0xdead_0000),
    ] {
        bench.write(register, value);
    }
    bench.write(DRIVER_FEATURES, u32::MAX);
    assert_eq!(bench.read(QUEUE_READY), 1);
    bench.works();
}

#[test]
fn a_queue_that_the_driver_takes_back_is_not_served_until_the_next_reset() {
    let mut bench = bench();
    bench.start();
    bench.works();
    bench.write(QUEUE_READY, 0);
    assert_eq!(bench.read(QUEUE_READY), 0);
    let used: u16 = bench.driver.get(0x3002);
    bench.write(QUEUE_READY, 1);
    bench.driver.request(&[(DATA, 1, true)]);
    bench.write(QUEUE_NOTIFY, 0);
    assert_eq!(bench.read(QUEUE_READY), 0);
    bench.write(STATUS, 0);
    assert_eq!(bench.driver.get::<u16>(0x3002), used);
    assert_eq!(
        bench.connected.try_iter().collect::<Vec<_>>(),
        [(0, true), (0, false)]
    );
    bench.start();
    bench.works();
}

#[test]
fn r10_queues_that_there_are_not_do_nothing() {
    let mut bench = bench();
    bench.negotiate();
    bench.write(QUEUE_SEL, 2);
    assert_eq!(
        (bench.read(QUEUE_SIZE_MAX), bench.read(QUEUE_READY)),
        (0, 0)
    );
    bench.write(QUEUE_READY, 1);
    bench.write(QUEUE_SEL, u32::MAX);
    bench.write(QUEUE_SIZE, 8);
    bench.write(STATUS, 0);
    bench.start();
    bench.write(QUEUE_NOTIFY, 1);
    bench.write(QUEUE_NOTIFY, u32::MAX);
    bench.works();
}

#[test]
fn r23_a_ring_beyond_ram_needs_a_reset() {
    let mut bench = bench();
    bench.negotiate();
    bench.set_up(0x7fff_0000);
    bench.write(STATUS, UP_TO_RUNNING);
    assert_ne!(bench.read(STATUS) & 64, 0);
    assert_eq!(bench.read(INTERRUPT_STATUS), 2);
    bench.line.read().unwrap();
    bench.write(STATUS, 0);
    assert_eq!(bench.read(STATUS), 0);
    bench.start();
    bench.works();
}

#[test]
fn r19_a_broken_chain_stops_this_device_until_its_reset() {
    let mut bench = bench();
    bench.start();
    bench.driver.descriptor(0, DATA, 1, NEXT, 0);
    bench.driver.offer(0);
    bench.write(QUEUE_NOTIFY, 0);
    bench.line.read().unwrap();
    assert_ne!(bench.read(STATUS) & 64, 0);
    assert_eq!(bench.read(INTERRUPT_STATUS), 2);
    bench.write(QUEUE_NOTIFY, 0);
    bench.write(STATUS, 0);
    assert_eq!((bench.read(STATUS), bench.read(INTERRUPT_STATUS)), (0, 0));
    bench.start();
    bench.works();
}

#[test]
fn r12_a_reset_returns_when_nothing_touches_memory_any_more() {
    let mut bench = bench();
    for _ in 0..20 {
        bench.start();
        for _ in 0..SIZE {
            bench.driver.request(&[(DATA, 1, true)]);
        }
        bench.write(QUEUE_NOTIFY, 0);
        bench.write(STATUS, 0);
        let used: u16 = bench.driver.get(0x3002);
        std::thread::yield_now();
        assert_eq!(bench.driver.get::<u16>(0x3002), used);
        assert_eq!(
            bench.connected.try_iter().collect::<Vec<_>>(),
            [(0, true), (0, false)]
        );
    }
}

#[test]
fn r13_a_queue_that_is_always_fed_does_not_delay_a_reset() {
    let mut bench = bench();
    bench.start();
    let (stop, stopped) = mpsc::channel::<()>();
    let mut driver = bench.driver.clone();
    let feeder = std::thread::spawn(move || {
        while stopped.recv_timeout(Duration::from_micros(1)).is_err() {
            driver.request(&[(DATA, 1, true)]);
        }
    });
    bench.write(QUEUE_NOTIFY, 0);
    bench.write(STATUS, 0);
    assert_eq!(bench.read(STATUS), 0);
    stop.send(()).unwrap();
    feeder.join().unwrap();
}

#[test]
fn r24_the_configuration_is_read_in_any_way_inside_its_window() {
    let bench = bench();
    let mut data = [0xff; 8];
    bench.device.read(CONFIG + 2, &mut data);
    assert_eq!(&data, b"nfig\0\0\0\0");
    for offset in [CONFIG + 100, u64::MAX - 8] {
        bench.device.read(offset, &mut data);
        assert_eq!(data, [0; 8]);
        let _ = bench.device.write(offset, &data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn r25_any_access_is_legal_and_a_reset_heals(
        accesses in prop::collection::vec(
            (0u64..0x200, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..100),
    ) {
        let mut bench = bench();
        for (offset, mut data, write) in accesses {
            if write {
                let _ = bench.device.write(offset, &data);
            } else {
                bench.device.read(offset, &mut data);
            }
        }
        bench.write(STATUS, 0);
        prop_assert_eq!(bench.read(STATUS), 0);
        while bench.connected.try_recv().is_ok() {}
        // An interrupt may be left over.
        bench.line.write(1).unwrap();
        bench.line.read().unwrap();
        bench.write(DRIVER_FEATURES_SEL, 0);
        bench.start();
        bench.works();
    }
}

/// R72: the host has no more threads.
#[test]
fn r72_a_device_whose_thread_cannot_start_is_refused_and_a_driver_starts_none() {
    let bench = bench();
    let short_of_threads = move || {
        refuse(&REFUSED, libc::EAGAIN);
        let line = EventFd::new(vmm_sys_util::eventfd::EFD_CLOEXEC).unwrap();
        let none = VirtioMmio::new(
            Box::<Sink>::default(),
            ram(),
            line,
            Box::new(|_, _, _| Ok(())),
            &Threads::default(),
        );
        assert_eq!(none.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        // What is there has its thread, however often drivers come: no vCPU starts one.
        let mut bench = bench;
        for _ in 0..3 {
            bench.start();
            bench.works();
            bench.write(STATUS, 0);
            while bench.connected.try_recv().is_ok() {}
        }
    };
    std::thread::spawn(short_of_threads).join().unwrap();
}

/// What makes threads, on every architecture; the older call is not everywhere.
const REFUSED: [libc::c_long; 2] = [libc::SYS_clone3, libc::SYS_clone];

#[derive(Debug)]
struct Wide;

impl VirtioDevice for Wide {
    fn id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE; 33]
    }

    fn name(&self) -> &'static str {
        "wide"
    }

    fn config(&self) -> std::sync::Arc<crate::virtio::ConfigSpace> {
        std::sync::Arc::default()
    }

    fn serve(
        &mut self,
        _: crate::virtio::Event,
        _: &mut crate::virtio::Queues,
    ) -> Result<bool, crate::virtio::QueueError> {
        Ok(false)
    }
}

#[test]
fn a_device_with_more_queues_than_events_is_refused() {
    let line = EventFd::new(0).unwrap();
    let device = VirtioMmio::new(
        Box::new(Wide),
        ram(),
        line,
        Box::new(|_, _, _| Ok(())),
        &Threads::default(),
    );
    let error = device.err().unwrap().to_string();
    assert!(error.contains("wide has 33 queues"), "{error}");
}
