//! A guest: smoltcp on a link to the service, in a time of its own.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use vmm_firecracker::mmds::{Mmds, Stack};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const MTU: usize = 1514;
/// The most bytes that decide whom a frame is for.
const START: usize = 64;
/// How long a guest waits for anything, in its own time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the so many-th frame of all arrives.
type Arrives = Box<dyn FnMut(usize) -> bool>;

/// The link, with the service at its end.
pub(crate) struct Link {
    pub(crate) stack: Stack,
    pub(crate) mmds: Arc<Mutex<Mmds>>,
    pub(crate) now: Instant,
    begun: Instant,
    /// For the guest.
    frames: VecDeque<Vec<u8>>,
    /// Of the guest's, and for nobody here.
    pub(crate) elsewhere: Vec<Vec<u8>>,
    pub(crate) arrives: Arrives,
    number: usize,
    /// The largest frame that the guest has buffers for.
    pub(crate) room: usize,
}

impl Link {
    pub(crate) fn new() -> Self {
        let mmds = Arc::new(Mutex::new(Mmds::new(1 << 20).unwrap()));
        let now = Instant::now();
        Self {
            // The numbers of the first connections wrap.
            stack: Stack::new(ADDRESS, Arc::clone(&mmds), u32::MAX - 20),
            mmds,
            now,
            begun: now,
            frames: VecDeque::new(),
            elsewhere: Vec::new(),
            arrives: Box::new(|_| true),
            number: 0,
            room: MTU,
        }
    }

    /// A frame of the guest's.
    pub(crate) fn send(&mut self, frame: Vec<u8>) {
        if !self.stack.wants(&frame[..frame.len().min(START)]) {
            self.elsewhere.push(frame);
        } else if self.next_arrives() {
            self.stack.take(&frame, self.now);
        }
    }

    fn next_arrives(&mut self) -> bool {
        self.number += 1;
        (self.arrives)(self.number)
    }

    /// The next frame for the guest.
    pub(crate) fn fetch(&mut self) -> Option<Vec<u8>> {
        self.collect();
        self.frames.pop_front()
    }

    fn collect(&mut self) {
        let mut room = vec![0; self.room];
        // As the device does it: until there is none.
        loop {
            let len = self.stack.give(&mut room, self.now);
            if len == 0 {
                break;
            }
            if self.next_arrives() {
                self.frames.push_back(room[..len].to_vec());
            }
        }
    }
}

pub(crate) struct Received(Vec<u8>);

impl smoltcp::phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

pub(crate) struct Sending<'a>(&'a mut Link);

impl smoltcp::phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; len];
        let result = write(&mut frame);
        self.0.send(frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Received, Sending<'_>)> {
        self.fetch().map(|frame| (Received(frame), Sending(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Sending<'_>> {
        Some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU;
        // It checks what comes, and leaves sums to the network as Linux does.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Rx;
        capabilities.checksum = checksum;
        capabilities
    }
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// All before the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A host in the guest.
pub(crate) struct Guest {
    pub(crate) link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    port: u16,
    /// The room for what comes, in bytes.
    pub(crate) window: usize,
}

impl Guest {
    pub(crate) fn new(mut link: Link) -> Self {
        let mac = EthernetAddress([2, 0, 0, 0, 0, 9]);
        let time = smoltcp::time::Instant::ZERO;
        let mut interface = Interface::new(Config::new(mac.into()), &mut link, time);
        // Every address is on the link.
        let own = IpCidr::new(IpAddress::v4(10, 0, 0, 2), 0);
        interface.update_ip_addrs(|addresses| addresses.push(own).unwrap());
        Self {
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            port: 40_000,
            window: 8192,
        }
    }

    /// Lets time pass, at least a little, and both hosts do what there is to do.
    pub(crate) fn step(&mut self) {
        let time = |link: &Link| {
            let passed = link.now - link.begun;
            smoltcp::time::Instant::from_micros(i64::try_from(passed.as_micros()).unwrap())
        };
        let now = time(&self.link);
        self.interface.poll(now, &mut self.link, &mut self.sockets);
        let own = self.interface.poll_delay(now, &self.sockets);
        let own = own.map_or(PATIENCE, |delay| {
            Duration::from_micros(delay.total_micros())
        });
        let others = self.link.stack.wakes_at();
        let others = others.map_or(PATIENCE, |wake| {
            wake.saturating_duration_since(self.link.now)
        });
        self.link.collect();
        let wait = match self.link.frames.is_empty() {
            true => own.min(others).min(Duration::from_millis(100)),
            false => Duration::ZERO,
        };
        self.link.now += wait.max(Duration::from_micros(50));
    }

    /// A connection, which is not there yet.
    pub(crate) fn connect(&mut self, port: u16) -> SocketHandle {
        let receive = tcp::SocketBuffer::new(vec![0; self.window]);
        let transmit = tcp::SocketBuffer::new(vec![0; 16 << 10]);
        let mut socket = tcp::Socket::new(receive, transmit);
        self.port += 1;
        let to = (IpAddress::Ipv4(ADDRESS), port);
        socket
            .connect(self.interface.context(), to, self.port)
            .unwrap();
        self.sockets.add(socket)
    }

    pub(crate) fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Waits until something is so, or time is over.
    pub(crate) fn until(
        &mut self,
        handle: SocketHandle,
        mut is_so: impl FnMut(&mut tcp::Socket<'static>) -> bool,
    ) -> bool {
        let end = self.link.now + PATIENCE;
        while self.link.now < end {
            if is_so(self.sockets.get_mut(handle)) {
                return true;
            }
            self.step();
        }
        false
    }

    pub(crate) fn say(&mut self, handle: SocketHandle, text: &str) {
        let mut rest = text.as_bytes();
        let said = self.until(handle, |socket| {
            let sent = socket.send_slice(rest).unwrap_or_default();
            rest = &rest[sent..];
            rest.is_empty()
        });
        assert!(said, "{text}");
    }

    /// The next answer on a connection.
    pub(crate) fn answer(&mut self, handle: SocketHandle) -> Option<Answer> {
        let mut bytes: Vec<u8> = Vec::new();
        let mut whole = None;
        self.until(handle, |socket| {
            loop {
                let head_end = bytes.windows(4).position(|part| part == b"\r\n\r\n");
                let wanted = head_end.map_or(1, |end| {
                    let head = String::from_utf8(bytes[..end + 4].to_vec()).unwrap();
                    let length = head
                        .lines()
                        .find_map(|line| line.strip_prefix("Content-Length: "))
                        .unwrap();
                    let length: usize = length.parse().unwrap();
                    if bytes.len() == head.len() + length {
                        whole = Some(Answer {
                            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
                            body: String::from_utf8(bytes[head.len()..].to_vec()).unwrap(),
                            head: head.clone(),
                        });
                    }
                    head.len() + length - bytes.len()
                });
                if whole.is_some() || !socket.may_recv() && !socket.can_recv() && socket.may_send()
                {
                    return true;
                }
                let mut part = vec![0; wanted.min(700)];
                match socket.recv_slice(&mut part) {
                    Ok(len @ 1..) => bytes.extend(&part[..len]),
                    _ => return !socket.is_open(),
                }
            }
        });
        whole
    }

    /// A request on a connection of its own.
    pub(crate) fn ask(&mut self, request: &str) -> Option<Answer> {
        let handle = self.connect(80);
        self.say(handle, request);
        let answer = self.answer(handle);
        self.socket(handle).close();
        let closed = self.until(handle, |socket| {
            matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait)
        });
        assert!(closed, "{request}");
        self.sockets.remove(handle);
        answer
    }
}
