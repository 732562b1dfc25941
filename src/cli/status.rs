//! How this program ends, and what it says about that.

use std::io::{self, Write};

/// The VM could not be run: the host or KVM failed.
pub(super) const FAILED: u8 = 1;
/// What was asked for cannot be done. clap uses the same status.
pub(super) const USAGE: u8 = 2;
/// The guest crashed.
pub(super) const CRASHED: u8 = 3;

/// A line on stderr. Whether somebody reads it changes nothing.
pub(super) fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
