//! The device tree (Devicetree Specification 0.4; bindings under Documentation/devicetree/bindings
//! of Linux), built with vm-fdt.
//!
//! Everything comes from the plan, the interrupt controllers' model and the facts; equal input
//! gives equal bytes.

use arch::{BootError, BootRequest, DeviceKind, DevicePlan, device_tree};
use vm_fdt::{Error, FdtWriter};

use crate::aia::Aia;
use crate::facts::Riscv64;
use crate::isa;

/// Handles by which nodes refer to each other; those of the vCPUs' own controllers follow.
const APLIC: u32 = 1;
const IMSICS: u32 = 2;
const FIRST_CPU: u32 = 3;

/// The node of the devices.
const BUS: &str = "soc";
/// A rising edge, in the second cell of the APLIC's interrupts.
const EDGE: u32 = 1;
/// The interrupt of a vCPU that its message controller raises: supervisor external (9).
const EXTERNAL: u32 = 9;
/// The rate that UART drivers are told; there is no wire, so no rate is wrong.
const CLOCK_HZ: u32 = 3_686_400;

/// Builds the tree.
///
/// # Errors
/// [`BootError::Kernel`] when the command line holds what a device tree cannot.
pub fn build(facts: &Riscv64, request: &BootRequest<'_, Riscv64>) -> Result<Vec<u8>, BootError> {
    tree(facts, request).map_err(|error| BootError::Kernel(format!("the device tree: {error}")))
}

fn tree(facts: &Riscv64, request: &BootRequest<'_, Riscv64>) -> Result<Vec<u8>, Error> {
    let plan = request.plan;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "riscv-virtio")?;
    fdt.property_string("model", "vmm-reference")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    let uart = plan.device(DeviceKind::Uart16550);
    let console = uart.map(|uart| format!("/{BUS}/{}", node_name(uart)));
    device_tree::chosen(&mut fdt, request, console.as_deref())?;
    device_tree::memory(&mut fdt, plan)?;
    device_tree::reserved_memory(&mut fdt, plan)?;
    cpus(&mut fdt, facts, plan.vcpus)?;
    interrupt_controllers(&mut fdt, request.irq_chip, plan.vcpus)?;
    // What has wired interrupts is below a node of its own: on a machine whose root names their
    // controller, Linux takes that for the parent of the vCPUs' own controllers.
    let bus = fdt.begin_node(BUS)?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_u32("interrupt-parent", APLIC)?;
    for device in &plan.devices {
        describe(&mut fdt, device)?;
    }
    if let Some(vmgenid) = &plan.vmgenid {
        let interrupts = vmgenid.irq.map(|gsi| [gsi, EDGE]);
        let interrupts = interrupts.as_ref().map(|cells| &cells[..]);
        device_tree::generation_id(&mut fdt, vmgenid, interrupts)?;
    }
    fdt.end_node(bus)?;
    if let Some(pci) = &plan.pci {
        device_tree::host_bridge(&mut fdt, pci, ("msi-parent", &[IMSICS]))?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn cpus(fdt: &mut FdtWriter, facts: &Riscv64, vcpus: u32) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    fdt.property_u32("timebase-frequency", facts.timebase)?;
    let isa = isa::text(&facts.extensions);
    let blocks = [
        "riscv,cbom-block-size",
        "riscv,cboz-block-size",
        "riscv,cbop-block-size",
    ];
    for id in 0..vcpus {
        let node = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "riscv")?;
        fdt.property_u32("reg", id)?;
        fdt.property_string("status", "okay")?;
        fdt.property_string("riscv,isa", &isa)?;
        fdt.property_string("riscv,isa-base", "rv64i")?;
        fdt.property_string_list("riscv,isa-extensions", facts.extensions.clone())?;
        if let Some(mode) = translation(facts.satp_mode) {
            fdt.property_string("mmu-type", mode)?;
        }
        for (name, size) in blocks.into_iter().zip(facts.cache_blocks) {
            if size != 0 {
                fdt.property_u32(name, size)?;
            }
        }
        let controller = fdt.begin_node("interrupt-controller")?;
        fdt.property_string("compatible", "riscv,cpu-intc")?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#address-cells", 0)?;
        fdt.property_u32("#interrupt-cells", 1)?;
        fdt.property_phandle(FIRST_CPU + id)?;
        fdt.end_node(controller)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

/// The name of a mode of `satp`.
fn translation(satp_mode: u8) -> Option<&'static str> {
    match satp_mode {
        8 => Some("riscv,sv39"),
        9 => Some("riscv,sv48"),
        10 => Some("riscv,sv57"),
        _ => None,
    }
}

fn interrupt_controllers(fdt: &mut FdtWriter, aia: &Aia, vcpus: u32) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", aia.imsics.base))?;
    fdt.property_string("compatible", "riscv,imsics")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_u32("#interrupt-cells", 0)?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 0)?;
    fdt.property_array_u64("reg", &[aia.imsics.base, aia.imsics.len])?;
    let parents: Vec<_> = (0..vcpus)
        .flat_map(|id| [FIRST_CPU + id, EXTERNAL])
        .collect();
    fdt.property_array_u32("interrupts-extended", &parents)?;
    fdt.property_u32("riscv,num-ids", aia.identities)?;
    fdt.property_phandle(IMSICS)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", aia.aplic.base))?;
    fdt.property_string("compatible", "riscv,aplic")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_array_u64("reg", &[aia.aplic.base, aia.aplic.len])?;
    fdt.property_u32("msi-parent", IMSICS)?;
    fdt.property_u32("riscv,num-sources", aia.sources)?;
    fdt.property_phandle(APLIC)?;
    fdt.end_node(node)
}

fn node_name(device: &DevicePlan) -> String {
    let kind = match device.kind {
        DeviceKind::Uart16550 => "serial",
        DeviceKind::GoldfishRtc => "rtc",
        DeviceKind::Pvpanic => "pvpanic",
        _ => "device",
    };
    format!("{kind}@{:x}", device.range.base)
}

/// A device. Kinds that have no binding here are never planned.
fn describe(fdt: &mut FdtWriter, device: &DevicePlan) -> Result<(), Error> {
    let interrupts = device.irq.map(|gsi| [gsi, EDGE]);
    let interrupts = interrupts.as_ref().map(|cells| &cells[..]);
    let compatible = match device.kind {
        DeviceKind::Uart16550 => "ns16550a",
        DeviceKind::GoldfishRtc => "google,goldfish-rtc",
        DeviceKind::Pvpanic => "qemu,pvpanic-mmio",
        DeviceKind::VirtioMmio(_) => return device_tree::virtio_mmio(fdt, device, interrupts),
        _ => return Ok(()),
    };
    let node = fdt.begin_node(&node_name(device))?;
    fdt.property_string("compatible", compatible)?;
    fdt.property_array_u64("reg", &[device.range.base, device.range.len])?;
    if let Some(interrupts) = interrupts {
        fdt.property_array_u32("interrupts", interrupts)?;
    }
    if device.kind == DeviceKind::Uart16550 {
        fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    }
    fdt.end_node(node)
}

#[cfg(test)]
mod tests;
