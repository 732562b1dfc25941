// Lists of ranges.
#![allow(clippy::single_range_in_vec_init)]

use std::os::unix::fs::FileExt;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use super::*;

const PAGE: u64 = 4096;
/// Two regions of so many pages, large enough for a large page.
const PAGES: u64 = 2048;

fn region(file: Option<File>, base: u64) -> GuestRegionMmap {
    let anonymous = if file.is_none() {
        libc::MAP_ANONYMOUS
    } else {
        0
    };
    let mut builder = MmapRegionBuilder::new(usize::try_from(PAGES * PAGE).unwrap())
        .with_mmap_prot(3)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous);
    if let Some(file) = file {
        builder = builder.with_file_offset(FileOffset::new(file, 0));
    }
    GuestRegionMmap::new(builder.build().unwrap(), GuestAddress(base)).unwrap()
}

/// An anonymous region, and one that is a file.
fn ram() -> GuestRam {
    let file = tempfile::tempfile().unwrap();
    file.set_len(PAGES * PAGE).unwrap();
    file.write_all_at(&[7; 64 * 4096], 0).unwrap();
    GuestRam::from_regions(vec![region(None, 0), region(Some(file), PAGES * PAGE)]).unwrap()
}

/// Where a page of RAM lies in this process.
fn place(ram: &GuestRam, page: u64) -> *mut u8 {
    ram.get_host_address(GuestAddress(page * PAGE)).unwrap()
}

fn write(ram: &GuestRam, page: u64) {
    ram.write_obj(1_u8, GuestAddress(page * PAGE + 9)).unwrap();
}

fn pages(runs: &[Range<u64>]) -> Vec<Range<u64>> {
    let pages = runs.iter().map(|run| run.start / PAGE..run.end / PAGE);
    pages.collect()
}

/// All of RAM is protected. Nothing where the kernel cannot.
fn watched(ram: &GuestRam) -> Option<Tracker> {
    let tracker = match Tracker::new(ram, &ProcFiles::open()) {
        Ok(tracker) => tracker,
        Err(error) => {
            eprintln!("SKIPPED: {error}");
            assert!(std::env::var_os("CI").is_none(), "{error}");
            return None;
        }
    };
    tracker.protect(ram, &[0..2 * PAGES * PAGE]).unwrap();
    assert_eq!(tracker.written(ram).unwrap(), []);
    Some(tracker)
}

#[test]
fn every_write_is_seen_once_and_no_reading() {
    let ram = ram();
    for page in [0, 1, 700, PAGES + 2, PAGES + 900] {
        write(&ram, page);
    }
    let Some(tracker) = watched(&ram) else { return };
    for page in 0..2 * PAGES {
        let _: u8 = ram.read_obj(GuestAddress(page * PAGE)).unwrap();
    }
    assert_eq!(tracker.written(&ram).unwrap(), []);
    // Pages that were there, that were read only, and of the file.
    for page in [1, 3, 700, PAGES - 1, PAGES, PAGES + 2, PAGES + 1500] {
        write(&ram, page);
    }
    let expected = [
        1..2,
        3..4,
        700..701,
        PAGES - 1..PAGES + 1,
        PAGES + 2..PAGES + 3,
        PAGES + 1500..PAGES + 1501,
    ];
    let written = tracker.written(&ram).unwrap();
    assert_eq!(pages(&written), expected);
    // It stays so until they are protected again.
    assert_eq!(tracker.written(&ram).unwrap(), written);
    tracker.protect(&ram, &written).unwrap();
    assert_eq!(tracker.written(&ram).unwrap(), []);
    write(&ram, PAGES + 2);
    assert_eq!(
        pages(&tracker.written(&ram).unwrap()),
        [PAGES + 2..PAGES + 3]
    );
}

/// As what a device reads from its disk or its network.
#[test]
fn what_the_kernel_writes_is_seen() {
    let ram = ram();
    let Some(tracker) = watched(&ram) else { return };
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&[1; 2 * 4096], 0).unwrap();
    for page in [5, PAGES + 5] {
        // SAFETY: two pages of RAM.
        let buffer = unsafe { std::slice::from_raw_parts_mut(place(&ram, page), 2 * 4096) };
        file.read_exact_at(buffer, 0).unwrap();
    }
    let written = tracker.written(&ram).unwrap();
    assert_eq!(pages(&written), [5..7, PAGES + 5..PAGES + 7]);
}

#[test]
fn what_was_given_back_is_seen() {
    let ram = ram();
    for page in 0..2 * PAGES {
        write(&ram, page);
    }
    let Some(tracker) = watched(&ram) else { return };
    // One page, and so much that the kernel may take page tables away.
    for (page, count) in [(2, 1), (600, 1100)] {
        // SAFETY: pages of an anonymous mapping that stays.
        unsafe {
            let len = count * 4096;
            madvise(place(&ram, page).cast(), len, Advice::LinuxDontNeed).unwrap();
        }
    }
    let written = tracker.written(&ram).unwrap();
    assert_eq!(pages(&written), [2..3, 600..1700]);
    // Also when it was read since.
    for page in [2, 650] {
        assert_eq!(
            ram.read_obj::<u8>(GuestAddress(page * PAGE + 9)).unwrap(),
            0
        );
    }
    assert_eq!(tracker.written(&ram).unwrap(), written);
    tracker.protect(&ram, &written).unwrap();
    assert_eq!(tracker.written(&ram).unwrap(), []);
    write(&ram, 1000);
    assert_eq!(pages(&tracker.written(&ram).unwrap()), [1000..1001]);
}

/// As of a private file, over which fresh memory is put.
#[test]
fn what_was_mapped_anew_is_seen() {
    let ram = ram();
    for page in 0..2 * PAGES {
        write(&ram, page);
    }
    let Some(tracker) = watched(&ram) else { return };
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    let access = ProtFlags::READ | ProtFlags::WRITE;
    for (page, count) in [(PAGES + 3, 1), (PAGES + 500, 1030)] {
        // SAFETY: pages of a mapping that stays.
        unsafe { mmap_anonymous(place(&ram, page).cast(), count * 4096, access, flags) }.unwrap();
    }
    write(&ram, PAGES + 600);
    // Nobody would see what is written there.
    assert!(tracker.written(&ram).is_err());
    tracker.register(&ram).unwrap();
    let written = tracker.written(&ram).unwrap();
    assert_eq!(
        pages(&written),
        [PAGES + 3..PAGES + 4, PAGES + 500..PAGES + 1530]
    );
    tracker.protect(&ram, &written).unwrap();
    assert_eq!(tracker.written(&ram).unwrap(), []);
}

#[test]
fn large_pages_are_seen_in_small_ones() {
    let ram = ram();
    for region in ram.iter() {
        let len = usize::try_from(region.len()).unwrap();
        // SAFETY: advice that changes nothing about the content.
        let _ = unsafe { madvise(region.as_ptr().cast(), len, Advice::LinuxHugepage) };
    }
    for page in 0..PAGES {
        write(&ram, page);
    }
    let Some(tracker) = watched(&ram) else { return };
    for page in [700, 1300, 1301] {
        write(&ram, page);
    }
    let written = tracker.written(&ram).unwrap();
    assert_eq!(pages(&written), [700..701, 1300..1302]);
}

#[test]
fn a_list_may_be_longer_than_what_is_asked_for_at_once() {
    let ram = ram();
    let Some(tracker) = watched(&ram) else { return };
    for page in (0..2 * PAGES).step_by(2) {
        write(&ram, page);
    }
    let written = tracker.written(&ram).unwrap();
    assert_eq!(written.len() as u64, PAGES);
    assert!(PAGES > AT_ONCE as u64 / 2);
    // Nobody watches any more when it is gone.
    drop(tracker);
    let again = Tracker::new(&ram, &ProcFiles::open()).unwrap();
    assert_eq!(again.written(&ram).unwrap(), [0..2 * PAGES * PAGE]);
}

/// As kernels do that do not know the ioctl.
#[test]
fn a_kernel_that_does_not_know_the_question_is_named() {
    let error = probe(&tempfile::tempfile().unwrap()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    let said = untold(&error);
    assert!(
        said.starts_with("the host's kernel does not tell what changes, as Linux 6.7 does: "),
        "{said}"
    );
    let busy = untold(&io::Error::from_raw_os_error(libc::EBUSY));
    assert!(
        busy.starts_with("another process brings its memory"),
        "{busy}"
    );
    // One that tells at all knows it.
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    assert!(probe(&pagemap).is_ok() || Tracker::new(&ram(), &ProcFiles::open()).is_err());
}
