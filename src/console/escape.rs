//! The keys after Ctrl-a, which are commands on a terminal.

use super::EscapeKeys;

/// What `Ctrl-a h` shows.
pub(super) const HELP: &str =
    "\r\nCtrl-a x  end the VM\r\nCtrl-a h  this help\r\nCtrl-a Ctrl-a  send Ctrl-a\r\n";

/// The state of the Ctrl-a escape.
#[derive(Debug)]
pub(super) struct Escape {
    pub(super) keys: EscapeKeys,
    pending: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    /// What the guest gets.
    pub(super) bytes: Vec<u8>,
    pub(super) stop: bool,
    pub(super) help: bool,
}

impl Escape {
    const CTRL_A: u8 = 1;

    pub(super) fn new(keys: EscapeKeys) -> Self {
        Self {
            keys,
            pending: false,
        }
    }

    /// Splits input into commands and what the guest gets.
    pub(super) fn filter(&mut self, input: &[u8]) -> Keys {
        let mut keys = Keys::default();
        if self.keys == EscapeKeys::Off {
            keys.bytes = input.to_vec();
            return keys;
        }
        for &byte in input {
            match (std::mem::take(&mut self.pending), byte) {
                (false, Self::CTRL_A) => self.pending = true,
                (true, b'x' | b'X') => keys.stop = true,
                (true, b'h' | b'?') => keys.help = true,
                (false, _) | (true, Self::CTRL_A) => keys.bytes.push(byte),
                (true, _) => keys.bytes.extend([Self::CTRL_A, byte]),
            }
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]], keys: EscapeKeys) -> Keys {
        let mut escape = Escape::new(keys);
        let mut all = Keys::default();
        for chunk in chunks {
            let keys = escape.filter(chunk);
            all.bytes.extend(keys.bytes);
            all.stop |= keys.stop;
            all.help |= keys.help;
        }
        all
    }

    #[test]
    fn escape_keys_are_found_across_reads_and_kept_from_the_guest() {
        let keys = filter(&[b"ab\x01", b"xcd"], EscapeKeys::On);
        assert_eq!(
            keys,
            Keys {
                bytes: b"abcd".to_vec(),
                stop: true,
                help: false
            }
        );
        assert!(filter(&[b"\x01h"], EscapeKeys::On).help);
    }

    #[test]
    fn ctrl_a_twice_sends_one_and_unknown_keys_send_both() {
        assert_eq!(filter(&[b"\x01\x01"], EscapeKeys::On).bytes, b"\x01");
        assert_eq!(filter(&[b"\x01q"], EscapeKeys::On).bytes, b"\x01q");
    }

    #[test]
    fn without_escape_keys_every_byte_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01x"], EscapeKeys::Off).bytes, b"\x01x");
    }
}
