//! The container of a saved machine's state: named sections, each with a version of its own and a checksum. Nothing
//! here knows what is in them. All numbers are little-endian.
//!
//! | bytes | |
//! |---|---|
//! | 16 | `MAGIC` |
//! | 4, 4 | the version of the container; the number of sections |
//! | 48 each | a section: its name (24 bytes, filled up with zeros), version (4), CRC-32 (4), offset (8) and length (8) |
//! | 4 | CRC-32 of all before |
//!
//! A file is hostile: every number is checked against the file's length before it is used.

/// How a state begins.
const MAGIC: &[u8; 16] = b"VMMREF SNAPSHOT\n";
/// The version of the container.
pub(crate) const VERSION: u32 = 1;
const NAME: usize = 24;
const ENTRY: usize = NAME + 4 + 4 + 8 + 8;
const HEADER: usize = MAGIC.len() + 4 + 4;
/// The most sections.
const MOST: usize = 64;

/// A part of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'a str,
    /// Of what is in it.
    pub(crate) version: u32,
    pub(crate) bytes: &'a [u8],
}

/// Why bytes are no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("it is no saved machine")]
    Magic,
    #[error("its format has version {0}, and this program knows {VERSION}")]
    Version(u32),
    #[error("it is damaged: it ends too early")]
    Truncated,
    #[error("it is damaged: the checksum of {0} is wrong")]
    Checksum(String),
    #[error("it is damaged: {0}")]
    Section(&'static str),
}

/// The bytes of a state.
pub(crate) fn encode(sections: &[Section<'_>]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(
        u32::try_from(sections.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    let mut offset = HEADER + ENTRY * sections.len() + 4;
    for Section {
        name,
        version,
        bytes: payload,
    } in sections
    {
        let mut field = [0; NAME];
        for (place, byte) in field.iter_mut().zip(name.bytes()) {
            *place = byte;
        }
        bytes.extend(field);
        bytes.extend(version.to_le_bytes());
        bytes.extend(crc32fast::hash(payload).to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        bytes.extend((payload.len() as u64).to_le_bytes());
        offset += payload.len();
    }
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    for section in sections {
        bytes.extend(section.bytes);
    }
    bytes
}

/// The sections of a state.
///
/// # Errors
/// When it is none of this version, or damaged.
pub(crate) fn decode(state: &[u8]) -> Result<Vec<Section<'_>>, FormatError> {
    let mut header = Fields(state);
    if header.take(MAGIC.len()) != Ok(MAGIC) {
        return Err(FormatError::Magic);
    }
    match header.u32()? {
        VERSION => {}
        other => return Err(FormatError::Version(other)),
    }
    let count = usize::try_from(header.u32()?).unwrap_or(usize::MAX);
    if count > MOST {
        return Err(FormatError::Section("it has too many sections"));
    }
    let table = HEADER + ENTRY * count;
    let covered = state.get(..table).ok_or(FormatError::Truncated)?;
    let sum = Fields(state.get(table..).unwrap_or_default()).u32()?;
    if sum != crc32fast::hash(covered) {
        return Err(FormatError::Checksum("the table".to_owned()));
    }
    let mut sections: Vec<Section<'_>> = Vec::with_capacity(count);
    for _ in 0..count {
        let name = header.take(NAME)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = std::str::from_utf8(name)
            .map_err(|_| FormatError::Section("a section's name is no text"))?;
        let (version, sum) = (header.u32()?, header.u32()?);
        let [start, len] = [header.u64()?, header.u64()?].map(usize::try_from);
        let (Ok(start), Ok(len)) = (start, len) else {
            return Err(FormatError::Truncated);
        };
        let end = start.checked_add(len).ok_or(FormatError::Truncated)?;
        let bytes = state.get(start..end).ok_or(FormatError::Truncated)?;
        if crc32fast::hash(bytes) != sum {
            return Err(FormatError::Checksum(format!(
                "the section {}",
                name.escape_debug()
            )));
        }
        if sections.iter().any(|other| other.name == name) {
            return Err(FormatError::Section("two sections have the same name"));
        }
        sections.push(Section {
            name,
            version,
            bytes,
        });
    }
    Ok(sections)
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(FormatError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        let bytes = self.take(4)?.try_into();
        bytes
            .map(u32::from_le_bytes)
            .map_err(|_| FormatError::Truncated)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        let bytes = self.take(8)?.try_into();
        bytes
            .map(u64::from_le_bytes)
            .map_err(|_| FormatError::Truncated)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn example() -> Vec<u8> {
        encode(&[
            Section {
                name: "about",
                version: 1,
                bytes: b"{}",
            },
            Section {
                name: "vcpus",
                version: 3,
                bytes: &[7; 100],
            },
            Section {
                name: "empty",
                version: 1,
                bytes: b"",
            },
        ])
    }

    #[test]
    fn sections_come_back_as_they_were() {
        let state = example();
        let sections = decode(&state).unwrap();
        assert_eq!(sections.len(), 3);
        assert_eq!(
            sections[1],
            Section {
                name: "vcpus",
                version: 3,
                bytes: &[7; 100]
            }
        );
        assert!(sections[2].bytes.is_empty());
        let two = [Section {
            name: "a",
            version: 1,
            bytes: b"",
        }; 2];
        assert!(matches!(
            decode(&encode(&two)),
            Err(FormatError::Section(_))
        ));
        assert_eq!(decode(b"#!/bin/sh\n"), Err(FormatError::Magic));
        let mut newer = state;
        newer[16] = 2;
        assert_eq!(decode(&newer), Err(FormatError::Version(2)));
    }

    #[test]
    fn r27_every_cut_and_every_flipped_bit_is_found() {
        let state = example();
        for len in 0..state.len() {
            assert!(decode(&state[..len]).is_err(), "{len}");
        }
        for bit in 0..state.len() * 8 {
            let mut flipped = state.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "{bit}");
        }
    }

    proptest! {
        #[test]
        fn r29_any_bytes_end_in_bounded_memory(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            sealed: bool,
        ) {
            let mut state = MAGIC.to_vec();
            state.extend(VERSION.to_le_bytes());
            state.extend(bytes);
            if sealed && let Some(count) = state.get(20..24) {
                // A right checksum, so that what is behind it is looked at.
                let count = u32::from_le_bytes(count.try_into().unwrap()) as usize % 4;
                state.splice(20..24, u32::try_from(count).unwrap().to_le_bytes());
                let table = HEADER + ENTRY * count;
                if state.len() >= table + 4 {
                    let sum = crc32fast::hash(&state[..table]).to_le_bytes();
                    state.splice(table..table + 4, sum);
                }
            }
            let _ = decode(&state);
        }
    }
}
