//! A guest against the metadata service of the front end `firecracker`: raw frames, segments that nearly fit its
//! connections, time that passes. Never a panic; every answer fits its room and comes to an end.
#![no_main]

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vmm_firecracker::mmds::{Mmds, MmdsConfig, Stack, Version};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// All windows of all connections, full of the smallest segments, and what else waits.
const MOST_FRAMES: usize = 30 * (65536 / 88 + 2) + 200;
const TCP: usize = 14 + 20 + 20;

/// What a guest knows of its connection on a port.
#[derive(Clone, Copy, Default)]
struct Client {
    seq: u32,
    ack: u32,
}

struct Guest {
    stack: Stack,
    clients: [Client; 64],
    now: Instant,
    room: usize,
}

impl Guest {
    /// Fetches what the service has to say.
    fn fetch(&mut self) {
        let mut room = [0; 2048];
        let room = &mut room[..self.room];
        for _ in 0..MOST_FRAMES {
            let len = self.stack.give(room, self.now);
            if len == 0 {
                return;
            }
            let frame = &room[..len];
            assert!(len >= 60);
            if frame[12..14] != [8, 0] {
                assert_eq!(frame[12..14], [8, 6]);
                continue;
            }
            let number = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().expect("4"));
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            assert!(total + 14 <= len);
            let data = total - 20 - usize::from(frame[46] >> 4) * 4;
            let ends = u32::from(frame[47] & 3 != 0);
            let port = usize::from(frame[37]);
            if let Some(client) = self.clients.get_mut(port) {
                client.ack = number(38).wrapping_add(data as u32 + ends);
            }
        }
        panic!("the service never ends");
    }

    fn segment(&mut self, head: &[u8; 8], data: &[u8]) {
        let [port, flags, seq, ack, high, low, offset, kind] = *head;
        let Some(client) = self.clients.get_mut(usize::from(port)) else {
            return;
        };
        let near = |number: u32, by: u8| number.wrapping_add(i32::from(by as i8) as u32);
        let (seq, ack) = (near(client.seq, seq), near(client.ack, ack));
        let numbers = data.len() as u32 + u32::from(flags & 3 != 0);
        client.seq = seq.wrapping_add(numbers);
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((40 + data.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, kind, 0, 0, 10, 0, 0, 2, 169, 254, 169, 254]);
        frame.extend([0, port, 0, 80]);
        frame.extend(seq.to_be_bytes());
        frame.extend(ack.to_be_bytes());
        frame.extend([offset, flags, high, low, 0, 0, 0, 0]);
        assert_eq!(frame.len(), TCP);
        frame.extend(data);
        assert!(self.stack.wants(&frame[..64.min(frame.len())]));
        self.stack.take(&frame, self.now);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut mmds = Mmds::new(1 << 16).expect("random bytes");
    mmds.configure(MmdsConfig {
        version: Version::V1,
        network_interfaces: Vec::new(),
        ipv4_address: None,
        imds_compat: false,
    });
    let value = serde_json::json!({"a": {"b": "x".repeat(5000)}, "c": [1]});
    mmds.put(value).expect("it fits");
    let now = Instant::now();
    let mut guest = Guest {
        stack: Stack::new(ADDRESS, Arc::new(Mutex::new(mmds)), 0),
        clients: [Client::default(); 64],
        now,
        room: 1514,
    };
    let mut rest = data;
    while let [what, len, behind @ ..] = rest {
        let len = usize::from(*len).min(behind.len());
        let (part, behind) = behind.split_at(len);
        rest = behind;
        match what % 8 {
            0 => {
                if guest.stack.wants(part.get(..64).unwrap_or(part)) {
                    guest.stack.take(part, guest.now);
                }
            }
            1 => guest.now += Duration::from_millis(100 * len as u64),
            2 => guest.room = 8 * len,
            3 => guest.stack.reset(),
            _ => {
                if let Some((head, data)) = part.split_first_chunk() {
                    guest.segment(head, data);
                }
            }
        }
        guest.fetch();
    }
});
