//! Opens all that a machine needs from outside of its process, once, before anything of the machine is there.
//!
//! What comes later (memory, the VM, devices on their buses, a restart) gets open files and no path: a file that
//! is replaced meanwhile changes nothing, and a process that may not open any more can still restart its guest.

#[cfg(feature = "snapshot")]
use std::fs::File;
#[cfg(feature = "snapshot")]
use std::os::fd::{AsRawFd, RawFd};

use kvm_ioctls::Kvm;

use crate::confinement::Confined;
use crate::devices::opened::{Given, HostDevices};
use crate::kernel::image::{Initrd, KernelSource};
#[cfg(feature = "snapshot")]
use crate::snapshot::memory::identity;
use crate::timeline::Timeline;
use crate::{Attachments, Consoles, Error, VmConfig};

/// The host's side of a machine.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) kvm: Kvm,
    /// None of a machine that goes on where a saved one was.
    pub(crate) images: Option<Images>,
    pub(crate) consoles: Consoles,
    pub(crate) devices: HostDevices,
    /// What happens when all of it is open.
    pub(crate) confined: Confined,
}

/// What each start of the guest reads anew.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) kernel: KernelSource,
    pub(crate) initrd: Option<Initrd>,
}

#[cfg(feature = "snapshot")]
impl Images {
    fn files(&self) -> impl Iterator<Item = &File> {
        let initrd = self.initrd.as_ref().map(Initrd::file);
        self.kernel.file().into_iter().chain(initrd)
    }

    /// The numbers of the open files.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.files().map(AsRawFd::as_raw_fd)
    }

    /// The devices and inodes of the files.
    ///
    /// # Errors
    /// When the host does not tell.
    pub(crate) fn identities(&self) -> Result<Vec<(u64, u64)>, Error> {
        let all = self.files().map(identity).collect::<Result<_, _>>();
        all.map_err(Error::host("cannot look at the kernel"))
    }
}

impl Opened {
    /// Opens what `config` names, whose values were checked. The consoles are open already, and are checked not to write to what is read.
    ///
    /// # Errors
    /// Names the field, the value and the cause.
    pub(crate) fn new(
        kvm: Kvm,
        config: &VmConfig,
        attachments: Attachments,
        hello: Option<&'static [u8]>,
        timeline: &Timeline,
    ) -> Result<Self, Error> {
        let images = Images {
            kernel: KernelSource::open(config, hello)?,
            initrd: Initrd::of(config)?,
        };
        let given = Given::default();
        let mut opened = Self::without_images(kvm, config, attachments, given, timeline)?;
        opened.images = Some(images);
        Ok(opened)
    }

    /// The same, but for what a guest begins with, and for what is `given` open.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn without_images(
        kvm: Kvm,
        config: &VmConfig,
        attachments: Attachments,
        given: Given,
        timeline: &Timeline,
    ) -> Result<Self, Error> {
        let Attachments {
            consoles,
            devices: own,
            vcpu_threads,
            confinement,
            #[cfg(feature = "virtio")]
            frame_hooks,
        } = attachments;
        check_name(vcpu_threads.as_deref())?;
        for (field, console) in consoles.each() {
            if let Some((path, file)) = console.output_file() {
                config.check_output(field, path, file)?;
            }
        }
        let mut devices = HostDevices::open(config, timeline, given)?;
        (devices.own, devices.vcpu_threads) = (own, vcpu_threads);
        #[cfg(feature = "virtio")]
        frame_hooks
            .into_iter()
            .try_for_each(|(id, hook)| devices.hook(&id, hook))?;
        Ok(Self {
            kvm,
            images: None,
            consoles,
            devices,
            confined: Confined(confinement),
        })
    }
}

/// The kernel takes any bytes for a thread's name, up to a NUL.
fn check_name(vcpu_threads: Option<&str>) -> Result<(), Error> {
    match vcpu_threads {
        Some(prefix) if prefix.contains('\0') => Err(Error::Config {
            field: "vcpu-threads".into(),
            value: prefix.escape_debug().to_string(),
            cause: "a thread's name has no NUL character".to_owned(),
            cure: "leave it away".to_owned(),
        }),
        _ => Ok(()),
    }
}
