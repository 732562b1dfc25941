//! No capabilities, no way to get any.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::error::Refusal;

/// Gives up every capability of the only thread of a process, for good.
pub(crate) fn drop_all() -> Result<(), Refusal> {
    // From here on no program that is executed has more rights than this one.
    set_no_new_privs(true).map_err(Refusal::of("set no_new_privs"))?;
    clear_ambient_capability_set().map_err(Refusal::of("clear the ambient capabilities"))?;
    for number in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The kernel has no more of them. Or the process may not bound them, since it has none; then
            // no_new_privs does the same.
            Err(Errno::INVAL | Errno::PERM) => break,
            Err(errno) => return Err(Refusal::of("bound the capabilities")(errno)),
        }
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(Refusal::of("drop capabilities"))
}
