//! The device tree (Devicetree Specification 0.4; bindings under Documentation/devicetree/bindings
//! of Linux), built with vm-fdt.
//!
//! Everything comes from the plan, the interrupt controller's model and the facts; equal input
//! gives equal bytes.

use arch::{BootError, BootRequest, DeviceKind, DevicePlan, device_tree};
use vm_fdt::{Error, FdtWriter};

use crate::cache;
use crate::facts::Aarch64;
use crate::gic::GicV3;
use crate::registers::{PMU_INTID, mpidr};

/// Handles by which nodes refer to each other.
const GIC: u32 = 1;
const ITS: u32 = 2;
const CLOCK: u32 = 3;
const GPIO: u32 = 4;

/// First cell of an interrupt: shared or private peripheral interrupt (arm,gic-v3.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
/// Third cell: a rising edge, or a high level.
const EDGE: u32 = 1;
const LEVEL: u32 = 4;
/// The first private peripheral interrupt is INTID 16.
const FIRST_PPI: u32 = 16;
/// The private interrupts of the architected timer: secure, non-secure, virtual, hypervisor.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The rate that PL011 drivers are told; there is no wire, so no rate is wrong.
const CLOCK_HZ: u32 = 24_000_000;
/// The GPIO controller's line that is the power button, active high, and the key that it stands for
/// (KEY_POWER of input-event-codes.h).
const POWER_BUTTON_LINE: u32 = 3;
const KEY_POWER: u32 = 116;
/// Functions of one bus, each with an ITS device id of its own: its device and function number.
const PCI_FUNCTIONS: u32 = 0x100;
/// Builds the tree.
///
/// # Errors
/// [`BootError::Kernel`] when the command line holds what a device tree cannot.
pub fn build(facts: &Aarch64, request: &BootRequest<'_, Aarch64>) -> Result<Vec<u8>, BootError> {
    tree(facts, request).map_err(|error| BootError::Kernel(format!("the device tree: {error}")))
}

fn tree(facts: &Aarch64, request: &BootRequest<'_, Aarch64>) -> Result<Vec<u8>, Error> {
    let plan = request.plan;
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "vmm-reference")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    let uart = plan.device(DeviceKind::Pl011);
    let console = uart.map(|uart| format!("/{}", node_name(uart)));
    device_tree::chosen(&mut fdt, request, console.as_deref())?;
    device_tree::memory(&mut fdt, plan)?;
    device_tree::reserved_memory(&mut fdt, plan)?;
    cpus(&mut fdt, facts, plan.vcpus)?;
    firmware(&mut fdt)?;
    timer(&mut fdt)?;
    if facts.pmu {
        let node = fdt.begin_node("pmu")?;
        fdt.property_string("compatible", "arm,armv8-pmuv3")?;
        fdt.property_array_u32("interrupts", &[PPI, PMU_INTID - FIRST_PPI, LEVEL])?;
        fdt.end_node(node)?;
    }
    interrupt_controller(&mut fdt, request.irq_chip)?;
    let clock = fdt.begin_node("clock")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(clock)?;
    if plan.device(DeviceKind::Pl061).is_some() {
        power_button(&mut fdt)?;
    }
    for device in &plan.devices {
        describe(&mut fdt, device)?;
    }
    if let Some(vmgenid) = &plan.vmgenid {
        let interrupts = vmgenid.irq.map(|gsi| [SPI, gsi, EDGE]);
        let interrupts = interrupts.as_ref().map(|cells| &cells[..]);
        device_tree::generation_id(&mut fdt, vmgenid, interrupts)?;
    }
    if let Some(pci) = &plan.pci {
        // The ITS knows each device by its bus, device and function number.
        let messages = ("msi-map", &[0, ITS, 0, PCI_FUNCTIONS][..]);
        device_tree::host_bridge(&mut fdt, pci, messages)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn cpus(fdt: &mut FdtWriter, facts: &Aarch64, vcpus: u32) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..vcpus {
        let affinity = mpidr(id);
        let node = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", affinity)?;
        cache::describe_own(fdt, &facts.caches, id)?;
        fdt.end_node(node)?;
    }
    cache::describe_outer(fdt, &facts.caches, vcpus)?;
    fdt.end_node(cpus)
}

/// Power-off, reset and the start of vCPUs, served by KVM.
fn firmware(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"].map(str::to_owned);
    fdt.property_string_list("compatible", compatible.to_vec())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts: Vec<_> = TIMER_PPIS
        .into_iter()
        .flat_map(|ppi| [PPI, ppi, LEVEL])
        .collect();
    fdt.property_array_u32("interrupts", &interrupts)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn interrupt_controller(fdt: &mut FdtWriter, gic: &GicV3) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", gic.distributor.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u64(
        "reg",
        &[
            gic.distributor.base,
            gic.distributor.len,
            gic.redistributors.base,
            gic.redistributors.len,
        ],
    )?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    fdt.property_phandle(GIC)?;
    let its = fdt.begin_node(&format!("msi-controller@{:x}", gic.its.base))?;
    fdt.property_string("compatible", "arm,gic-v3-its")?;
    fdt.property_null("msi-controller")?;
    fdt.property_u32("#msi-cells", 1)?;
    fdt.property_array_u64("reg", &[gic.its.base, gic.its.len])?;
    fdt.property_phandle(ITS)?;
    fdt.end_node(its)?;
    fdt.end_node(node)
}

/// The key on a line of the GPIO controller.
fn power_button(fdt: &mut FdtWriter) -> Result<(), Error> {
    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    let key = fdt.begin_node("power")?;
    fdt.property_string("label", "Power Button")?;
    fdt.property_u32("linux,code", KEY_POWER)?;
    fdt.property_array_u32("gpios", &[GPIO, POWER_BUTTON_LINE, 0])?;
    fdt.end_node(key)?;
    fdt.end_node(keys)
}

fn node_name(device: &DevicePlan) -> String {
    let kind = match device.kind {
        DeviceKind::Pl011 => "serial",
        DeviceKind::Pl031 => "rtc",
        DeviceKind::Pl061 => "gpio",
        DeviceKind::Pvpanic => "pvpanic",
        _ => "device",
    };
    format!("{kind}@{:x}", device.range.base)
}

/// A device. Kinds that have no binding here are never planned.
fn describe(fdt: &mut FdtWriter, device: &DevicePlan) -> Result<(), Error> {
    let (compatible, clocks): (&[&str], &[&str]) = match device.kind {
        DeviceKind::Pl011 => (&["arm,pl011", "arm,primecell"], &["uartclk", "apb_pclk"]),
        DeviceKind::Pl031 => (&["arm,pl031", "arm,primecell"], &["apb_pclk"]),
        DeviceKind::Pl061 => (&["arm,pl061", "arm,primecell"], &["apb_pclk"]),
        DeviceKind::Pvpanic => (&["qemu,pvpanic-mmio"], &[]),
        DeviceKind::VirtioMmio(_) => {
            let interrupts = device.irq.map(|gsi| [SPI, gsi, EDGE]);
            return device_tree::virtio_mmio(
                fdt,
                device,
                interrupts.as_ref().map(|cells| &cells[..]),
            );
        }
        _ => return Ok(()),
    };
    let texts = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let node = fdt.begin_node(&node_name(device))?;
    fdt.property_string_list("compatible", texts(compatible))?;
    fdt.property_array_u64("reg", &[device.range.base, device.range.len])?;
    if let Some(gsi) = device.irq {
        fdt.property_array_u32("interrupts", &[SPI, gsi, EDGE])?;
    }
    if device.kind == DeviceKind::Pl061 {
        fdt.property_null("gpio-controller")?;
        fdt.property_u32("#gpio-cells", 2)?;
        fdt.property_null("interrupt-controller")?;
        fdt.property_u32("#address-cells", 0)?;
        fdt.property_u32("#interrupt-cells", 2)?;
        fdt.property_phandle(GPIO)?;
    }
    if !clocks.is_empty() {
        fdt.property_array_u32("clocks", &vec![CLOCK; clocks.len()])?;
        fdt.property_string_list("clock-names", texts(clocks))?;
    }
    fdt.end_node(node)
}

#[cfg(test)]
mod tests;
