//! Everything the kernel is told: the device tree, at the start of RAM.

use arch::{AddressRange, kernel::Protocol};
use arch::{BootError, BootInfo, BootRequest, GuestRam, Placed};
use vm_memory::{Bytes, GuestAddress};

use crate::{Aarch64, fdt, layout};

/// The longest command line: Linux' COMMAND_LINE_SIZE without the final zero.
const CMDLINE_SIZE: u64 = 2047;

/// Writes it; see [`arch::Platform::build_boot_info`].
pub(crate) fn build(
    facts: &Aarch64,
    request: &BootRequest<'_, Aarch64>,
    ram: &GuestRam,
) -> Result<BootInfo, BootError> {
    if request.kernel.protocol != Protocol::DeviceTree {
        let text = "aarch64 boots kernels that are entered with a device tree only";
        return Err(BootError::Kernel(text.to_owned()));
    }
    let size = request.plan.cmdline.len() as u64;
    if size > CMDLINE_SIZE {
        let limit = CMDLINE_SIZE;
        return Err(BootError::CmdlineTooLong { size, limit });
    }
    let tree = fdt::build(facts, request)?;
    let range = AddressRange::new(layout::DEVICE_TREE.base, tree.len() as u64);
    if !layout::DEVICE_TREE.contains(&range) {
        return Err(BootError::TooLarge {
            what: "the device tree",
            size: range.len,
            cause: format!("{} bytes are set aside for it", layout::DEVICE_TREE.len),
        });
    }
    let what = "the device tree";
    ram.write_slice(&tree, GuestAddress(range.base))
        .map_err(|source| BootError::Memory { what, source })?;
    Ok(BootInfo {
        entry: request.kernel.entry,
        argument: range.base,
        protocol: request.kernel.protocol,
        placed: vec![Placed { name: what, range }],
    })
}
