//! The host's side of the devices, open before the machine is made and open across its restarts.

use std::os::fd::OwnedFd;

use ::devices::descriptor::DiskFile;
#[cfg(feature = "virtio")]
use ::devices::virtio::FrameHook;

#[cfg(feature = "virtio")]
use crate::Error;
use crate::OwnDevice;
use crate::console::Port;

/// A device that the guest's restart leaves as it is on the host's side: disks stay locked, taps and
/// sockets open.
#[cfg(feature = "virtio")]
pub(crate) type Lasting = Box<dyn ::devices::virtio::VirtioDevice>;
/// There are none without virtio.
#[cfg(not(feature = "virtio"))]
pub(crate) type Lasting = std::convert::Infallible;

/// What of the host is open already, by the devices' ids.
#[derive(Debug, Default)]
// A build without some devices needs a part of this only.
#[allow(dead_code)]
pub(crate) struct Given {
    /// Of disks.
    pub(crate) files: Vec<(String, DiskFile)>,
    /// Of network devices: one for each pair of queues.
    pub(crate) taps: Vec<(String, Vec<OwnedFd>)>,
    /// That of the vsock device, which listens.
    pub(crate) socket: Option<OwnedFd>,
}

/// The host's side of the virtio devices, open: the devices themselves, which know nothing of the machine that they
/// will be in. A restart has the same.
#[derive(Debug, Default)]
pub(crate) struct HostDevices {
    /// By their ids.
    #[cfg_attr(not(feature = "virtio"), allow(dead_code))]
    pub(crate) devices: Vec<(String, Lasting)>,
    /// The host's end of the virtio console.
    pub(crate) console: Option<Port>,
    /// Those of the embedder's own.
    pub(crate) own: Vec<OwnDevice>,
    /// What the names of the vCPUs' threads begin with.
    pub(crate) vcpu_threads: Option<String>,
}

#[cfg(feature = "virtio")]
impl HostDevices {
    /// Has a hook see the frames of the network device with this id.
    pub(crate) fn hook(&mut self, id: &str, hook: Box<dyn FrameHook>) -> Result<(), Error> {
        let mut devices = self.devices.iter_mut();
        let device = devices.find(|(other, _)| other == id);
        let hooked = device.map(|(_, device)| device.hook(hook).is_ok());
        let cause = match hooked {
            Some(true) => return Ok(()),
            Some(false) => "the device is none of a network and has no frames",
            None => "there is no device of this name",
        };
        Err(Error::Config {
            field: "frame-hook".into(),
            value: id.to_owned(),
            cause: cause.to_owned(),
            cure: "name a network device of the machine, such as net0".to_owned(),
        })
    }

    /// The device with this id.
    pub(crate) fn take(&mut self, id: &str) -> Result<Lasting, Error> {
        let place = self.devices.iter().position(|(other, _)| other == id);
        let device = place.map(|place| self.devices.swap_remove(place).1);
        device.ok_or_else(|| {
            Error::host(format!("the device {id} is lost, by a fault of the VMM"))(
                std::io::ErrorKind::NotFound.into(),
            )
        })
    }
}

#[cfg(not(feature = "virtio"))]
impl HostDevices {
    pub(crate) fn open(
        _: &crate::VmConfig,
        _: &crate::timeline::Timeline,
        _: Given,
    ) -> Result<Self, crate::Error> {
        Ok(Self::default())
    }
}

#[cfg(all(test, feature = "virtio"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl FrameHook for Nothing {
        fn wants(&mut self, _: &[u8]) -> bool {
            false
        }

        fn take(&mut self, _: &[u8]) {}

        fn give(&mut self, _: &mut [u8]) -> usize {
            0
        }
    }

    #[test]
    fn a_hook_is_for_a_network_device_that_is_there() {
        let error = HostDevices::default().hook("net7", Box::new(Nothing));
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("net7") && error.contains("there is no device"),
            "{error}"
        );
    }

    #[test]
    fn a_machine_is_not_built_without_a_device_that_was_lost() {
        let error = HostDevices::default().take("blk0").unwrap_err();
        let said = error.to_string();
        assert!(said.contains("the device blk0 is lost"), "{said}");
    }
}
