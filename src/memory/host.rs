//! What the host can give a guest as memory. A guest uses all of its RAM sooner or later; what the host does
//! not have then ends the VM, or another process, in the middle of its work.

use std::fs;
use std::path::Path;

use crate::{Error, VmConfig};

/// What the host has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct HostMemory {
    ram: u64,
    swap: u64,
    /// What programs can have without taking it from others.
    available: u64,
}

/// Of how many bytes of guest memory KVM needs one for itself, whether the guest uses them or not: measured with
/// Linux 6.18 on x86_64, 2.4 GiB for 1 TiB.
const KVM_SHARE: u64 = 400;

impl HostMemory {
    /// Reads /proc/meminfo (proc_meminfo(5)); `None` when it does not tell.
    fn parse(meminfo: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
            kib.checked_mul(1024)
        };
        Some(Self {
            available: bytes("MemAvailable:").or_else(|| bytes("MemTotal:"))?,
            ram: bytes("MemTotal:")?,
            swap: bytes("SwapTotal:").unwrap_or(0),
        })
    }

    fn check(self, config: &VmConfig) -> Result<(), Error> {
        let wanted = config.guest_memory.bytes();
        let most = self.ram.saturating_add(self.swap);
        if config.overcommit || wanted <= most {
            return self.check_kvm(config);
        }
        let mib = |bytes: u64| format!("{}M", bytes >> 20);
        Err(Error::Config {
            field: "guest-memory".into(),
            value: config.guest_memory.to_string(),
            cause: format!(
                "the host has {} of memory and {} of swap, so the guest could never use {} of it",
                mib(self.ram),
                mib(self.swap),
                mib(wanted.saturating_sub(most).max(1 << 20))
            ),
            cure: format!(
                "give at most {}, add memory or swap, or give overcommit=true when the guest will not \
                 touch all of it",
                mib(most)
            ),
        })
    }

    /// Memory that the guest never touches costs KVM some all the same, and that is the host's kernel's, which ends
    /// other programs to have it.
    fn check_kvm(self, config: &VmConfig) -> Result<(), Error> {
        let for_kvm = config.guest_memory.bytes() / KVM_SHARE;
        if for_kvm > self.available / 2 {
            return Err(Error::Config {
                field: "guest-memory".into(),
                value: config.guest_memory.to_string(),
                cause: format!(
                    "KVM keeps about {} MiB of its own for that much, which this host, with {} MiB available, \
                     would have to take from other programs",
                    for_kvm >> 20,
                    self.available >> 20
                ),
                cure: format!(
                    "give at most {} MiB",
                    (self.available / 2).saturating_mul(KVM_SHARE) >> 20
                ),
            });
        }
        Ok(())
    }
}

/// Refuses more guest memory than the host has, unless the configuration asks for that. Less than that, but
/// more than the control group of this process may have, is worth a warning.
///
/// # Errors
/// Names both amounts.
pub(crate) fn check(config: &VmConfig) -> Result<(), Error> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    if let Some(host) = HostMemory::parse(&meminfo) {
        host.check(config)?;
    }
    // Huge pages of a pool do not count there.
    let is_counted = !config.overcommit && config.huge_pages.reserved_bytes().is_none();
    let limit = least_limit("memory.max").filter(|_| is_counted);
    if let Some(limit) = limit.filter(|limit| *limit < config.guest_memory.bytes()) {
        log::warn!(
            "the control group of this process may have {} MiB of memory and the guest has {}: the \
             kernel may end the VM before the guest has used all of it",
            limit >> 20,
            config.guest_memory
        );
    }
    Ok(())
}

/// The least limit with this name (`memory.max`) from this process's control group up, in bytes (Linux
/// Documentation/admin-guide/cgroup-v2.rst); `None` without one, or without control groups of version 2.
pub(super) fn least_limit(name: &str) -> Option<u64> {
    let membership = Path::new("/proc/self/cgroup");
    group_limit(membership, Path::new("/sys/fs/cgroup"), name)
}

fn group_limit(membership: &Path, root: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(membership).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder = root.join(group);
    let mut least: Option<u64> = None;
    while folder.starts_with(root) {
        let limit = fs::read_to_string(folder.join(name))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        least = [least, limit].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn r72_more_memory_than_the_host_has_is_refused_with_both_numbers() {
        let text = "MemTotal:        1048576 kB\nMemFree:  5 kB\nSwapTotal:  524288 kB\n";
        let host = HostMemory::parse(text).unwrap();
        assert_eq!((host.ram, host.swap), (1 << 30, 512 << 20));
        let with = |mib| VmConfig::default().with_memory_mib(mib);
        assert!(host.check(&with(1536)).is_ok());
        let error = host.check(&with(1537)).unwrap_err();
        let said = error.to_string();
        for part in [
            "guest-memory=1537M",
            "1024M of memory",
            "512M of swap",
            "use 1M",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let cure = error.cure().unwrap();
        assert!(cure.contains("at most 1536M") && cure.contains("overcommit=true"));
        assert!(host.check(&with(1537).with_overcommit()).is_ok());
        // Half of 512 MiB is what KVM may take.
        let host = HostMemory::parse(&format!("{text}MemAvailable: 524288 kB\n")).unwrap();
        assert!(host.check(&with(300 << 10).with_overcommit()).is_err());
        assert!(host.check(&with(90 << 10).with_overcommit()).is_ok());
        let error = host.check(&with(4 << 20).with_overcommit()).unwrap_err();
        assert!(
            error.to_string().contains("KVM keeps about 10485 MiB"),
            "{error}"
        );
        assert_eq!(HostMemory::parse("nothing"), None);
        assert_eq!(HostMemory::parse("MemTotal: many kB"), None);
    }

    #[test]
    fn the_least_limit_of_the_control_groups_counts() {
        let folder = tempfile::tempdir().unwrap();
        let membership = folder.path().join("cgroup");
        let root = folder.path().join("fs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(&membership, "0::/a/b\n").unwrap();
        let limit = || group_limit(&membership, &root, "memory.max");
        assert_eq!(limit(), None);
        fs::write(root.join("a/b/memory.max"), "max\n").unwrap();
        assert_eq!(limit(), None);
        fs::write(root.join("a/memory.max"), "4096\n").unwrap();
        assert_eq!(limit(), Some(4096));
        fs::write(root.join("a/b/memory.max"), "8192\n").unwrap();
        assert_eq!(limit(), Some(4096));
    }
}
