use proptest::prelude::*;

use super::*;

fn programs(names: &[&str], program: &[u64]) -> Programs {
    let programs = names
        .iter()
        .map(|name| ((*name).to_owned(), program.to_vec()));
    Programs {
        architecture: 0xc000_003e,
        programs: programs.collect(),
    }
}

/// Bytes with the checksum that they should have.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() - CHECKSUM);
    let sum = checksum(&bytes);
    bytes.extend(sum);
    bytes
}

#[test]
#[allow(clippy::unwrap_used)]
fn what_is_wrong_with_a_file_is_told() {
    let good = programs(&["api", "vcpu"], &[6, 0x7fff_0000 << 32 | 6])
        .to_bytes()
        .unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        summed(changed)
    };
    assert!(Programs::read(&good).is_ok());
    // Behind magic, version, architecture and number: a length, 3 letters, a length.
    for (bytes, said) in [
        (b"Invalid BPF!".to_vec(), "it is no file of seccompiler-bin"),
        (Vec::new(), "it is no file of seccompiler-bin"),
        (with(8, &[2]), "it has version 2"),
        (
            with(16, &[17]),
            "the number of filters is 17, and 16 is the most",
        ),
        (with(16, &[3]), "the length of a name is "),
        (with(16, &[1]), "bytes follow its end"),
        (with(20, &[33]), "the length of a name is 33"),
        (with(20, &[0]), "the name \"\" is not of"),
        (with(24, &[0xff]), "the name \"\u{fffd}pi\" is not of"),
        (
            with(24, b"w"),
            "the name \"vcpu\" is there twice, or not in its order",
        ),
        (with(27, &[0, 0]), "the filter \"api\" has no instructions"),
        (with(27, &[1, 16]), "instructions is 4097, and 4096"),
        (good[..good.len() - 1].to_vec(), "it ends in the middle"),
        (vec![0; LONGEST + 1], "the length of the file is"),
    ] {
        let error = Programs::read(&bytes).unwrap_err().to_string();
        assert!(error.contains(said), "{said:?}: {error}");
    }
    let mut changed = good.clone();
    changed[12] ^= 1;
    assert_eq!(Programs::read(&changed), Err(ContainerError::Checksum));
}

#[test]
fn what_does_not_fit_makes_no_file() {
    let name = "x".repeat(LONGEST_NAME + 1);
    let long = vec![6; LONGEST_PROGRAM + 1];
    for programs in [
        programs(&[&name], &[6]),
        programs(&["a"], &long),
        programs(&["a"], &[]),
        programs(&["a b"], &[6]),
    ] {
        assert!(programs.to_bytes().is_err());
    }
}

proptest! {
    #[test]
    fn a_file_is_read_as_it_was_written_and_no_other_bit_of_it(
        names in proptest::collection::btree_map("[!-~]{1,32}", proptest::collection::vec(any::<u64>(), 1..50), 0..16),
        architecture: u32, byte: prop::sample::Index, bit in 0..8_u32,
    ) {
        let programs = Programs { architecture, programs: names };
        let mut bytes = programs.to_bytes().expect("it fits");
        prop_assert_eq!(Programs::read(&bytes), Ok(programs));
        let at = byte.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(Programs::read(&bytes).is_err());
    }

    #[test]
    fn no_bytes_are_too_much_for_it(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Programs::read(&bytes);
        bytes.splice(0..0, MAGIC.into_iter().chain(VERSION.to_le_bytes()).chain([0; 4]).chain([1, 0, 0, 0]));
        let _ = Programs::read(&bytes);
    }
}
