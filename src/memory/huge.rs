//! The host's huge pages: pools of them that have to be filled before (Linux
//! Documentation/admin-guide/mm/hugetlbpage.rst), and those that the kernel makes by itself (transhuge.rst).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arch::MachinePlan;

use super::backing::Backing;
use super::host::least_limit;
use crate::{Error, HugePages, MemoryBacking};

/// Where the kernel tells of them.
const MM: &str = "/sys/kernel/mm";
/// What transparent huge pages have where the kernel does not tell.
const USUAL: u64 = 2 << 20;

/// The size of this host's transparent huge pages, in bytes; 2 MiB where the kernel does not tell.
#[must_use]
pub fn transparent_size() -> u64 {
    // It does not change while the host runs, and a process in a jail cannot look.
    static SIZE: OnceLock<u64> = OnceLock::new();
    *SIZE.get_or_init(|| transparent_size_in(Path::new(MM)).unwrap_or(USUAL))
}

fn transparent_size_in(mm: &Path) -> Option<u64> {
    let size = number(&mm.join("transparent_hugepage/hpage_pmd_size"))?;
    size.is_power_of_two().then_some(size)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Refuses an amount of RAM that is no whole number of huge pages.
pub(super) fn check_size(backing: Backing, size: u64) -> Result<(), Error> {
    let Some(page) = backing.pool().filter(|page| !size.is_multiple_of(*page)) else {
        return Ok(());
    };
    let below = size / page * page;
    let less = (below > 0).then(|| format!("{} or ", arch::size_text(below)));
    let pages = backing.pages;
    Err(Error::Config {
        field: "guest-memory".into(),
        value: arch::size_text(size),
        cause: format!("it is no multiple of the pages of huge-pages={pages}"),
        cure: format!(
            "give {}{}, or other huge pages",
            less.unwrap_or_default(),
            arch::size_text(below.saturating_add(page))
        ),
    })
}

/// Refuses RAM that is not made of whole huge pages; true on every host.
pub(super) fn check_multiple(backing: Backing, plan: &MachinePlan) -> Result<(), Error> {
    check_size(backing, plan.ram_size())?;
    let Some(page) = backing.pool() else {
        return Ok(());
    };
    let pages = backing.pages;
    let whole = |bytes: u64| bytes.is_multiple_of(page);
    if let Some(range) = plan
        .ram
        .iter()
        .find(|range| !(whole(range.base) && whole(range.len)))
    {
        return Err(Error::Config {
            field: "huge-pages".into(),
            value: pages.to_string(),
            cause: format!(
                "this machine has RAM from {:#x} to {:#x}, which is not made of whole pages of that size",
                range.base,
                range.end().saturating_sub(1)
            ),
            cure: "use smaller huge pages, or another amount of guest memory".to_owned(),
        });
    }
    Ok(())
}

/// A pool of huge pages of one size.
#[derive(Debug)]
struct Pool {
    folder: PathBuf,
    /// Of a page, in bytes.
    size: u64,
    name: HugePages,
}

impl Pool {
    fn new(mm: &Path, name: HugePages, size: u64) -> Self {
        let folder = mm.join(format!("hugepages/hugepages-{}kB", size >> 10));
        Self { folder, size, name }
    }

    fn count(&self, name: &str) -> Option<u64> {
        number(&self.folder.join(name))
    }

    /// Pages that nobody has or was promised, and those that the kernel may add when they are asked for.
    fn available(&self) -> Option<u64> {
        let free = self.count("free_hugepages")?;
        let promised = self.count("resv_hugepages").unwrap_or(0);
        let may_add = self.count("nr_overcommit_hugepages").unwrap_or(0);
        let added = self.count("surplus_hugepages").unwrap_or(0);
        Some(
            free.saturating_sub(promised)
                .saturating_add(may_add.saturating_sub(added)),
        )
    }

    /// Refuses `bytes` that the pool has not got.
    fn check(&self, bytes: u64) -> Result<(), Error> {
        let wanted = bytes / self.size;
        let refuse = |cause: String, cure: String| {
            Err(Error::Config {
                field: "huge-pages".into(),
                value: self.name.to_string(),
                cause,
                cure,
            })
        };
        let Some(available) = self.available() else {
            return refuse(
                "this host has no huge pages of that size".to_owned(),
                "use other huge pages; `vmm-reference doctor` says which sizes there are"
                    .to_owned(),
            );
        };
        if wanted <= available {
            return Ok(());
        }
        let all = self.count("nr_hugepages").unwrap_or(0);
        refuse(
            format!(
                "the guest needs {wanted} huge pages and this host has {available} free, of {all}"
            ),
            self.more(all.saturating_add(wanted - available)),
        )
    }

    /// How the host gets `pages`. The sysctl is for the default size; a folder of its own has each.
    fn more(&self, pages: u64) -> String {
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = format!("{} kB", self.size >> 10);
        let is_default = meminfo
            .lines()
            .filter_map(|line| line.strip_prefix("Hugepagesize:"))
            .any(|size| size.trim() == kib);
        let how = if is_default {
            format!("`sysctl vm.nr_hugepages={pages}`")
        } else {
            format!(
                "`echo {pages} > {}`",
                self.folder.join("nr_hugepages").display()
            )
        };
        let late = match self.name {
            HugePages::Reserved1G => {
                " (where memory is fragmented only the host's kernel command line gets as many: hugepagesz=1G \
                 hugepages=…)"
            }
            _ => "",
        };
        format!("as root, {how}{late}, or ask for less guest memory, or use huge-pages=transparent")
    }
}

/// Refuses what this host's pool, or the control group of this process, has not got.
pub(super) fn check_pool(backing: Backing, wanted: u64) -> Result<(), Error> {
    let Some(size) = backing.pool() else {
        return Ok(());
    };
    Pool::new(Path::new(MM), backing.pages, size).check(wanted)?;
    // hugetlb.2MB.max counts pages when they are touched, and then ends the process (SIGBUS).
    for kind in ["max", "rsvd.max"] {
        let file = format!("hugetlb.{}B.{kind}", backing.pages);
        if let Some(limit) = least_limit(&file).filter(|limit| *limit < wanted) {
            return Err(Error::Config {
                field: "huge-pages".into(),
                value: backing.pages.to_string(),
                cause: format!(
                    "the control group of this process may have {} MiB of such pages, and the guest needs {}",
                    limit >> 20,
                    wanted >> 20
                ),
                cure: format!("raise {file} of the group, or ask for less guest memory"),
            });
        }
    }
    Ok(())
}

/// The host has fewer huge pages than when they were counted: others have taken some since.
pub(super) fn taken(backing: Backing, plan: &MachinePlan) -> Error {
    let pages = plan.ram_size() / backing.pool().unwrap_or(USUAL);
    Error::Config {
        field: "huge-pages".into(),
        value: backing.pages.to_string(),
        cause: format!("the guest needs {pages} huge pages, and this host has not as many free any more"),
        cure: "start it again, which says how many there are and how to get more; or use huge-pages=transparent"
            .to_owned(),
    }
}

/// What is said where pages that the kernel should make will not be made.
pub(super) fn remark(backing: Backing) -> Option<String> {
    remark_in(Path::new(MM), backing)
}

fn remark_in(mm: &Path, backing: Backing) -> Option<String> {
    if backing.pages != HugePages::Transparent {
        return None;
    }
    let folder = mm.join("transparent_hugepage");
    let (file, right) = match backing.memory {
        MemoryBacking::Anonymous => ("enabled", "madvise"),
        MemoryBacking::Shared => ("shmem_enabled", "advise"),
    };
    let mode = |path: PathBuf| {
        let text = fs::read_to_string(path).ok()?;
        let chosen = text.split_once('[')?.1.split_once(']')?.0;
        Some(chosen.to_owned())
    };
    let Some(size) = transparent_size_in(mm) else {
        return Some(
            "huge-pages=transparent has no effect: the host's kernel has no such pages".to_owned(),
        );
    };
    let of_size = folder
        .join(format!("hugepages-{}kB", size >> 10))
        .join(file);
    let place = match mode(of_size.clone()) {
        Some(mode) if mode != "inherit" => of_size,
        _ => folder.join(file),
    };
    let chosen = mode(place.clone());
    let is_off = chosen
        .as_deref()
        .is_none_or(|mode| ["never", "deny"].contains(&mode));
    is_off.then(|| {
        format!(
            "huge-pages=transparent has no effect: {} is {}; as root, `echo {right} > {}`",
            place.display(),
            chosen.as_deref().unwrap_or("not there"),
            place.display()
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::AddressRange;

    use super::*;

    const SMALL: HugePages = HugePages::Reserved2M;

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn r72_huge_pages_that_the_host_lacks_are_refused_with_both_numbers() {
        let mm = tempfile::tempdir().unwrap();
        let pool = Pool::new(mm.path(), SMALL, 2 << 20);
        let said = pool.check(8 << 20).unwrap_err().to_string();
        assert!(said.contains("huge-pages=2M: this host has no"), "{said}");
        for (name, count) in [
            ("nr_hugepages", "6\n"),
            ("free_hugepages", "5\n"),
            ("resv_hugepages", "2\n"),
        ] {
            write(pool.folder.join(name), count);
        }
        pool.check(6 << 20).unwrap();
        let error = pool.check(8 << 20).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("needs 4 huge pages and this host has 3 free, of 6"),
            "{said}"
        );
        let cure = error.cure().unwrap();
        let sysctl = cure.contains("`sysctl vm.nr_hugepages=7`");
        assert!(sysctl || cure.contains("echo 7 > "), "{cure}");
        // Pages that the kernel may add count.
        write(pool.folder.join("nr_overcommit_hugepages"), "2\n");
        write(pool.folder.join("surplus_hugepages"), "1\n");
        pool.check(8 << 20).unwrap();
        pool.check(10 << 20).unwrap_err();
    }

    #[test]
    fn memory_has_to_be_whole_huge_pages() {
        let planner = crate::planner(crate::ARCHITECTURES[0]).unwrap();
        let plan = |mib| {
            let config = crate::VmConfig::default().with_memory_mib(mib);
            planner.plan(&config.machine().unwrap()).unwrap()
        };
        let backing = |pages| Backing {
            pages,
            ..Backing::default()
        };
        let check = |mib, pages| check_multiple(backing(pages), &plan(mib));
        check(64, SMALL).unwrap();
        check(65, HugePages::Transparent).unwrap();
        check(1024, HugePages::Reserved1G).unwrap();
        let error = check(65, SMALL).unwrap_err();
        assert_eq!(
            error.to_string(),
            "guest-memory=65M: it is no multiple of the pages of huge-pages=2M"
        );
        assert!(error.cure().unwrap().contains("64M or 66M"), "{error:?}");
        let error = check(64, HugePages::Reserved1G).unwrap_err();
        assert!(
            error.cure().unwrap().contains("give 1024M, or"),
            "{error:?}"
        );
        let mut odd = plan(64);
        odd.ram = vec![
            AddressRange::new(0, 1 << 20),
            AddressRange::new(5 << 20, 63 << 20),
        ];
        let said = check_multiple(backing(SMALL), &odd)
            .unwrap_err()
            .to_string();
        assert!(said.contains("RAM from 0x0 to 0xfffff"), "{said}");
    }

    #[test]
    fn pages_that_the_kernel_will_not_make_are_told() {
        let mm = tempfile::tempdir().unwrap();
        let of = |memory| {
            let pages = HugePages::Transparent;
            remark_in(mm.path(), Backing { memory, pages })
        };
        let (anonymous, shared) = (MemoryBacking::Anonymous, MemoryBacking::Shared);
        assert!(of(anonymous).unwrap().contains("has no such pages"));
        let thp = mm.path().join("transparent_hugepage");
        write(thp.join("hpage_pmd_size"), "2097152\n");
        write(thp.join("enabled"), "always [madvise] never\n");
        write(thp.join("shmem_enabled"), "always advise [never] deny\n");
        assert_eq!(of(anonymous), None);
        assert!(of(shared).unwrap().contains("shmem_enabled is never"));
        write(
            thp.join("hugepages-2048kB/enabled"),
            "always [inherit] never\n",
        );
        assert_eq!(of(anonymous), None);
        write(
            thp.join("hugepages-2048kB/enabled"),
            "always inherit [never]\n",
        );
        assert!(of(anonymous).unwrap().contains("hugepages-2048kB/enabled"));
        assert_eq!(remark_in(mm.path(), Backing::default()), None);
    }
}
