//! The extensions that a vCPU may have, by KVM's numbers and the device tree's names
//! (KVM_RISCV_ISA_EXT_ID; Documentation/devicetree/bindings/riscv/extensions.yaml).
//!
//! KVM lets a guest have what the host has. What is not in this list the guest does not hear of.

/// An extension: KVM's number and the name.
pub type Extension = (u64, &'static str);

/// All that are known here: first those of one letter in their canonical order, then the others by
/// name. The hypervisor extension is for hosts. Zkr is left out: KVM hands its one register, a source
/// of random bits, to the VMM, and some kernels cannot take it from a vCPU; the device tree has
/// seeds instead. Svadu is, too: KVM lets it work only where Svade is switched off.
pub const ALL: &[Extension] = &[
    (5, "i"),
    (6, "m"),
    (0, "a"),
    (3, "f"),
    (2, "d"),
    (1, "c"),
    (15, "v"),
    (69, "zaamo"),
    (67, "zabha"),
    (53, "zacas"),
    (70, "zalrsc"),
    (61, "zawrs"),
    (17, "zba"),
    (13, "zbb"),
    (25, "zbc"),
    (26, "zbkb"),
    (27, "zbkc"),
    (28, "zbkx"),
    (18, "zbs"),
    (56, "zca"),
    (57, "zcb"),
    (58, "zcd"),
    (60, "zcmop"),
    (51, "zfa"),
    (72, "zfbfmin"),
    (46, "zfh"),
    (47, "zfhmin"),
    (11, "zicbom"),
    (71, "zicbop"),
    (12, "zicboz"),
    (68, "ziccrse"),
    (19, "zicntr"),
    (24, "zicond"),
    (20, "zicsr"),
    (21, "zifencei"),
    (48, "zihintntl"),
    (10, "zihintpause"),
    (22, "zihpm"),
    (55, "zimop"),
    (29, "zknd"),
    (30, "zkne"),
    (31, "zknh"),
    (33, "zksed"),
    (34, "zksh"),
    (35, "zkt"),
    (52, "ztso"),
    (36, "zvbb"),
    (37, "zvbc"),
    (73, "zvfbfmin"),
    (74, "zvfbfwma"),
    (49, "zvfh"),
    (50, "zvfhmin"),
    (38, "zvkb"),
    (39, "zvkg"),
    (40, "zvkned"),
    (41, "zvknha"),
    (42, "zvknhb"),
    (43, "zvksed"),
    (44, "zvksh"),
    (45, "zvkt"),
    (23, "smstateen"),
    (14, "ssaia"),
    (54, "sscofpmf"),
    (63, "ssnpm"),
    (8, "sstc"),
    (64, "svade"),
    (9, "svinval"),
    (16, "svnapot"),
    (7, "svpbmt"),
    (66, "svvptc"),
];

/// What of these extensions makes sense together: KVM keeps those of vectors on where the host's
/// administrator has switched vectors off.
#[must_use]
pub fn consistent<'a>(extensions: &[&'a str]) -> Vec<&'a str> {
    let has_vectors = extensions.contains(&"v");
    let fine = |name: &&&str| has_vectors || !name.starts_with("zv");
    extensions.iter().filter(fine).copied().collect()
}

/// The extensions as one string (`riscv,isa`): `rv64imafdc_zba_…`.
#[must_use]
pub fn text(extensions: &[String]) -> String {
    let mut text = "rv64".to_owned();
    for name in extensions {
        if name.len() > 1 {
            text.push('_');
        }
        text.push_str(name);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extension_is_there_once() {
        for (place, (number, name)) in ALL.iter().enumerate() {
            for (other, other_name) in &ALL[place + 1..] {
                assert!(number != other && name != other_name, "{name} {other_name}");
            }
        }
    }

    #[test]
    fn without_vectors_there_are_none_of_their_extensions() {
        assert_eq!(consistent(&["i", "zba", "zvbb", "zvfh"]), ["i", "zba"]);
        assert_eq!(consistent(&["i", "v", "zvbb"]), ["i", "v", "zvbb"]);
    }

    #[test]
    fn the_string_has_the_letters_first() {
        let names = ["i", "m", "a", "zba", "sstc"].map(str::to_owned);
        assert_eq!(text(&names), "rv64ima_zba_sstc");
        let first_long = ALL.iter().position(|(_, name)| name.len() > 1);
        assert!(
            ALL[first_long.unwrap_or(0)..]
                .iter()
                .all(|(_, name)| name.len() > 1)
        );
    }
}
