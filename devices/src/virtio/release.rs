//! Gives guest memory back to the host.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use super::GuestRam;

/// The most pieces of a mapping, well below what a process may have (vm.max_map_count, 65530 by default).
const MOST_PIECES: u32 = 16_000;

/// Lets the host take the pages of a range; the guest finds zeros when it touches them again. The
/// host's pages may be larger than the guest's: those that are not wholly in the range stay. Does
/// nothing for what is not RAM. `pieces` counts what a mapping was cut into for it.
///
/// # Errors
/// When the host refuses.
pub(super) fn release(
    ram: &GuestRam,
    address: GuestAddress,
    len: usize,
    pieces: &AtomicU32,
) -> io::Result<()> {
    let found = ram.to_region_addr(address);
    let Some((region, start)) = found.filter(|_| ram.check_range(address, len)) else {
        return Ok(());
    };
    // A range over two regions would be two ranges of the host.
    let Some(end) = start.0.checked_add(len as u64) else {
        return Ok(());
    };
    if end > region.len() {
        return Ok(());
    }
    let page = page_size(region)?;
    let start = start.0.next_multiple_of(page);
    let len = (end / page * page).saturating_sub(start);
    if len == 0 {
        return Ok(());
    }
    match region.file_offset() {
        // The file's content would be there again.
        Some(_) if !is_shared(region) => put_fresh(region, start, len, pieces),
        // The pages are the file's: while it has them, nobody else can. By the mapping, and not by the file (fallocate), since
        // a handler of page faults (userfaultfd) hears of it only so.
        Some(_) => advise(region, start, len, Advice::LinuxRemove),
        None => advise(region, start, len, Advice::LinuxDontNeed),
    }
}

/// Takes the content of a part of a mapping away.
fn advise(region: &GuestRegionMmap, start: u64, len: u64, advice: Advice) -> io::Result<()> {
    let start = region
        .get_host_address(MemoryRegionAddress(start))
        .map_err(io::Error::other)?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    // SAFETY: the range is guest RAM, a mapping that `ram` keeps. Its content may change at any time as far as this process
    // knows, and that is all this does.
    unsafe { madvise(start.cast(), len, advice) }.map_err(Into::into)
}

/// Puts fresh memory over a part of a mapping.
fn put_fresh(region: &GuestRegionMmap, start: u64, len: u64, pieces: &AtomicU32) -> io::Result<()> {
    // The guest says which pages: it has no more of the process' mappings than this.
    if pieces.fetch_add(1, Ordering::Relaxed) >= MOST_PIECES {
        pieces.store(MOST_PIECES, Ordering::Relaxed);
        return Err(io::Error::other(
            "memory that is the file of a saved machine is in too many pieces already",
        ));
    }
    let place = region
        .get_host_address(MemoryRegionAddress(start))
        .map_err(io::Error::other)?;
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the range is guest RAM, a private mapping that `ram` keeps and that is unmapped as a whole. Its content may
    // change at any time as far as this process knows, and that is all this does: whoever accesses it meanwhile finds
    // the old content or zeros.
    unsafe {
        let fresh = mmap_anonymous(place.cast(), len, ProtFlags::READ | ProtFlags::WRITE, flags);
        // The kernel may have removed what was there before it failed: then anything may come to lie in guest memory.
        if fresh.is_err() && madvise(place.cast(), len, Advice::Normal) == Err(Errno::NOMEM) {
            log::error!("guest memory has a hole, which only the end of this process mends");
            std::process::abort();
        }
        fresh?;
        // As the rest of guest memory.
        madvise(place.cast(), len, Advice::LinuxDontDump)?;
    }
    Ok(())
}

/// Whether what is written to the mapping is written to its file.
fn is_shared(region: &GuestRegionMmap) -> bool {
    MapFlags::from_bits_retain(region.flags().cast_unsigned()).contains(MapFlags::SHARED)
}

/// What the host gives and takes at once, in bytes.
fn page_size(region: &GuestRegionMmap) -> io::Result<u64> {
    match (region.is_hugetlbfs(), region.file_offset()) {
        // A file of huge pages has blocks of their size (Linux fs/hugetlbfs/inode.c).
        (Some(true), Some(place)) => {
            let size = u64::try_from(fstat(place.file())?.st_blksize).unwrap_or(0);
            Ok(size.max(1))
        }
        // Unknown; nothing is given back.
        (Some(true), None) => Ok(1 << 63),
        _ => Ok(rustix::param::page_size() as u64),
    }
}

#[cfg(test)]
#[path = "../../../tests/common/pool.rs"]
#[allow(clippy::duplicate_mod)]
mod pool;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{File, read_to_string};

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset};

    use super::pool::HugePagePool;
    use super::*;

    const SMALL: u64 = 4096;
    const HUGE: u64 = 2 << 20;
    /// Where the region begins: what is given back is counted from there.
    const BASE: u64 = 0x1000_0000;
    /// Pages of the region.
    const PAGES: u64 = 8;

    fn ram(pages: u64, file: Option<FileOffset>, flags: MapFlags, is_hugetlb: bool) -> GuestRam {
        let mut builder = MmapRegionBuilder::new(usize::try_from(pages).unwrap())
            .with_mmap_prot(3)
            .with_mmap_flags(flags.bits().cast_signed())
            .with_hugetlbfs(is_hugetlb);
        if let Some(file) = file {
            builder = builder.with_file_offset(file);
        }
        let region = GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(BASE)).unwrap();
        GuestRam::from_regions(vec![region]).unwrap()
    }

    fn memory_file(len: u64, flags: MemfdFlags) -> FileOffset {
        let file = memfd_create("test", flags).unwrap();
        ftruncate(&file, len).unwrap();
        FileOffset::new(File::from(file), 0)
    }

    fn fill(ram: &GuestRam, page: u64) {
        for number in 0..PAGES {
            let address = GuestAddress(BASE + number * page + page / 2);
            ram.write_obj(1u8, address).unwrap();
        }
    }

    /// Which pages have lost what was written there.
    fn gone(ram: &GuestRam, page: u64) -> Vec<u64> {
        let is_zero = |number: &u64| {
            let address = GuestAddress(BASE + number * page + page / 2);
            ram.read_obj::<u8>(address).unwrap() == 0
        };
        (0..PAGES).filter(is_zero).collect()
    }

    /// Two pages in the middle, and parts of those around them.
    fn release_some(ram: &GuestRam, page: u64) {
        let len = usize::try_from(3 * page).unwrap();
        release(
            ram,
            GuestAddress(BASE + 2 * page + page / 4),
            len,
            &AtomicU32::new(0),
        )
        .unwrap();
    }

    /// Bytes of the mapping that are in memory (proc_pid_smaps(5)).
    fn resident(ram: &GuestRam) -> u64 {
        let start = ram.iter().next().unwrap().as_ptr().addr();
        let maps = read_to_string("/proc/self/smaps").unwrap();
        let (_, ours) = maps.split_once(&format!("\n{start:x}-")).unwrap();
        let line = ours.lines().find_map(|line| line.strip_prefix("Rss:"));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse::<u64>().unwrap() << 10
    }

    #[test]
    fn anonymous_memory_goes_back_by_its_pages() {
        let flags = MapFlags::PRIVATE | MapFlags::from_bits_retain(0x20);
        let ram = ram(PAGES * SMALL, None, flags, false);
        fill(&ram, SMALL);
        let before = resident(&ram);
        release_some(&ram, SMALL);
        assert_eq!(before - resident(&ram), 2 * SMALL);
        assert_eq!(gone(&ram, SMALL), [3, 4]);
    }

    #[test]
    fn shared_memory_goes_back_to_the_host_and_not_only_from_the_mapping() {
        let file = memory_file(PAGES * SMALL, MemfdFlags::CLOEXEC);
        let ram = ram(PAGES * SMALL, Some(file.clone()), MapFlags::SHARED, false);
        fill(&ram, SMALL);
        let blocks = || fstat(file.file()).unwrap().st_blocks;
        let before = blocks();
        release_some(&ram, SMALL);
        let freed = u64::try_from(before - blocks()).unwrap() * 512;
        assert_eq!(freed, 2 * SMALL);
        assert_eq!(gone(&ram, SMALL), [3, 4]);
        assert_eq!(file.file().metadata().unwrap().len(), PAGES * SMALL);
    }

    #[test]
    fn huge_pages_go_back_whole_or_not_at_all() {
        let Some(_pool) = HugePagePool::with(PAGES) else {
            return;
        };
        let file = memory_file(PAGES * HUGE, MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB);
        let ram = ram(PAGES * HUGE, Some(file), MapFlags::SHARED, true);
        fill(&ram, HUGE);
        assert_eq!(HugePagePool::free(), 0);
        // As the guest's balloon does.
        for page in (0..HUGE).step_by(4096) {
            release(
                &ram,
                GuestAddress(BASE + HUGE + page),
                4096,
                &AtomicU32::new(0),
            )
            .unwrap();
        }
        assert_eq!((HugePagePool::free(), gone(&ram, HUGE)), (0, vec![]));
        release_some(&ram, HUGE);
        assert_eq!(HugePagePool::free(), 2);
        assert_eq!(gone(&ram, HUGE), [3, 4]);
    }

    /// A machine that goes on has the file that it was saved in.
    #[test]
    fn what_is_given_back_of_a_private_file_is_not_the_files_again() {
        let file = memory_file(PAGES * SMALL, MemfdFlags::CLOEXEC);
        let shared = ram(PAGES * SMALL, Some(file.clone()), MapFlags::SHARED, false);
        fill(&shared, SMALL);
        let private = ram(PAGES * SMALL, Some(file), MapFlags::PRIVATE, false);
        assert!(gone(&private, SMALL).is_empty());
        release_some(&private, SMALL);
        assert_eq!(gone(&private, SMALL), [3, 4]);
        assert!(gone(&shared, SMALL).is_empty(), "the file keeps it");
        // It is memory like any other.
        fill(&private, SMALL);
        assert!(gone(&private, SMALL).is_empty());
        release_some(&private, SMALL);
        assert_eq!(gone(&private, SMALL), [3, 4]);
        let maps = read_to_string("/proc/self/smaps").unwrap();
        let start = private.iter().next().unwrap().as_ptr().addr() as u64 + 3 * SMALL;
        let (_, ours) = maps.split_once(&format!("\n{start:x}-")).unwrap();
        let flags = ours.lines().find(|line| line.starts_with("VmFlags:"));
        assert!(flags.unwrap().contains(" dd"), "{flags:?}");
    }

    #[test]
    fn a_guest_cannot_cut_memory_into_too_many_pieces() {
        let file = memory_file(PAGES * SMALL, MemfdFlags::CLOEXEC);
        let ram = ram(PAGES * SMALL, Some(file), MapFlags::PRIVATE, false);
        fill(&ram, SMALL);
        let pieces = AtomicU32::new(MOST_PIECES - 1);
        let release = |page| release(&ram, GuestAddress(BASE + page * SMALL), 4096, &pieces);
        release(1).unwrap();
        for _ in 0..2 {
            let refused = release(3).unwrap_err();
            assert!(refused.to_string().contains("too many pieces"));
        }
        assert_eq!(gone(&ram, SMALL), [1]);
    }

    #[test]
    fn what_is_no_ram_stays() {
        let file = memory_file(PAGES * SMALL, MemfdFlags::CLOEXEC);
        let private = ram(PAGES * SMALL, Some(file), MapFlags::PRIVATE, false);
        fill(&private, SMALL);
        let len = usize::try_from(PAGES * SMALL).unwrap();
        for address in [0, BASE - SMALL, BASE + SMALL, u64::MAX - 1] {
            release(&private, GuestAddress(address), len, &AtomicU32::new(0)).unwrap();
        }
        assert!(gone(&private, SMALL).is_empty());
    }
}
