//! A program that is run again and again, and how long it took: to the first byte of its guest, and to its end.

use std::process::Command;
use std::time::Duration;

/// By name.
pub(crate) struct Timed {
    pub(crate) name: &'static str,
    pub(crate) command: Command,
    pub(crate) first_byte: Vec<Duration>,
    pub(crate) life: Vec<Duration>,
}

impl Timed {
    pub(crate) fn new(name: &'static str, command: Command) -> Self {
        Self {
            name,
            command,
            first_byte: Vec::new(),
            life: Vec::new(),
        }
    }

    /// Medians in milliseconds.
    pub(crate) fn medians(&mut self) -> (f64, f64) {
        let median = |samples: &mut [Duration]| {
            samples.sort();
            samples[samples.len() / 2].as_secs_f64() * 1e3
        };
        (median(&mut self.first_byte), median(&mut self.life))
    }
}
