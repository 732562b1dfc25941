//! What the device trees of all architectures have in common (Devicetree Specification 0.4; bindings
//! under Documentation/devicetree/bindings of Linux): nodes, the machine that they describe, and how a
//! kernel is entered with a tree.

pub use vm_fdt::{Error, FdtWriter};

use crate::{AddressRange, BootRequest, DevicePlan, GenerationId, MachinePlan, PciPlan, Platform};

pub mod board;
mod boot;

pub use boot::{hand_over, place_kernel};

/// Address spaces of a PCI bus (PCI Bus Binding to IEEE 1275, 2.2.1.1): memory that 32-bit BARs
/// reach, memory for 64-bit ones.
const PCI_MEMORY32: u32 = 0x0200_0000;
const PCI_MEMORY64: u32 = 0x0300_0000;
/// Bytes of the request's seed that become `kaslr-seed`; the rest is `rng-seed`.
const KASLR_SEED: usize = 8;

/// The node `chosen`: command line, initrd, seeds, and the node that is the console, by its path.
///
/// # Errors
/// When the command line holds what a device tree cannot.
pub fn chosen<P: Platform>(
    fdt: &mut FdtWriter,
    request: &BootRequest<'_, P>,
    stdout: Option<&str>,
) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &request.plan.cmdline)?;
    if let Some(initrd) = request.initrd {
        fdt.property_u64("linux,initrd-start", initrd.base)?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    if let Some(path) = stdout {
        fdt.property_string("stdout-path", path)?;
    }
    let (kaslr, rng) = request.seed.split_at(KASLR_SEED);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", rng)?;
    fdt.end_node(node)
}

/// The generation ID; `interrupts` is in the cells of its controller.
///
/// # Errors
/// Those of the writer.
pub fn generation_id(
    fdt: &mut FdtWriter,
    vmgenid: &GenerationId,
    interrupts: Option<&[u32]>,
) -> Result<(), Error> {
    let range = vmgenid.range;
    let node = fdt.begin_node(&format!("rng@{:x}", range.base))?;
    fdt.property_string("compatible", "microsoft,vmgenid")?;
    fdt.property_array_u64("reg", &[range.base, range.len])?;
    if let Some(interrupts) = interrupts {
        fdt.property_array_u32("interrupts", interrupts)?;
    }
    fdt.end_node(node)
}

/// The node `reserved-memory`: what of RAM a kernel leaves alone and does not map (Linux on aarch64 refuses to map RAM
/// of its own for the driver of the generation ID).
///
/// # Errors
/// Those of the writer.
pub fn reserved_memory(fdt: &mut FdtWriter, plan: &MachinePlan) -> Result<(), Error> {
    let in_ram = |range: &&AddressRange| plan.ram.iter().any(|ram| ram.contains(range));
    let reserved = plan.reserved.iter().map(|reserved| &reserved.range);
    let ranges: Vec<_> = reserved.filter(in_ram).collect();
    if ranges.is_empty() {
        return Ok(());
    }
    let node = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    for range in ranges {
        let part = fdt.begin_node(&format!("reserved@{:x}", range.base))?;
        fdt.property_array_u64("reg", &[range.base, range.len])?;
        fdt.property_null("no-map")?;
        fdt.end_node(part)?;
    }
    fdt.end_node(node)
}

/// A node for each region of RAM.
///
/// # Errors
/// Those of the writer.
pub fn memory(fdt: &mut FdtWriter, plan: &MachinePlan) -> Result<(), Error> {
    for range in &plan.ram {
        let node = fdt.begin_node(&format!("memory@{:x}", range.base))?;
        fdt.property_string("device_type", "memory")?;
        fdt.property_array_u64("reg", &[range.base, range.len])?;
        fdt.end_node(node)?;
    }
    Ok(())
}

/// A virtio device with registers of its own; `interrupts` is in the cells of its controller.
///
/// # Errors
/// Those of the writer.
pub fn virtio_mmio(
    fdt: &mut FdtWriter,
    device: &DevicePlan,
    interrupts: Option<&[u32]>,
) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", device.range.base))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[device.range.base, device.range.len])?;
    if let Some(interrupts) = interrupts {
        fdt.property_array_u32("interrupts", interrupts)?;
    }
    // It reads and writes memory by itself, through the caches.
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

/// The PCI bus. Its devices are found by asking it; their only interrupts are messages, to where the
/// property `msi` says.
///
/// # Errors
/// Those of the writer.
pub fn host_bridge(fdt: &mut FdtWriter, pci: &PciPlan, msi: (&str, &[u32])) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("pcie@{:x}", pci.ecam.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_array_u64("reg", &[pci.ecam.base, pci.ecam.len])?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    let windows = [
        (PCI_MEMORY32, Some(pci.window32)),
        (PCI_MEMORY64, pci.window64),
    ];
    let ranges: Vec<_> = windows
        .into_iter()
        .filter_map(|(space, window)| Some(pci_range(space, &window?)))
        .flatten()
        .collect();
    fdt.property_array_u32("ranges", &ranges)?;
    fdt.property_array_u32(msi.0, msi.1)?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

/// An entry of `ranges`: space and address on the bus, the same address outside, length.
fn pci_range(space: u32, window: &AddressRange) -> [u32; 7] {
    let [high, low] = halves(window.base);
    let [len_high, len_low] = halves(window.len);
    [space, high, low, high, low, len_high, len_low]
}

/// A number as two cells.
#[allow(clippy::cast_possible_truncation)] // The point of it.
fn halves(value: u64) -> [u32; 2] {
    [(value >> 32) as u32, value as u32]
}
