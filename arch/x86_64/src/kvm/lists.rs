//! What KVM takes and gives as lists: CPUID leaves, model-specific registers.

use arch::KvmError;
use kvm_bindings::{CpuId, KVM_MAX_MSR_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::{Error as Errno, VcpuFd};

use crate::cpuid::CpuidEntry;
use crate::registers::Msr;

/// EINVAL.
const EINVAL: i32 = 22;

/// What KVM would say to something that cannot be handed to it.
pub(super) fn refused(operation: &'static str) -> KvmError {
    KvmError::of(operation)(Errno::new(EINVAL))
}

pub(super) fn set_cpuid(vcpu: &VcpuFd, leaves: &[CpuidEntry]) -> Result<(), KvmError> {
    let entries: Vec<_> = leaves.iter().map(kvm_cpuid_entry2::from).collect();
    let cpuid = CpuId::from_entries(&entries).map_err(|_| refused("KVM_SET_CPUID2"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::of("KVM_SET_CPUID2"))
}

/// Those that can be read; KVM lists more than a vCPU has.
pub(super) fn get_msrs(vcpu: &VcpuFd, known: &[u32]) -> Result<Vec<Msr>, KvmError> {
    let mut found = Vec::new();
    let mut rest = known;
    while !rest.is_empty() {
        let entry = |index: &u32| kvm_msr_entry {
            index: *index,
            ..kvm_msr_entry::default()
        };
        let entries: Vec<_> = rest.iter().take(KVM_MAX_MSR_ENTRIES).map(entry).collect();
        let mut msrs = Msrs::from_entries(&entries).map_err(|_| refused("KVM_GET_MSRS"))?;
        let read = vcpu
            .get_msrs(&mut msrs)
            .map_err(KvmError::of("KVM_GET_MSRS"))?;
        found.extend(msrs.as_slice().iter().take(read).copied().map(Msr::from));
        // KVM stops at the first one that it cannot read.
        let skipped = usize::from(read < entries.len());
        rest = rest.get(read + skipped..).unwrap_or_default();
    }
    Ok(found)
}

/// Writes them; one that cannot be written has to have its value already.
pub(super) fn set_msrs(vcpu: &VcpuFd, wanted: &[Msr]) -> Result<(), KvmError> {
    let mut rest = wanted;
    while !rest.is_empty() {
        let entries: Vec<_> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .copied()
            .map(kvm_msr_entry::from)
            .collect();
        let msrs = Msrs::from_entries(&entries).map_err(|_| refused("KVM_SET_MSRS"))?;
        let written = vcpu.set_msrs(&msrs).map_err(KvmError::of("KVM_SET_MSRS"))?;
        rest = rest.get(written..).unwrap_or_default();
        if written < entries.len()
            && let Some((msr, others)) = rest.split_first()
        {
            let own = get_msrs(vcpu, &[msr.index])?;
            if own.first() != Some(msr) {
                return Err(refused("KVM_SET_MSRS"));
            }
            rest = others;
        }
    }
    Ok(())
}
