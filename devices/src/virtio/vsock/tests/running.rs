//! The device on its thread, woken by edges and by a driver that notifies only where it is asked to:
//! what is forgotten stalls.

use std::sync::atomic::{Ordering, fence};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::*;
use crate::Threads;
use crate::virtio::testing::{QUEUE, USED, queues_with, wait_for};
use crate::virtio::worker::{Activated, Worker};

/// A guest that sends back what it gets.
struct Echo {
    ram: GuestRam,
    receive: Driver,
    transmit: Driver,
    bells: Vec<EventFd>,
    line: EventFd,
}

impl Echo {
    fn kick(&self, queue: usize) {
        fence(Ordering::SeqCst);
        let flags = GuestAddress(queue as u64 * u64::from(QUEUE) + USED);
        if self.ram.read_obj::<u16>(flags).unwrap() == 0 {
            self.bells[queue].write(1).unwrap();
        }
    }

    fn wait(&self) {
        wait_for(&[self.line.as_raw_fd()]);
        self.line.read().unwrap();
    }

    fn answer(&mut self, to: &Header, op: u16, data: &[u8], taken: u32) {
        let mut bytes = Header {
            len: u32::try_from(data.len()).unwrap(),
            buf_alloc: 1 << 20,
            fwd_cnt: taken,
            op,
            ..to.refusal()
        }
        .bytes()
        .to_vec();
        bytes.extend(data);
        self.ram.write_slice(&bytes, GuestAddress(OUT)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.transmit.request(&[(OUT, len, false)]);
        self.kick(TRANSMIT);
        while self.transmit.used().is_empty() {
            self.wait();
        }
    }
}

#[test]
fn a_crowd_of_clients_gets_its_bytes_back() {
    const CLIENTS: usize = 150;
    const BYTES: usize = 20_000;
    let Guest {
        device,
        ram,
        receive,
        transmit,
        folder,
        ..
    } = guest();
    let path = folder.path().join("v");
    let line = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    let queues = queues_with(&ram, 3, line.try_clone().unwrap());
    let bells: Vec<_> = (0..3)
        .map(|_| EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap())
        .collect();
    let for_worker = bells.iter().map(|bell| bell.try_clone().ok()).collect();
    let mut echo = Echo {
        ram,
        receive,
        transmit,
        bells,
        line,
    };
    let hosts = std::thread::spawn(move || {
        let mut clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let mut client = UnixStream::connect(&path).unwrap();
                client
                    .set_read_timeout(Some(Duration::from_secs(10)))
                    .unwrap();
                client.write_all(b"CONNECT 7\n").unwrap();
                client
            })
            .collect();
        for client in &mut clients {
            while read(client, 1) != b"\n" {}
        }
        for (number, client) in clients.iter_mut().enumerate() {
            client.write_all(&[number.to_le_bytes()[0]; BYTES]).unwrap();
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert!(read(client, BYTES) == [number.to_le_bytes()[0]; BYTES]);
        }
    });
    let mut worker = Worker::new("vsock", &Threads::default()).unwrap();
    assert!(worker.start(Activated::new(Box::new(device), queues, for_worker)));
    echo.kick(RECEIVE);
    let (mut ended, mut taken) = (0, BTreeMap::new());
    while ended < CLIENTS {
        let used = echo.receive.used();
        if used.is_empty() {
            echo.wait();
        }
        for (head, len) in used {
            let at = GuestAddress(IN + u64::from(head) * u64::from(ROOM));
            let mut bytes = vec![0; len as usize];
            echo.ram.read_slice(&mut bytes, at).unwrap();
            echo.receive.offer(u16::try_from(head).unwrap());
            echo.kick(RECEIVE);
            let (header, data) = bytes.split_first_chunk().unwrap();
            let header = Header::parse(header);
            let taken: &mut u32 = taken.entry(header.src_port).or_default();
            *taken += header.len;
            match header.op {
                op::REQUEST => echo.answer(&header, op::RESPONSE, &[], 0),
                op::RW => echo.answer(&header, op::RW, data, *taken),
                op::CREDIT_UPDATE => {}
                op::SHUTDOWN => {
                    assert_eq!(*taken as usize, BYTES);
                    echo.answer(&header, op::RST, &[], 0);
                    ended += 1;
                }
                other => panic!("{other}"),
            }
        }
    }
    hosts.join().unwrap();
    worker.stop().unwrap();
}
