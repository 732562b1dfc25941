//! Free page hinting (VIRTIO 1.3, 5.5.6.5): the guest is asked once for all pages that it has free.
//!
//! The device's word is a number in the configuration, the driver's one in its queue: while both are the same, what
//! the driver queues is free. The driver allocates what it names, so that nobody uses it, and frees it when the
//! device's word is DONE.

use super::roles::FREE_PAGE_HINT;
use crate::state::HintsState;
use crate::virtio::{ConfigSpace, Queues};
use crate::{ChangeError, Hinting, HintingState, HintingStatus};

/// Where the configuration has the device's word (5.5.4).
const COMMAND_AT: usize = 8;
/// Words that are no runs: no more pages; no more pages, and those that were named may be used.
const STOP: u32 = 0;
const DONE: u32 = 1;

/// Free page hinting, with and without a driver.
#[derive(Debug)]
pub(super) struct Hints {
    offered: bool,
    /// The driver that is there has taken the feature.
    supported: bool,
    /// The device's word, and the driver's.
    host: u32,
    guest: Option<u32>,
    /// The driver was not told of the device's word: there was none.
    untold: bool,
    /// The number of the last run.
    last: u32,
    /// The driver leaves its pages alone until a command says stop.
    hold: bool,
    /// It has named all.
    finished: bool,
    /// Bytes of the last run.
    released: u64,
}

impl Hints {
    pub(super) fn new(offered: bool) -> Self {
        Self {
            offered,
            supported: false,
            host: STOP,
            guest: None,
            untold: false,
            last: DONE,
            hold: false,
            finished: false,
            released: 0,
        }
    }

    pub(super) fn offered(&self) -> bool {
        self.offered
    }

    /// Does what a command says. A run that begins without a driver is for the next one.
    pub(super) fn change(
        &mut self,
        order: Hinting,
        config: &ConfigSpace,
        queues: Option<&Queues>,
    ) -> Result<(), ChangeError> {
        let refuse = |cause: &str| Err(ChangeError::Refused(cause.to_owned()));
        if !self.offered {
            return refuse("the balloon was configured without (free-page-hinting)");
        }
        if order == Hinting::Stop {
            // A driver that was asked for nothing has nothing to hear.
            if self.is_run() {
                let word = if self.supported { DONE } else { STOP };
                self.say(word, config, queues);
            }
            return Ok(());
        }
        if queues.is_some() && !self.supported {
            return refuse("the guest's driver takes no part in it");
        }
        self.last = self.last.checked_add(1).unwrap_or(DONE + 1);
        (self.finished, self.released) = (false, 0);
        self.hold = order == Hinting::Hold;
        self.say(self.last, config, queues);
        Ok(())
    }

    fn say(&mut self, word: u32, config: &ConfigSpace, queues: Option<&Queues>) {
        self.host = word;
        self.untold = queues.is_none();
        config.update(COMMAND_AT, &word.to_le_bytes());
        if let Some(queues) = queues {
            queues.config_changed();
        }
    }

    fn is_run(&self) -> bool {
        self.host > DONE
    }

    /// A driver is ready. Says whether it has to be told of a run that was asked for before: drivers look at the
    /// device's word when the configuration changes.
    pub(super) fn start(&mut self, features: u64) -> bool {
        self.supported = features & 1 << FREE_PAGE_HINT != 0;
        self.supported && self.untold && self.is_run()
    }

    /// The same, once.
    pub(super) fn take_untold(&mut self) -> bool {
        let untold = self.supported && self.untold && self.is_run();
        self.untold &= !untold;
        untold
    }

    /// Whether what the driver queues now is free.
    pub(super) fn is_running(&self) -> bool {
        self.is_run() && self.guest == Some(self.host)
    }

    /// So many bytes went back to the host.
    pub(super) fn released(&mut self, bytes: u64) {
        self.released = self.released.saturating_add(bytes);
    }

    /// The driver's word. Says whether the device has one of its own for it: then [`Self::end`] follows.
    pub(super) fn hear(&mut self, word: u32) -> bool {
        self.finished |= self.is_running() && word == STOP;
        self.guest = Some(word);
        self.finished && self.is_run() && !self.hold
    }

    /// The run is over: the driver may use its pages.
    pub(super) fn end(&mut self, config: &ConfigSpace, queues: &Queues) {
        self.say(DONE, config, Some(queues));
    }

    /// The driver is gone, and what it was at is over.
    pub(super) fn stop(&mut self, config: &ConfigSpace) {
        if self.supported {
            self.say(STOP, config, None);
        }
        (self.supported, self.guest, self.finished) = (false, None, false);
    }

    pub(super) fn save(&self) -> HintsState {
        let Self {
            offered: _,
            supported: _,
            host,
            guest,
            untold,
            last,
            hold,
            finished,
            released,
        } = *self;
        HintsState {
            host,
            guest,
            untold,
            last,
            hold,
            finished,
            released,
        }
    }

    /// What is offered is configured, and what is supported was negotiated before.
    pub(super) fn load(&mut self, state: &HintsState, config: &ConfigSpace) {
        let HintsState {
            host,
            guest,
            untold,
            last,
            hold,
            finished,
            released,
        } = *state;
        *self = Self {
            host,
            guest,
            untold,
            last,
            hold,
            finished,
            released,
            ..*self
        };
        config.load(COMMAND_AT, &host.to_le_bytes());
    }

    /// The next run is the last one before the numbers begin again.
    #[cfg(test)]
    pub(super) fn wrap(&mut self) {
        self.last = u32::MAX - 1;
    }

    pub(super) fn status(&self) -> HintingStatus {
        HintingStatus {
            state: if !self.is_run() {
                HintingState::Idle
            } else if self.finished {
                HintingState::Held
            } else if self.is_running() {
                HintingState::Running
            } else {
                HintingState::Waiting
            },
            supported: self.supported,
            host_command: self.host,
            guest_command: self.guest,
            released_bytes: self.released,
        }
    }
}
