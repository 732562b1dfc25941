//! Who speaks, comes or goes at a bad time: before the device has looked, or while the guest has no
//! room.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::virtio::testing::{AVAILABLE, QUEUE, USED};

impl Guest {
    /// Takes all buffers away and offers none again but by `offer_one`.
    fn hold_back(&mut self) {
        for base in [RECEIVE, TRANSMIT].map(|queue| queue as u64 * u64::from(QUEUE)) {
            for ring in [AVAILABLE, USED] {
                let index = GuestAddress(base + ring + 2);
                self.ram.write_obj(0u16, index).unwrap();
            }
        }
        self.queues = queues(&self.ram, 3);
        self.receive = Driver::of_queue(&self.ram, RECEIVE);
        self.transmit = Driver::of_queue(&self.ram, TRANSMIT);
        self.held = true;
    }

    /// Offers one buffer; gives what came in it.
    fn offer_one(&mut self) -> (Header, Vec<u8>) {
        self.receive.offer(0);
        self.serve(Event::Queue(RECEIVE));
        self.collect();
        let packet = self.got.pop_front().unwrap();
        assert!(self.got.is_empty());
        packet
    }
}

#[test]
fn the_answer_to_a_request_comes_before_the_first_byte() {
    let mut guest = guest();
    let path = format!("{}_{PORT}", guest.path().display());
    let listener = UnixListener::bind(path).unwrap();
    let request = guest.header(PORT, OWN, op::REQUEST, 0);
    guest
        .ram
        .write_slice(&request.bytes(), GuestAddress(OUT))
        .unwrap();
    guest.transmit.request(&[(OUT, 44, false)]);
    // The program of the host speaks before the device has looked at it.
    guest.device.transmit(&mut guest.queues).unwrap();
    let mut server = listener.accept().unwrap().0;
    server.write_all(b"banner").unwrap();
    guest.device.look(&mut guest.queues).unwrap();
    guest.serve(Event::Source(0));
    assert_eq!(guest.next_op(), op::RESPONSE);
    assert_eq!(guest.next().1, b"banner");
}

#[test]
fn streams_take_turns_when_the_guest_has_little_room() {
    let mut guest = guest();
    let path = format!("{}_{PORT}", guest.path().display());
    let listener = UnixListener::bind(path).unwrap();
    let mut servers: Vec<_> = (0..3)
        .map(|own| {
            guest.send(PORT, own, op::REQUEST, &[]);
            assert_eq!(guest.next_op(), op::RESPONSE);
            listener.accept().unwrap().0
        })
        .collect();
    // All buffers away; then one at a time, far too few for what there is.
    guest.hold_back();
    for server in &mut servers {
        server.write_all(&[1; 100_000]).unwrap();
    }
    let mut turns = [0; 3];
    for _ in 0..30 {
        let (header, _) = guest.offer_one();
        turns[header.dst_port as usize] += 1;
    }
    assert_eq!(turns, [10; 3]);
}

#[test]
fn a_burst_of_clients_that_say_where_to_loses_none() {
    let mut guest = guest();
    let mut clients: Vec<_> = (0..3 * MAX_CLIENTS)
        .map(|_| {
            let mut client = UnixStream::connect(guest.path()).unwrap();
            client.write_all(b"CONNECT 7\n").unwrap();
            client
        })
        .collect();
    for _ in 0..clients.len() {
        let (request, _) = guest.next();
        assert_eq!(request.op, op::REQUEST);
        guest.send(request.src_port, 7, op::RESPONSE, &[]);
    }
    for client in &mut clients {
        assert_eq!(read(client, 3), b"OK ");
    }
}

#[test]
fn a_client_that_goes_before_the_guest_answers_is_forgotten() {
    let mut guest = guest();
    // The guest has been asked.
    let mut client = UnixStream::connect(guest.path()).unwrap();
    client.write_all(b"CONNECT 7\n").unwrap();
    assert_eq!(guest.next_op(), op::REQUEST);
    close(client);
    assert_eq!(guest.next_op(), op::RST);
    assert!(guest.device.streams.is_empty());
    // It has not: it has no room.
    guest.hold_back();
    for _ in 0..10 {
        let mut client = UnixStream::connect(guest.path()).unwrap();
        client.write_all(b"CONNECT 7\n").unwrap();
        // The client, then its line.
        guest.serve(Event::Source(0));
        guest.serve(Event::Source(0));
        assert_eq!(guest.device.streams.len(), 1);
        close(client);
        guest.serve(Event::Source(0));
        assert!(guest.device.streams.is_empty() && guest.device.resets.is_empty());
    }
}

#[test]
fn a_host_that_goes_after_its_half_is_noticed() {
    let mut guest = guest();
    let server = guest.connect_from_guest();
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.next().0.flags, NO_SEND);
    close(server);
    let (end, _) = guest.next();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_RECEIVE | NO_SEND));
    // The same where the guest receives no more.
    let mut guest = self::guest();
    let server = guest.connect_from_guest();
    guest.shut_down(PORT, OWN, NO_RECEIVE);
    close(server);
    let (end, _) = guest.next();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_RECEIVE | NO_SEND));
    assert!(guest.is_quiet());
}

#[test]
fn the_end_of_every_stream_reaches_a_guest_that_has_no_room_at_first() {
    let mut guest = guest();
    let many = MAX_RESETS + 50;
    let clients: Vec<_> = (0..many)
        .map(|_| {
            let mut client = UnixStream::connect(guest.path()).unwrap();
            client.write_all(b"CONNECT 7\n").unwrap();
            assert_eq!(guest.next_op(), op::REQUEST);
            client
        })
        .collect();
    guest.hold_back();
    close(clients);
    guest.serve(Event::Source(0));
    let mut ended: Vec<_> = (0..many)
        .map(|_| {
            let (header, _) = guest.offer_one();
            assert_eq!(header.op, op::RST);
            header.src_port
        })
        .collect();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), many);
}

#[test]
fn a_refusal_comes_from_where_the_guest_wanted_to_go() {
    let mut guest = guest();
    let _server = guest.connect_from_guest();
    // The ports of a stream, but of another kind, or to somebody else: no word about the stream.
    for (dst_cid, kind) in [(HOST, 2), (9, STREAM)] {
        let header = Header {
            dst_cid,
            kind,
            ..guest.header(PORT, OWN, op::REQUEST, 0)
        };
        guest.send_header(&header, &[]);
        let (answer, _) = guest.next_of_anybody();
        assert_eq!(
            (answer.op, answer.src_cid, answer.kind),
            (op::RST, dst_cid, kind)
        );
        assert_eq!((answer.src_port, answer.dst_port), (PORT, OWN));
    }
    assert_eq!(guest.device.streams.len(), 1);
}

#[test]
fn what_waits_reaches_the_host_before_the_guest_s_end() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    let packet = [3; 4096];
    let mut sent = 0;
    while guest
        .device
        .streams
        .values()
        .all(|stream| !stream.interest().contains(EventFlags::OUT))
    {
        guest.send(PORT, OWN, op::RW, &packet);
        sent += packet.len();
    }
    guest.got.clear();
    guest.shut_down(PORT, OWN, NO_RECEIVE | NO_SEND);
    assert!(guest.is_quiet(), "it has not arrived");
    let mut got: Vec<u8> = Vec::new();
    let mut buffer = [0; 50_000];
    while let len @ 1.. = server.read(&mut buffer).unwrap() {
        got.extend(&buffer[..len]);
        guest.serve(Event::Source(0));
    }
    assert!(got.len() == sent && got.iter().all(|byte| *byte == 3));
    while guest.next_op() != op::RST {}
    assert!(guest.device.streams.is_empty());
}

#[test]
fn after_a_reset_of_the_device_everything_works_again() {
    let mut guest = guest();
    for _ in 0..3 {
        // A new stream counts from zero.
        guest.taken = 0;
        let (mut client, _) = guest.connect_from_host();
        let mut waiting = UnixStream::connect(guest.path()).unwrap();
        guest.serve(Event::Source(0));
        guest.device.stop();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        assert_eq!(waiting.read(&mut [0]).unwrap(), 0);
        // Nothing of before is owed.
        assert!(guest.is_quiet());
    }
}

#[test]
fn r15_a_header_that_changes_is_read_once() {
    let mut guest = guest();
    let path = format!("{}_{PORT}", guest.path().display());
    let listener = UnixListener::bind(path).unwrap();
    let (ram, stop) = (guest.ram.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The place of its length: what there is, and far more.
            for len in [u32::MAX, 8].into_iter().cycle() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                ram.write_obj(len, GuestAddress(OUT + 24)).unwrap();
            }
        });
        let mut server = None;
        for _ in 0..2000 {
            let op = server.as_ref().map_or(op::REQUEST, |_| op::RW);
            guest.send(PORT, OWN, op, &[9; 8]);
            match (
                guest.got.pop_front().map(|(answer, _)| answer.op),
                &mut server,
            ) {
                // It was too long for its chain.
                (Some(op::RST), server) => *server = None,
                (Some(op::RESPONSE), None) => server = listener.accept().ok().map(|(s, _)| s),
                // Or all of it arrived, and nothing else.
                (None | Some(op::CREDIT_UPDATE), Some(server)) => {
                    assert_eq!(read(server, 8), [9; 8]);
                    server.set_nonblocking(true).unwrap();
                    assert!(server.read(&mut [0]).is_err());
                    server.set_nonblocking(false).unwrap();
                }
                (other, _) => panic!("{other:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_slow_program_gets_what_the_guest_sent_before_it_closed_for_good() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    let (mut sent, mut credit, mut forwarded) = (0usize, BUFFER, 0u32);
    // Until the socket takes no more, and then some.
    while credit >= 1000 {
        guest.send(PORT, OWN, op::RW, &[7; 1000]);
        sent += 1000;
        credit -= 1000;
        while let Some((header, _)) = guest.got.pop_front() {
            credit += header.fwd_cnt.wrapping_sub(forwarded);
            forwarded = header.fwd_cnt;
        }
    }
    guest.shut_down(PORT, OWN, NO_RECEIVE | NO_SEND);
    // A guest does not wait for ever, and then uses its port again.
    guest.send(PORT, OWN, op::RST, &[]);
    let mut second = guest.connect_from_guest();
    guest.send(PORT, OWN, op::RW, b"second");
    assert_eq!(read(&mut second, 6), b"second");
    assert_eq!(guest.device.streams.len(), 2);
    let mut got = 0;
    while got < sent {
        got += server.read(&mut [0; 5000]).unwrap();
        guest.serve(Event::Source(0));
    }
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "then the end");
    assert!(guest.is_quiet());
    assert_eq!(guest.device.streams.len(), 1);
    guest.send(PORT, OWN, op::RW, b"more");
    assert_eq!(read(&mut second, 4), b"more");
}

#[test]
fn a_reset_drops_what_waits_unless_the_guest_had_closed() {
    let mut guest = guest();
    let _server = guest.connect_from_guest();
    for _ in 0..BUFFER / 1000 {
        guest.send(PORT, OWN, op::RW, &[7; 1000]);
    }
    guest.send(PORT, OWN, op::RST, &[]);
    assert!(guest.device.streams.is_empty());
}

#[test]
fn a_program_that_stops_reading_is_still_heard() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    server.write_all(b"goodbye").unwrap();
    server.shutdown(Shutdown::Read).unwrap();
    guest.send(PORT, OWN, op::RW, b"too late");
    let mut got = (Vec::new(), 0);
    while got.0.is_empty() || got.1 == 0 {
        let (header, data) = guest.next();
        assert_ne!(header.op, op::RST);
        got.0.extend(data);
        got.1 |= header.flags;
    }
    assert_eq!(got, (b"goodbye".to_vec(), NO_RECEIVE));
    // More is as good as read.
    for _ in 0..2 * BUFFER / 1000 {
        guest.send(PORT, OWN, op::RW, &[1; 1000]);
    }
    close(server);
    let (end, _) = loop {
        let packet = guest.next();
        if packet.0.op == op::SHUTDOWN {
            break packet;
        }
    };
    assert_eq!(end.flags, NO_RECEIVE | NO_SEND);
}

#[test]
fn a_path_that_leaves_no_room_for_a_port_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let of_len = |len: usize| {
        let mut path = folder.path().join("v").into_os_string();
        path.push("v".repeat(len - path.len()));
        PathBuf::from(path)
    };
    drop(listener::bind(&of_len(96)).unwrap());
    let longest = of_len(96).into_os_string().len() + "_4294967295".len();
    assert!(rustix::net::SocketAddrUnix::new(vec![b'x'; longest]).is_ok());
    let refused = listener::bind(&of_len(97));
    assert!(matches!(refused, Err(SocketError::TooLong(_))));
}
