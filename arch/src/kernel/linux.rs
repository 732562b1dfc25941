//! Which Linux a kernel image is, told from a few kilobytes at known places: the start of a VM must not
//! wait for a search of the whole image.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::elf;
use super::header::KernelHeader;
use super::reader::{KernelImage, Reader};

/// No version text is longer, in bytes.
const MAX_TEXT: u64 = 256;
/// How much of a kernel's constants is looked at, in bytes: the banner is at their start, because
/// `init/` is linked first.
const CONSTANTS: u64 = 8 << 10;
/// `/proc/version` of a kernel begins like this (Linux init/version-timestamp.c).
pub const BANNER: &[u8] = b"Linux version ";

/// A version of Linux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LinuxVersion {
    /// The first number.
    pub major: u16,
    /// The second number.
    pub minor: u16,
}

impl fmt::Display for LinuxVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl LinuxVersion {
    /// The version that a text begins with, such as `6.12.95-cloud (…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(|character: char| !character.is_ascii_digit());
        Some(Self {
            major: numbers.next()?.parse().ok()?,
            minor: numbers.next()?.parse().ok()?,
        })
    }
}

impl KernelHeader {
    /// The version text of a Linux kernel, where it stands at a place that is known beforehand: in a
    /// bzImage's setup code, or at the start of an ELF file's section `.rodata`. `None` for everything
    /// else: another kernel, or one that does not say.
    #[must_use]
    pub fn linux_release(&self, image: &KernelImage) -> Option<String> {
        let image = Reader::new(image).ok()?;
        match self {
            Self::BzImage(header) => {
                let at = header.version_offset()?;
                let len = header.setup_size.saturating_sub(at).min(MAX_TEXT);
                release(&image.read(at, len).ok()?)
            }
            Self::Elf(_) => {
                let (offset, size) = elf::section(&image, b".rodata")?;
                let constants = image.read(offset, size.min(CONSTANTS)).ok()?;
                let mut places = constants.windows(BANNER.len());
                let at = places.position(|bytes| bytes == BANNER)?;
                release(constants.get(at + BANNER.len()..)?)
            }
            _ => None,
        }
    }
}

/// The printable text of a release at the start of these bytes.
fn release(bytes: &[u8]) -> Option<String> {
    let end = |byte: &u8| !(b' '..=b'~').contains(byte);
    let text = bytes.split(end).next()?;
    let text = std::str::from_utf8(text).ok()?;
    LinuxVersion::parse(text)?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_begins_with_two_numbers() {
        let version = |text| LinuxVersion::parse(text).map(|version| version.to_string());
        assert_eq!(
            version("6.12.95+deb12-cloud-amd64").as_deref(),
            Some("6.12")
        );
        assert_eq!(version("7.2-rc1").as_deref(), Some("7.2"));
        for other in ["", "6", "6.", ".6", "v6.12", "Memtest86+", "99999999.1"] {
            assert_eq!(version(other), None, "{other}");
        }
        let parse = |text| LinuxVersion::parse(text).unwrap();
        assert!(parse("6.2") < parse("6.12") && parse("5.19") < parse("6.1"));
    }
}
