//! zstd (RFC 8878), with what the decoder leaves to its user: a bound for its window, and the checksum.

use std::io;

use ruzstd::decoding::StreamingDecoder;

use super::bounds::{Limit, MAX_WINDOW, Part};

/// The longest header of a frame, in bytes.
const MAX_HEADER: usize = 18;

/// Unpacks one frame.
pub(super) fn unpack(packed: &mut Part<'_>, limit: Limit) -> io::Result<Vec<u8>> {
    let mut header = [0; MAX_HEADER];
    let known = usize::try_from(packed.left).unwrap_or(usize::MAX);
    let header = header.get_mut(..known.min(MAX_HEADER)).unwrap_or_default();
    let image = packed.image;
    image.read_exact_at(header, packed.offset)?;
    // The decoder keeps as much of what it has unpacked.
    match window(header).ok_or(io::ErrorKind::UnexpectedEof)? {
        Window::Size(size) if size > MAX_WINDOW => return Err(io::ErrorKind::OutOfMemory.into()),
        Window::Content(size) if size > limit.0 => return Err(io::ErrorKind::FileTooLarge.into()),
        _ => {}
    }
    frame(packed, limit).ok_or_else(|| {
        if packed.starved {
            io::ErrorKind::UnexpectedEof.into()
        } else {
            io::ErrorKind::InvalidData.into()
        }
    })
}

/// `None`: it is damaged.
fn frame(packed: &mut Part<'_>, limit: Limit) -> Option<Vec<u8>> {
    let mut decoder = StreamingDecoder::new(packed).ok()?;
    let bytes = limit.read(&mut decoder).ok()?;
    let decoder = decoder.into_frame_decoder();
    let checksum = decoder.get_checksum_from_data();
    let whole = bytes.len() as u64 > limit.0
        || checksum.is_none_or(|checksum| decoder.get_calculated_checksum() == Some(checksum));
    whole.then_some(bytes)
}

/// What bounds how far back a frame refers, in bytes.
#[derive(Debug, PartialEq, Eq)]
enum Window {
    Size(u64),
    /// All of it.
    Content(u64),
}

/// The window of a frame by its header (RFC 8878, 3.1.1.1); `None`: it ends too early.
fn window(header: &[u8]) -> Option<Window> {
    let descriptor = *header.get(4)?;
    let single = descriptor & 0x20 != 0;
    if !single {
        let byte = u64::from(*header.get(5)?);
        let base = 1u64 << (10 + (byte >> 3));
        return Some(Window::Size(base + base / 8 * (byte & 7)));
    }
    let dictionary = match descriptor & 3 {
        3 => 4,
        bytes => usize::from(bytes),
    };
    let rest = header.get(5 + dictionary..)?;
    Some(Window::Content(match descriptor >> 6 {
        0 => u64::from(*rest.first()?),
        1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        _ => u64::from_le_bytes(*rest.first_chunk()?),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_read_as_the_format_has_it() {
        let frame = |rest: &[u8]| window(&[&[0x28, 0xb5, 0x2f, 0xfd], rest].concat());
        assert_eq!(frame(&[0, 0]), Some(Window::Size(1024)));
        assert_eq!(frame(&[0, 17 << 3]), Some(Window::Size(128 << 20)));
        assert_eq!(
            frame(&[0, 0xff]),
            Some(Window::Size((1 << 41) + 7 * (1 << 38)))
        );
        assert_eq!(frame(&[0x20, 7]), Some(Window::Content(7)));
        assert_eq!(frame(&[0x61, 9, 1, 0]), Some(Window::Content(257)));
        assert_eq!(frame(&[0xa0, 1, 0, 0, 0]), Some(Window::Content(1)));
        let most = [&[0xe3, 1, 2, 3, 4][..], &[0xff; 8]].concat();
        assert_eq!(frame(&most), Some(Window::Content(u64::MAX)));
        for short in [&[][..], &[0], &[0x20], &[0xe3, 0, 0]] {
            assert_eq!(frame(short), None, "{short:?}");
        }
    }
}
