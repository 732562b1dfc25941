//! Values of the pure half as KVM's structures have them, and back. Field for field: nothing is decided here.

use kvm_bindings::{
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_fpu, kvm_ioapic_state,
    kvm_ioapic_state__bindgen_ty_1, kvm_msr_entry, kvm_pic_state, kvm_pit_channel_state,
    kvm_pit_state2, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
    kvm_vcpu_events__bindgen_ty_1, kvm_vcpu_events__bindgen_ty_2, kvm_vcpu_events__bindgen_ty_3,
    kvm_vcpu_events__bindgen_ty_4, kvm_vcpu_events__bindgen_ty_5,
};

use crate::cpuid::CpuidEntry;
use crate::registers::{DescriptorTable, Fpu, Msr, Segment, SegmentMode};
use crate::state::{
    DebugRegisters, Events, ExceptionState, InterruptState, IoApicState, NmiState, PicState,
    PitChannelState, PitState, Registers, SegmentState, SmiState, SystemRegisters, TableState,
};

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

/// Structures whose fields have the same names in both.
macro_rules! same {
    ($ours:ident = $theirs:ident { $($field:ident),+ $(,)? }) => {
        impl From<$theirs> for $ours {
            fn from(from: $theirs) -> Self {
                Self { $($field: from.$field.into()),+ }
            }
        }

        impl From<$ours> for $theirs {
            // Of some structures it is all.
            #[allow(clippy::needless_update)]
            fn from(from: $ours) -> Self {
                Self { $($field: from.$field.into(),)+ ..Self::default() }
            }
        }
    };
}

same!(
    Registers = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags
    }
);
same!(TableState = kvm_dtable { base, limit });
same!(
    SystemRegisters = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr,
        ldt,
        gdt,
        idt,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        efer,
        apic_base,
        interrupt_bitmap
    }
);
same!(DebugRegisters = kvm_debugregs { db, dr6, dr7 });
same!(
    ExceptionState = kvm_vcpu_events__bindgen_ty_1 {
        injected,
        nr,
        has_error_code,
        pending,
        error_code
    }
);
same!(
    InterruptState = kvm_vcpu_events__bindgen_ty_2 {
        injected,
        nr,
        soft,
        shadow
    }
);
same!(
    NmiState = kvm_vcpu_events__bindgen_ty_3 {
        injected,
        pending,
        masked
    }
);
same!(
    SmiState = kvm_vcpu_events__bindgen_ty_4 {
        smm,
        pending,
        smm_inside_nmi,
        latched_init
    }
);
same!(
    PicState = kvm_pic_state {
        last_irr,
        irr,
        imr,
        isr,
        priority_add,
        irq_base,
        read_reg_select,
        poll,
        special_mask,
        init_state,
        auto_eoi,
        rotate_on_auto_eoi,
        special_fully_nested_mode,
        init4,
        elcr,
        elcr_mask
    }
);
same!(
    PitChannelState = kvm_pit_channel_state {
        count,
        latched_count,
        count_latched,
        status_latched,
        status,
        read_state,
        write_state,
        write_latch,
        rw_mode,
        mode,
        bcd,
        gate,
        count_load_time
    }
);

impl From<kvm_segment> for SegmentState {
    fn from(from: kvm_segment) -> Self {
        let kvm_segment {
            base,
            limit,
            selector,
            type_: kind,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            ..
        } = from;
        Self {
            base,
            limit,
            selector,
            kind,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
        }
    }
}

impl From<SegmentState> for kvm_segment {
    fn from(from: SegmentState) -> Self {
        let SegmentState {
            base,
            limit,
            selector,
            kind: type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
        } = from;
        Self {
            base,
            limit,
            selector,
            type_,
            present,
            dpl,
            db,
            s,
            l,
            g,
            avl,
            unusable,
            ..Self::default()
        }
    }
}

impl From<kvm_vcpu_events> for Events {
    fn from(from: kvm_vcpu_events) -> Self {
        Self {
            exception: from.exception.into(),
            interrupt: from.interrupt.into(),
            nmi: from.nmi.into(),
            sipi_vector: from.sipi_vector,
            flags: from.flags,
            smi: from.smi.into(),
            triple_fault: from.triple_fault.pending,
            exception_has_payload: from.exception_has_payload,
            exception_payload: from.exception_payload,
        }
    }
}

impl From<Events> for kvm_vcpu_events {
    fn from(from: Events) -> Self {
        Self {
            exception: from.exception.into(),
            interrupt: from.interrupt.into(),
            nmi: from.nmi.into(),
            sipi_vector: from.sipi_vector,
            flags: from.flags,
            smi: from.smi.into(),
            triple_fault: kvm_vcpu_events__bindgen_ty_5 {
                pending: from.triple_fault,
            },
            exception_has_payload: from.exception_has_payload,
            exception_payload: from.exception_payload,
            ..Self::default()
        }
    }
}

impl From<kvm_ioapic_state> for IoApicState {
    fn from(from: kvm_ioapic_state) -> Self {
        Self {
            base_address: from.base_address,
            ioregsel: from.ioregsel,
            id: from.id,
            irr: from.irr,
            // SAFETY: both views of an entry are 64 bits, each of which means something.
            redirtbl: from.redirtbl.map(|entry| unsafe { entry.bits }),
        }
    }
}

impl From<IoApicState> for kvm_ioapic_state {
    fn from(from: IoApicState) -> Self {
        Self {
            base_address: from.base_address,
            ioregsel: from.ioregsel,
            id: from.id,
            irr: from.irr,
            redirtbl: from
                .redirtbl
                .map(|bits| kvm_ioapic_state__bindgen_ty_1 { bits }),
            ..Self::default()
        }
    }
}

impl From<kvm_pit_state2> for PitState {
    fn from(from: kvm_pit_state2) -> Self {
        Self {
            channels: from.channels.map(PitChannelState::from),
            flags: from.flags,
        }
    }
}

impl From<PitState> for kvm_pit_state2 {
    fn from(from: PitState) -> Self {
        Self {
            channels: from.channels.map(kvm_pit_channel_state::from),
            flags: from.flags,
            ..Self::default()
        }
    }
}

impl From<kvm_msr_entry> for Msr {
    fn from(entry: kvm_msr_entry) -> Self {
        Self {
            index: entry.index,
            data: entry.data,
        }
    }
}
