//! Guest RAM and its memslots.

pub(crate) mod host;

use arch::{GuestRam, KvmError, MachinePlan};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{Advice, madvise};
use rustix::process::{Resource, getrlimit};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::Error;

/// Maps the plan's RAM: anonymous, private, reserved lazily and never zeroed by the VMM.
pub(crate) fn map_ram(plan: &MachinePlan) -> Result<GuestRam, Error> {
    let too_large = |cause: String| Error::Config {
        field: "guest-memory".into(),
        value: format!("{}M", plan.ram_size() >> 20),
        cause: format!("the host cannot map it: {cause}"),
        cure: cure(
            getrlimit(Resource::As).current,
            std::fs::read_to_string("/proc/sys/vm/overcommit_memory").ok(),
        ),
    };
    let ranges = plan
        .ram
        .iter()
        .map(|range| {
            let len = usize::try_from(range.len).map_err(|error| too_large(error.to_string()))?;
            Ok((GuestAddress(range.base), len))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let ram = GuestRam::from_ranges(&ranges).map_err(|error| too_large(error.to_string()))?;
    keep_out_of_core_dumps(&ram);
    Ok(ram)
}

/// What the guest has in its memory is not the business of whoever reads a core dump of the VMM, and makes it as
/// large as the guest.
fn keep_out_of_core_dumps(ram: &GuestRam) {
    for region in ram.iter() {
        let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
        // SAFETY: the advice changes nothing about the memory; the range is the region's mapping.
        let done = unsafe { madvise(region.as_ptr().cast(), len, Advice::LinuxDontDump) };
        if let Err(error) = done {
            log::warn!("guest memory will be part of core dumps: {error}");
        }
    }
}

/// What helps where RAM cannot be mapped; `limit` is RLIMIT_AS in bytes, `overcommit` the sysctl
/// vm.overcommit_memory.
fn cure(limit: Option<u64>, overcommit: Option<String>) -> String {
    match (limit, overcommit.as_deref().map(str::trim)) {
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn r70_guest_memory_is_in_no_core_dump() {
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        keep_out_of_core_dumps(&ram);
        let start = format!("{:x}-", ram.iter().next().unwrap().as_ptr().addr());
        // proc_pid_smaps(5)
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, ours) = maps.split_once(&format!("\n{start}")).unwrap();
        let flags = ours.lines().find(|line| line.starts_with("VmFlags:"));
        assert!(
            flags.unwrap().split(' ').any(|flag| flag == "dd"),
            "{flags:?}"
        );
    }

    #[test]
    fn r72_the_limit_that_ram_does_not_fit_into_is_named() {
        let two = || Some("2\n".to_owned());
        assert!(cure(Some(512 << 20), two()).contains("512 MiB of address space"));
        assert!(cure(None, two()).contains("vm.overcommit_memory is 2"));
        assert!(cure(None, Some("0\n".to_owned())).contains("ask for less memory"));
        assert!(cure(None, None).contains("ask for less memory"));
    }
}
