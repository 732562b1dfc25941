//! `PUT /cpu-config`: bits of registers by which a guest knows its processor.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

/// The body of the request. What is not of this architecture is unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CustomCpuTemplate {
    pub(crate) kvm_capabilities: Vec<KvmCapability>,
    #[cfg(target_arch = "x86_64")]
    pub(crate) cpuid_modifiers: Vec<CpuidLeafModifier>,
    #[cfg(target_arch = "x86_64")]
    pub(crate) msr_modifiers: Vec<serde_json::Value>,
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) reg_modifiers: Vec<serde_json::Value>,
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) vcpu_features: Vec<serde_json::Value>,
}

/// A capability of KVM, by its number, that is to be looked for, or is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvmCapability {
    Add(u32),
    Remove,
}

impl<'de> Deserialize<'de> for KvmCapability {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let number = |digits: &str| {
            digits.parse().map_err(|error| {
                D::Error::custom(format!(
                    "Failed to parse string [{text}] as a kvm capability - can not convert to numeric: {error}"
                ))
            })
        };
        match text.strip_prefix('!') {
            Some(digits) => number(digits).map(|_: u32| Self::Remove),
            None => number(&text).map(Self::Add),
        }
    }
}

/// Registers of a leaf of CPUID.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct CpuidLeafModifier {
    #[serde(deserialize_with = "number")]
    pub(crate) leaf: u32,
    #[serde(deserialize_with = "number")]
    pub(crate) subleaf: u32,
    /// KVM's own flags say whether the subleaf counts.
    #[serde(rename = "flags")]
    pub(crate) _flags: u32,
    pub(crate) modifiers: Vec<CpuidRegisterModifier>,
}

/// Bits of a register.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct CpuidRegisterModifier {
    pub(crate) register: CpuidRegister,
    pub(crate) bitmap: Bitmap,
}

/// By its name.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CpuidRegister(pub(crate) &'static str);

#[cfg(target_arch = "x86_64")]
impl<'de> Deserialize<'de> for CpuidRegister {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let mut known = ["eax", "ebx", "ecx", "edx"].into_iter();
        known.find(|name| *name == text).map(Self).ok_or_else(|| {
            D::Error::custom("Invalid CPUID register. Must be one of [eax, ebx, ecx, edx]")
        })
    }
}

/// A number in a text, after `0x` or `0b`.
#[cfg(target_arch = "x86_64")]
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let text = String::deserialize(from)?;
    let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => (digits, 16),
        (_, Some(digits)) => (digits, 2),
        _ => {
            return Err(D::Error::custom(format!(
                "No supported number system prefix found in value [{text}]. Make sure to prefix the number with \
                 '0x' for hexadecimal numbers or '0b' for binary numbers."
            )));
        }
    };
    u32::from_str_radix(digits, radix).map_err(|error| {
        D::Error::custom(format!(
            "Failed to parse string [{text}] as a number for CPU template - {error:?}"
        ))
    })
}

/// Bits that are to be clear, and set: `0b01xx`, where `x` stays as it is, and `_` is nothing.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bitmap {
    pub(crate) clear: u32,
    pub(crate) set: u32,
}

#[cfg(target_arch = "x86_64")]
impl<'de> Deserialize<'de> for Bitmap {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let wrong = |what: &str| {
            Err(D::Error::custom(format!(
                "Failed to parse string [{text}] as a bitmap - {what}"
            )))
        };
        let digits = text.strip_prefix("0b").unwrap_or(&text);
        let mut bitmap = Self::default();
        let mut bit = 1u32;
        for digit in digits.chars().rev().filter(|digit| *digit != '_') {
            if bit == 0 {
                return wrong("string is too long");
            }
            match digit {
                'x' => {}
                '0' => bitmap.clear |= bit,
                '1' => bitmap.set |= bit,
                _ => return wrong(&format!("unknown character: {}", u32::from(digit))),
            }
            bit <<= 1;
        }
        Ok(bitmap)
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_as_its_schema_has_it() {
        let text = r#"{"kvm_capabilities":["!171"],"cpuid_modifiers":[{"leaf":"0x80000001","subleaf":"0b1","flags":1,
            "modifiers":[{"register":"ecx","bitmap":"0bx01_0"},{"register":"eax","bitmap":"1"}]}]}"#;
        let template: CustomCpuTemplate = serde_json::from_str(text).unwrap();
        assert_eq!(template.kvm_capabilities, [KvmCapability::Remove]);
        let [leaf] = &template.cpuid_modifiers[..] else {
            panic!("{template:?}")
        };
        assert_eq!((leaf.leaf, leaf.subleaf), (0x8000_0001, 1));
        let bits: Vec<_> = leaf
            .modifiers
            .iter()
            .map(|modifier| {
                (
                    modifier.register.0,
                    modifier.bitmap.clear,
                    modifier.bitmap.set,
                )
            })
            .collect();
        assert_eq!(bits, [("ecx", 0b101, 0b10), ("eax", 0, 1)]);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        let leaf = |leaf: &str, register: &str, bitmap: &str| {
            format!(
                r#"{{"cpuid_modifiers":[{{"leaf":"{leaf}","subleaf":"0x0","flags":0,"modifiers":[{{"register":"{register}","bitmap":"{bitmap}"}}]}}]}}"#
            )
        };
        for (text, cause) in [
            (leaf("1", "eax", "0b1"), "No supported number system prefix"),
            (leaf("0xg", "eax", "0b1"), "Failed to parse string [0xg]"),
            (leaf("0x1", "rax", "0b1"), "Invalid CPUID register"),
            (leaf("0x1", "eax", "0b2"), "unknown character: 50"),
            (leaf("0x1", "eax", &"x".repeat(33)), "string is too long"),
            (
                r#"{"kvm_capabilities":["x"]}"#.to_owned(),
                "as a kvm capability",
            ),
            (
                r#"{"reg_modifiers":[]}"#.to_owned(),
                "unknown field `reg_modifiers`",
            ),
        ] {
            let said = serde_json::from_str::<CustomCpuTemplate>(&text).unwrap_err();
            assert!(said.to_string().contains(cause), "{text}: {said}");
        }
    }
}
