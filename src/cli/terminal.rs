//! Raw mode, only when stdin is a terminal.

use std::io;

use rustix::termios::{
    InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use vmm_reference::in_background;

/// stdin in raw mode; dropping it restores what was there before.
#[derive(Debug)]
pub(super) struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// Every key goes to the guest unechoed. Output processing stays on, so that our own messages
    /// begin at the left margin.
    pub(super) fn enter() -> Self {
        let stdin = io::stdin();
        // Fails when stdin is no terminal: then there is nothing to do or to restore.
        let Ok(saved) = tcgetattr(&stdin) else {
            return Self(None);
        };
        // The terminal belongs to another job, which would not like it; and the kernel would stop
        // this one.
        if in_background(&stdin) {
            return Self(None);
        }
        let mut raw = saved.clone();
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::INPCK
            | InputModes::ISTRIP
            | InputModes::IXON;
        raw.local_modes -=
            LocalModes::ECHO | LocalModes::ICANON | LocalModes::IEXTEN | LocalModes::ISIG;
        raw.special_codes[SpecialCodeIndex::VMIN] = 1;
        raw.special_codes[SpecialCodeIndex::VTIME] = 0;
        // Now: what was typed ahead is kept.
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(saved)),
            Err(error) => {
                log::warn!("the terminal stays in line mode: {error}");
                Self(None)
            }
        }
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(saved) = &self.0
            && !in_background(io::stdin())
        {
            // Fails only when the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, saved);
        }
    }
}
