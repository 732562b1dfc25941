use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};

use super::packet::{HOST, NO_RECEIVE, NO_SEND, STREAM};
use super::*;
use crate::virtio::GuestRam;
use crate::virtio::testing::{DATA, Driver, SIZE, WRITE, close, queues, ram, wait};

const CID: u64 = 5;
const PORT: u32 = 1234;
/// The guest's own port where it connects.
const OWN: u32 = 99;
/// Where the guest's packets lie, and its buffers.
const OUT: u64 = DATA;
const IN: u64 = DATA + 0x2_0000;
/// Bytes of a buffer.
const ROOM: u32 = 0x1000;

struct Guest {
    device: Vsock,
    queues: Queues,
    ram: GuestRam,
    receive: Driver,
    transmit: Driver,
    folder: tempfile::TempDir,
    /// What the guest says about its own buffer.
    buffer: u32,
    taken: u32,
    /// It keeps the buffers that it gets back.
    held: bool,
    got: VecDeque<(Header, Vec<u8>)>,
}

fn guest() -> Guest {
    let ram = ram();
    let folder = tempfile::tempdir().unwrap();
    let config = VsockConfig {
        id: None,
        cid: 5,
        path: folder.path().join("v"),
    };
    let mut receive = Driver::of_queue(&ram, RECEIVE);
    for index in 0..SIZE {
        receive.descriptor(
            index,
            IN + u64::from(index) * u64::from(ROOM),
            ROOM,
            WRITE,
            0,
        );
        receive.offer(index);
    }
    Guest {
        device: Vsock::open(&config).unwrap(),
        queues: queues(&ram, 3),
        receive,
        transmit: Driver::of_queue(&ram, TRANSMIT),
        ram,
        folder,
        buffer: 1 << 20,
        taken: 0,
        held: false,
        got: VecDeque::new(),
    }
}

impl Guest {
    fn path(&self) -> PathBuf {
        self.folder.path().join("v")
    }

    fn serve(&mut self, event: Event) {
        while self.device.serve(event, &mut self.queues).unwrap() {}
    }

    fn header(&self, host: u32, guest: u32, op: u16, len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST,
            src_port: guest,
            dst_port: host,
            len: u32::try_from(len).unwrap(),
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.buffer,
            fwd_cnt: self.taken,
        }
    }

    fn send_header(&mut self, header: &Header, data: &[u8]) {
        let mut bytes = header.bytes().to_vec();
        bytes.extend(data);
        self.ram.write_slice(&bytes, GuestAddress(OUT)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        // Cut inside the header.
        self.transmit
            .request(&[(OUT, 30, false), (OUT + 30, len - 30, false)]);
        self.serve(Event::Queue(TRANSMIT));
        assert_eq!(self.transmit.used(), [(0, 0)]);
        self.collect();
    }

    fn send(&mut self, host: u32, guest: u32, op: u16, data: &[u8]) {
        let header = self.header(host, guest, op, data.len());
        self.send_header(&header, data);
    }

    fn shut_down(&mut self, host: u32, guest: u32, flags: u32) {
        let header = Header {
            flags,
            ..self.header(host, guest, op::SHUTDOWN, 0)
        };
        self.send_header(&header, &[]);
    }

    /// Takes what came and offers the buffers again.
    fn collect(&mut self) {
        loop {
            let used = self.receive.used();
            if used.is_empty() {
                return;
            }
            for (head, len) in used {
                let at = GuestAddress(IN + u64::from(head) * u64::from(ROOM));
                let mut bytes = vec![0; len as usize];
                self.ram.read_slice(&mut bytes, at).unwrap();
                let (header, data) = bytes.split_first_chunk().unwrap();
                let header = Header::parse(header);
                assert_eq!(header.len as usize, data.len());
                assert_eq!(header.dst_cid, CID);
                self.taken = self.taken.wrapping_add(header.len);
                self.got.push_back((header, data.to_vec()));
                if !self.held {
                    self.receive.offer(u16::try_from(head).unwrap());
                }
            }
            self.serve(Event::Queue(RECEIVE));
        }
    }

    /// The next packet; waits for it.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let packet = self.next_of_anybody();
        assert_eq!((packet.0.src_cid, packet.0.kind), (HOST, STREAM));
        packet
    }

    fn next_of_anybody(&mut self) -> (Header, Vec<u8>) {
        loop {
            self.collect();
            if let Some(packet) = self.got.pop_front() {
                return packet;
            }
            wait(&self.device);
            self.serve(Event::Source(0));
        }
    }

    fn next_op(&mut self) -> u16 {
        self.next().0.op
    }

    /// Nothing came.
    fn is_quiet(&mut self) -> bool {
        self.serve(Event::Source(0));
        self.collect();
        self.got.is_empty()
    }

    /// A program of the host connects to the guest; gives its socket and the host's port.
    fn connect_from_host(&mut self) -> (UnixStream, u32) {
        let mut client = UnixStream::connect(self.path()).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // Data may follow at once.
        client
            .write_all(format!("CONNECT {PORT}\nfirst").as_bytes())
            .unwrap();
        let (request, _) = self.next();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
        assert_eq!(request.buf_alloc, BUFFER);
        let host = request.src_port;
        self.send(host, PORT, op::RESPONSE, &[]);
        let mut line = vec![0; format!("OK {host}\n").len()];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line, format!("OK {host}\n").into_bytes());
        assert_eq!(self.next().1, b"first");
        (client, host)
    }

    /// The guest connects to a program of the host.
    fn connect_from_guest(&mut self) -> UnixStream {
        let path = format!("{}_{PORT}", self.path().display());
        let listener = UnixListener::bind(&path).unwrap();
        self.send(PORT, OWN, op::REQUEST, &[]);
        assert_eq!(self.next_op(), op::RESPONSE);
        fs::remove_file(path).unwrap();
        let socket = listener.accept().unwrap().0;
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        socket
    }
}

fn read(socket: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_program_of_the_host_reaches_the_guest() {
    let mut guest = guest();
    let (mut client, host) = guest.connect_from_host();
    guest.send(host, PORT, op::RW, b"to the host");
    assert_eq!(read(&mut client, 11), b"to the host");
    client.write_all(b"to the guest").unwrap();
    assert_eq!(guest.next().1, b"to the guest");
    // The client goes: the guest learns it, and closes.
    close(client);
    let (end, _) = guest.next();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_RECEIVE | NO_SEND));
    guest.send(host, PORT, op::RST, &[]);
    assert!(guest.is_quiet() && guest.device.streams.is_empty());
}

#[test]
fn the_guest_reaches_a_program_of_the_host() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    guest.send(PORT, OWN, op::RW, b"question");
    assert_eq!(read(&mut server, 8), b"question");
    server.write_all(b"answer").unwrap();
    assert_eq!(guest.next().1, b"answer");
    // The guest closes: everything is there, then the end.
    guest.send(PORT, OWN, op::RW, b"last");
    guest.shut_down(PORT, OWN, NO_RECEIVE | NO_SEND);
    assert_eq!(guest.next_op(), op::RST);
    let mut rest = Vec::new();
    server.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"last");
    // Where nobody listens.
    guest.send(PORT, OWN, op::REQUEST, &[]);
    assert_eq!(guest.next_op(), op::RST);
}

#[test]
fn either_side_may_end_its_half_first() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    guest.shut_down(PORT, OWN, NO_SEND);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "the guest's end");
    server.write_all(b"still here").unwrap();
    assert_eq!(guest.next().1, b"still here");
    close(server);
    assert_eq!(guest.next_op(), op::SHUTDOWN);

    let mut guest = self::guest();
    let mut server = guest.connect_from_guest();
    server.shutdown(Shutdown::Write).unwrap();
    let (end, _) = guest.next();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, NO_SEND), "half of it");
    guest.send(PORT, OWN, op::RW, b"still here");
    assert_eq!(read(&mut server, 10), b"still here");
}

#[test]
fn a_slow_host_holds_the_guest_back_and_nothing_is_lost() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    let data: Vec<u8> = (0..2_000_000u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let (mut sent, mut credit, mut forwarded) = (0usize, BUFFER as usize, 0u32);
    let mut got: Vec<u8> = Vec::new();
    while got.len() < data.len() {
        // As the guest may.
        while credit > 0 && sent < data.len() {
            let len = credit.min(3000).min(data.len() - sent);
            guest.send(PORT, OWN, op::RW, &data[sent..sent + len]);
            sent += len;
            credit -= len;
            while let Some((header, _)) = guest.got.pop_front() {
                assert_eq!(header.op, op::CREDIT_UPDATE);
                credit += header.fwd_cnt.wrapping_sub(forwarded) as usize;
                forwarded = header.fwd_cnt;
            }
        }
        let mut buffer = [0; 50_000];
        let len = server.read(&mut buffer).unwrap();
        got.extend(&buffer[..len]);
        // The socket has room: what waited goes, and the guest learns it.
        guest.serve(Event::Source(0));
        guest.collect();
        while let Some((header, _)) = guest.got.pop_front() {
            credit += header.fwd_cnt.wrapping_sub(forwarded) as usize;
            forwarded = header.fwd_cnt;
        }
    }
    assert!(got == data, "every byte in order");
}

#[test]
fn a_slow_guest_gets_no_more_than_it_has_room_for() {
    let mut guest = guest();
    guest.buffer = 10_000;
    let mut server = guest.connect_from_guest();
    server.set_nonblocking(true).unwrap();
    let data: Vec<u8> = (0..3_000_000u32)
        .map(|n| n.to_le_bytes()[n as usize % 3])
        .collect();
    let mut written = server.write(&data).unwrap();
    let mut got: Vec<u8> = Vec::new();
    let mut asked = false;
    while got.len() < data.len() {
        // A guest that takes everything when its room is used up, as it says then.
        let before = got.len();
        while !guest.is_quiet() {
            while let Some((header, bytes)) = guest.got.pop_front() {
                asked |= header.op == op::CREDIT_REQUEST;
                got.extend(bytes);
            }
        }
        assert!(got.len() - before <= 10_000, "{}", got.len() - before);
        written += server.write(&data[written..]).unwrap_or(0);
        guest.send(PORT, OWN, op::CREDIT_UPDATE, &[]);
    }
    assert!(got == data, "every byte in order");
    assert!(asked, "the device asks when the room is used up");
    assert!(guest.is_quiet());
}

#[test]
fn many_streams_go_side_by_side_and_their_number_is_bounded() {
    let mut guest = guest();
    let path = format!("{}_{PORT}", guest.path().display());
    let listener = UnixListener::bind(path).unwrap();
    let mut servers = Vec::new();
    for own in 0..200 {
        guest.send(PORT, own, op::REQUEST, &[]);
        assert_eq!(guest.next_op(), op::RESPONSE);
        servers.push(listener.accept().unwrap().0);
    }
    for (own, server) in (0u32..).zip(&mut servers) {
        server.write_all(&own.to_le_bytes()).unwrap();
    }
    let mut seen: Vec<u32> = (0..200)
        .map(|_| {
            let (header, data) = guest.next();
            assert_eq!(data, header.dst_port.to_le_bytes());
            header.dst_port
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..200));
    // A guest that takes nothing any more does not stop the device from answering others later.
    for (own, server) in (0u32..).zip(&mut servers) {
        drop(server.write(&own.to_le_bytes()));
    }
    guest.device.stop();
    assert!(guest.device.streams.is_empty() && guest.device.by_ports.is_empty());
    // With bytes that were not taken it is a reset, not an end.
    assert!(
        !matches!(servers[0].read(&mut [0]), Ok(1..)),
        "hosts see the end"
    );
}

#[test]
fn r1_r14_a_length_beyond_the_chain_resets_the_stream_and_no_other() {
    let mut guest = guest();
    let server = guest.connect_from_guest();
    let (client, host) = guest.connect_from_host();
    for len in [1, 5000, u32::MAX] {
        let header = Header {
            len,
            ..guest.header(PORT, OWN, op::RW, 0)
        };
        guest.send_header(&header, &[]);
        assert_eq!(guest.next_op(), op::RST);
    }
    close(server);
    guest.send(host, PORT, op::RW, b"x");
    assert_eq!(read(&mut { client }, 1), b"x");
}

#[test]
fn r19_more_than_the_credit_resets_the_stream() {
    let mut guest = guest();
    let _server = guest.connect_from_guest();
    // Nobody reads: first the socket's buffer fills, then ours.
    for _ in 0..1000 {
        guest.send(PORT, OWN, op::RW, &[0; 4096]);
        if let Some((header, _)) = guest.got.pop_front()
            && header.op == op::RST
        {
            assert!(guest.device.streams.is_empty());
            return;
        }
    }
    panic!("the buffer grew without a bound");
}

#[test]
fn r19_answers_are_bounded_when_the_guest_takes_none() {
    let mut guest = guest();
    // No buffers at all: the device stops taking packets instead of collecting answers.
    guest.receive = Driver::of_queue(&guest.ram, RECEIVE);
    guest.queues = queues(&guest.ram, 3);
    guest.ram.write_obj(0u16, GuestAddress(0x2002)).unwrap();
    for number in 0..MAX_RESETS + 100 {
        let header = guest.header(1, u32::try_from(number).unwrap(), op::RW, 0);
        guest
            .ram
            .write_slice(&header.bytes(), GuestAddress(OUT))
            .unwrap();
        guest.transmit.request(&[(OUT, 44, false)]);
        guest.serve(Event::Queue(TRANSMIT));
        if guest.transmit.used().is_empty() {
            break;
        }
    }
    assert_eq!(guest.device.resets.len(), MAX_RESETS);
}

#[test]
fn packets_for_nobody_are_refused_once() {
    let mut guest = guest();
    let packet = |guest: &Guest, op| guest.header(77, 88, op, 0);
    for op in [
        op::RW,
        op::RESPONSE,
        op::SHUTDOWN,
        op::CREDIT_UPDATE,
        0,
        8,
        u16::MAX,
    ] {
        let header = packet(&guest, op);
        guest.send_header(&header, &[]);
        assert_eq!(guest.next_op(), op::RST, "{op}");
    }
    // A reset is never answered, nor is somebody else's packet.
    for header in [
        packet(&guest, op::RST),
        Header {
            src_cid: 6,
            ..packet(&guest, op::RW)
        },
    ] {
        guest.send_header(&header, &[]);
        assert!(guest.is_quiet());
    }
    // Another kind of socket, another destination than the host.
    for header in [
        Header {
            kind: 2,
            ..packet(&guest, op::REQUEST)
        },
        Header {
            dst_cid: 9,
            ..packet(&guest, op::REQUEST)
        },
    ] {
        guest.send_header(&header, &[]);
        assert_eq!(guest.next_of_anybody().0.op, op::RST);
    }
    // A second request for the same ports ends the first.
    let _server = guest.connect_from_guest();
    guest.send(PORT, OWN, op::REQUEST, &[]);
    assert_eq!(guest.next_op(), op::RST);
    assert!(guest.device.streams.is_empty());
}

#[test]
fn r38_empty_and_short_chains_are_taken() {
    let mut guest = guest();
    for buffers in [
        &[(OUT, 0, false)][..],
        &[(OUT, 43, false)],
        &[(OUT, 44, true)],
    ] {
        guest.transmit.request(buffers);
        guest.serve(Event::Queue(TRANSMIT));
        assert_eq!(guest.transmit.used(), [(0, 0)]);
    }
    assert!(guest.is_quiet());
}

#[test]
fn the_guest_s_number_is_in_the_configuration() {
    let mut config = [9; 10];
    guest().device.config().read(0, &mut config);
    assert_eq!(config, [5, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

mod clients;
mod closing;
mod running;
mod unlucky;
