//! Everything the kernel is told: writes command line, memory map, firmware tables and the
//! descriptor and page tables of the boot vCPU to low RAM.
//!
//! Assumes that kernel and initrd lie in the plan's kernel window, above all of this.

use arch::kernel::Protocol;
use arch::{AddressRange, BootError, BootInfo, BootRequest, GuestRam, Placed};
use vm_memory::{Bytes, GuestAddress};

use crate::{X86_64, acpi, layout, mptable, paging, pvh, registers, zero_page};

/// The longest command line of a kernel that does not name its limit: Linux' COMMAND_LINE_SIZE
/// without the final zero.
pub const DEFAULT_CMDLINE_SIZE: u64 = 2047;

/// What both boot protocols pass on, once it lies in guest memory.
#[derive(Debug)]
pub(crate) struct Handover<'a> {
    /// The request it comes from.
    pub(crate) request: &'a BootRequest<'a, X86_64>,
    /// The command line without its final zero.
    pub(crate) cmdline: AddressRange,
}

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
    placed.push(write(ram, "GDT", layout::GDT, &gdt)?);
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
        argument: address,
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
        write(ram, "ACPI root pointer", layout::RSDP_AREA, &acpi.rsdp)?,
        write(ram, "ACPI tables", layout::ACPI_TABLES, &acpi.tables)?,
    ];
    if let Some(table) = mptable::build(plan.vcpus, chip)? {
        placed.push(write(ram, "MP table", layout::MP_TABLE, &table)?);
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
    let block = write(ram, "command line", layout::CMDLINE, &[text, &[0]].concat())?;
    Ok((AddressRange::new(layout::CMDLINE.base, size), block))
}

/// Writes `bytes` to the start of `area`.
pub(crate) fn write(
    ram: &GuestRam,
    name: &'static str,
    area: AddressRange,
    bytes: &[u8],
) -> Result<Placed, BootError> {
    let len = bytes.len() as u64;
    if len > area.len {
        return Err(BootError::TooLarge {
            what: name,
            size: len,
            cause: format!("{} bytes are set aside for it", area.len),
        });
    }
    ram.write_slice(bytes, GuestAddress(area.base))
        .map_err(|source| BootError::Memory { what: name, source })?;
    Ok(Placed {
        name,
        range: AddressRange::new(area.base, len),
    })
}

#[cfg(test)]
mod tests;
