//! How a device tells its driver something: interrupts, by a line or by messages, and that it needs a reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use super::Monitor;
use crate::Rare;

/// Interrupt reasons (4.2.2): a used buffer, a change of the configuration.
const USED_BUFFER: u32 = 1;
pub(super) const CONFIG_CHANGE: u32 = 2;

/// What a device tells its driver besides its queues: interrupts, and that it needs a reset.
#[derive(Debug)]
pub struct Interrupt {
    /// The reasons of interrupts that the driver has not acknowledged.
    pub(crate) reasons: AtomicU32,
    /// The driver broke a rule: the device waits for a reset.
    pub(crate) needs_reset: AtomicBool,
    /// A fault of the VMM: no reset brings the device back.
    pub(crate) lost: AtomicBool,
    /// Who hears of that besides the driver.
    pub(crate) monitor: Arc<Monitor>,
    way: Way,
    failures: Rare,
}

/// How an interrupt reaches the guest.
#[derive(Debug)]
enum Way {
    /// One line for everything, pulsed.
    Line(EventFd),
    /// Messages, of which the driver has chosen one for each queue and one for the configuration.
    #[cfg(feature = "pci")]
    Messages(Arc<super::pci::Choice>),
}

impl Interrupt {
    /// `line` is pulsed.
    #[must_use]
    pub fn new(line: EventFd) -> Self {
        Self::on(Way::Line(line))
    }

    #[cfg(feature = "pci")]
    pub(crate) fn by_messages(choice: Arc<super::pci::Choice>) -> Self {
        Self::on(Way::Messages(choice))
    }

    fn on(way: Way) -> Self {
        Self {
            reasons: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            monitor: Arc::default(),
            way,
            failures: Rare::default(),
        }
    }

    /// The device cannot go on: the driver has to reset it.
    pub(crate) fn fail(&self, cause: &str) {
        self.needs_reset.store(true, Ordering::SeqCst);
        // Before the driver hears of it: what it does then comes after this.
        self.monitor.notices.needs_reset(cause);
        self.tell_driver(cause);
    }

    /// The device is gone, by a fault of the VMM.
    pub(super) fn lose(&self, cause: &str) {
        self.lost.store(true, Ordering::SeqCst);
        self.needs_reset.store(true, Ordering::SeqCst);
        self.monitor.notices.lost(cause);
        self.tell_driver(cause);
    }

    fn tell_driver(&self, cause: &str) {
        if let Some(times) = self.failures.again() {
            log::warn!("a virtio device needs a reset, {times} times so far: {cause}");
        }
        self.config_changed();
    }

    pub(super) fn config_changed(&self) {
        self.monitor.config_interrupts.add(1);
        self.raise_config();
    }

    fn raise_config(&self) {
        self.reasons.fetch_or(CONFIG_CHANGE, Ordering::SeqCst);
        match &self.way {
            // A full counter means that the interrupt is on its way.
            Way::Line(line) => drop(line.write(1)),
            #[cfg(feature = "pci")]
            Way::Messages(choice) => choice.raise_config(),
        }
    }

    /// All that a driver may have to be told once more: what was on its way to it may be lost. It is not counted: the
    /// device's thread, which counts, may run already.
    pub(super) fn tell_again(&self) {
        self.raise_used(u32::MAX);
        self.raise_config();
    }

    /// Something was completed in these queues, a bit each.
    pub(super) fn used(&self, queues: u32) {
        self.monitor.interrupts.add(1);
        self.raise_used(queues);
    }

    #[cfg_attr(not(feature = "pci"), allow(unused_variables))]
    fn raise_used(&self, queues: u32) {
        self.reasons.fetch_or(USED_BUFFER, Ordering::SeqCst);
        match &self.way {
            Way::Line(line) => drop(line.write(1)),
            #[cfg(feature = "pci")]
            Way::Messages(choice) => choice.raise_queues(queues),
        }
    }
}
