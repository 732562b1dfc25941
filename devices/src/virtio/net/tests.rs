use std::ffi::CString;
use std::fs;

use super::*;
use std::os::fd::AsRawFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};
use vm_memory::{Bytes, GuestAddress};

use crate::config::Limits;
mod cures;
mod drivers;
mod hooks;

use crate::virtio::GuestRam;
use crate::virtio::testing::{DATA, Driver, close, output, queues, ram, wait};

/// A device on a tap of its own, and the host's end of that: a packet socket.
struct Bench {
    device: Net,
    queues: Queues,
    ram: GuestRam,
    host: File,
    name: String,
}

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A network of the test's own, in which the host says nothing. Says whether there is one.
fn own_network() -> bool {
    // SAFETY: a plain system call, for this thread alone.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if own {
        let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    }
    own
}

/// `None` where the rights to create taps are missing.
fn bench(change: impl FnOnce(&mut NetConfig)) -> Option<Bench> {
    own_network();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("vt{}n{number}", std::process::id() % 1_000_000);
    let mut config = NetConfig {
        tap: Some(name.clone()),
        ..NetConfig::default()
    };
    change(&mut config);
    let device = match Net::open(&config) {
        Ok(device) => device,
        Err(error) => {
            let allowed = std::env::var_os("CI").is_none();
            assert!(allowed, "no tap device: {error}");
            eprintln!("skipped: no tap device: {error}");
            return None;
        }
    };
    let ram = ram();
    Some(Bench {
        queues: queues(&ram, device.queue_sizes().len()),
        host: packet_socket(&name),
        device,
        ram,
        name,
    })
}

/// All frames of a network device, in and out.
fn packet_socket(name: &str) -> File {
    let name = CString::new(name).unwrap();
    // SAFETY: plain system calls; the address is a sockaddr_ll of its size.
    unsafe {
        let protocol = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, libc::c_int::from(protocol));
        assert!(fd >= 0);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET.try_into().unwrap();
        address.sll_protocol = protocol;
        address.sll_ifindex = i32::try_from(libc::if_nametoindex(name.as_ptr())).unwrap();
        let len = u32::try_from(size_of_val(&address)).unwrap();
        assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
        use std::os::fd::FromRawFd;
        File::from(OwnedFd::from_raw_fd(fd))
    }
}

/// An Ethernet type that nothing on the host answers (IEEE 802, local experiments).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];

fn frame(fill: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 0, 1]);
    frame.extend(EXPERIMENT);
    frame.resize(len, fill);
    frame
}

impl Bench {
    fn send(&self, frame: &[u8]) {
        use std::io::Write;
        (&self.host).write_all(frame).unwrap();
    }

    /// The next frame of ours that the host sees.
    fn receive(&self) -> Vec<u8> {
        use std::io::Read;
        loop {
            let mut buffer = vec![0; 1 << 16];
            let len = (&self.host).read(&mut buffer).unwrap();
            buffer.truncate(len);
            if buffer[12..14] == EXPERIMENT {
                return buffer;
            }
        }
    }

    /// Waits for a frame of ours in the ring of the first pair.
    fn wait_used(&mut self, driver: &mut Driver) -> Vec<(u32, u32)> {
        loop {
            let used = driver.used();
            if !used.is_empty() {
                return used;
            }
            wait(&self.device);
            for source in 0..self.device.sources().len() {
                self.device
                    .serve(Event::Source(source), &mut self.queues)
                    .unwrap();
            }
        }
    }
}

#[test]
fn frames_pass_in_both_directions() {
    let Some(mut bench) = bench(|_| {}) else {
        return;
    };
    bench.device.start(0);
    let mut transmit = Driver::of_queue(&bench.ram, TRANSMIT);
    let sent = frame(0xaa, 100);
    for (place, byte) in (0u64..).zip(&sent) {
        bench
            .ram
            .write_obj(*byte, GuestAddress(DATA + 12 + place))
            .unwrap();
    }
    // Header and frame, cut anywhere.
    transmit.request(&[
        (DATA, 5, false),
        (DATA + 5, 20, false),
        (DATA + 25, 87, false),
    ]);
    let used = transmit.serve(&mut bench.device, &mut bench.queues);
    assert_eq!(used, [(0, 0)]);
    assert_eq!(bench.receive(), sent);

    let mut receive = Driver::of_queue(&bench.ram, RECEIVE);
    receive.request(&[(DATA, 12, true), (DATA + 12, 1526, true)]);
    let event = Event::Queue(RECEIVE);
    bench.device.serve(event, &mut bench.queues).unwrap();
    bench.send(&frame(0xbb, 90));
    assert_eq!(bench.wait_used(&mut receive), [(0, 102)]);
    assert_eq!(receive.get::<u8>(DATA + 12 + 89), 0xbb);
    assert_eq!(receive.get::<[u8; 2]>(DATA + 10), [1, 0], "one buffer");
}

#[test]
fn r2_a_full_tap_and_an_empty_ring_go_on_with_whatever_comes_next() {
    let Some(mut bench) = bench(|_| {}) else {
        return;
    };
    bench.device.start(0);
    let serve = |bench: &mut Bench, event| {
        bench.device.serve(event, &mut bench.queues).unwrap();
    };
    // More frames than the tap keeps, and no buffers: nothing is wanted, nothing spins.
    for _ in 0..2000 {
        bench.send(&frame(1, 60));
    }
    serve(&mut bench, Event::Source(0));
    serve(&mut bench, Event::Source(0));
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    // No new frame, no new edge: the buffer alone is enough, again and again.
    for _ in 0..20 {
        driver.request(&[(DATA, 1538, true)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 72)]);
    }
}

#[test]
fn a_frame_fills_several_buffers_and_the_rest_wait_for_the_next() {
    let Some(mut bench) = bench(|_| {}) else {
        return;
    };
    bench.device.start(1 << VIRTIO_NET_F_MRG_RXBUF);
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    for index in 0..16u16 {
        let at = DATA + 0x400 * u64::from(index);
        driver.descriptor(index, at, 200, crate::virtio::testing::WRITE, 0);
        driver.offer(index);
    }
    let event = Event::Queue(RECEIVE);
    bench.device.serve(event, &mut bench.queues).unwrap();
    bench.send(&frame(7, 400));
    let first = bench.wait_used(&mut driver);
    assert_eq!(first, [(0, 200), (1, 200), (2, 12)]);
    assert_eq!(driver.get::<[u8; 2]>(DATA + 10), [3, 0], "three buffers");
    assert_eq!(driver.get::<u8>(DATA + 0x400 + 199), 7);
    bench.send(&frame(8, 60));
    // The next one begins where the first has ended.
    assert_eq!(bench.device.pairs[0].waiting.chains[0].head, 3);
    driver.offer(0);
    let second = driver.serve(&mut bench.device, &mut bench.queues);
    assert_eq!(second, [(3, 72)]);
}

#[test]
fn r22_what_is_no_frame_is_answered_and_dropped() {
    let Some(mut bench) = bench(|_| {}) else {
        return;
    };
    bench.device.start(1 << VIRTIO_NET_F_MRG_RXBUF);
    let mut transmit = Driver::of_queue(&bench.ram, TRANSMIT);
    for len in [0, 1, 11, 12, 20, 0x8_0000] {
        transmit.request(&[(DATA, len, false)]);
        let used = transmit.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 0)], "{len}");
    }
    let mut receive = Driver::of_queue(&bench.ram, RECEIVE);
    for buffers in [&[(DATA, 11, true)][..], &[(DATA, 100, false)]] {
        receive.request(buffers);
        let used = receive.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 0)], "no room for a header");
    }
}

#[test]
fn the_control_queue_sets_the_number_of_pairs() {
    let Some(mut bench) = bench(|config| config.queues = 2) else {
        return;
    };
    assert_ne!(bench.device.features() & 1 << VIRTIO_NET_F_MQ, 0);
    bench.device.start(1 << VIRTIO_NET_F_MQ);
    assert_eq!((bench.device.usable, bench.device.control), (2, 4));
    let mut driver = Driver::of_queue(&bench.ram, 4);
    for (command, answer) in [
        ([4u8, 0, 2, 0], 0u8),
        ([4, 0, 1, 0], 0),
        ([4, 0, 0, 0], 1),
        ([4, 0, 3, 0], 1),
        ([0, 0, 1, 0], 1),
    ] {
        driver.put(DATA, command);
        driver.request(&[(DATA, 2, false), (DATA + 2, 2, false), (DATA + 8, 1, true)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 1)]);
        assert_eq!(driver.get::<u8>(DATA + 8), answer, "{command:?}");
    }
    // After a reset everything is as before, also for a driver that knows one pair only.
    bench.device.stop();
    bench.device.start(0);
    assert_eq!((bench.device.usable, bench.device.control), (1, 2));
    let enabled: Vec<_> = bench.device.pairs.iter().map(|pair| pair.enabled).collect();
    assert_eq!(enabled, [true, false]);
}

#[test]
fn a_tap_that_is_deleted_takes_the_link_down() {
    let Some(mut bench) = bench(|_| {}) else {
        return;
    };
    bench.device.start(0);
    let deleted = output(Command::new("ip").args(["link", "del", &bench.name]));
    if !deleted.is_ok_and(|deleted| deleted.status.success()) {
        eprintln!("skipped: no `ip link del`");
        return;
    }
    let mut receive = Driver::of_queue(&bench.ram, RECEIVE);
    receive.request(&[(DATA, 1538, true)]);
    let event = Event::Queue(RECEIVE);
    bench.device.serve(event, &mut bench.queues).unwrap();
    let mut status = [9; 2];
    bench.device.config().read(6, &mut status);
    assert_eq!(status, [0, 0], "the link is down");
    assert_eq!(
        bench.queues.interrupt_reasons() & 2,
        2,
        "and the guest knows"
    );
    let mut transmit = Driver::of_queue(&bench.ram, TRANSMIT);
    transmit.request(&[(DATA, 100, false)]);
    let used = transmit.serve(&mut bench.device, &mut bench.queues);
    assert_eq!(used, [(0, 0)], "frames are dropped");
}

#[test]
fn a_limit_holds_frames_back_and_the_timer_lets_them_go() {
    let limits = Limits {
        iops: Some(50),
        iops_burst: Some(1),
        ..Limits::default()
    };
    let Some(mut bench) = bench(|config| config.limits = limits) else {
        return;
    };
    bench.device.start(0);
    let mut driver = Driver::of_queue(&bench.ram, TRANSMIT);
    for _ in 0..3 {
        driver.request(&[(DATA, 72, false)]);
        let used = driver.serve(&mut bench.device, &mut bench.queues);
        assert_eq!(used, [(0, 0)]);
    }
    driver.request(&[(DATA, 72, false)]);
    let event = Event::Queue(TRANSMIT);
    bench.device.serve(event, &mut bench.queues).unwrap();
    assert_eq!(driver.used(), []);
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let mut config = NetConfig {
        fd: Some(i32::MAX),
        ..NetConfig::default()
    };
    assert!(matches!(Net::open(&config), Err(NetError::Fd(_))));
    let file = File::open("/dev/null").unwrap();
    config.fd = Some(file.as_raw_fd());
    let error = Net::open(&config).unwrap_err().to_string();
    assert!(error.contains("no tap device"), "{error}");
}

#[test]
fn a_random_address_is_one_of_our_own() {
    let mac = random_mac().unwrap();
    assert_eq!(mac.0[0] & 3, 2);
    assert_ne!(mac, random_mac().unwrap());
}

#[test]
fn packets_larger_than_small_queues_hold_are_refused() {
    let check = |mtu, queue_size| {
        Net::check(&NetConfig {
            mtu,
            queue_size,
            ..NetConfig::default()
        })
    };
    // A usual packet fits any queue, the largest one those that are large.
    for (mtu, queue_size) in [
        (None, 2),
        (Some(1500), 2),
        (Some(9000), 16),
        (Some(65535), 128),
    ] {
        check(mtu, queue_size).unwrap();
    }
    for (mtu, queue_size) in [(1501, 2), (9000, 8), (65535, 64)] {
        let error = check(Some(mtu), queue_size).unwrap_err();
        assert!(matches!(error, NetError::Mtu(..)), "{error}");
        assert!(error.cure().contains("queue-size=128"));
    }
}

#[test]
fn a_tap_leaves_datagrams_uncut_for_both_protocols_or_none() {
    let (v4, v6) = (1 << VIRTIO_NET_F_GUEST_USO4, 1 << VIRTIO_NET_F_GUEST_USO6);
    assert_eq!(negotiate(v4), 0);
    assert_eq!(negotiate(v6), 0);
    let both = offload::USO4 | offload::USO6;
    assert_eq!(negotiate(v4 | v6), both);
}

/// A driver that never gives more chains than half of a ring before it has some back, as Linux: every
/// frame comes, whatever the queue's size.
#[test]
fn r2_half_a_ring_of_usual_buffers_is_enough_for_the_next_frame() {
    let Some(mut bench) = bench(|config| config.queue_size = 16) else {
        return;
    };
    assert_eq!(bench.device.features() & 1 << VIRTIO_NET_F_GUEST_TSO4, 0);
    bench.device.start(1 << VIRTIO_NET_F_MRG_RXBUF);
    let mut driver = Driver::of_queue(&bench.ram, RECEIVE);
    for index in 0..8u16 {
        let at = DATA + 0x600 * u64::from(index);
        driver.descriptor(index, at, 1530, crate::virtio::testing::WRITE, 0);
        driver.offer(index);
    }
    bench.send(&frame(9, 1514));
    assert_eq!(bench.wait_used(&mut driver), [(0, 1526)]);
}
