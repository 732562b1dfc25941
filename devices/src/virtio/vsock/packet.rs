//! The header of a packet (`struct virtio_vsock_hdr`, VIRTIO 1.3, 5.10.6).

/// Its size in bytes.
pub(super) const HEADER: usize = 44;
/// The host's context identifier.
pub(super) const HOST: u64 = 2;
/// The only kind of socket there is here.
pub(super) const STREAM: u16 = 1;

/// What a packet is for.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a shutdown: its sender receives no more, sends no more.
pub(super) const NO_RECEIVE: u32 = 1;
pub(super) const NO_SEND: u32 = 2;

/// A header, from whichever side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data behind it.
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    /// The sender's buffer, and how many bytes have left it so far.
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
        let mut word = || words.next().unwrap_or_default();
        let mut long = || u64::from(word()) | u64::from(word()) << 32;
        let (src_cid, dst_cid) = (long(), long());
        let (src_port, dst_port, len) = (word(), word(), word());
        let [k0, k1, o0, o1] = word().to_le_bytes();
        Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind: u16::from_le_bytes([k0, k1]),
            op: u16::from_le_bytes([o0, o1]),
            flags: word(),
            buf_alloc: word(),
            fwd_cnt: word(),
        }
    }

    /// The reset that goes back to where this came from, whatever that wanted to reach.
    pub(super) fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let fields = [
            &self.src_cid.to_le_bytes()[..],
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_layout_of_the_specification() {
        let header = Header {
            src_cid: 3,
            dst_cid: HOST,
            src_port: 0x0102_0304,
            dst_port: 5,
            len: 6,
            kind: STREAM,
            op: op::RW,
            flags: 7,
            buf_alloc: 8,
            fwd_cnt: 9,
        };
        let bytes = header.bytes();
        assert_eq!(bytes[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[28..32], [1, 0, 5, 0]);
        assert_eq!(bytes[40..], [9, 0, 0, 0]);
        assert_eq!(Header::parse(&bytes), header);
    }
}
