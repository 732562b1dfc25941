//! What a machine gets beside its configuration, which is plain data: open consoles, devices of the embedder's own.

use std::sync::Arc;

#[cfg(feature = "virtio")]
use ::devices::virtio::FrameHook;

use crate::{Confinement, Console, Consoles, OwnDevice};

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
    /// What the names of the vCPUs' threads begin with; the vCPU's number comes behind it. Without it, `vcpu`.
    pub vcpu_threads: Option<String>,
    /// What takes rights from the process and the VM's threads.
    pub confinement: Option<Arc<dyn Confinement>>,
    /// Hooks that see the frames of network devices, with the ids of those.
    #[cfg(feature = "virtio")]
    pub frame_hooks: Vec<(String, Box<dyn FrameHook>)>,
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

    /// Says what the names of the vCPUs' threads begin with, for whoever looks for them in `/proc` (to pin them, to put
    /// them into a cgroup). The kernel keeps 15 bytes of a name.
    #[must_use]
    pub fn with_vcpu_threads(mut self, prefix: impl Into<String>) -> Self {
        self.vcpu_threads = Some(prefix.into());
        self
    }

    /// Says what takes rights from the process once everything is open, and from each thread as it begins.
    #[must_use]
    pub fn with_confinement(mut self, confinement: Arc<dyn Confinement>) -> Self {
        self.confinement = Some(confinement);
        self
    }

    /// Has a hook see the frames of a network device, which has this id ([`NetConfig::id`](crate::NetConfig::id); `net0`,
    /// `net1` … where the configuration has none). A device has one hook.
    #[cfg(feature = "virtio")]
    #[must_use]
    pub fn with_frame_hook(mut self, device: impl Into<String>, hook: Box<dyn FrameHook>) -> Self {
        self.frame_hooks.push((device.into(), hook));
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
            ..Self::default()
        }
    }
}

impl From<Console> for Attachments {
    fn from(serial: Console) -> Self {
        Consoles::from(serial).into()
    }
}
