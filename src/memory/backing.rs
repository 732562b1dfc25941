//! What guest RAM is made of: where its pages come from, and how large they are.

use crate::{HugePages, MemoryBacking, VmConfig};

/// How guest RAM is backed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backing {
    pub(crate) memory: MemoryBacking,
    pub(crate) pages: HugePages,
}

impl Backing {
    pub(crate) fn of(config: &VmConfig) -> Self {
        Self {
            memory: config.memory_backing,
            pages: config.huge_pages,
        }
    }

    /// Whether the memory may show a file's content until it is written to.
    pub(crate) fn maps_files(self) -> bool {
        // A file has no large pages.
        self.memory == MemoryBacking::Anonymous && self.pages == HugePages::Off
    }

    /// The size of the pages that come out of a pool of the host's (hugetlb), in bytes.
    pub(crate) fn pool(self) -> Option<u64> {
        self.pages.reserved_bytes()
    }
}
