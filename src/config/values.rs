//! Values of a configuration that have a text of their own.

use std::fmt;
use std::str::FromStr;

use devices::config::{Size, parse_size, size_with_unit, whole_number};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An amount of memory. As text, a plain number means MiB; the suffixes `K`, `M`, `G` and `T`
/// (powers of 1024) name another unit.
///
/// ```
/// use vmm_reference::MemorySize;
///
/// assert_eq!("1024".parse(), "1G".parse::<MemorySize>());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemorySize(u64);

/// What a number without a unit counts.
const MIB: u32 = 20;
/// What a guest's memory may be, as far as no host is known.
const SIZES: &str = "16M to 16777215T";

/// `512` and `"512M"`.
impl<'de> Deserialize<'de> for MemorySize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let size = Size::deserialize(from)?;
        size.bytes(MIB, SIZES).map(Self).map_err(D::Error::custom)
    }
}

/// Always with a unit.
impl Serialize for MemorySize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        size_with_unit(self.0).serialize(to)
    }
}

impl MemorySize {
    /// `mib` mebibytes.
    #[must_use]
    pub const fn mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text, MIB, SIZES).map(Self)
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&arch::size_text(self.0))
    }
}

/// Where the pages of guest RAM come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum MemoryBacking {
    /// Private pages of this process.
    #[default]
    Anonymous,
    /// A file in memory (memfd) whose descriptor another process can be given.
    Shared,
}

impl fmt::Display for MemoryBacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
        })
    }
}

/// Which pages larger than the host's usual ones guest RAM has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HugePages {
    /// What the host does by itself.
    #[default]
    #[serde(rename = "off")]
    Off,
    /// The kernel is asked for those that it makes when it has the memory (Linux
    /// Documentation/admin-guide/mm/transhuge.rst).
    #[serde(rename = "transparent")]
    Transparent,
    /// Pages of 2 MiB, all of them reserved at the start (Linux Documentation/admin-guide/mm/hugetlbpage.rst).
    #[serde(rename = "2M")]
    Reserved2M,
    /// The same with pages of 1 GiB.
    #[serde(rename = "1G")]
    Reserved1G,
}

impl HugePages {
    /// The size of pages that are reserved at the start, in bytes; `None` for others.
    #[must_use]
    pub const fn reserved_bytes(self) -> Option<u64> {
        match self {
            Self::Off | Self::Transparent => None,
            Self::Reserved2M => Some(2 << 20),
            Self::Reserved1G => Some(1 << 30),
        }
    }
}

impl fmt::Display for HugePages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Transparent => "transparent",
            Self::Reserved2M => "2M",
            Self::Reserved1G => "1G",
        })
    }
}

/// What happens when the guest asks for a reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnReboot {
    /// The VM ends.
    #[default]
    Exit,
    /// The VM starts again, with fresh memory and the same disks and devices.
    Restart,
}

/// A number of vCPUs in a file.
pub(super) fn vcpus<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    whole_number(from, &(1..=u32::MAX), "1 to as many as this host offers")
}

/// Seconds in a file.
pub(super) fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    whole_number(from, &(0..=u32::MAX), "0 to 4294967295 seconds")
}
