//! What is another one in a machine that goes on: the host's side of devices, by their ids.

use arch::{ConfigPath, VirtioKind};
use devices::config::{BlkReplacement, NetReplacement, VsockReplacement};

use super::Snapshot;
use crate::Error;

impl Snapshot {
    /// Another file behind a disk, or the one that it has, however it has changed.
    ///
    /// # Errors
    /// When there is no such disk.
    pub fn replace_blk(&mut self, new: &BlkReplacement) -> Result<(), Error> {
        let place = self.place(VirtioKind::Block, "blk", &new.id)?;
        if let (Some(disk), Some(path)) = (self.parts.config.blk.get_mut(place), &new.path) {
            disk.path.clone_from(path);
        }
        #[cfg(feature = "virtio")]
        if new.changed {
            for saved in &mut self.parts.virtio {
                if let devices::state::VirtioDeviceState::Block(state) = &mut saved.state.device
                    && saved.id == new.id
                {
                    state.written = None;
                }
            }
        }
        Ok(())
    }

    /// Another tap device.
    ///
    /// # Errors
    /// When there is no such network device.
    pub fn replace_net(&mut self, new: &NetReplacement) -> Result<(), Error> {
        let place = self.place(VirtioKind::Net, "net", &new.id)?;
        if let Some(net) = self.parts.config.net.get_mut(place) {
            net.tap.clone_from(&new.tap);
            net.fd = new.fd;
        }
        Ok(())
    }

    /// Another socket for the vsock device.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn replace_vsock(&mut self, new: &VsockReplacement) -> Result<(), Error> {
        let Some(vsock) = &mut self.parts.config.vsock else {
            return Err(Error::Config {
                field: "vsock".into(),
                value: new.path.display().to_string(),
                cause: "the saved VM has no vsock device".to_owned(),
                cure: "leave it away".to_owned(),
            });
        };
        vsock.path.clone_from(&new.path);
        Ok(())
    }

    /// Which device of a kind has this id, from 0 on.
    fn place(&self, kind: VirtioKind, key: &'static str, id: &str) -> Result<usize, Error> {
        let named = self.parts.config.named_devices();
        let mut those = named.iter().filter(|device| device.kind == kind);
        if let Some(found) = those.find(|device| device.id == id) {
            return Ok(found.place);
        }
        let those = named.iter().filter(|device| device.kind == kind);
        let ids: Vec<_> = those
            .map(|device| device.id.escape_debug().to_string())
            .collect();
        Err(Error::Config {
            field: ConfigPath::from(key),
            value: id.to_owned(),
            cause: match ids.as_slice() {
                [] => "the saved VM has no device of this kind".to_owned(),
                ids => format!("the saved VM has no such device; it has {}", ids.join(", ")),
            },
            cure: "take an id that `inspect` shows, or leave it away".to_owned(),
        })
    }
}
