//! `hvm_start_info` (Xen public header xen/arch-x86/hvm/start_info.h).

use crate::machine::{memory, u32_at, u64_at};

const MAGIC: u32 = 0x336e_c578;
/// Length with the memory map, which version 1 brought.
const LEN: u64 = 56;
const ENTRY_WORDS: usize = 3;
/// More than any command line has.
const CMDLINE_MAX: u64 = 64 << 10;

/// What the VMM says about the machine.
pub struct StartInfo {
    /// The bytes of the structure itself.
    pub bytes: &'static [u8],
    /// The command line without its final zero.
    pub cmdline: &'static [u8],
    /// Where the ACPI root pointer is.
    pub rsdp: u64,
    memory_map: &'static [u8],
}

/// One entry of the memory map.
#[derive(Clone, Copy)]
pub struct Range {
    /// The first address.
    pub base: u64,
    /// The length in bytes.
    pub len: u64,
    /// The type, as in E820.
    pub kind: u32,
}

impl StartInfo {
    /// Reads the structure at an address.
    pub fn read(address: u64) -> Option<Self> {
        let bytes = memory(address, LEN)?;
        if u32_at(bytes, 0)? != MAGIC || u32_at(bytes, 4)? < 1 {
            return None;
        }
        let cmdline = match u64_at(bytes, 24)? {
            0 => &[],
            address => memory(address, CMDLINE_MAX)?
                .split(|&byte| byte == 0)
                .next()?,
        };
        let entries = u64::from(u32_at(bytes, 48)?);
        Some(Self {
            bytes,
            cmdline,
            rsdp: u64_at(bytes, 32)?,
            memory_map: memory(u64_at(bytes, 40)?, entries * 8 * ENTRY_WORDS as u64)?,
        })
    }

    /// The memory map.
    pub fn memory_map(&self) -> impl Iterator<Item = Range> {
        let (words, _) = self.memory_map.as_chunks::<8>();
        let (entries, _) = words.as_chunks::<ENTRY_WORDS>();
        entries.iter().map(|[base, len, kind]| Range {
            base: u64::from_le_bytes(*base),
            len: u64::from_le_bytes(*len),
            // The upper half is reserved.
            kind: u64::from_le_bytes(*kind) as u32,
        })
    }

    /// A page below 640 KiB that is RAM and holds nothing of what the VMM passed on.
    pub fn free_low_page(&self) -> Option<u64> {
        let taken = [self.bytes, self.cmdline, self.memory_map];
        (1..0xa0).map(|page| page << 12).find(|&page| {
            let overlaps = |base: u64, len: u64| base < page + 0x1000 && page < base + len;
            let is_ram = |range: Range| {
                range.kind == RAM && range.base <= page && page + 0x1000 <= range.base + range.len
            };
            self.memory_map().any(is_ram)
                && !taken
                    .iter()
                    .any(|bytes| overlaps(bytes.as_ptr().addr() as u64, bytes.len() as u64))
        })
    }
}

/// The type of usable memory.
pub const RAM: u32 = 1;
