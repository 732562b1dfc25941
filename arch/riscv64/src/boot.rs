//! Everything the kernel is told: the device tree, at the start of RAM.

use arch::kernel::Protocol;
use arch::{BootError, BootInfo, BootRequest, GuestRam, device_tree};

use crate::facts::Riscv64;
use crate::{fdt, layout};

/// The longest command line: Linux' COMMAND_LINE_SIZE without the final zero.
const CMDLINE_SIZE: u64 = 1023;

/// Writes it; see [`arch::Platform::build_boot_info`].
pub(crate) fn build(
    facts: &Riscv64,
    request: &BootRequest<'_, Riscv64>,
    ram: &GuestRam,
) -> Result<BootInfo, BootError> {
    if request.kernel.protocol != Protocol::DeviceTree {
        let text = "riscv64 boots kernels that are entered with a device tree only";
        return Err(BootError::Kernel(text.to_owned()));
    }
    let tree = fdt::build(facts, request)?;
    device_tree::hand_over(&tree, layout::DEVICE_TREE, request, CMDLINE_SIZE, ram)
}
