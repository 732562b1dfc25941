//! Which pages of RAM were written since they were last protected.
//!
//! The kernel is asked, since it sees every writer: vCPUs, the devices' threads, io_uring and KVM itself. userfaultfd's
//! asynchronous write protection (Documentation/admin-guide/mm/userfaultfd.rst of Linux) marks pages, a write takes the mark
//! off without asking anybody, and the ioctl PAGEMAP_SCAN (admin-guide/mm/pagemap.rst) tells which have none. KVM's dirty
//! log would tell of vCPUs only.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use arch::GuestRam;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::ranges::{Ranges, push, union};
use crate::memory::proc_files::{NoneInFork, ProcFiles};
use crate::memory::uffd::{Mode, Uffd};

/// Of include/uapi/linux/fs.h.
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// struct pm_scan_arg.
#[repr(C)]
#[derive(Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// struct page_region.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGEMAP_SCAN: libc::Ioctl = libc::_IOWR::<Scan>(b'f' as u32, 16);

/// How many runs are asked for at once.
const AT_ONCE: usize = 1024;

/// Watches who writes to RAM, as long as it is there.
#[derive(Debug)]
pub(super) struct Tracker {
    userfaults: Uffd,
    pagemap: File,
}

impl Tracker {
    /// Nothing is watched yet.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub(super) fn new(ram: &GuestRam, files: &ProcFiles) -> io::Result<Self> {
        let tracker = Self {
            userfaults: Uffd::for_tracking()?,
            pagemap: files.pagemap()?,
        };
        probe(&tracker.pagemap)?;
        tracker.register(ram)?;
        Ok(tracker)
    }

    /// Watches all of RAM, also what was mapped since it was last said; that counts as written.
    pub(super) fn register(&self, ram: &GuestRam) -> io::Result<()> {
        let mut regions = ram.iter();
        regions.try_for_each(|region| self.userfaults.register(region, Mode::Protected))
    }

    /// What was written since it was protected, or given back. Places in RAM are counted as if its regions lay one after
    /// the other.
    pub(super) fn written(&self, ram: &GuestRam) -> io::Result<Ranges> {
        let mut all = Vec::new();
        let mut offset = 0;
        for region in ram.iter() {
            let written = Scan {
                category_mask: PAGE_IS_WRITTEN,
                return_mask: PAGE_IS_WRITTEN,
                ..Scan::default()
            };
            // What is nowhere was given back: a page that is protected has at least a mark. Only kernels with "fs/proc/task_mmu:
            // fix PAGEMAP_SCAN written state for PMD holes" (2026) count what has no page table as written.
            let nowhere = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
            let gone = Scan {
                category_inverted: nowhere,
                category_mask: nowhere,
                return_mask: nowhere,
                ..Scan::default()
            };
            let found = union(self.scan(region, written)?, self.scan(region, gone)?);
            for range in found {
                push(&mut all, offset + range.start..offset + range.end);
            }
            offset += region.len();
        }
        Ok(all)
    }

    /// The runs of a region that a question is true of.
    fn scan(&self, region: &GuestRegionMmap, question: Scan) -> io::Result<Ranges> {
        let mut runs = Vec::new();
        let mut found = vec![Found::default(); AT_ONCE];
        let first = start(region);
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: PM_SCAN_CHECK_WPASYNC,
            start: first,
            end: first + region.len(),
            // The kernel writes there.
            vec: found.as_mut_ptr().expose_provenance() as u64,
            vec_len: found.len() as u64,
            ..question
        };
        while scan.start < scan.end {
            let count = self.ask(&mut scan)?;
            for run in found.iter().take(count) {
                push(&mut runs, run.start - first..run.end - first);
            }
            if scan.walk_end <= scan.start {
                return Err(io::Error::other("PAGEMAP_SCAN does not come to an end"));
            }
            scan.start = scan.walk_end;
        }
        Ok(runs)
    }

    /// From now on a write to these places is seen.
    pub(super) fn protect(&self, ram: &GuestRam, places: &[Range<u64>]) -> io::Result<()> {
        let mut offset = 0;
        for region in ram.iter() {
            let end = offset + region.len();
            for place in places {
                let place = place.start.max(offset)..place.end.min(end);
                if !place.is_empty() {
                    let first = start(region);
                    self.ask(&mut Scan {
                        size: size_of::<Scan>() as u64,
                        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
                        start: first + (place.start - offset),
                        end: first + (place.end - offset),
                        ..Scan::default()
                    })?;
                }
            }
            offset = end;
        }
        Ok(())
    }

    /// Gives the number of runs that were found.
    fn ask(&self, scan: &mut Scan) -> io::Result<usize> {
        // SAFETY: at `vec`, if that is not 0, `scan` has room for as many runs as it says.
        unsafe { ask(&self.pagemap, scan) }
    }
}

/// Whether the kernel knows the question at all, which is asked of no memory: before Linux 6.7 it does not (ENOTTY).
fn probe(pagemap: &File) -> io::Result<()> {
    let mut nothing = Scan {
        size: size_of::<Scan>() as u64,
        ..Scan::default()
    };
    // SAFETY: nothing is written at `vec`, which is 0.
    unsafe { ask(pagemap, &mut nothing) }.map(drop)
}

/// # Safety
/// The kernel may write as many `struct page_region` at `vec` as the question says.
unsafe fn ask(pagemap: &File, scan: &mut Scan) -> io::Result<usize> {
    // SAFETY: the kernel reads and writes a `struct pm_scan_arg`; of `vec` the caller has taken care.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut *scan) };
    usize::try_from(found).map_err(|_| io::Error::last_os_error())
}

/// Why a host does not tell, in words.
pub(super) fn untold(error: &io::Error) -> String {
    match error.kind() {
        // Who brings memory has it registered, and the kernel takes one of them only.
        io::ErrorKind::ResourceBusy => {
            "another process brings its memory, and then what changes is not told".to_owned()
        }
        _ if NoneInFork::is(error) => error.to_string(),
        _ => format!("the host's kernel does not tell what changes, as Linux 6.7 does: {error}"),
    }
}

/// Where a region lies in this process.
fn start(region: &GuestRegionMmap) -> u64 {
    region.as_ptr().addr() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
