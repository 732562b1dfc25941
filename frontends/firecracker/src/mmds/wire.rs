//! Ethernet, ARP, IPv4 and TCP, as far as a metadata service needs them: what a guest sends, read, and what it is sent,
//! written. Checksums of what comes are not looked at: a guest leaves them to its network device, and memory changes
//! nothing on the way.
//!
//! Sources: RFC 894 (Ethernet), RFC 826 (ARP), RFC 791 (IPv4), RFC 9293 (TCP).

use std::net::Ipv4Addr;

/// The service's station. Clients' documentation has it.
pub(super) const MAC: [u8; 6] = [0x06, 0x01, 0x23, 0x45, 0x67, 0x01];

const ETHERNET: usize = 14;
const TYPE: usize = 12;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// For Ethernet and IPv4.
const ARP: usize = 28;
/// Hardware and protocol of an ARP message, and the lengths of their addresses.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const IPV4: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const TCP: usize = 20;
/// The longest headers in front of what is sent: TCP's has one option at most.
pub(super) const HEADERS: usize = ETHERNET + IPV4 + TCP + MSS_OPTION;
/// What a guest is told that fits into one segment.
const OWN_MSS: u16 = 1460;
const MSS_OPTION: usize = 4;
const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_MSS: u8 = 2;
/// The smallest frame (IEEE 802.3), without its check sequence.
const SHORTEST: usize = 60;

/// The flags of a segment.
pub(super) mod flag {
    pub(in super::super) const FIN: u8 = 1;
    pub(in super::super) const SYN: u8 = 2;
    pub(in super::super) const RST: u8 = 4;
    pub(in super::super) const PSH: u8 = 8;
    pub(in super::super) const ACK: u8 = 16;
}

/// The other end of a connection, or who asks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
    pub(super) port: u16,
}

/// A TCP segment of the guest's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment<'a> {
    pub(super) peer: Peer,
    /// The port of the service that it is for.
    pub(super) port: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
    pub(super) mss: Option<u16>,
    pub(super) data: &'a [u8],
}

impl Segment<'_> {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// A segment for the guest, but for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) to: Peer,
    pub(super) from: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) window: u16,
}

/// What a frame for the service is.
#[derive(Debug)]
pub(super) enum Frame<'a> {
    /// Somebody asks for its hardware address.
    Question(Peer),
    Segment(Segment<'a>),
    /// Another protocol, or a part of a packet.
    Unusual,
    /// What it says it is it is not.
    Wrong,
}

/// Whether a frame that begins so is for the service at this address, whatever station it is sent to: a guest without
/// a route to the service sends it to its gateway.
pub(super) fn is_for(address: Ipv4Addr, start: &[u8]) -> bool {
    const ARP_TARGET: usize = ETHERNET + 24;
    const DESTINATION: usize = ETHERNET + 16;
    let place = match field(start, TYPE) {
        Some(TYPE_ARP) => ARP_TARGET,
        Some(TYPE_IPV4) => DESTINATION,
        _ => return false,
    };
    field(start, place) == Some(address.octets())
}

/// Reads a frame for the service.
pub(super) fn read(frame: &[u8]) -> Frame<'_> {
    let read = match field(frame, TYPE) {
        Some(TYPE_ARP) => question(frame),
        Some(TYPE_IPV4) => packet(frame),
        _ => None,
    };
    read.unwrap_or(Frame::Wrong)
}

fn question(frame: &[u8]) -> Option<Frame<'_>> {
    let message = frame.get(ETHERNET..)?;
    if field(message, 0)? != ARP_KIND || field(message, 6)? != ARP_REQUEST {
        return None;
    }
    Some(Frame::Question(Peer {
        mac: field(message, 8)?,
        address: Ipv4Addr::from(field::<4>(message, 14)?),
        port: 0,
    }))
}

fn packet(frame: &[u8]) -> Option<Frame<'_>> {
    const MORE_FRAGMENTS_OR_OFFSET: u16 = 0x3fff;
    let packet = frame.get(ETHERNET..)?;
    let [first] = field(packet, 0)?;
    let header = usize::from(first & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes(field(packet, 2)?));
    if first >> 4 != 4 || header < IPV4 {
        return None;
    }
    let content = packet.get(header..total)?;
    let [protocol] = field(packet, 9)?;
    let part = u16::from_be_bytes(field(packet, 6)?) & MORE_FRAGMENTS_OR_OFFSET;
    if protocol != PROTOCOL_TCP || part != 0 {
        return Some(Frame::Unusual);
    }
    let peer = Peer {
        mac: field(frame, 6)?,
        address: Ipv4Addr::from(field::<4>(packet, 12)?),
        port: u16::from_be_bytes(field(content, 0)?),
    };
    segment(peer, content).map(Frame::Segment)
}

fn segment(peer: Peer, bytes: &[u8]) -> Option<Segment<'_>> {
    let [offset, flags] = field(bytes, 12)?;
    let header = usize::from(offset >> 4) * 4;
    let options = bytes.get(TCP..header)?;
    Some(Segment {
        peer,
        port: u16::from_be_bytes(field(bytes, 2)?),
        seq: u32::from_be_bytes(field(bytes, 4)?),
        ack: u32::from_be_bytes(field(bytes, 8)?),
        flags,
        window: u16::from_be_bytes(field(bytes, 14)?),
        mss: mss(options),
        data: bytes.get(header..)?,
    })
}

/// The peer's largest segment among the options.
fn mss(mut options: &[u8]) -> Option<u16> {
    loop {
        options = match options {
            [] | [OPTION_END, ..] => return None,
            [OPTION_NOTHING, rest @ ..] => rest,
            [OPTION_MSS, 4, high, low, ..] => return Some(u16::from_be_bytes([*high, *low])),
            [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..)?,
            _ => return None,
        };
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// Writes the answer to a question for the service's hardware address; `None` when there is no room.
pub(super) fn write_answer(room: &mut [u8], to: Peer, address: Ipv4Addr) -> Option<usize> {
    let frame = room.get_mut(..SHORTEST)?;
    frame.fill(0);
    let mut parts = Writer(frame);
    parts.ethernet(to.mac, TYPE_ARP)?;
    parts.put(&ARP_KIND)?;
    parts.put(&ARP_REPLY)?;
    parts.put(&MAC)?;
    parts.put(&address.octets())?;
    parts.put(&to.mac)?;
    parts.put(&to.address.octets())?;
    const _: () = assert!(ETHERNET + ARP <= SHORTEST);
    Some(SHORTEST)
}

/// Writes a segment from `address`, with as much of `data` as it has; `None` when there is no room for all of it.
pub(super) fn write_segment(
    room: &mut [u8],
    header: &Header,
    address: Ipv4Addr,
    data: &[u8],
) -> Option<usize> {
    const DONT_FRAGMENT: [u8; 2] = [0x40, 0];
    const HOPS: u8 = 64;
    let tells_mss = header.flags & flag::SYN != 0;
    let options = if tells_mss { MSS_OPTION } else { 0 };
    let segment = TCP + options + data.len();
    let total = u16::try_from(IPV4 + segment).ok()?;
    let len = ETHERNET + IPV4 + segment;
    let frame = room.get_mut(..len.max(SHORTEST))?;
    frame.fill(0);
    let to = header.to;
    let (link, packet) = frame.split_at_mut(ETHERNET);
    Writer(link).ethernet(to.mac, TYPE_IPV4)?;
    let (ip, tcp) = packet.get_mut(..IPV4 + segment)?.split_at_mut(IPV4);
    let mut parts = Writer(&mut *ip);
    parts.put(&[0x45, 0])?;
    parts.put(&total.to_be_bytes())?;
    parts.put(&[0, 0])?;
    parts.put(&DONT_FRAGMENT)?;
    parts.put(&[HOPS, PROTOCOL_TCP, 0, 0])?;
    parts.put(&address.octets())?;
    parts.put(&to.address.octets())?;
    let sum = checksum([&*ip]);
    Writer(ip.get_mut(10..)?).put(&sum)?;

    let mut parts = Writer(&mut *tcp);
    parts.put(&header.from.to_be_bytes())?;
    parts.put(&to.port.to_be_bytes())?;
    parts.put(&header.seq.to_be_bytes())?;
    parts.put(&header.ack.to_be_bytes())?;
    let words = u8::try_from((TCP + options) / 4).ok()?;
    parts.put(&[words << 4, header.flags])?;
    parts.put(&header.window.to_be_bytes())?;
    parts.put(&[0; 4])?;
    if tells_mss {
        let [high, low] = OWN_MSS.to_be_bytes();
        parts.put(&[OPTION_MSS, 4, high, low])?;
    }
    parts.put(data)?;
    // RFC 9293, 3.1: what stands for the packet's header in the sum.
    let [high, low] = u16::try_from(segment).ok()?.to_be_bytes();
    let before = [0, PROTOCOL_TCP, high, low];
    let sum = checksum([&address.octets(), &to.address.octets(), &before, &*tcp]);
    Writer(tcp.get_mut(16..)?).put(&sum)?;
    Some(len.max(SHORTEST))
}

/// The internet checksum (RFC 1071) of parts, all of which but the last have an even length.
fn checksum<const N: usize>(parts: [&[u8]; N]) -> [u8; 2] {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let word = match pair {
                [high, low] => [*high, *low],
                [high] => [*high, 0],
                _ => [0, 0],
            };
            // 64 KiB of words do not overflow it.
            sum += u32::from(u16::from_be_bytes(word));
        }
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!u16::try_from(sum).unwrap_or_default()).to_be_bytes()
}

/// Writes one part behind the other.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Option<()> {
        let room = std::mem::take(&mut self.0);
        let (part, rest) = room.split_at_mut_checked(bytes.len())?;
        part.copy_from_slice(bytes);
        self.0 = rest;
        Some(())
    }

    fn ethernet(&mut self, to: [u8; 6], kind: [u8; 2]) -> Option<()> {
        self.put(&to)?;
        self.put(&MAC)?;
        self.put(&kind)
    }
}
