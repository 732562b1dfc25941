//! The memory map and the I/O port map: every fixed address of the machine.
//!
//! RAM starts at 0 and leaves a hole below 4 GiB for memory-mapped devices; what does not fit below the
//! hole continues at 4 GiB. Boot information that only matters until the kernel runs lies in low RAM and is
//! not reserved.

use arch::{AddressRange, Gsi, PciPlan};

/// The page size that memory is counted in.
pub const PAGE_SIZE: u64 = 0x1000;
/// The most vCPUs a machine can have, whatever KVM offers.
pub const MAX_VCPUS: u32 = 1024;
/// The most vCPUs of a machine that is not lean. An interrupt of KVM's I/O APIC has a destination of 8 bits,
/// and 255 stands for all.
pub const NARROW_VCPUS: u32 = 255;

/// The part of the address space below 4 GiB that never is RAM.
pub const HOLE: AddressRange = AddressRange::new(0xC000_0000, 0x4000_0000);
/// Where memory-mapped devices get their addresses: the hole up to the I/O APIC.
pub const MMIO_WINDOW: AddressRange =
    AddressRange::new(HOLE.base, IOAPIC.base.wrapping_sub(HOLE.base));
/// Where 32-bit BARs of PCI devices may be.
pub const PCI_WINDOW: AddressRange = AddressRange::new(HOLE.base, 0x2000_0000);
/// The configuration space of the PCI bus.
pub const PCI_ECAM: AddressRange = AddressRange::new(0xE000_0000, PciPlan::ECAM_LEN);
/// The I/O APIC (KVM's IOAPIC_DEFAULT_BASE_ADDRESS).
pub const IOAPIC: AddressRange = AddressRange::new(0xFEC0_0000, PAGE_SIZE);
/// Input pins of KVM's I/O APIC (KVM_IOAPIC_NUM_PINS).
pub const KVM_IOAPIC_PINS: u8 = 24;
/// Input pins of the I/O APIC that a lean machine has instead, enough for any number of devices.
pub const LEAN_IOAPIC_PINS: u8 = 64;
/// Guest physical address of every vCPU's local APIC (APIC_DEFAULT_PHYS_BASE).
pub const LAPIC_ADDRESS: u32 = 0xFEE0_0000;
/// The local APIC's registers.
pub const LAPIC: AddressRange = AddressRange::new(LAPIC_ADDRESS as u64, PAGE_SIZE);
/// The page KVM needs to run real mode on old Intel processors (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: AddressRange = AddressRange::new(0xFFFB_C000, PAGE_SIZE);
/// The pages KVM needs for its real-mode TSS on Intel processors (KVM_SET_TSS_ADDR).
pub const KVM_TSS: AddressRange = AddressRange::new(0xFFFB_D000, 3 * PAGE_SIZE);

/// The boot vCPU's global descriptor table; room for 16 descriptors.
pub const GDT: AddressRange = AddressRange::new(0x500, 0x80);
/// `hvm_start_info` of the PVH protocol, with its module list and memory map.
pub const PVH_START_INFO: AddressRange = AddressRange::new(0x6000, PAGE_SIZE);
/// `boot_params` of the Linux protocol.
pub const ZERO_PAGE: AddressRange = AddressRange::new(0x7000, PAGE_SIZE);
/// The stack pointer at the 64-bit entry; the stack grows down to the end of the zero page.
pub const BOOT_STACK: u64 = 0x8FF0;
/// PML4, PDPT and four page directories.
pub const PAGE_TABLES: AddressRange = AddressRange::new(0x9000, 6 * PAGE_SIZE);
/// The kernel command line with its final zero.
pub const CMDLINE: AddressRange = AddressRange::new(0x2_0000, 0x1_0000);

/// The extended BIOS data area, the traditional end of conventional memory.
pub const EBDA: AddressRange = AddressRange::new(0x9_FC00, 0x400);
/// The legacy video memory; there is none, and guests do not expect RAM there.
pub const VIDEO: AddressRange = AddressRange::new(0xA_0000, 0x2_0000);
/// Every ACPI table except the RSDP.
pub const ACPI_TABLES: AddressRange = AddressRange::new(0xC_0000, 0x1_F000);
/// The page with the generation ID.
pub const GENERATION_ID: AddressRange = AddressRange::new(0xD_F000, PAGE_SIZE);
/// The ACPI root pointer, in the area that a PC guest scans for it (ACPI 6.5, 5.2.5.1).
pub const RSDP: u64 = 0xE_0000;
/// The area of the root pointer.
pub const RSDP_AREA: AddressRange = AddressRange::new(RSDP, 0x1_0000);
/// The MP table, in the area that a guest scans for it (MultiProcessor Specification 1.4, 4).
pub const MP_TABLE: AddressRange = AddressRange::new(0xF_0000, 0x1_0000);
/// The first address of the kernel window.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Where RAM continues above the hole.
pub const FOUR_GIB: u64 = 1 << 32;

/// The first serial port, COM1.
pub const COM1: AddressRange = AddressRange::new(0x3F8, 8);
/// The interrupt of COM1.
pub const COM1_IRQ: u32 = 4;
/// The keyboard controller: data port 0x60 to command port 0x64. Where KVM has an interval timer, it keeps
/// 0x61 to itself.
pub const I8042: AddressRange = AddressRange::new(0x60, 5);
/// The interrupt of its keyboard.
pub const KEYBOARD_IRQ: u32 = 1;
/// The real-time clock: index and data port.
pub const CMOS: AddressRange = AddressRange::new(0x70, 2);
/// The address port and the data port of the PCI configuration space.
pub const PCI_PORTS: AddressRange = AddressRange::new(0xCF8, 8);
/// Ports for devices whose place the guest learns from a table.
pub const PORT_WINDOW: AddressRange = AddressRange::new(0x600, 0x100);
/// Ports of the ACPI power registers: sleep control, sleep status, reset, events.
pub(crate) const ACPI_POWER_PORTS: u64 = 4;
/// The interrupt of their events: on a PC that of a second parallel port.
pub(crate) const ACPI_POWER_IRQ: u32 = 5;
/// Interrupts that a PC's PICs have.
pub(crate) const ISA_INTERRUPTS: Gsi = 16;
/// The first interrupt of a virtio device: what a PC keeps for COM1 and the clock is below.
pub(crate) const FIRST_VIRTIO_GSI: Gsi = 9;

/// Pins of the I/O APIC.
pub(crate) const fn pins(lean: bool) -> u8 {
    if lean {
        LEAN_IOAPIC_PINS
    } else {
        KVM_IOAPIC_PINS
    }
}
