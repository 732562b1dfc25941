//! Gives guest memory back to the host.

use std::io;

use rustix::mm::{Advice, madvise};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::GuestRam;

/// Lets the host take the pages of a range; the guest finds zeros when it touches them again. The
/// host's pages may be larger than the guest's: those that are not wholly in the range stay. Does
/// nothing for what is not RAM.
///
/// # Errors
/// When the host refuses.
pub(super) fn release(ram: &GuestRam, address: GuestAddress, len: usize) -> io::Result<()> {
    let Ok(slice) = ram.get_slice(address, len) else {
        return Ok(());
    };
    let page = rustix::param::page_size();
    let start = slice.ptr_guard_mut().as_ptr();
    let skipped = start.addr().next_multiple_of(page) - start.addr();
    let len = len.saturating_sub(skipped) / page * page;
    if len == 0 {
        return Ok(());
    }
    // SAFETY: the range is guest RAM, a private anonymous mapping that `ram` keeps. Its content may
    // change at any time as far as this process knows, and that is all this does.
    unsafe { madvise(start.add(skipped).cast(), len, Advice::LinuxDontNeed) }.map_err(Into::into)
}
