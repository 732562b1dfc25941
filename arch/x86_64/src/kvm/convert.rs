//! Values of the pure half as KVM's structures have them, and back. Field for field: nothing is decided here.

use kvm_bindings::{kvm_cpuid_entry2, kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_segment};

use crate::cpuid::CpuidEntry;
use crate::registers::{DescriptorTable, Fpu, Msr, Segment, SegmentMode};

impl From<&kvm_cpuid_entry2> for CpuidEntry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
        }
    }
}

impl From<&CpuidEntry> for kvm_cpuid_entry2 {
    fn from(entry: &CpuidEntry) -> Self {
        Self {
            function: entry.function,
            index: entry.index,
            flags: entry.flags,
            eax: entry.eax,
            ebx: entry.ebx,
            ecx: entry.ecx,
            edx: entry.edx,
            ..Self::default()
        }
    }
}

impl From<Msr> for kvm_msr_entry {
    fn from(msr: Msr) -> Self {
        Self {
            index: msr.index,
            data: msr.data,
            ..Self::default()
        }
    }
}

impl From<Fpu> for kvm_fpu {
    fn from(fpu: Fpu) -> Self {
        Self {
            fcw: fpu.fcw,
            mxcsr: fpu.mxcsr,
            ..Self::default()
        }
    }
}

impl From<DescriptorTable> for kvm_dtable {
    fn from(table: DescriptorTable) -> Self {
        Self {
            base: table.base,
            limit: table.limit,
            ..Self::default()
        }
    }
}

impl From<Segment> for kvm_segment {
    fn from(segment: Segment) -> Self {
        Self {
            base: segment.base.into(),
            limit: segment.limit,
            selector: segment.selector,
            type_: segment.kind,
            present: 1,
            dpl: 0,
            db: (segment.mode == SegmentMode::Bits32).into(),
            s: segment.code_or_data.into(),
            l: (segment.mode == SegmentMode::Bits64).into(),
            g: segment.granular().into(),
            ..Self::default()
        }
    }
}
