//! CPUID bits that a guest finds otherwise than the host has them.

use arch::{FeatureBits, PlanError, refused_features};

use crate::X86_64;
use crate::cpuid::CpuidEntry;
use crate::state::FEATURES;

/// A register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Register {
    leaf: u32,
    subleaf: u32,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    number: usize,
}

impl Register {
    /// Reads `cpuid:LEAF.SUBLEAF:REGISTER`.
    fn parse(text: &str) -> Option<Self> {
        let (place, register) = text.strip_prefix("cpuid:")?.split_once(':')?;
        let (leaf, subleaf) = place.split_once('.')?;
        let number = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let names = ["eax", "ebx", "ecx", "edx"];
        Some(Self {
            leaf: number(leaf)?,
            subleaf: number(subleaf)?,
            number: names.iter().position(|name| *name == register)?,
        })
    }

    /// Whether each of its bits is a feature.
    fn has_features(self) -> bool {
        let mut known = FEATURES.iter();
        let found = known.find(|(leaf, subleaf, _)| (*leaf, *subleaf) == (self.leaf, self.subleaf));
        found.is_some_and(|(_, _, sets)| sets.get(self.number) == Some(&true))
    }

    /// Its place in a table.
    fn find(self, leaves: &mut [CpuidEntry]) -> Option<&mut u32> {
        let mut leaves = leaves.iter_mut();
        let is_it =
            |leaf: &&mut CpuidEntry| leaf.function == self.leaf && leaf.index == self.subleaf;
        let leaf = leaves.find(is_it)?;
        let registers = [&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx];
        registers.into_iter().nth(self.number)
    }
}

impl X86_64 {
    pub(crate) fn change_features(&mut self, changes: &[FeatureBits]) -> Result<(), PlanError> {
        let mut host = self.cpuid.clone();
        let mut leaves = host.clone();
        for (place, change) in changes.iter().enumerate() {
            let refuse = |cause: String, cure| Err(refused_features(place, change, cause, cure));
            let Some(register) = Register::parse(&change.register) else {
                let cause = "it is no register of CPUID".to_owned();
                return refuse(cause, "name one as in cpuid:0x7.0x0:ebx");
            };
            let Some(value) = register.find(&mut leaves) else {
                let cause = "KVM shows no such leaf on this host".to_owned();
                return refuse(cause, "leave it away");
            };
            let Ok(changed) = u32::try_from(change.apply((*value).into())) else {
                return refuse("it has 32 bits".to_owned(), "name bits from 0 to 31");
            };
            // Whatever an earlier one has changed.
            let has = register.find(&mut host).map_or(0, |value| *value);
            let lacking = changed & !has;
            if register.has_features() && lacking != 0 {
                let cause =
                    format!("KVM has not all of what it sets on this host: {lacking:#010x}");
                return refuse(cause, "set bits that the host has");
            }
            *value = changed;
        }
        self.promise_cpuid(leaves);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::Platform;

    use super::*;

    fn change(register: &str, clear: u64, set: u64) -> FeatureBits {
        FeatureBits {
            register: register.to_owned(),
            clear,
            set,
        }
    }

    fn host() -> X86_64 {
        let leaf = |function, index, value| CpuidEntry {
            function,
            index,
            eax: value,
            ebx: value,
            ecx: value,
            edx: value,
            ..CpuidEntry::default()
        };
        X86_64::new(vec![leaf(0, 0, 7), leaf(7, 0, 0xff), leaf(7, 1, 0xf0)], 4)
    }

    #[test]
    fn a_guest_finds_the_bits_that_it_is_to_find() {
        let mut platform = host();
        let changes = [
            change("cpuid:0x7.0x0:ebx", 0x3, 0),
            change("cpuid:0x7.0x1:edx", 0x10, 0x20),
            // The last one counts.
            change("cpuid:0x7.0x0:edx", 0x8, 0),
            change("cpuid:0x7.0x0:edx", 0, 0x8),
            // No set of features: any number may stand there.
            change("cpuid:0x0.0x0:eax", 0, 0x10),
        ];
        platform.show_features(&changes).unwrap();
        let leaves: Vec<_> = platform
            .cpuid
            .iter()
            .map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .collect();
        assert_eq!(leaves[0], [0x17, 7, 7, 7]);
        assert_eq!(leaves[1], [0xff, 0xfc, 0xff, 0xff]);
        assert_eq!(leaves[2], [0xf0, 0xf0, 0xf0, 0xe0]);
        // What was saved goes on on a host with more, and not the other way round.
        let mut more = host();
        assert!(more.keep(platform.promise().unwrap()).is_empty());
        assert!(!platform.keep(host().promise().unwrap()).is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_changed() {
        for (wrong, cause) in [
            (change("cpuid:0x7.0x0:ebx", 0, 0x100), "0x00000100"),
            (change("cpuid:0x9.0x0:ebx", 1, 0), "no such leaf"),
            (change("cpuid:0x7.0x2:ebx", 1, 0), "no such leaf"),
            (change("cpuid:0x7.0x0:esp", 1, 0), "no register of CPUID"),
            (change("cpuid:7.0:ebx", 1, 0), "no register of CPUID"),
            (change("msr:0x10a", 1, 0), "no register of CPUID"),
            (change("", 1, 0), "no register of CPUID"),
            (change("cpuid:0x7.0x0:ebx", 0, 1 << 32), "32 bits"),
        ] {
            let mut platform = host();
            let before = platform.promise();
            let right = change("cpuid:0x7.0x0:ecx", 1, 0);
            let error = platform.show_features(&[right, wrong]).unwrap_err();
            let said = error.to_string();
            assert!(
                said.contains(cause) && said.contains("features[1]"),
                "{said}"
            );
            assert_eq!(platform.promise(), before);
        }
    }
}
