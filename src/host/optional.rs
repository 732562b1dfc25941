//! What some VMs need of the host: taps, large pages, limits, what a sandbox is made of.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::check::{Check, Level};
use super::landlock;

/// A VM with a few devices has so many files open, and one without any so many.
const FEW_FILES: u64 = 256;
const LEAST_FILES: u64 = 32;
/// A VM with a few devices has so many threads.
const FEW_THREADS: u64 = 64;

/// The host's kernel, as `uname -r` names it.
pub(crate) fn kernel_release() -> String {
    word("/proc/sys/kernel/osrelease").map_or_else(
        || "an unknown kernel".to_owned(),
        |release| format!("Linux {release}"),
    )
}

pub(super) fn checks() -> Vec<Check> {
    // What cannot be read would look like something that the host has not.
    if let Err(error) = File::open("/dev/null")
        && matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    {
        return vec![open_files(), address_space(), processes(), locked_memory()];
    }
    let mut checks = vec![tun()];
    checks.extend(huge_pages(Path::new("/sys/kernel/mm")));
    checks.push(user_namespaces(&Namespaces::of_this_host()));
    checks.extend([open_files(), address_space(), processes(), locked_memory()]);
    checks.push(landlock_check(landlock::abi()));
    #[cfg(feature = "virtio-blk")]
    checks.push(io_uring(devices::virtio::Block::has_io_uring()));
    checks
}

/// A file with one word or number, as those below /proc and /sys are.
fn word(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}

fn tun() -> Check {
    const WHAT: &str = "/dev/net/tun";
    match File::options().read(true).write(true).open(WHAT) {
        Ok(_) => Check::ok("dev_net_tun", WHAT, "opens for writing"),
        Err(error) => {
            let cure = match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV) => {
                    "load the module (`modprobe tun`); in a container, start it with `--device /dev/net/tun`"
                }
                Some(errno @ (libc::EMFILE | libc::ENFILE)) => {
                    crate::cures::of_host(errno).unwrap_or_default()
                }
                Some(libc::EPERM) => {
                    "start the container with `--device /dev/net/tun`, or allow the device in the service's \
                     DeviceAllow="
                }
                _ => "let your user read and write it (most distributions let everybody)",
            };
            let found = format!("{error}; network devices (net) need it, unless they have fd=N");
            Check::warn("dev_net_tun", WHAT, found, cure)
        }
    }
}

/// Pools of large pages, and transparent ones. `mm` is /sys/kernel/mm.
fn huge_pages(mm: &Path) -> [Check; 2] {
    let pools = fs::read_dir(mm.join("hugepages"));
    let mut sizes: Vec<(u64, String)> = pools
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            let kib = kib.parse::<u64>().ok()?;
            let count = |file| word(entry.path().join(file)).unwrap_or_else(|| "?".to_owned());
            let size = if kib >= 1 << 20 {
                format!("{} GiB", kib >> 20)
            } else if kib >= 1 << 10 {
                format!("{} MiB", kib >> 10)
            } else {
                format!("{kib} KiB")
            };
            let free = format!(
                "{} of {} free of {size}",
                count("free_hugepages"),
                count("nr_hugepages")
            );
            Some((kib, free))
        })
        .collect();
    sizes.sort_unstable();
    let free: Vec<_> = sizes.into_iter().map(|(_, free)| free).collect();
    let pools = if free.is_empty() {
        "this kernel has no pools of them".to_owned()
    } else {
        free.join(", ")
    };
    let mode = word(mm.join("transparent_hugepage/enabled"));
    // The mode in use stands in brackets.
    let chosen = mode.as_deref().and_then(|mode| {
        let (_, rest) = mode.split_once('[')?;
        Some(rest.split_once(']')?.0)
    });
    const THP: &str = "transparent huge pages";
    [
        Check::ok("huge_pages", "huge pages", pools),
        match chosen {
            Some("never") => Check::warn(
                "transparent_huge_pages",
                THP,
                "never: guest RAM is made of small pages, which is slower",
                "as root, `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
            ),
            Some(mode) => Check::ok("transparent_huge_pages", THP, mode),
            None => Check::ok("transparent_huge_pages", THP, "this kernel has none"),
        },
    ]
}

/// What decides whether somebody without privileges may make user namespaces.
#[derive(Debug, Default)]
struct Namespaces {
    /// user.max_user_namespaces.
    max: Option<u64>,
    /// kernel.unprivileged_userns_clone, of Debian's and Ubuntu's older kernels.
    clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns.
    apparmor: Option<u64>,
}

impl Namespaces {
    fn of_this_host() -> Self {
        let number = |name| word(Path::new("/proc/sys").join(name))?.parse().ok();
        Self {
            max: number("user/max_user_namespaces"),
            clone: number("kernel/unprivileged_userns_clone"),
            apparmor: number("kernel/apparmor_restrict_unprivileged_userns"),
        }
    }
}

fn user_namespaces(here: &Namespaces) -> Check {
    let warn = |found: &str, cure: &str| {
        let found = format!("{found}; only root can isolate a VM with them");
        Check::warn("user_namespaces", "user namespaces", found, cure)
    };
    match here {
        Namespaces { max: None, .. } => {
            warn("this kernel has none", "use a kernel with CONFIG_USER_NS")
        }
        Namespaces { max: Some(0), .. } => warn(
            "none are allowed",
            "raise user.max_user_namespaces (sysctl), or leave that to an administrator who set it to 0",
        ),
        Namespaces { clone: Some(0), .. } => warn(
            "not allowed without privileges",
            "`sysctl kernel.unprivileged_userns_clone=1`, as root",
        ),
        Namespaces {
            apparmor: Some(1), ..
        } => warn(
            "AppArmor restricts them (kernel.apparmor_restrict_unprivileged_userns)",
            "give the program an AppArmor profile with `userns,`",
        ),
        Namespaces { max: Some(max), .. } => Check::ok(
            "user_namespaces",
            "user namespaces",
            format!("allowed, up to {max}"),
        ),
    }
}

/// A limit of the process, `None` for none: the soft one and the hard one.
fn limits(resource: Resource) -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(resource);
    (limit.current, limit.maximum)
}

fn text(limit: Option<u64>, unit: &str) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |limit| format!("{limit}{unit}"))
}

fn open_files() -> Check {
    // The program raises the soft limit itself.
    let (_, hard) = limits(Resource::Nofile);
    const NAME: &str = "limit_open_files";
    const WHAT: &str = "open files";
    let found = format!("at most {}", text(hard, ""));
    let cure = "raise the limit (`ulimit -Hn`, LimitNOFILE= of systemd): each vCPU takes one, each queue two";
    match hard {
        Some(0..LEAST_FILES) => Check {
            level: Level::Fail,
            ..Check::warn(NAME, WHAT, format!("{found}, too few for any VM"), cure)
        },
        Some(LEAST_FILES..FEW_FILES) => Check::warn(NAME, WHAT, found, cure),
        _ => Check::ok(NAME, WHAT, found),
    }
}

fn address_space() -> Check {
    let (soft, _) = limits(Resource::As);
    let mib = soft.map(|bytes| bytes >> 20);
    if mib.is_none() {
        return Check::ok("limit_address_space", "address space", "unlimited");
    }
    Check::warn(
        "limit_address_space",
        "address space",
        format!("{}: guest RAM counts at its full size", text(mib, " MiB")),
        "raise the limit (`ulimit -v unlimited`, LimitAS= of systemd) where guests need more",
    )
}

fn processes() -> Check {
    let (soft, _) = limits(Resource::Nproc);
    let found = format!("at most {} of this user", text(soft, ""));
    if soft.is_some_and(|soft| soft < FEW_THREADS) {
        let cure =
            "raise the limit (`ulimit -u`): each vCPU and each device that a guest uses takes one";
        Check::warn("limit_processes", "threads and processes", found, cure)
    } else {
        Check::ok("limit_processes", "threads and processes", found)
    }
}

fn locked_memory() -> Check {
    let (soft, _) = limits(Resource::Memlock);
    let kib = soft.map(|bytes| bytes >> 10);
    Check::ok(
        "limit_locked_memory",
        "locked memory",
        format!("at most {}", text(kib, " KiB")),
    )
}

fn landlock_check(abi: io::Result<libc::c_long>) -> Check {
    match abi {
        Ok(version) => Check::ok("landlock", "Landlock", format!("ABI version {version}")),
        Err(error) => Check::warn(
            "landlock",
            "Landlock",
            format!("{error}: no program can give up its access to files by itself"),
            "use a kernel from 5.13 on with `landlock` in its boot parameter lsm=",
        ),
    }
}

#[cfg(feature = "virtio-blk")]
fn io_uring(made: io::Result<()>) -> Check {
    match made {
        Ok(()) => Check::ok("io_uring", "io_uring", "can be used"),
        Err(error) => {
            let cure = match error.raw_os_error() {
                Some(libc::ENOSYS) => "use a kernel from 5.10 on with CONFIG_IO_URING",
                Some(libc::ENOMEM) => "raise the limit of locked memory (`ulimit -l`)",
                Some(errno @ (libc::EMFILE | libc::ENFILE)) => {
                    crate::cures::of_host(errno).unwrap_or_default()
                }
                _ => {
                    "allow it: sysctl kernel.io_uring_disabled=0, and the seccomp profile of a container \
                     (`--security-opt seccomp=FILE`)"
                }
            };
            let found = format!("{error}: disks use one system call per request");
            Check::warn("io_uring", "io_uring", found, cure)
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pools_of_huge_pages_come_by_size_whatever_sizes_there_are() {
        let mm = tempfile::tempdir().unwrap();
        for (size, free, all) in [(1 << 20, 1, 2), (2048, 3, 4), (64, 0, 0)] {
            let pool = mm.path().join(format!("hugepages/hugepages-{size}kB"));
            fs::create_dir_all(&pool).unwrap();
            fs::write(pool.join("free_hugepages"), format!("{free}\n")).unwrap();
            fs::write(pool.join("nr_hugepages"), format!("{all}\n")).unwrap();
        }
        fs::create_dir(mm.path().join("transparent_hugepage")).unwrap();
        let mode = mm.path().join("transparent_hugepage/enabled");
        fs::write(&mode, "always [madvise] never\n").unwrap();
        let [pools, thp] = huge_pages(mm.path());
        let expected = "0 of 0 free of 64 KiB, 3 of 4 free of 2 MiB, 1 of 2 free of 1 GiB";
        assert_eq!(pools.found, expected);
        assert_eq!((thp.level, thp.found.as_str()), (Level::Ok, "madvise"));
        fs::write(&mode, "always madvise [never]\n").unwrap();
        assert_eq!(huge_pages(mm.path())[1].level, Level::Warn);
        // A kernel without both.
        let [pools, thp] = huge_pages(Path::new("/nonexistent"));
        assert_eq!((pools.level, thp.level), (Level::Ok, Level::Ok));
    }

    #[test]
    fn what_forbids_user_namespaces_is_named() {
        let found = |max, clone, apparmor| {
            user_namespaces(&Namespaces {
                max,
                clone,
                apparmor,
            })
        };
        assert_eq!(found(Some(9), None, None).level, Level::Ok);
        assert_eq!(found(Some(9), Some(1), Some(0)).level, Level::Ok);
        for (check, cure) in [
            (found(None, None, None), "CONFIG_USER_NS"),
            (found(Some(0), None, None), "user.max_user_namespaces"),
            (found(Some(9), Some(0), None), "unprivileged_userns_clone"),
            (found(Some(9), None, Some(1)), "AppArmor profile"),
        ] {
            assert_eq!(check.level, Level::Warn);
            assert!(check.cure.as_deref().unwrap().contains(cure), "{check:?}");
        }
    }

    #[test]
    fn a_host_without_an_option_is_a_warning_with_a_cure() {
        let refused = |errno| Err(io::Error::from_raw_os_error(errno));
        let check = landlock_check(refused(libc::EOPNOTSUPP).map(|()| 0));
        assert_eq!(check.level, Level::Warn);
        assert_eq!(landlock_check(Ok(4)).found, "ABI version 4");
        #[cfg(feature = "virtio-blk")]
        for (errno, cure) in [
            (libc::EPERM, "seccomp"),
            (libc::ENOSYS, "CONFIG_IO_URING"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EMFILE, "ulimit -n"),
        ] {
            let check = io_uring(refused(errno));
            assert_eq!(check.level, Level::Warn);
            assert!(check.cure.unwrap().contains(cure));
        }
    }
}
