//! What of a balloon goes on in another machine.

use super::roles::Roles;
use super::{ACTUAL_AT, Balloon, QUEUE_SIZE, interval};
use crate::state::{BalloonState, StateError, VirtioDeviceState};

impl Balloon {
    fn word(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.config.read(offset as u64, &mut word);
        u32::from_le_bytes(word)
    }

    pub(super) fn state(&self) -> VirtioDeviceState {
        let seconds = self.interval.map_or(0, |interval| interval.as_secs());
        VirtioDeviceState::Balloon(BalloonState {
            asked: self.word(0),
            given: self.word(ACTUAL_AT),
            stats_interval: u32::try_from(seconds).unwrap_or(u32::MAX),
            by_specification: self.roles.as_ref().map(|roles| roles.by_specification),
            statistics_buffer: self.statistics.held(),
            hints: self.hints.save(),
        })
    }

    pub(super) fn set_state(
        &mut self,
        state: &VirtioDeviceState,
        runs: bool,
    ) -> Result<(), StateError> {
        let VirtioDeviceState::Balloon(state) = state else {
            return Err(StateError::Foreign);
        };
        let held = state.statistics_buffer;
        if held.is_some_and(|head| head >= QUEUE_SIZE || !runs) {
            return Err(StateError::Range("statistics_buffer"));
        }
        self.config.load(0, &state.asked.to_le_bytes());
        self.config.load(ACTUAL_AT, &state.given.to_le_bytes());
        self.interval = interval(state.stats_interval);
        if let (Some(wait), true) = (self.interval, runs) {
            self.timer.set(wait);
        }
        // The queue that tells may be closed by now.
        let counted = state.by_specification.filter(|_| runs);
        self.roles =
            counted.map(|by_specification| Roles::counted(self.features, by_specification));
        self.statistics.hold(held);
        self.hints.load(&state.hints, &self.config);
        Ok(())
    }
}
