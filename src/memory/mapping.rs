//! Mapping a region of guest RAM: its file, if it has one, and where in the VMM's address space it lies.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::MapFlags;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use super::backing::Backing;
use super::huge;
use crate::MemoryBacking;

/// PROT_READ and PROT_WRITE (mmap(2)).
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// How often the kernel is asked for a better place.
const TRIES: usize = 16;

impl Backing {
    /// Maps `len` bytes that the guest finds at `base`: what `image` has, if it [may](Self::maps_files); else zeros, and
    /// nothing that was there before. Nothing that the guest writes reaches that file.
    ///
    /// Reserved huge pages come from a file in memory even when nobody shares them: the kernel gives whole
    /// pages of such a file back since 4.3, of other mappings since 5.18 only.
    ///
    /// # Errors
    /// When the host has not got the memory, or the address space of this process no room.
    pub(super) fn map(
        self,
        base: u64,
        len: usize,
        image: Option<FileOffset>,
    ) -> io::Result<MmapRegion> {
        if let Some(page) = self.pool() {
            let file = memory_file(len, Some(page))?;
            // Without MAP_NORESERVE the pages are reserved here. The kernel puts such a mapping at a multiple
            // of their size.
            let flags = MapFlags::SHARED;
            return built(len, READ_WRITE, flags, Some(&file), true);
        }
        let (file, flags) = match self.memory {
            MemoryBacking::Shared => (Some(memory_file(len, None)?), MapFlags::SHARED),
            MemoryBacking::Anonymous => {
                let image = image.filter(|_| self.maps_files());
                (image, MapFlags::PRIVATE)
            }
        };
        let flags = flags | MapFlags::NORESERVE;
        let map = || built(len, READ_WRITE, flags, file.as_ref(), false);
        let align = usize::try_from(huge::transparent_size()).unwrap_or(1);
        let base = usize::try_from(base).unwrap_or(0);
        aligned(base, len, align, map)
    }
}

/// A file in memory (memfd_create(2)) whose size nobody can change, whoever gets its descriptor.
fn memory_file(len: usize, huge_page: Option<u64>) -> io::Result<FileOffset> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if let Some(size) = huge_page {
        // The size's logarithm, as MFD_HUGE_2MB has it (memfd_create(2)).
        flags |= MemfdFlags::HUGETLB | MemfdFlags::from_bits_retain(size.ilog2() << 26);
    }
    let file = memfd_create("guest-memory", flags)?;
    ftruncate(&file, len as u64)?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(FileOffset::new(File::from(file), 0))
}

fn built(
    len: usize,
    protection: i32,
    flags: MapFlags,
    file: Option<&FileOffset>,
    is_hugetlb: bool,
) -> io::Result<MmapRegion> {
    let mut flags = flags;
    if file.is_none() {
        flags |= MapFlags::from_bits_retain(libc::MAP_ANONYMOUS.cast_unsigned());
    }
    let mut builder = MmapRegionBuilder::new(len)
        .with_mmap_prot(protection)
        .with_mmap_flags(flags.bits().cast_signed())
        .with_hugetlbfs(is_hugetlb);
    if let Some(file) = file {
        builder = builder.with_file_offset(file.clone());
    }
    builder.build().map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(source) => source,
        other => io::Error::other(other),
    })
}

/// Maps where guest and host addresses agree modulo `align`, so that one page of that size can back one of the
/// guest: KVM needs that for large pages in its own tables (Linux arch/x86/kvm/mmu/mmu.c,
/// `kvm_alloc_memslot_metadata`).
///
/// Current kernels align large mappings themselves. The others take the highest gap that is large enough, so what does
/// not fit is filled up until the memory is mapped: the place that was tried, which may be a gap between other
/// mappings, and then as much below it as makes the next place a right one. Without success the memory lies where the
/// kernel wants it.
fn aligned(
    base: usize,
    len: usize,
    align: usize,
    map: impl Fn() -> io::Result<MmapRegion>,
) -> io::Result<MmapRegion> {
    // No access, so it is none of the memory that a host without overcommitting counts.
    let filler = |len| {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        built(len, libc::PROT_NONE, flags, None, false).ok()
    };
    let mut region = map()?;
    // No large page fits into less.
    if len < align {
        return Ok(region);
    }
    let mut fillers = Vec::new();
    for _ in 0..TRIES {
        let excess = region.as_ptr().addr().wrapping_sub(base) % align;
        if excess == 0 {
            return Ok(region);
        }
        drop(region);
        // Below it and the memory itself, an address that agrees. A small one would go into a small gap.
        let down = (excess + align - len % align) % align + len.next_multiple_of(align);
        let filled = [len, down].map(|len| filler(len).map(|filler| fillers.push(filler)));
        if filled.contains(&None) {
            return map();
        }
        region = map()?;
    }
    log::debug!("guest memory at {base:#x} does not begin at a large page of the host");
    Ok(region)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::HugePages;

    #[test]
    fn guest_and_host_addresses_agree_modulo_a_large_page() {
        let align = usize::try_from(huge::transparent_size()).unwrap();
        for memory in [MemoryBacking::Anonymous, MemoryBacking::Shared] {
            for base in [0, align / 2, 0x4000_0000, 0x4020_3000] {
                let backing = Backing {
                    memory,
                    pages: HugePages::Transparent,
                };
                let agrees = || {
                    let region = backing.map(base as u64, 4 * align + 0x5000, None).unwrap();
                    region.as_ptr().addr() % align == base % align
                };
                // Other tests' threads take address space in between; a VM is built before it has threads.
                assert!((0..10).any(|_| agrees()), "{memory:?} {base:#x}");
            }
        }
    }

    /// A kernel that takes no care of alignment.
    #[test]
    fn a_place_that_does_not_fit_is_left() {
        let align = 64 << 20;
        // Of such a length it takes none.
        let len = 2 * align + 0x5000;
        let map = || {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            built(len, READ_WRITE, flags, None, false)
        };
        for base in [0, 0x3000, 0x20_0000] {
            let agrees = || {
                let region = aligned(base, len, align, map).unwrap();
                region.as_ptr().addr() % align == base
            };
            assert!((0..10).any(|_| agrees()), "for {base:#x}");
        }
    }

    /// Gaps that the memory just fits into, and what fills up does not.
    #[test]
    fn a_place_that_does_not_fit_is_left_in_gaps_too() {
        let align = 64 << 20;
        let len = align + 0x5000;
        let map = |len: usize| {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            built(len, READ_WRITE, flags, None, false).unwrap()
        };
        let agrees = || {
            let mut wall = Vec::new();
            let mut gaps = Vec::new();
            for _ in 0..4 {
                wall.push(map(0x1000));
                gaps.push(map(len + 0x3000));
            }
            wall.push(map(0x1000));
            drop(gaps);
            let region = aligned(0x7000, len, align, || Ok(map(len))).unwrap();
            region.as_ptr().addr() % align == 0x7000
        };
        assert!((0..10).any(|_| agrees()));
    }

    #[test]
    fn nobody_changes_the_size_of_shared_memory() {
        let backing = Backing {
            memory: MemoryBacking::Shared,
            pages: HugePages::Off,
        };
        let region = backing.map(0, 1 << 20, None).unwrap();
        let file = region.file_offset().unwrap().file();
        for len in [0, 2 << 20] {
            let error = file.set_len(len).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        }
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    }
}
