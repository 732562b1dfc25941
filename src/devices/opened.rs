//! The host's side of the devices, open before the machine is made and open across its restarts.

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
}

#[cfg(feature = "virtio")]
impl HostDevices {
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
    ) -> Result<Self, crate::Error> {
        Ok(Self::default())
    }
}

#[cfg(all(test, feature = "virtio"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_not_built_without_a_device_that_was_lost() {
        let error = HostDevices::default().take("blk0").unwrap_err();
        let said = error.to_string();
        assert!(said.contains("the device blk0 is lost"), "{said}");
    }
}
