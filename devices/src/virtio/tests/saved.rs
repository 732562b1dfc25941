//! Devices that go on behind another transport, over the same guest memory.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::Value;

use super::changes::Disk;
use super::*;
use crate::config::Limits;
use crate::state::{
    BalloonState, HintsState, LimiterState, MmioRegisters, StateError, TransportRegisters,
    VirtioDeviceState, VirtioState,
};
use crate::{Change, TerminalSize};

/// What a file has of a state.
fn reread(state: &VirtioState) -> VirtioState {
    serde_json::from_slice(&serde_json::to_vec(state).unwrap()).unwrap()
}

/// The same with any file.
fn elsewhere(state: &VirtioState) -> VirtioState {
    let mut state = state.clone();
    if let VirtioDeviceState::Block(block) = &mut state.device {
        block.written = None;
        block.name = PathBuf::new();
    }
    state
}

impl Disk {
    /// The driver goes on with another transport.
    fn move_to(&mut self, other: Disk) -> VirtioState {
        self.transport.pause();
        let saved = self.transport.save().unwrap();
        let [ours, theirs] = [&self.driver.ram, &other.driver.ram].map(|ram| {
            let mut all = vec![0; testing::RAM];
            ram.read_slice(&mut all, GuestAddress(0)).unwrap();
            all
        });
        assert_ne!(ours, theirs);
        other
            .driver
            .ram
            .write_slice(&ours, GuestAddress(0))
            .unwrap();
        let saved = reread(&saved);
        other.transport.load(&elsewhere(&saved)).unwrap();
        let again = other.transport.save().unwrap();
        assert_eq!(elsewhere(&again), elsewhere(&saved));
        (self.transport, self.line) = (other.transport, other.line);
        self.driver.ram = other.driver.ram;
        saved
    }

    /// Interrupts may come more often than answers.
    fn is_answered_in_the_end(&mut self) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let used = self.driver.used();
            if !used.is_empty() {
                return assert_eq!(used, [(0, 513)]);
            }
            assert!(Instant::now() < end, "nothing comes");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_disk_goes_on_with_what_was_queued_and_not_begun() {
    for engine in [BlkEngine::Sync, BlkEngine::Auto] {
        let mut disk = Disk::new(engine);
        disk.start();
        for _ in 0..3 {
            disk.request();
            disk.is_answered();
        }
        disk.transport.pause();
        // Its notification is lost with the old machine.
        disk.request();
        let saved = disk.move_to(Disk::new(engine));
        let progress = saved.queues[0].progress.unwrap();
        assert_eq!(
            (progress.available, progress.used, progress.told),
            (3, 3, 3)
        );
        assert_eq!(disk.driver.used(), [], "it is paused");
        disk.transport.resume();
        disk.line.read().unwrap();
        disk.is_answered_in_the_end();
        // The driver hears of everything once more: an interrupt may have been on its way.
        let mut reasons = [0; 4];
        crate::BusDevice::read(&disk.transport, 0x60, &mut reasons);
        assert_eq!(reasons[0], 3);
        disk.request();
        disk.is_answered_in_the_end();
        disk.write(super::changes::STATUS, 0);
        disk.start();
        disk.request();
        disk.is_answered_in_the_end();
    }
}

#[test]
fn limits_forgive_nothing_in_another_machine() {
    let limits = |bw| {
        Change::Limits(Limits {
            bw: Some(bw),
            ..Limits::default()
        })
    };
    let mut disk = Disk::new(BlkEngine::Sync);
    disk.transport.change(&limits(1)).unwrap();
    disk.start();
    disk.request();
    disk.is_answered();
    disk.request();
    let saved = disk.move_to(Disk::new(BlkEngine::Sync));
    let VirtioDeviceState::Block(block) = saved.device else {
        panic!();
    };
    assert!(matches!(block.limits.bytes, Some(-511..=-500)));
    disk.transport.resume();
    disk.transport.pause();
    assert_eq!(disk.driver.used(), [], "its time has not come");
    disk.transport.change(&limits(1 << 20)).unwrap();
    disk.transport.resume();
    disk.is_answered_in_the_end();
}

#[test]
fn a_disk_whose_file_was_written_meanwhile_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 16).unwrap();
    let config = BlkConfig {
        path: file.path().to_owned(),
        read_only: true,
        ..BlkConfig::default()
    };
    let saved = Block::open(&config).unwrap().save().unwrap();
    let mut other = Block::open(&config).unwrap();
    assert_eq!(other.load(&saved, false), Ok(()));
    let at = std::fs::FileTimes::new().set_modified(std::time::SystemTime::UNIX_EPOCH);
    file.as_file().set_times(at).unwrap();
    let refused = other.load(&saved, false).unwrap_err();
    let expected = format!("the file {} has changed since", file.path().display());
    assert!(refused.to_string().contains(&expected), "{refused}");
    let VirtioDeviceState::Block(mut known) = saved else {
        panic!();
    };
    known.written = None;
    let known = VirtioDeviceState::Block(known);
    assert_eq!(other.load(&known, false), Ok(()));
}

/// A device without a driver, as another one that is like it finds it.
fn idle(mut bench: Bench, mut other: Bench, change: Option<&Change>) {
    if let Some(change) = change {
        bench.device.change(change, None).unwrap();
    }
    let saved = bench.device.save().unwrap();
    other.device.load(&saved, false).unwrap();
    assert_eq!(other.device.save().unwrap(), saved);
    let mut config = [[0; 64]; 2];
    bench.device.config().read(0, &mut config[0]);
    other.device.config().read(0, &mut config[1]);
    assert_eq!(config[0], config[1]);
}

#[test]
fn every_device_is_what_it_was_without_a_driver() {
    let down = Change::Link(crate::Link::Down);
    let size = TerminalSize {
        columns: 300,
        rows: 50,
    };
    idle(rng(), rng(), None);
    idle(net().0, net().0, Some(&down));
    idle(console().0, console().0, Some(&Change::Size(size)));
    idle(balloon(), balloon(), Some(&Change::Target(1 << 19)));
    idle(
        balloon(),
        balloon(),
        Some(&Change::Hinting(crate::Hinting::Start)),
    );
    idle(balloon(), balloon(), Some(&Change::StatsInterval(7)));
    let ((one, _one), (other, _other)) = (vsock(), vsock());
    idle(one, other, None);
}

#[test]
fn frames_find_the_buffers_that_waited_for_them() {
    let (mut bench, _host) = net();
    let mut queues = queues(&bench.ram, 3);
    let mut receiver = Driver::of_queue(&bench.ram, 0);
    bench.device.start(0);
    receiver.request(&[(DATA, 2000, true)]);
    bench.device.serve(Event::Queue(0), &mut queues).unwrap();
    assert_eq!(queues.progress(0).unwrap().available, 1, "it waits");
    bench.device.quiesce(&mut queues).unwrap();
    assert_eq!(queues.progress(0).unwrap().available, 0);
    let saved = bench.device.save().unwrap();
    let (mut other, host) = net();
    other.device.start(0);
    other.device.load(&saved, true).unwrap();
    host.send(&[2; 70]).unwrap();
    other.device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), [(0, 70)]);
}

/// R22: what a driver gives without room for a header.
#[test]
fn a_buffer_without_room_comes_back_after_those_that_wait() {
    let (mut bench, host) = net();
    let mut queues = queues(&bench.ram, 3);
    let mut receiver = Driver::of_queue(&bench.ram, 0);
    bench.device.start(0);
    receiver.descriptor(0, DATA, 64, WRITE, 0);
    receiver.descriptor(1, DATA + 0x1000, 4, WRITE, 0);
    receiver.offer(0);
    receiver.offer(1);
    for _ in 0..2 {
        bench.device.serve(Event::Queue(0), &mut queues).unwrap();
        bench.device.quiesce(&mut queues).unwrap();
        assert_eq!(queues.progress(0).unwrap().available, 0);
    }
    host.send(&[2; 60]).unwrap();
    bench.device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(receiver.used(), [(0, 60), (1, 0)]);
}

/// The parts of a value that a file may have otherwise: numbers, words, what is not there, lists.
fn leaves(value: &mut Value) -> Vec<&mut Value> {
    let is_leaf = !(value.is_object() || value.as_array().is_some_and(|list| !list.is_empty()));
    match value {
        _ if is_leaf => vec![value],
        Value::Array(list) => list.iter_mut().flat_map(leaves).collect(),
        Value::Object(map) => map.values_mut().flat_map(leaves).collect(),
        _ => Vec::new(),
    }
}

/// What stands there instead.
fn other() -> impl Strategy<Value = Value> {
    let edges = [
        0,
        1,
        2,
        15,
        16,
        17,
        128,
        255,
        256,
        0xffff,
        0x1_0000,
        0xffff_ffff,
        u64::MAX,
    ];
    prop_oneof![
        4 => proptest::sample::select(edges.to_vec()).prop_map(Value::from),
        2 => any::<u64>().prop_map(Value::from),
        1 => any::<u16>().prop_map(Value::from),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<bool>().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => proptest::collection::vec(any::<u8>(), 0..20).prop_map(Value::from),
    ]
}

/// A device of each kind, and what lasts with it.
fn devices() -> Vec<(Bench, Box<dyn std::any::Any>)> {
    let (net, host) = net();
    let (console, port) = console();
    let (vsock, folder) = vsock();
    vec![
        (disk(BlkEngine::Sync), Box::new(())),
        (net, Box::new(host)),
        (console, Box::new(port)),
        (balloon(), Box::new(())),
        (vsock, Box::new(folder)),
        (rng(), Box::new(())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The state of each device, changed in a few places: it is refused, or the device goes on and ends in order.
    #[test]
    fn r29_whatever_a_state_says_a_device_lives_or_refuses(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), other()), 1..4),
    ) {
        for ((bench, _one), (like_it, _other)) in devices().into_iter().zip(devices()) {
            let mut disk = Disk::behind(bench.device, bench.ram);
            disk.start();
            disk.transport.pause();
            let state = elsewhere(&disk.transport.save().unwrap());
            let mut value = serde_json::to_value(&state).unwrap();
            for (place, other) in &changes {
                let mut leaves = leaves(&mut value);
                let place = place.index(leaves.len());
                *leaves[place] = other.clone();
            }
            let Ok(state) = serde_json::from_value::<VirtioState>(value) else {
                continue;
            };
            let mut other = Disk::behind(like_it.device, like_it.ram);
            if other.transport.load(&state).is_err() {
                continue;
            }
            other.transport.resume();
            other.write(0x50, 0);
            other.transport.pause();
            // A balloon's buffer may be one that there is not.
            if other.transport.state() != DeviceState::Lost {
                other.transport.save().unwrap();
            }
            other.write(super::changes::STATUS, 0);
            prop_assert_eq!(other.transport.state(), DeviceState::Idle);
            other.start();
        }
    }
}

/// What a console has printed, which makes room.
fn taken(output: &OutputRing) -> Vec<u8> {
    let mut bytes = [0; 16];
    let (len, position) = output.peek(&mut bytes);
    output.consume(position + len as u64);
    bytes[..len].to_vec()
}

#[test]
fn a_console_prints_the_rest_and_hands_out_what_was_typed() {
    let make = || {
        let output = OutputRing::new(4, event());
        let device = VirtioConsole::new(output.clone(), Overflow::Wait, event()).unwrap();
        (device, output)
    };
    let ram = ram();
    let mut queues = queues(&ram, 2);
    let ((mut one, first), (mut other, second)) = (make(), make());
    one.port().receive(b"typed");
    let mut sender = Driver::of_queue(&ram, 1);
    ram.write_slice(b"unprinted", GuestAddress(DATA)).unwrap();
    sender.request(&[(DATA, 9, false)]);
    one.serve(Event::Queue(1), &mut queues).unwrap();
    assert_eq!(sender.used(), [], "there is no room");
    one.quiesce(&mut queues).unwrap();
    let saved = one.save().unwrap();
    assert_eq!(
        other.load(&saved, false),
        Err(StateError::Range("unprinted"))
    );
    other.load(&saved, true).unwrap();
    assert_eq!(other.save().unwrap(), saved);
    let mut printed = taken(&first);
    while sender.used().is_empty() {
        other.serve(Event::Source(1), &mut queues).unwrap();
        printed.extend(taken(&second));
    }
    printed.extend(taken(&second));
    assert_eq!(printed, b"unprinted");
    let mut receiver = Driver::of_queue(&ram, 0);
    receiver.request(&[(DATA, 9, true)]);
    assert_eq!(receiver.serve(&mut other, &mut queues), [(0, 5)]);
    assert_eq!(receiver.get::<[u8; 5]>(DATA), *b"typed");
}

#[test]
fn r47_a_driver_learns_that_its_streams_are_gone() {
    let (mut bench, _folder) = vsock();
    let mut queues = queues(&bench.ram, 3);
    let mut events = Driver::of_queue(&bench.ram, 2);
    bench.device.start(0);
    let saved = bench.device.save().unwrap();
    bench.device.load(&saved, true).unwrap();
    bench.device.serve(Event::Queue(2), &mut queues).unwrap();
    events.put(DATA, [0xffff_ffff_u32; 2]);
    events.request(&[(DATA, 8, true)]);
    assert_eq!(events.serve(&mut *bench.device, &mut queues), [(0, 4)]);
    assert_eq!(events.get::<[u32; 2]>(DATA), [0, 0xffff_ffff]);
    events.request(&[(DATA, 8, true)]);
    bench.device.serve(Event::Queue(2), &mut queues).unwrap();
    assert_eq!(events.used(), [], "once");
}

#[test]
fn r29_a_state_that_no_driver_can_have_made_is_refused() {
    let mut disk = Disk::new(BlkEngine::Sync);
    disk.start();
    disk.transport.pause();
    let good = elsewhere(&disk.transport.save().unwrap());
    let refused = |change: &dyn Fn(&mut VirtioState)| {
        let mut state = good.clone();
        change(&mut state);
        let other = Disk::new(BlkEngine::Sync);
        other.transport.load(&state).unwrap_err()
    };
    let range = StateError::Range;
    type Wrong = (&'static str, fn(&mut VirtioState));
    let wrong: [Wrong; 8] = [
        ("status", |state| state.status = 0x1f),
        ("status", |state| state.status = 3),
        ("features", |state| state.features = 0),
        ("queues", |state| state.queues.clear()),
        ("queues", |state| state.queues[0].size = 3),
        ("queues", |state| state.queues[0].descriptors = 1),
        ("queues", |state| state.queues[0].device = 1 << 60),
        ("queues", |state| state.queues[0].progress = None),
    ];
    for (field, change) in wrong {
        assert_eq!(refused(&change), range(field));
    }
    let strange = refused(&|state| state.features |= 1 << 50);
    assert_eq!(strange, StateError::Features(1 << 50));
    let foreign = |state: &mut VirtioState| state.device = VirtioDeviceState::Stateless {};
    assert_eq!(refused(&foreign), StateError::Foreign);
    let registers = |state: &mut VirtioState| {
        state.registers = TransportRegisters::Mmio(MmioRegisters::default());
        state.device = VirtioDeviceState::Block(crate::state::BlockState {
            sectors: 1,
            block: 512,
            name: "a".into(),
            written: None,
            limits: LimiterState::default(),
        });
    };
    assert!(matches!(refused(&registers), StateError::Size { .. }));
    let rate = |state: &mut VirtioState| {
        if let VirtioDeviceState::Block(block) = &mut state.device {
            block.limits.bytes = Some(1);
        }
    };
    assert_eq!(refused(&rate), range("limits"));
    let mut bench = balloon();
    let state = VirtioDeviceState::Balloon(BalloonState {
        asked: 0,
        given: 0,
        stats_interval: 0,
        by_specification: None,
        statistics_buffer: Some(128),
        hints: HintsState::default(),
    });
    let refused = bench.device.load(&state, true);
    assert_eq!(refused, Err(range("statistics_buffer")));
}
