//! The cable: somebody pulls it, or plugs it in again.

use super::{Net, STATUS_AT, link};
use crate::virtio::Queues;
use crate::{ChangeError, Link};

impl Net {
    /// The link is up or down from now on; the driver, if there is one, is told.
    pub(super) fn plug(
        &mut self,
        wanted: Link,
        queues: Option<&Queues>,
    ) -> Result<(), ChangeError> {
        let up = wanted == Link::Up;
        if self.down {
            let cause = "the tap device is gone, and the link stays down";
            return Err(ChangeError::Refused(cause.to_owned()));
        }
        if queues.is_some() && !self.has_status {
            let cause = "the guest's driver does not take VIRTIO_NET_F_STATUS and cannot be told of its link";
            return Err(ChangeError::Refused(cause.to_owned()));
        }
        if self.unplugged != up {
            return Ok(());
        }
        if up {
            // Frames that came while the link was down are lost, as on a cable.
            for pair in &self.pairs {
                pair.tap.empty(&mut self.spare);
            }
        }
        self.unplugged = !up;
        self.config.update(STATUS_AT, &link(up));
        if let Some(queues) = queues {
            queues.config_changed();
        }
        Ok(())
    }
}
