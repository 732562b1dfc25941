//! Guest RAM: its regions and what backs them, and its memslots.

pub(crate) mod backing;
pub(crate) mod host;
pub(crate) mod huge;
#[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
pub(crate) mod image;
mod mapping;
#[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
pub(crate) mod proc_files;
#[cfg(feature = "snapshot")]
pub(crate) mod uffd;

use std::io;
#[cfg(feature = "snapshot")]
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arch::{GuestRam, KvmError, MachinePlan};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
#[cfg(feature = "snapshot")]
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::process::{Resource, getrlimit};
#[cfg(feature = "snapshot")]
use vm_memory::{Bytes, MemoryRegionAddress};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

pub(crate) use self::backing::Backing;
use self::image::MemoryImage;
use crate::{Error, HugePages, MemoryBacking, PlannedFor, VmConfig};

/// Refuses RAM that this host has not got; says what will not be as it was asked for. Everything is read here that its
/// kernel tells in files: where the machine is built, there may be none.
///
/// # Errors
/// Names what is missing.
pub(crate) fn check_host(config: &VmConfig) -> Result<Option<String>, Error> {
    host::check(config)?;
    let (backing, size) = (Backing::of(config), config.guest_memory.bytes());
    huge::check_size(backing, size)?;
    huge::check_pool(backing, size)?;
    let _ = (huge::transparent_size(), overcommit());
    Ok(huge::remark(backing))
}

/// Refuses RAM that cannot be had so.
///
/// # Errors
/// Names what is missing.
pub(crate) fn check(
    plan: &MachinePlan,
    backing: Backing,
    planned_for: PlannedFor,
) -> Result<(), Error> {
    huge::check_multiple(backing, plan)?;
    if planned_for == PlannedFor::AnotherHost {
        return Ok(());
    }
    check_file_limit(plan, backing, getrlimit(Resource::Fsize).current)
}

/// The sysctl vm.overcommit_memory, as it was first seen.
fn overcommit() -> Option<&'static str> {
    static SEEN: OnceLock<Option<String>> = OnceLock::new();
    let read = || std::fs::read_to_string("/proc/sys/vm/overcommit_memory").ok();
    SEEN.get_or_init(read).as_deref()
}

/// `limit` is RLIMIT_FSIZE, in bytes; it holds for files in memory too.
fn check_file_limit(plan: &MachinePlan, backing: Backing, limit: Option<u64>) -> Result<(), Error> {
    let largest = plan.ram.iter().map(|range| range.len).max().unwrap_or(0);
    let has_file = backing.memory == MemoryBacking::Shared || backing.pool().is_some();
    let Some(limit) = limit.filter(|limit| has_file && *limit < largest) else {
        return Ok(());
    };
    let (field, value) = match backing.memory {
        MemoryBacking::Shared => ("memory-backing", "shared".to_owned()),
        MemoryBacking::Anonymous => ("huge-pages", backing.pages.to_string()),
    };
    Err(Error::Config {
        field: field.into(),
        value,
        cause: format!(
            "it is a file in memory of {} MiB, and files of this process may have {} MiB",
            largest >> 20,
            limit >> 20
        ),
        cure: "raise that limit (`ulimit -f unlimited`, LimitFSIZE= of systemd), or use anonymous memory \
               without reserved huge pages"
            .to_owned(),
    })
}

/// Maps the plan's RAM, never zeroed by the VMM. Huge pages of a pool are reserved here; everything else is lazy.
pub(crate) fn map_ram(plan: &MachinePlan, backing: Backing) -> Result<GuestRam, Error> {
    map_image(plan, backing, None)
}

/// The same, with the content of files where the backing [may](Backing::maps_files) show them.
pub(crate) fn map_image(
    plan: &MachinePlan,
    backing: Backing,
    image: Option<&MemoryImage>,
) -> Result<GuestRam, Error> {
    let refused = |error: io::Error| refusal(plan, backing, &error);
    let image = image.filter(|_| backing.maps_files());
    let whole = image.and_then(|image| image.files.first());
    let whole = whole.map(|file| file.try_clone().map(Arc::new));
    let whole = whole.transpose().map_err(refused)?;
    let mut offset = 0;
    let regions = plan
        .ram
        .iter()
        .map(|range| {
            let len = usize::try_from(range.len).map_err(io::Error::other)?;
            let whole = whole.as_ref();
            let whole = whole.map(|file| FileOffset::from_arc(Arc::clone(file), offset));
            offset += range.len;
            let mapping = backing.map(range.base, len, whole)?;
            GuestRegionMmap::new(mapping, GuestAddress(range.base))
                .ok_or_else(|| io::Error::other("its end cannot be addressed"))
        })
        .collect::<io::Result<Vec<_>>>()
        .map_err(refused)?;
    let ram = GuestRam::from_regions(regions).map_err(|error| refused(io::Error::other(error)))?;
    let laid = image.map_or(Ok(()), |image| image.lay_over(&ram));
    laid.map_err(|source| Error::Host {
        what: "cannot map the layers of a saved machine's memory: merge them, or raise the number of mappings that a \
               process may have (sysctl vm.max_map_count)"
            .to_owned(),
        source,
    })?;
    if let Err(error) = advise(&ram, Advice::LinuxDontDump) {
        log::warn!("guest memory will be part of core dumps: {error}");
    }
    if backing.pages == HugePages::Transparent
        && let Err(error) = advise(&ram, Advice::LinuxHugepage)
    {
        log::debug!("no transparent huge pages: {error}");
    }
    Ok(ram)
}

/// What the host does not map.
fn refusal(plan: &MachinePlan, backing: Backing, error: &io::Error) -> Error {
    if error.raw_os_error() == Some(libc::ENOMEM) && backing.pool().is_some() {
        return huge::taken(backing, plan);
    }
    Error::Config {
        field: "guest-memory".into(),
        value: arch::size_text(plan.ram_size()),
        cause: format!("the host cannot map it: {error}"),
        cure: cure(getrlimit(Resource::As).current, overcommit()),
    }
}

/// RAM for a process that this one makes, which has all of it as it is now: a copy where both would write to the same
/// pages, which that process then does not inherit.
///
/// # Errors
/// When the host has no memory for a copy, or what `copy` says.
#[cfg(feature = "snapshot")]
pub(crate) fn for_child(
    ram: &GuestRam,
    plan: &MachinePlan,
    backing: Backing,
    copy: impl FnOnce(&GuestRam, &GuestRam) -> io::Result<()>,
) -> Result<GuestRam, Error> {
    if backing.pool().is_none() {
        return Ok(ram.clone());
    }
    let theirs = map_ram(plan, backing)?;
    copy(ram, &theirs)
        .and_then(|()| advise(ram, Advice::LinuxDontFork))
        .map_err(Error::host("cannot copy guest memory"))?;
    Ok(theirs)
}

/// Gives the kernel advice about all of RAM that changes nothing about its content. (What the guest has in its
/// memory is not the business of whoever reads a core dump of the VMM, and makes it as large as the guest.)
fn advise(ram: &GuestRam, advice: Advice) -> io::Result<()> {
    debug_assert!(matches!(
        advice,
        Advice::LinuxDontDump | Advice::LinuxDontFork | Advice::LinuxHugepage
    ));
    for region in ram.iter() {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: the advice changes nothing about the memory's content; the range is the region's mapping.
        unsafe { madvise(region.as_ptr().cast(), len, advice) }?;
    }
    Ok(())
}

/// Brings a part of a region that is mapped to a file into memory. The pages stay the file's: nothing is copied.
#[cfg(feature = "snapshot")]
pub(crate) fn bring(region: &GuestRegionMmap, part: Range<u64>) -> io::Result<()> {
    let page = rustix::param::page_size();
    // Blocks of a file may be smaller.
    let start = part.start / page as u64 * page as u64;
    let place = region.get_host_address(MemoryRegionAddress(start));
    let place = place.map_err(io::Error::other)?;
    let len = usize::try_from(part.end.min(region.len()).saturating_sub(start));
    let len = len.map_err(io::Error::other)?;
    // SAFETY: the advice changes nothing about the memory's content; the range lies in the region's mapping.
    match unsafe { madvise(place.cast(), len, Advice::LinuxPopulateRead) } {
        // Before Linux 5.14.
        Err(Errno::INVAL) => (start..part.end).step_by(page).try_for_each(|at| {
            let byte = region.read_obj::<u8>(MemoryRegionAddress(at));
            byte.map(drop).map_err(io::Error::other)
        }),
        populated => populated.map_err(Into::into),
    }
}

/// What helps where RAM cannot be mapped; `limit` is RLIMIT_AS in bytes, `overcommit` the sysctl
/// vm.overcommit_memory.
fn cure(limit: Option<u64>, overcommit: Option<&str>) -> String {
    match (limit, overcommit.map(str::trim)) {
        (Some(limit), _) => format!(
            "this process may have {} MiB of address space: raise that limit (`ulimit -v unlimited`, LimitAS= of \
             systemd), or ask for less memory",
            limit >> 20
        ),
        (None, Some("2")) => "this host grants no more memory than it has (sysctl vm.overcommit_memory is 2): set that \
             to 0, or ask for less memory"
            .to_owned(),
        (None, _) => "ask for less memory: it is more than the host has, or than it can address".to_owned(),
    }
}

/// The largest memslot. KVM counts its pages in 31 bits.
const MAX_SLOT: usize = 1 << 42;

/// Gives every RAM region to the VM, as one memslot or as several.
pub(crate) fn set_memslots(vm: &VmFd, ram: &GuestRam) -> Result<(), KvmError> {
    let parts = ram.iter().flat_map(|region| {
        (0..region.len())
            .step_by(MAX_SLOT)
            .map(move |offset| (region, offset, (region.len() - offset).min(MAX_SLOT as u64)))
    });
    for (slot, (region, offset, memory_size)) in (0..).zip(parts) {
        let memslot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0 + offset,
            memory_size,
            userspace_addr: region.as_ptr() as u64 + offset,
        };
        // SAFETY: the part lies in a live mapping of that size; the machine keeps `ram` until all
        // vCPUs are gone.
        unsafe { vm.set_user_memory_region(memslot) }
            .map_err(KvmError::of("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../tests/common/pool.rs"]
mod pool;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use vm_memory::Bytes;

    use super::pool::HugePagePool;
    use super::*;

    fn plan(mib: u32) -> MachinePlan {
        let planner = crate::planner(crate::ARCHITECTURES[0]).unwrap();
        let config = crate::VmConfig::default().with_memory_mib(mib);
        planner.plan(&config.machine().unwrap()).unwrap()
    }

    /// What needs nothing of the host, then reserved pages if the host has `mib` of them.
    fn backings(mib: u32) -> Vec<Backing> {
        use HugePages::{Off, Reserved2M, Transparent};
        let mut backings = Vec::new();
        for memory in [MemoryBacking::Anonymous, MemoryBacking::Shared] {
            for pages in [Off, Transparent, Reserved2M] {
                backings.push(Backing { memory, pages });
            }
        }
        backings.retain(|backing| {
            let has = huge::check_pool(*backing, u64::from(mib) << 20);
            if let Err(error) = &has {
                eprintln!("SKIPPED {backing:?}: {error}");
            }
            has.is_ok()
        });
        backings
    }

    #[test]
    fn r70_guest_memory_is_in_no_core_dump() {
        let _pool = HugePagePool::with(8);
        for backing in backings(16) {
            let ram = map_ram(&plan(16), backing).unwrap();
            let start = format!("{:x}-", ram.iter().next().unwrap().as_ptr().addr());
            // proc_pid_smaps(5)
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (_, ours) = maps.split_once(&format!("\n{start}")).unwrap();
            let flags = ours.lines().find(|line| line.starts_with("VmFlags:"));
            let has = |name| flags.unwrap().split(' ').any(|flag| flag == name);
            assert!(has("dd"), "{backing:?}: {flags:?}");
            let is_advised = backing.pages == HugePages::Transparent;
            assert_eq!(has("hg"), is_advised, "{backing:?}: {flags:?}");
            let has_pool = backing.pool().is_some();
            assert_eq!(has("ht"), has_pool, "{backing:?}: {flags:?}");
        }
    }

    #[test]
    fn fresh_memory_is_zero_whatever_was_there_before() {
        let _pool = HugePagePool::with(8);
        let plan = plan(16);
        for backing in backings(16) {
            for _ in 0..2 {
                let ram = map_ram(&plan, backing).unwrap();
                for offset in [0x1000, 0x20_0000, 0xff_fff8] {
                    let address = GuestAddress(plan.ram[0].base + offset);
                    assert_eq!(ram.read_obj::<u64>(address).unwrap(), 0, "{backing:?}");
                    ram.write_obj(u64::MAX, address).unwrap();
                }
            }
        }
    }

    #[test]
    fn r72_huge_pages_are_reserved_at_the_start_and_come_back() {
        let Some(_pool) = HugePagePool::with(8) else {
            return;
        };
        let backing = Backing {
            memory: MemoryBacking::Anonymous,
            pages: HugePages::Reserved2M,
        };
        for _ in 0..2 {
            let ram = map_ram(&plan(16), backing).unwrap();
            assert_eq!(HugePagePool::free(), 0, "nothing was touched yet");
            let error = map_ram(&plan(16), backing).unwrap_err().to_string();
            let expected = "needs 8 huge pages, and this host has not as many free any more";
            assert!(error.contains(expected), "{error}");
            drop(ram);
            assert_eq!(HugePagePool::free(), 8);
        }
    }

    #[test]
    fn r72_a_limit_of_files_holds_for_memory_that_is_one() {
        let check = |backing, limit| check_file_limit(&plan(16), backing, limit);
        let with = |memory, pages| Backing { memory, pages };
        let shared = with(MemoryBacking::Shared, HugePages::Off);
        let error = check(shared, Some(1 << 20)).unwrap_err();
        assert!(error.to_string().contains("memory-backing=shared"));
        assert!(error.cure().unwrap().contains("ulimit -f"));
        let huge = with(MemoryBacking::Anonymous, HugePages::Reserved2M);
        let error = check(huge, Some(1 << 20)).unwrap_err();
        assert!(error.to_string().contains("huge-pages=2M"));
        check(shared, Some(16 << 20)).unwrap();
        check(shared, None).unwrap();
        check(Backing::default(), Some(0)).unwrap();
    }

    #[test]
    fn r72_the_limit_that_ram_does_not_fit_into_is_named() {
        let two = Some("2\n");
        assert!(cure(Some(512 << 20), two).contains("512 MiB of address space"));
        assert!(cure(None, two).contains("vm.overcommit_memory is 2"));
        assert!(cure(None, Some("0\n")).contains("ask for less memory"));
        assert!(cure(None, None).contains("ask for less memory"));
    }
}
