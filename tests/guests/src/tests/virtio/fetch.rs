//! A client of a metadata service on the link (Firecracker's MMDS): HTTP over as little TCP and ARP as one server in order
//! asks for. Sums are left to the network, which has nobody who looks at them.

use guest::{option, println, user};
use virtio_drivers::device::net::VirtIONetRaw;

use super::{Carrier, GuestHal, NET, device};

const QUEUE: usize = 16;
const FRAME: usize = 2048;
/// The headers of Ethernet, IPv4 and TCP, without options.
const ETHERNET: usize = 14;
const IP: usize = ETHERNET + 20;
const TCP: usize = IP + 20;
const ANSWER: usize = 4096;

const OWN: [u8; 4] = [10, 0, 0, 2];
const SERVICE: [u8; 4] = [169, 254, 169, 254];

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

type Net = VirtIONetRaw<GuestHal, Carrier, QUEUE>;

/// Gets a token and then a value, `fetches` times, and prints the value's length and a sum. A driver begins anew before
/// every tenth one.
pub fn run() {
    let path = option("path").expect("path=PATH of a value");
    let fetches: u16 = option("fetches").map_or(1, |text| text.parse().expect("fetches=NUMBER"));
    println!("up");
    let mut answer = [0; ANSWER];
    user(|| {
        let mut client = None;
        for number in 0..fetches {
            if number % 10 == 0 {
                // The old one resets the device at its end.
                drop(client.take());
            }
            let client = client.get_or_insert_with(|| Client::new(number));
            let token = client.ask(
                &["PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\nConnection: close\r\n\r\n"],
                &mut answer,
            );
            let mut kept = [0; 128];
            kept[..token.len()].copy_from_slice(token);
            let token = core::str::from_utf8(&kept[..token.len()]).expect("a token is text");
            let value = client.ask(
                &[
                    "GET ",
                    path,
                    " HTTP/1.1\r\nX-metadata-token: ",
                    token,
                    "\r\nConnection: close\r\n\r\n",
                ],
                &mut answer,
            );
            // Each byte that is printed costs an exit.
            let sum = value
                .iter()
                .zip(1..)
                .fold(0u64, |sum, (byte, place)| sum + u64::from(*byte) * place);
            println!("{number}: {} bytes, {sum:#x}", value.len());
        }
    });
}

struct Client {
    net: Net,
    own: [u8; 6],
    service: [u8; 6],
    port: u16,
    seq: u32,
    ack: u32,
}

impl Client {
    fn new(number: u16) -> Self {
        let transport = device(NET).transport();
        let net = Net::new(transport).expect("the driver finds it");
        let mut client = Self {
            own: net.mac_address(),
            net,
            service: [0xff; 6],
            port: 2000 + 10 * number,
            seq: 1000,
            ack: 0,
        };
        client.resolve();
        client
    }

    /// Asks for the service's station (RFC 826).
    fn resolve(&mut self) {
        let mut frame = [0; 60];
        self.ethernet(&mut frame, [0x08, 0x06]);
        frame[ETHERNET..ETHERNET + 8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&self.own);
        frame[28..32].copy_from_slice(&OWN);
        frame[38..42].copy_from_slice(&SERVICE);
        self.net.send(&frame).expect("sending");
        let mut buffer = [0; FRAME];
        loop {
            let received = receive(&mut self.net, &mut buffer);
            // A reply of the service's.
            if received[12..14] == [0x08, 0x06]
                && received[20..22] == [0, 2]
                && received[28..32] == SERVICE
            {
                self.service.copy_from_slice(&received[22..28]);
                return;
            }
        }
    }

    fn ethernet(&self, frame: &mut [u8], kind: [u8; 2]) {
        frame[..6].copy_from_slice(&self.service);
        frame[6..12].copy_from_slice(&self.own);
        frame[12..14].copy_from_slice(&kind);
    }

    fn send(&mut self, flags: u8, data: &[&str]) {
        let mut frame = [0; FRAME];
        self.ethernet(&mut frame, [0x08, 0]);
        let mut len = TCP;
        for part in data {
            frame[len..len + part.len()].copy_from_slice(part.as_bytes());
            len += part.len();
        }
        let total = (len - ETHERNET) as u16;
        frame[14] = 0x45;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[22..24].copy_from_slice(&[64, 6]);
        frame[26..30].copy_from_slice(&OWN);
        frame[30..34].copy_from_slice(&SERVICE);
        frame[34..36].copy_from_slice(&self.port.to_be_bytes());
        frame[36..38].copy_from_slice(&80u16.to_be_bytes());
        frame[38..42].copy_from_slice(&self.seq.to_be_bytes());
        frame[42..46].copy_from_slice(&self.ack.to_be_bytes());
        frame[46..48].copy_from_slice(&[5 << 4, flags]);
        frame[48..50].copy_from_slice(&u16::MAX.to_be_bytes());
        self.net.send(&frame[..len.max(60)]).expect("sending");
        let numbers = (len - TCP) as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.seq = self.seq.wrapping_add(numbers);
    }

    /// The flags of the next segment in order, and where its data is in the buffer.
    fn receive(&mut self, buffer: &mut [u8; FRAME]) -> (u8, core::ops::Range<usize>) {
        loop {
            let received = receive(&mut self.net, buffer);
            let is_ours = received[12..14] == [0x08, 0]
                && received[26..30] == SERVICE
                && received[36..38] == self.port.to_be_bytes();
            let seq = u32::from_be_bytes(received[38..42].try_into().expect("4 bytes"));
            let flags = received[47];
            if !is_ours || flags & SYN == 0 && seq != self.ack {
                continue;
            }
            let start = IP + usize::from(received[46] >> 4) * 4;
            let end = ETHERNET + usize::from(u16::from_be_bytes([received[16], received[17]]));
            let numbers = (end - start) as u32 + u32::from(flags & (SYN | FIN) != 0);
            self.ack = seq.wrapping_add(numbers);
            // The device's header is in front.
            let offset = received.as_ptr().addr() - buffer.as_ptr().addr();
            return (flags, offset + start..offset + end);
        }
    }

    /// Sends a request on a connection of its own; gives the body of the answer.
    fn ask<'a>(&mut self, request: &[&str], answer: &'a mut [u8; ANSWER]) -> &'a [u8] {
        self.port += 1;
        self.ack = 0;
        let mut buffer = [0; FRAME];
        self.send(SYN, &[]);
        let (flags, _) = self.receive(&mut buffer);
        assert_eq!(flags, SYN | ACK);
        self.send(ACK | PSH, request);
        let mut len = 0;
        loop {
            let (flags, data) = self.receive(&mut buffer);
            let part = &buffer[data];
            answer[len..len + part.len()].copy_from_slice(part);
            len += part.len();
            self.send(ACK | flags & FIN, &[]);
            if flags & FIN != 0 {
                break;
            }
        }
        let head = answer[..len]
            .windows(4)
            .position(|part| part == b"\r\n\r\n");
        let head = head.expect("an answer has a head") + 4;
        assert!(
            answer.starts_with(b"HTTP/1.1 200 "),
            "{:?}",
            core::str::from_utf8(&answer[..len])
        );
        &answer[head..len]
    }
}

fn receive<'a>(net: &mut Net, buffer: &'a mut [u8; FRAME]) -> &'a [u8] {
    loop {
        let (start, len) = net.receive_wait(buffer).expect("receiving");
        if len >= 60 {
            return &buffer[start..start + len];
        }
    }
}
