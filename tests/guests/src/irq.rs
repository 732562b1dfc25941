//! The interrupt of one device, to the boot vCPU: by a line or by a message.

use crate::{apic, interrupts};

pub use crate::interrupts::wait;

const VECTOR: u8 = 40;

/// Calls `handler` when a line rises.
pub fn line(gsi: u32, handler: fn()) {
    interrupts::on(VECTOR, handler);
    apic::enable();
    apic::route(gsi, VECTOR);
}

/// Calls `handler` for a message. Says where it has to be written, and what; `None` when this guest
/// takes none.
pub fn message(handler: fn()) -> Option<(u32, u32)> {
    interrupts::on(VECTOR, handler);
    apic::enable();
    Some((apic::message_address(), VECTOR.into()))
}
