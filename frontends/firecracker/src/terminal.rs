//! The terminal of a console: what is typed goes to the guest key by key.

use std::io;
use std::sync::Mutex;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use vmm_reference::in_background;

/// As it was before.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Hands every key over, unechoed, if stdin is a terminal that is this job's: another one would be stopped for that.
pub(crate) fn enter_raw() {
    if in_background(io::stdin()) {
        return;
    }
    let Ok(mut modes) = tcgetattr(io::stdin()) else {
        return;
    };
    if let Ok(mut before) = BEFORE.lock() {
        before.get_or_insert_with(|| modes.clone());
    }
    modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
    let _ = tcsetattr(io::stdin(), OptionalActions::Now, &modes);
}

/// It is another process'.
pub(crate) fn give_up() {
    if let Ok(mut before) = BEFORE.lock() {
        *before = None;
    }
}

/// Makes it what it was before.
pub(crate) fn restore() {
    if let Ok(before) = BEFORE.lock()
        && let Some(modes) = &*before
    {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, modes);
    }
}
