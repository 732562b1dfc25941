//! Session tokens. A token tells until when it holds, with a seal that nobody can make who has not the key: so there is
//! nothing to keep, however many a guest asks for. The key lives as long as the process; a machine that goes on
//! elsewhere has another one, and takes none of the old tokens.

use std::hash::Hasher;
use std::io;
use std::ops::RangeInclusive;
use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};
use siphasher::sip128::{Hasher128, SipHasher24};

/// How long a token may hold, in seconds.
pub(super) const TTL_SECONDS: RangeInclusive<u32> = 1..=21_600;
const MILLIS: u64 = 1000;
const KEY: usize = 16;
/// What makes two tokens of one moment two.
const NONCE: usize = 8;
const EXPIRY: usize = 8;
const SEAL: usize = 16;
const TOKEN: usize = NONCE + EXPIRY + SEAL;

/// Who makes tokens, and knows them.
pub(super) struct Tokens {
    key: [u8; KEY],
    /// When the time began that tokens tell.
    begun: Instant,
    /// How many there were.
    number: u64,
}

/// Without the key.
impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Tokens");
        shown.field("number", &self.number).finish_non_exhaustive()
    }
}

impl Tokens {
    /// # Errors
    /// When the host has no random bytes.
    pub(super) fn new() -> io::Result<Self> {
        let mut key = [0; KEY];
        getrandom(&mut key, GetRandomFlags::empty())?;
        Ok(Self {
            key,
            begun: Instant::now(),
            number: 0,
        })
    }

    /// A token that holds for so many seconds, if one may.
    pub(super) fn issue(&mut self, seconds: u32) -> Option<String> {
        let now = self.now();
        self.issue_at(seconds, now)
    }

    /// Whether it is one, and holds.
    pub(super) fn holds(&self, token: &str) -> bool {
        self.holds_at(token, self.now())
    }

    /// In milliseconds.
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn issue_at(&mut self, seconds: u32, now: u64) -> Option<String> {
        if !TTL_SECONDS.contains(&seconds) {
            return None;
        }
        self.number = self.number.wrapping_add(1);
        let expiry = now.saturating_add(u64::from(seconds) * MILLIS);
        let nonce = self.number.to_le_bytes();
        let expiry = expiry.to_le_bytes();
        let seal = self.seal(nonce, expiry);
        let bytes = nonce.iter().chain(&expiry).chain(&seal);
        Some(bytes.map(|byte| format!("{byte:02x}")).collect())
    }

    fn holds_at(&self, token: &str, now: u64) -> bool {
        let Some(bytes) = from_hex(token) else {
            return false;
        };
        let mut parts = bytes.as_slice();
        let (Some(nonce), Some(expiry)) = (take(&mut parts), take(&mut parts)) else {
            return false;
        };
        // All of it in any case: the time that it takes tells nothing of where they differ.
        let differences = self.seal(nonce, expiry).into_iter().zip(parts);
        let difference = differences.fold(0, |all, (one, other)| all | one ^ other);
        difference == 0 && u64::from_le_bytes(expiry) > now
    }

    fn seal(&self, nonce: [u8; NONCE], expiry: [u8; EXPIRY]) -> [u8; SEAL] {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write(&nonce);
        hasher.write(&expiry);
        hasher.finish128().as_bytes()
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (part, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*part)
}

fn from_hex(text: &str) -> Option<[u8; TOKEN]> {
    let digit = |letter: u8| char::from(letter).to_digit(16);
    let mut bytes = [0; TOKEN];
    if text.len() != 2 * TOKEN {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let [high, low] = pair else { return None };
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_until_its_time_and_nowhere_else() {
        let mut tokens = Tokens::new().unwrap();
        let token = tokens.issue_at(60, 500).unwrap();
        assert!(tokens.holds_at(&token, 60_499));
        assert!(!tokens.holds_at(&token, 60_500));
        assert_ne!(tokens.issue_at(60, 500).unwrap(), token);
        assert!(!Tokens::new().unwrap().holds_at(&token, 0), "another key");
        for seconds in [0, 21_601, u32::MAX] {
            assert_eq!(tokens.issue_at(seconds, 0), None);
        }
        assert!(tokens.issue_at(21_600, u64::MAX).is_some());
    }

    #[test]
    fn what_was_changed_is_no_token() {
        let mut tokens = Tokens::new().unwrap();
        let token = tokens.issue_at(60, 0).unwrap();
        for place in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(!tokens.holds_at(&changed, 0), "{place}");
        }
        for other in ["", "foo", &token[1..], &format!("{token}0"), "é"] {
            assert!(!tokens.holds_at(other, 0), "{other}");
        }
        let unreadable = "é".repeat(TOKEN);
        assert!(!tokens.holds_at(&unreadable, 0));
    }
}
