//! Which registers of the interrupt controllers are saved, and the order in which they are loaded.
//!
//! Sources: RISC-V Advanced Interrupt Architecture 1.0, 3.8 (IMSIC) and 4.5 (APLIC), for what they are; the kernel's
//! `arch/riscv/kvm/aia_aplic.c` and `aia_imsic.c` for what KVM does when they are written.
//!
//! Lines are pulses here, so none is high while a machine is saved, and there is no level to load.

use crate::aia::Aia;
use crate::state::{ChipState, MessageState};

/// Registers of the APLIC, by their offsets.
pub const DOMAINCFG: u32 = 0x0;
const SOURCECFG: u32 = 0x4;
const SETIP: u32 = 0x1c00;
const SETIE: u32 = 0x1e00;
const TARGET: u32 = 0x3004;

/// A source whose rising edge counts (SOURCECFG.SM).
const RISING_EDGE: u32 = 4;

/// Registers of a message controller, by their numbers.
pub const EIDELIVERY: u32 = 0x70;
/// The least urgent identity that counts.
pub const EITHRESHOLD: u32 = 0x72;
const EIP: u32 = 0x80;
const EIE: u32 = 0xc0;
/// The first identities that are enabled.
pub const FIRST_EIE: u32 = EIE;

/// Bits of the registers of which a KVM may know only the lower ones, see [`MessageState::has_upper_identities`].
pub const UPPER: u64 = 0xffff_ffff_0000_0000;

/// The places of registers that lie at equal distances.
fn places(first: u32, count: u32, step: u32) -> impl Iterator<Item = u32> + use<> {
    (0..count).map(move |number| first + number * step)
}

impl Aia {
    /// SOURCECFG of each source.
    pub fn modes(&self) -> impl Iterator<Item = u32> + use<> {
        places(SOURCECFG, self.sources, 4)
    }

    /// TARGET of each source.
    pub fn targets(&self) -> impl Iterator<Item = u32> + use<> {
        places(TARGET, self.sources, 4)
    }

    /// Registers with a bit for each source, and for source 0 that there is not.
    fn words(&self) -> u32 {
        self.sources / u32::BITS + 1
    }

    /// The sources that are pending.
    pub fn pending(&self) -> impl Iterator<Item = u32> + use<> {
        places(SETIP, self.words(), 4)
    }

    /// The sources that are enabled.
    pub fn enabled(&self) -> impl Iterator<Item = u32> + use<> {
        places(SETIE, self.words(), 4)
    }

    /// Registers of a message controller with a bit for each identity; those of 64 bits have even numbers.
    fn message_words(&self) -> u32 {
        self.identities / u64::BITS + 1
    }

    /// The identities that are pending.
    pub fn pending_messages(&self) -> impl Iterator<Item = u32> + use<> {
        places(EIP, self.message_words(), 2)
    }

    /// The identities that are enabled.
    pub fn enabled_messages(&self) -> impl Iterator<Item = u32> + use<> {
        places(EIE, self.message_words(), 2)
    }
}

/// Writes of values that have places. `None` where there are more or fewer of them; the file of a saved machine may say
/// anything.
fn writes<T: Copy>(
    places: impl Iterator<Item = u32>,
    values: &[T],
) -> Option<impl Iterator<Item = (u32, T)>> {
    let places: Vec<_> = places.collect();
    (places.len() == values.len()).then(|| places.into_iter().zip(values.iter().copied()))
}

impl ChipState {
    /// What makes a new APLIC this one, in order: no message is sent before DOMAINCFG, and then only those that the
    /// saved one had not sent either. `None` when it is none of such a model's.
    #[must_use]
    pub fn writes(&self, model: &Aia) -> Option<Vec<(u32, u32)>> {
        // A source that follows a level becomes pending by its line only.
        let edges = model.modes().map(|place| (place, RISING_EDGE));
        let writes = edges
            .chain(writes(model.pending(), &self.pending)?)
            .chain(writes(model.modes(), &self.modes)?)
            .chain(writes(model.targets(), &self.targets)?)
            .chain(writes(model.enabled(), &self.enabled)?)
            .chain([(DOMAINCFG, self.domain)]);
        Some(writes.collect())
    }
}

impl MessageState {
    /// What makes a new message controller this one, in order: it interrupts its vCPU last.
    #[must_use]
    pub fn writes(&self, model: &Aia) -> Option<Vec<(u32, u64)>> {
        let writes = writes(model.enabled_messages(), &self.enabled)?
            .chain(writes(model.pending_messages(), &self.pending)?)
            .chain([(EITHRESHOLD, self.threshold), (EIDELIVERY, self.delivery)]);
        Some(writes.collect())
    }

    /// Whether it has identities in use that are upper ones of their registers. KVM's emulated controllers, which all
    /// are until their vCPU runs, show and take the lower 32 bits only (Linux 6.12 and 6.19, `imsic_mrif_atomic_rmw`).
    #[must_use]
    pub fn has_upper_identities(&self) -> bool {
        let mut words = self.pending.iter().chain(&self.enabled);
        words.any(|word| word & UPPER != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(model: &Aia) -> ChipState {
        ChipState {
            domain: 0x8000_0104,
            modes: vec![6; model.modes().count()],
            targets: vec![7; model.targets().count()],
            pending: vec![8; model.pending().count()],
            enabled: vec![9; model.enabled().count()],
            messages: Vec::new(),
        }
    }

    #[test]
    fn sources_and_identities_have_all_their_registers() {
        for (identities, sources, words, messages) in [(63, 63, 2, 1), (255, 96, 4, 4)] {
            let model = Aia::new(1, identities);
            assert_eq!(model.sources, sources);
            assert_eq!(model.modes().last(), Some(sources * 4));
            assert_eq!(model.targets().last(), Some(0x3000 + sources * 4));
            assert_eq!(model.pending().count(), words);
            assert_eq!(model.enabled().count(), words);
            assert_eq!(model.pending_messages().count(), messages);
            assert_eq!(model.enabled_messages().count(), messages);
        }
        let model = Aia::new(1, 127);
        assert_eq!(model.pending_messages().collect::<Vec<_>>(), [0x80, 0x82]);
        assert_eq!(model.enabled_messages().collect::<Vec<_>>(), [0xc0, 0xc2]);
    }

    #[test]
    fn nothing_is_sent_before_all_is_loaded() {
        let model = Aia::new(1, 63);
        let writes = state(&model).writes(&model).unwrap();
        let place = |wanted: (u32, u32)| writes.iter().position(|write| *write == wanted);
        // A source is made pending as one of edges, and enabled at the end.
        assert!(place((0x4, RISING_EDGE)) < place((SETIP, 8)));
        assert!(place((SETIP, 8)) < place((0x4, 6)));
        assert!(place((0x3004, 7)) < place((SETIE, 9)));
        assert_eq!(writes.last(), Some(&(DOMAINCFG, 0x8000_0104)));
    }

    #[test]
    fn what_is_too_much_or_too_little_is_not_loaded() {
        let model = Aia::new(1, 63);
        assert!(state(&model).writes(&Aia::new(1, 255)).is_none());
        for change in [
            |state: &mut ChipState| state.modes.push(0),
            |state: &mut ChipState| state.targets.truncate(1),
            |state: &mut ChipState| state.pending.clear(),
            |state: &mut ChipState| state.enabled.push(0),
        ] {
            let mut wrong = state(&model);
            change(&mut wrong);
            assert!(wrong.writes(&model).is_none(), "{wrong:?}");
        }
        let messages = MessageState {
            delivery: 1,
            threshold: 2,
            pending: vec![3],
            enabled: vec![4],
        };
        assert_eq!(
            messages.writes(&model),
            Some(vec![
                (0xc0, 4),
                (0x80, 3),
                (EITHRESHOLD, 2),
                (EIDELIVERY, 1)
            ])
        );
        assert!(messages.writes(&Aia::new(1, 127)).is_none());
        assert!(MessageState::default().writes(&model).is_none());
    }

    #[test]
    fn upper_identities_are_seen() {
        let with = |pending, enabled| MessageState {
            pending: vec![0, pending],
            enabled: vec![enabled, 0],
            ..MessageState::default()
        };
        assert!(!with(0xffff_ffff, 1).has_upper_identities());
        assert!(with(1 << 32, 0).has_upper_identities());
        assert!(with(0, 1 << 63).has_upper_identities());
    }
}
