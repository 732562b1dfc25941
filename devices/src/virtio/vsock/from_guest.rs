//! Packets of the guest: what each asks of its stream, and what has none.

use std::io;

use super::listener::connect_to;
use super::packet::{HEADER, HOST, Header, STREAM, op};
use super::stream::{BUFFER, Broken, Ports, Stream};
use super::{MAX_RESETS, TRANSMIT, Vsock};
use crate::virtio::{QueueError, Queues};

impl Vsock {
    /// Serves the packets of the guest. Says whether there may be more, or room has to come first.
    pub(super) fn transmit(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let Some(ring) = queues.ring(TRANSMIT) else {
            return Ok(false);
        };
        for _ in 0..ring.size() {
            // Answers have to have a place first: the guest sends faster than it takes them.
            if self.resets.len() >= MAX_RESETS {
                return Ok(true);
            }
            if !ring.pop(&mut self.chain)? {
                return Ok(false);
            }
            let mut bytes = [0; HEADER];
            let whole = self.chain.read(ring.ram(), &mut bytes)?;
            let header = Header::parse(&bytes);
            // The chain says how much data there is, not the header.
            let there = self.chain.readable_len() >= header.len.into();
            let len = header.len.min(BUFFER) as usize;
            self.buffer.resize(BUFFER as usize, 0);
            let data = self.buffer.get_mut(..len).unwrap_or_default();
            let read = there && self.chain.read(ring.ram(), data)?;
            ring.complete(self.chain.head(), 0)?;
            let len = (read && header.len <= BUFFER).then_some(len);
            let served = whole && self.packet(&header, len);
            self.counts.transmitted(len, served);
        }
        Ok(true)
    }

    /// A packet of the guest with so many bytes of data in `buffer`; `None` if they are not all
    /// there. Says whether it made sense.
    fn packet(&mut self, header: &Header, len: Option<usize>) -> bool {
        if header.src_cid != self.cid {
            // Nobody it could be answered to.
            return false;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let fits = header.dst_cid == HOST && header.kind == STREAM;
        let number = self.by_ports.get(&ports).filter(|_| fits);
        let Some((&number, stream)) = number.and_then(|number| {
            let stream = self.streams.get_mut(number)?;
            Some((number, stream))
        }) else {
            let answered = match header.op {
                op::RST => true,
                op::REQUEST if fits && len.is_some() => {
                    let connected = self.connect(ports, header).is_ok();
                    self.counts.connected(connected);
                    connected
                }
                _ => false,
            };
            if !answered {
                self.resets.push_back(header.refusal());
            }
            return answered;
        };
        if header.op == op::RST {
            if !stream.outlives_guest() {
                self.remove(number);
                return true;
            }
            // The guest may use its port again.
            self.by_ports.remove(&ports);
            self.settle(number, Ok(()));
            return true;
        }
        let Some(len) = len else {
            self.settle(number, Err(Broken));
            return false;
        };
        stream.update_credit(header);
        let data = self.buffer.get(..len).unwrap_or_default();
        let result = match header.op {
            op::RESPONSE if stream.connecting => {
                stream.open();
                Ok(())
            }
            op::RW => stream.forward(data),
            op::SHUTDOWN => stream.shut_down(header.flags),
            op::CREDIT_UPDATE => Ok(()),
            op::CREDIT_REQUEST => {
                stream.ask_for_update();
                Ok(())
            }
            _ => Err(Broken),
        };
        self.settle(number, result);
        // A shutdown of both sides is an end, too.
        result.is_ok() || header.op == op::SHUTDOWN
    }

    /// The guest connects to a program of the host.
    fn connect(&mut self, ports: Ports, request: &Header) -> io::Result<()> {
        if !self.has_place() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut path = self.listener.path().as_os_str().to_owned();
        path.push(format!("_{}", ports.host));
        let socket = connect_to(path.as_encoded_bytes())?;
        self.add(Stream::new(socket, ports, op::RESPONSE, Some(request)));
        Ok(())
    }
}
