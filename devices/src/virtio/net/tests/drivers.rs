//! Drivers that have little, take odd features, or come after another one; and hosts that go away.

use super::super::offloads::GUEST_OFFLOADS;
use super::*;
use crate::Threads;
use crate::bus::BusDevice;
use crate::virtio::VirtioMmio;
use crate::virtio::iovec::BATCH;
use std::os::unix::net::UnixDatagram;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4};

/// A device on sockets in place of taps, with the host's ends of them.
pub(super) fn on_sockets(pairs: usize) -> (Net, Vec<UnixDatagram>) {
    let (mut ours, mut hosts) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (device, host) = UnixDatagram::pair().unwrap();
        device.set_nonblocking(true).unwrap();
        ours.push(OwnedFd::from(device));
        hosts.push(host);
    }
    (Net::from_fds(ours, &NetConfig::default()).unwrap(), hosts)
}

/// What a tap hands over: the header, then the frame.
pub(super) fn packet(fill: u8, len: usize) -> Vec<u8> {
    [vec![0; HEADER], frame(fill, len)].concat()
}

/// A device that the largest frames may come to, with the driver of its receive queue.
fn for_the_largest() -> (Net, Vec<UnixDatagram>, Queues, Driver) {
    let (mut device, hosts) = on_sockets(1);
    let ram = ram();
    device.start(1 << VIRTIO_NET_F_MRG_RXBUF);
    device.need = LARGEST;
    let driver = Driver::of_queue(&ram, RECEIVE);
    (device, hosts, queues(&ram, 3), driver)
}

#[test]
fn a_driver_with_few_buffers_gets_the_frames_that_fit() {
    let (mut device, hosts, mut queues, mut driver) = for_the_largest();
    for (len, comes) in [(300, true), (3000, false), (200, true)] {
        hosts[0].send(&packet(7, len)).unwrap();
        if comes {
            driver.request(&[(DATA, 1000, true)]);
            let used = driver.serve(&mut device, &mut queues);
            assert_eq!(used, [(0, u32::try_from(HEADER + len).unwrap())]);
            assert_eq!(driver.get::<u8>(DATA + 12 + 100), 7);
        } else {
            driver.request(&[(DATA, 1000, true)]);
            device.serve(Event::Source(0), &mut queues).unwrap();
            assert_eq!(driver.used(), [], "no part of a frame");
            // The buffer is still there for the next one.
            hosts[0].send(&packet(8, 100)).unwrap();
            let used = driver.serve(&mut device, &mut queues);
            assert_eq!(used, [(0, u32::try_from(HEADER + 100).unwrap())]);
        }
    }
    assert_eq!(device.too_large.again(), Some(2), "one was counted");
}

#[test]
fn scratch_memory_does_not_grow_with_the_driver_s_buffers() {
    let (mut device, hosts, mut queues, mut driver) = for_the_largest();
    // Chains of a thousand tiny buffers each.
    let table = 0x4_0000;
    for index in 0..1000u16 {
        let next = crate::virtio::testing::WRITE | crate::virtio::testing::NEXT;
        let flags = if index == 999 {
            crate::virtio::testing::WRITE
        } else {
            next
        };
        driver.descriptor_at(table, index, DATA + u64::from(index), 1, flags, index + 1);
    }
    for head in 0..16 {
        driver.descriptor(head, table, 16_000, crate::virtio::testing::INDIRECT, 0);
        driver.offer(head);
    }
    hosts[0].send(&packet(7, 1500)).unwrap();
    device.serve(Event::Source(0), &mut queues).unwrap();
    let waiting = &device.pairs[0].waiting;
    assert!(waiting.vectors.as_slice().len() <= 3 * BATCH, "bounded");
    assert!(device.spare.len() <= 1 << 17);
}

#[test]
fn r54_frames_of_the_driver_before_do_not_reach_the_next_one() {
    let (mut device, hosts) = on_sockets(1);
    let ram = ram();
    let mut queues = queues(&ram, 3);
    device.start(0);
    hosts[0].send(&packet(1, 60)).unwrap();
    device.stop();
    device.start(0);
    let mut driver = Driver::of_queue(&ram, RECEIVE);
    driver.request(&[(DATA, 1538, true)]);
    device.serve(Event::Source(0), &mut queues).unwrap();
    assert_eq!(driver.used(), [], "it was the other one's");
    hosts[0].send(&packet(2, 60)).unwrap();
    assert_eq!(driver.serve(&mut device, &mut queues), [(0, 72)]);
    assert_eq!(driver.get::<u8>(DATA + 12 + 30), 2);
}

#[test]
fn r57_control_commands_are_not_taken_for_buffers() {
    let (mut device, hosts) = on_sockets(2);
    let ram = ram();
    let mut queues = queues(&ram, 5);
    // Without several pairs the control queue has the number of the second one's receive queue.
    device.start(0);
    let mut control = Driver::of_queue(&ram, 2);
    control.put(DATA, [4u8, 0, 1, 0]);
    control.request(&[(DATA, 4, false), (DATA + 8, 64, true)]);
    hosts[1].send(&packet(1, 60)).unwrap();
    device.serve(Event::Source(1), &mut queues).unwrap();
    device.serve(Event::Source(2), &mut queues).unwrap();
    close(hosts);
    device.serve(Event::Source(1), &mut queues).unwrap();
    assert_eq!(control.used(), [], "no frame went there");
    assert_eq!(control.serve(&mut device, &mut queues), [(0, 1)]);
    assert_eq!(control.get::<u8>(DATA + 8), 1, "refused: there is one pair");
}

#[test]
fn a_failed_switch_of_a_queue_is_tried_again() {
    // Sockets have nothing to switch.
    let (mut device, _hosts) = on_sockets(2);
    device.start(1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ);
    assert!(device.pairs[1].enabled, "it could not be switched off");
    assert!(device.use_pairs(2), "which is what is wanted now");
    assert!(!device.use_pairs(1));
    assert!(device.pairs[1].enabled);
}

#[test]
fn a_descriptor_at_its_end_is_a_link_that_is_down() {
    let (end, other) = std::os::unix::net::UnixStream::pair().unwrap();
    end.set_nonblocking(true).unwrap();
    let mut device = Net::from_fds(vec![end.into()], &NetConfig::default()).unwrap();
    let ram = ram();
    let mut queues = queues(&ram, 3);
    device.start(0);
    let mut driver = Driver::of_queue(&ram, RECEIVE);
    for _ in 0..4 {
        driver.request(&[(DATA, 1538, true)]);
    }
    close(other);
    let more = device.serve(Event::Source(0), &mut queues).unwrap();
    assert!(!more, "nothing spins");
    assert_eq!(driver.used(), []);
    let mut status = [9; 2];
    device.config().read(6, &mut status);
    assert_eq!(status, [0, 0]);
}

#[test]
fn r53_features_without_those_that_they_need_are_refused() {
    const DRIVER_FEATURES: u64 = 0x20;
    const DRIVER_FEATURES_SEL: u64 = 0x24;
    const STATUS: u64 = 0x70;
    let (device, _hosts) = on_sockets(2);
    let line = || {
        use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap()
    };
    let offered = device.features();
    assert_ne!(offered & 1 << VIRTIO_NET_F_MQ, 0);
    let mmio = VirtioMmio::new(
        Box::new(device),
        ram(),
        line(),
        Box::new(|_, _, _| Ok(())),
        &Threads::default(),
    )
    .unwrap();
    let write = |register, value: u32| {
        let _ = mmio.write(register, &value.to_le_bytes());
    };
    for (features, is_fine) in [
        (1 << VIRTIO_NET_F_MQ, false),
        (1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ, true),
    ] {
        write(STATUS, 0);
        write(STATUS, 1);
        write(STATUS, 3);
        write(DRIVER_FEATURES_SEL, 0);
        write(DRIVER_FEATURES, features);
        write(DRIVER_FEATURES_SEL, 1);
        write(DRIVER_FEATURES, 1);
        write(STATUS, 11);
        let mut status = [0; 4];
        mmio.read(STATUS, &mut status);
        assert_eq!(status[0] == 11, is_fine, "{features:#x}");
    }
}

#[test]
fn every_feature_that_needs_another_one_says_so() {
    let (device, _hosts) = on_sockets(1);
    let needs = |feature: u32| {
        let mut all = device.dependencies().iter();
        all.find(|(found, _)| *found == feature)
            .map(|(_, needs)| *needs)
    };
    for (feature, _) in GUEST_OFFLOADS {
        assert_eq!(needs(feature).is_none(), feature == VIRTIO_NET_F_GUEST_CSUM);
    }
    assert_eq!(
        needs(VIRTIO_NET_F_HOST_TSO4),
        Some(&[VIRTIO_NET_F_CSUM][..])
    );
}
