//! The state in which a vCPU starts, as data.
//!
//! Sources: Linux Documentation/arch/x86/boot.rst (64-bit boot protocol), Xen
//! docs/misc/pvh.pandoc, Intel SDM volume 3 (descriptors, control registers, MSRs). The types are
//! this crate's own, since kvm-bindings only has the host's; `kvm.rs` converts them.

use arch::BootInfo;
use arch::kernel::Protocol;
use serde::{Deserialize, Serialize};

use crate::cpuid::CpuidEntry;
use crate::{map, paging};

/// Every register write that one vCPU needs.
#[derive(Debug, Clone, PartialEq)]
pub struct VcpuSetup {
    /// The CPUID leaves it shows.
    pub cpuid: Vec<CpuidEntry>,
    /// Its model-specific registers.
    pub msrs: Vec<Msr>,
    /// Its floating-point state.
    pub fpu: Fpu,
    /// What an input on LINT0 delivers.
    pub lint0: DeliveryMode,
    /// What an input on LINT1 delivers.
    pub lint1: DeliveryMode,
    /// Where the boot vCPU starts; the others wait for INIT and SIPI.
    pub boot: Option<BootRegisters>,
}

/// A model-specific register and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub data: u64,
}

/// The floating-point control words; all else is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fpu {
    /// The x87 control word.
    pub fcw: u16,
    /// The SSE control and status register.
    pub mxcsr: u32,
}

/// The delivery mode of a local APIC input (Intel SDM volume 3, 11.5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum DeliveryMode {
    /// A non-maskable interrupt.
    Nmi = 4,
    /// An interrupt whose vector the PIC supplies.
    ExtInt = 7,
}

/// The registers of the boot vCPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootRegisters {
    /// The general-purpose registers; those not named here are zero.
    pub regs: GeneralRegisters,
    /// The code segment.
    pub code: Segment,
    /// The segment of DS, ES, FS, GS and SS.
    pub data: Segment,
    /// The task state segment.
    pub task: Segment,
    /// The global descriptor table.
    pub gdt: DescriptorTable,
    /// The interrupt descriptor table: empty, so an early exception is a triple fault.
    pub idt: DescriptorTable,
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// IA32_EFER.
    pub efer: u64,
}

/// The general-purpose registers that a boot protocol sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GeneralRegisters {
    /// The first instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// `hvm_start_info` in the PVH protocol.
    pub rbx: u64,
    /// The zero page in the Linux protocol.
    pub rsi: u64,
    /// The flags.
    pub rflags: u64,
}

/// The base and limit of a descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Its linear address.
    pub base: u64,
    /// Its last byte.
    pub limit: u16,
}

/// A segment as the processor holds it: selector and decoded descriptor, privilege level 0,
/// present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its offset in the GDT.
    pub selector: u16,
    /// Its first byte.
    pub base: u32,
    /// Its last byte.
    pub limit: u32,
    /// The descriptor's type field.
    pub kind: u8,
    /// Code or data, as opposed to a system segment.
    pub code_or_data: bool,
    /// What its code is.
    pub mode: SegmentMode,
}

/// The D/B and L bits of a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentMode {
    /// Neither bit: system segments.
    System,
    /// D/B: 32-bit code, or data.
    Bits32,
    /// L: 64-bit code.
    Bits64,
}

impl Segment {
    /// Whether the limit counts 4 KiB units, as every limit above 1 MiB does.
    #[must_use]
    pub const fn granular(&self) -> bool {
        self.limit > 0xF_FFFF
    }

    /// The descriptor in memory (Intel SDM volume 3, 3.4.5); of a 64-bit TSS the first half, whose
    /// second half is zero.
    #[must_use]
    pub const fn descriptor(&self) -> u64 {
        let (base, kind) = (self.base as u64, self.kind as u64);
        let limit = (if self.granular() {
            self.limit >> 12
        } else {
            self.limit
        }) as u64;
        let (db, long) = match self.mode {
            SegmentMode::System => (0, 0),
            SegmentMode::Bits32 => (1, 0),
            SegmentMode::Bits64 => (0, 1),
        };
        (limit & 0xFFFF)
            | ((base & 0xFF_FFFF) << 16)
            | (kind << 40)
            | ((self.code_or_data as u64) << 44)
            | (PRESENT << 47)
            | (((limit >> 16) & 0xF) << 48)
            | (long << 53)
            | (db << 54)
            | ((self.granular() as u64) << 55)
            | ((base >> 24) << 56)
    }
}

const PRESENT: u64 = 1;
/// Type field: execute, read, accessed.
const CODE: u8 = 0xB;
/// Type field: read, write, accessed.
const DATA: u8 = 0x3;
/// Type field of a system segment: busy TSS. VM entry demands it (Intel SDM volume 3, 27.3.1.2).
const BUSY_TSS: u8 = 0xB;

/// __BOOT_CS of Linux, which its 64-bit entry demands.
const CODE_SELECTOR: u16 = 0x10;
/// __BOOT_DS of Linux, which its 64-bit entry demands.
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const CODE64: Segment = Segment {
    selector: CODE_SELECTOR,
    base: 0,
    limit: u32::MAX,
    kind: CODE,
    code_or_data: true,
    mode: SegmentMode::Bits64,
};
const CODE32: Segment = Segment {
    mode: SegmentMode::Bits32,
    ..CODE64
};
const FLAT_DATA: Segment = Segment {
    selector: DATA_SELECTOR,
    kind: DATA,
    mode: SegmentMode::Bits32,
    ..CODE64
};
const TASK: Segment = Segment {
    selector: TASK_SELECTOR,
    base: 0,
    limit: 0x67,
    kind: BUSY_TSS,
    code_or_data: false,
    mode: SegmentMode::System,
};

/// CR0.PE: protected mode.
const CR0_PE: u64 = 1 << 0;
/// CR0.ET: always 1.
const CR0_ET: u64 = 1 << 4;
/// CR0.PG: paging.
const CR0_PG: u64 = 1 << 31;
/// CR4.PAE: 8-byte page table entries.
const CR4_PAE: u64 = 1 << 5;
/// EFER.LME and EFER.LMA: long mode, enabled and active.
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);
/// Bit 1 of RFLAGS, always 1; interrupts are off.
const RFLAGS: u64 = 1 << 1;

const fn code_segment(protocol: Protocol) -> Segment {
    match protocol {
        Protocol::Pvh => CODE32,
        Protocol::Linux64 | Protocol::DeviceTree => CODE64,
    }
}

/// The global descriptor table of a protocol, in memory: two empty descriptors, code, data, and
/// the 16 bytes of the TSS.
#[must_use]
pub fn gdt(protocol: Protocol) -> [u8; GDT_SIZE] {
    let code = code_segment(protocol);
    let table = [
        0,
        0,
        code.descriptor(),
        FLAT_DATA.descriptor(),
        TASK.descriptor(),
        0,
    ];
    let mut bytes = [0; GDT_SIZE];
    for (slot, descriptor) in bytes.as_chunks_mut().0.iter_mut().zip(table) {
        *slot = descriptor.to_le_bytes();
    }
    bytes
}

/// Six descriptors.
const GDT_BYTES: u16 = 6 * 8;
/// Bytes of the global descriptor table.
pub const GDT_SIZE: usize = GDT_BYTES as usize;

impl BootRegisters {
    /// The registers for an entry.
    #[must_use]
    pub fn new(boot: &BootInfo) -> Self {
        let regs = GeneralRegisters {
            rip: boot.entry,
            rflags: RFLAGS,
            ..GeneralRegisters::default()
        };
        let [argument, ..] = boot.arguments;
        let flat32 = Self {
            regs: GeneralRegisters {
                rbx: argument,
                ..regs
            },
            code: code_segment(boot.protocol),
            data: FLAT_DATA,
            task: TASK,
            gdt: DescriptorTable {
                base: map::GDT.base,
                limit: GDT_BYTES - 1,
            },
            idt: DescriptorTable { base: 0, limit: 0 },
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
        };
        match boot.protocol {
            Protocol::Pvh => flat32,
            Protocol::Linux64 | Protocol::DeviceTree => Self {
                regs: GeneralRegisters {
                    rsi: argument,
                    rsp: map::BOOT_STACK,
                    ..regs
                },
                cr0: CR0_PE | CR0_ET | CR0_PG,
                cr3: paging::PML4,
                cr4: CR4_PAE,
                efer: EFER_LONG_MODE,
                ..flat32
            },
        }
    }
}

/// The model-specific registers that every vCPU starts with.
#[must_use]
pub fn boot_msrs() -> Vec<Msr> {
    /// IA32_MISC_ENABLE, bit 0: fast string operations.
    const FAST_STRING: Msr = Msr {
        index: 0x1A0,
        data: 1,
    };
    /// IA32_MTRR_DEF_TYPE: MTRRs on (bit 11), everything write-back (6).
    const MTRR_DEF_TYPE: Msr = Msr {
        index: 0x2FF,
        data: (1 << 11) | 6,
    };
    // IA32_TSC, IA32_SYSENTER_CS, _ESP, _EIP, STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE
    let zeros = [
        0x10,
        0x174,
        0x175,
        0x176,
        0xC000_0081,
        0xC000_0082,
        0xC000_0083,
        0xC000_0084,
        0xC000_0102,
    ];
    let zeros = zeros.into_iter().map(|index| Msr { index, data: 0 });
    zeros.chain([FAST_STRING, MTRR_DEF_TYPE]).collect()
}

/// The floating-point state that every vCPU starts with: all exceptions masked, as FNINIT and the
/// reset value of MXCSR have it.
pub const BOOT_FPU: Fpu = Fpu {
    fcw: 0x37F,
    mxcsr: 0x1F80,
};

#[cfg(test)]
mod tests;
