//! What a machine gets beside its configuration, which is plain data: open consoles, devices of the embedder's own.

use crate::{Console, Consoles, OwnDevice};

/// What is attached to a machine from outside: where its consoles go, and devices of the embedder's own. One
/// [`Console`] stands for a machine with nothing but a serial console.
///
/// ```no_run
/// use std::sync::Arc;
///
/// use vmm_reference::{Attachments, BusDevice, Console, OwnDevice};
///
/// # fn attach(device: Arc<dyn BusDevice>) -> std::io::Result<Attachments> {
/// let attachments = Attachments::default()
///     .with_serial(Console::stdio()?)
///     .with_device(OwnDevice::in_memory("doorbell", 0xf000_0000, 0x1000, device));
/// # Ok(attachments)
/// # }
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Attachments {
    /// Where the consoles go.
    pub consoles: Consoles,
    /// Devices of the embedder's own.
    pub devices: Vec<OwnDevice>,
}

impl Attachments {
    /// Says where the serial console goes.
    #[must_use]
    pub fn with_serial(mut self, console: Console) -> Self {
        self.consoles.serial = console;
        self
    }

    /// Says where the virtio console goes, in a VM that has one
    /// ([`VmConfig::with_console`](crate::VmConfig::with_console)).
    #[must_use]
    pub fn with_virtio_console(mut self, console: Console) -> Self {
        self.consoles.virtio = console;
        self
    }

    /// Adds a device of the embedder's own.
    #[must_use]
    pub fn with_device(mut self, device: OwnDevice) -> Self {
        self.devices.push(device);
        self
    }
}

impl From<Consoles> for Attachments {
    fn from(consoles: Consoles) -> Self {
        Self {
            consoles,
            devices: Vec::new(),
        }
    }
}

impl From<Console> for Attachments {
    fn from(serial: Console) -> Self {
        Consoles::from(serial).into()
    }
}
