//! Everything the kernel is told: writes command line, memory map, firmware tables and the
//! descriptor and page tables of the boot vCPU to low RAM.
//!
//! Assumes that kernel and initrd lie in the plan's kernel window, above all of this.

use arch::kernel::Protocol;
use arch::{AddressRange, BootError, BootInfo, BootRequest, GuestRam, Placed};

use crate::facts::X86_64;
use crate::handover::{Handover, write};
use crate::{acpi, map, mptable, paging, pvh, registers, zero_page};

/// Writes all of it; see [`arch::Platform::build_boot_info`].
pub(crate) fn build(
    request: &BootRequest<'_, X86_64>,
    ram: &GuestRam,
) -> Result<BootInfo, BootError> {
    let protocol = request.kernel.protocol;
    let mut placed = write_tables(request, ram)?;
    let (cmdline, block) = write_cmdline(request, ram)?;
    placed.push(block);
    let handover = Handover { request, cmdline };
    let gdt = registers::gdt(protocol);
    placed.push(write(ram, "GDT", map::GDT, &gdt)?);
    let argument = match protocol {
        Protocol::Linux64 => {
            placed.push(paging::write_identity_map(ram)?);
            zero_page::write_to(&handover, ram)?
        }
        Protocol::Pvh => pvh::write_to(&handover, ram)?,
        Protocol::DeviceTree => {
            let text = "x86_64 does not boot kernels that are entered with a device tree";
            return Err(BootError::Kernel(text.to_owned()));
        }
    };
    let address = argument.range.base;
    placed.push(argument);
    Ok(BootInfo {
        entry: request.kernel.entry,
        arguments: [address, 0, 0, 0],
        protocol,
        placed,
    })
}

/// Writes the ACPI tables and the MP table.
fn write_tables(
    request: &BootRequest<'_, X86_64>,
    ram: &GuestRam,
) -> Result<Vec<Placed>, BootError> {
    let (plan, chip) = (request.plan, request.irq_chip);
    let acpi = acpi::build(plan, chip)?;
    let mut placed = vec![
        write(ram, "ACPI root pointer", map::RSDP_AREA, &acpi.rsdp)?,
        write(ram, "ACPI tables", map::ACPI_TABLES, &acpi.tables)?,
    ];
    if let Some(table) = mptable::build(plan.vcpus, chip)? {
        placed.push(write(ram, "MP table", map::MP_TABLE, &table)?);
    }
    Ok(placed)
}

/// Writes the command line; the first range is the text alone.
fn write_cmdline(
    request: &BootRequest<'_, X86_64>,
    ram: &GuestRam,
) -> Result<(AddressRange, Placed), BootError> {
    let text = request.plan.cmdline.as_bytes();
    let size = text.len() as u64;
    let limit = zero_page::cmdline_limit(&request.kernel.setup_header);
    if size > limit {
        return Err(BootError::CmdlineTooLong { size, limit });
    }
    if text.contains(&0) {
        let text = "the kernel command line contains a zero byte, which would end it";
        return Err(BootError::Kernel(text.to_owned()));
    }
    let block = write(ram, "command line", map::CMDLINE, &[text, &[0]].concat())?;
    Ok((AddressRange::new(map::CMDLINE.base, size), block))
}

#[cfg(test)]
mod tests;
