//! What both boot protocols pass on, and how a block of it gets to its place in guest memory.

use arch::{AddressRange, BootError, BootRequest, GuestRam, Placed};
use vm_memory::{Bytes, GuestAddress};

use crate::facts::X86_64;

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
