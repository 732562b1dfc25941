//! What of a network device goes on in another machine: frames that were under way are lost, as on a cable.

use super::{Net, RECEIVE, STATUS_AT, TRANSMIT, link};
use crate::state::{NetState, StateError, VirtioDeviceState};
use crate::virtio::Queues;

impl Net {
    pub(super) fn give_back(&mut self, queues: &mut Queues) {
        for (number, pair) in self.pairs.iter_mut().enumerate() {
            if let Some(ring) = queues.ring(2 * number + RECEIVE) {
                pair.waiting.give_back(ring);
            }
        }
    }

    pub(super) fn state(&self) -> VirtioDeviceState {
        let mut mac = [0; 6];
        self.config.read(0, &mut mac);
        let pairs = self.pairs.iter().filter(|pair| pair.enabled).count();
        VirtioDeviceState::Net(NetState {
            mac,
            unplugged: self.unplugged,
            pairs: u16::try_from(pairs).unwrap_or(u16::MAX),
            receive: self.limits[RECEIVE].save(),
            transmit: self.limits[TRANSMIT].save(),
        })
    }

    pub(super) fn set_state(
        &mut self,
        state: &VirtioDeviceState,
        runs: bool,
    ) -> Result<(), StateError> {
        let VirtioDeviceState::Net(state) = state else {
            return Err(StateError::Foreign);
        };
        self.config.load(0, &state.mac);
        self.config.load(STATUS_AT, &link(!state.unplugged));
        self.unplugged = state.unplugged;
        self.limits[RECEIVE].load(&state.receive)?;
        self.limits[TRANSMIT].load(&state.transmit)?;
        // Without a driver all are as the tap device has them.
        if runs && !self.use_pairs(state.pairs.into()) {
            return Err(match usize::from(state.pairs) {
                pairs if (1..=self.usable).contains(&pairs) => StateError::Host,
                _ => StateError::Range("pairs"),
            });
        }
        Ok(())
    }
}
