//! The keyboard behind the controller, with codes of set 2 (IBM PS/2 Technical Reference, "Keyboards").

use std::collections::VecDeque;

/// Commands that it takes.
const LEDS: u8 = 0xed;
const ECHO: u8 = 0xee;
const SCAN_SET: u8 = 0xf0;
const IDENTIFY: u8 = 0xf2;
const RATE: u8 = 0xf3;
const ENABLE: u8 = 0xf4;
const DISABLE: u8 = 0xf5;
const DEFAULTS: u8 = 0xf6;
const ALL_KEYS: u8 = 0xfa;
const RESET: u8 = 0xff;
/// The largest byte that belongs to a command: those above are commands.
const LAST_VALUE: u8 = 0x7f;

/// Its answers: understood; not understood; it works.
const ACK: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const PASSED: u8 = 0xaa;
/// What a keyboard says it is; the second byte is translated as codes are.
const ID: u8 = 0xab;
const ID_SET_2: u8 = 0x83;
const ID_TRANSLATED: u8 = 0x41;

/// Left Ctrl, left Alt and Delete are pressed, and released.
const CTRL_ALT_DEL: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
];
/// The same, translated to set 1.
const CTRL_ALT_DEL_SET_1: [u8; 8] = [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d];

#[derive(Debug)]
pub(super) struct Keyboard {
    /// Keys are told of.
    pub(super) scanning: bool,
    /// A command that waits for its value.
    pub(super) command: Option<u8>,
    /// What it has said and the guest has not read.
    pub(super) bytes: VecDeque<u8>,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self {
            scanning: true,
            command: None,
            bytes: VecDeque::new(),
        }
    }
}

impl Keyboard {
    /// As many bytes wait, as in a keyboard's own memory.
    pub(super) const BYTES: usize = 16;

    /// Says whether it was typed: keys are told of, and there is room.
    pub(super) fn ctrl_alt_del(&mut self, translated: bool) -> bool {
        let codes: &[u8] = if translated {
            &CTRL_ALT_DEL_SET_1
        } else {
            &CTRL_ALT_DEL
        };
        let typed = self.scanning && self.bytes.len() + codes.len() <= Self::BYTES;
        if typed {
            self.bytes.extend(codes);
        }
        typed
    }

    /// Takes a byte. What was typed before is dropped, so that an answer has always room.
    pub(super) fn write(&mut self, byte: u8, translated: bool) {
        let set_2 = if translated { ID_TRANSLATED } else { ID_SET_2 };
        self.bytes.clear();
        let answer: &[u8] = match (self.command.take(), byte) {
            (Some(SCAN_SET), 0) => &[ACK, 2],
            (Some(SCAN_SET), 2) | (Some(LEDS | RATE), ..=LAST_VALUE) => &[ACK],
            (_, LEDS | RATE | SCAN_SET) => {
                self.command = Some(byte);
                &[ACK]
            }
            (_, ECHO) => &[ECHO],
            (_, IDENTIFY) => &[ACK, ID, set_2],
            (_, ENABLE) => {
                self.scanning = true;
                &[ACK]
            }
            (_, DISABLE) => {
                self.scanning = false;
                &[ACK]
            }
            (_, DEFAULTS..=ALL_KEYS) => &[ACK],
            (_, RESET) => {
                self.scanning = true;
                &[ACK, PASSED]
            }
            _ => &[RESEND],
        };
        self.bytes.extend(answer);
    }
}
