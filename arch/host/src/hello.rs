//! The built-in guest of the build target; `build.rs` compiles it.

/// The image, when one was built in: in the first kernel format of its architecture.
#[cfg(has_hello)]
pub const HELLO: Option<&[u8]> = Some(include_bytes!(concat!(env!("OUT_DIR"), "/hello")));

/// The image, when one was built in: there is none for this target.
#[cfg(not(has_hello))]
pub const HELLO: Option<&[u8]> = None;

#[cfg(all(test, has_hello, target_arch = "x86_64"))]
mod tests {
    use std::process::Command;

    use super::HELLO;

    /// Some KVMs interpret the code of a guest's kernel mode, and know no vector instructions; and where
    /// the guest is entered from other VMMs, only its own entry has made them legal.
    #[test]
    fn the_guest_has_no_vector_or_floating_point_instruction() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("hello");
        std::fs::write(&file, HELLO.unwrap()).unwrap();
        let said = Command::new("objdump")
            .args(["--disassemble", "--no-show-raw-insn"])
            .arg(&file)
            .output()
            .expect("objdump, of binutils, is there where a linker is");
        let listing = String::from_utf8(said.stdout).unwrap();
        let instructions = listing.lines().filter_map(|line| {
            let (_, instruction) = line.strip_prefix(' ')?.split_once(':')?;
            Some(instruction.trim())
        });
        assert!(instructions.clone().count() > 500, "{listing}");
        let is_vector = |instruction: &&str| {
            let registers = ["%xmm", "%ymm", "%zmm", "%mm", "%st"];
            registers.iter().any(|name| instruction.contains(name)) || instruction.starts_with('v')
        };
        let found: Vec<_> = instructions.filter(is_vector).collect();
        assert_eq!(found, Vec::<&str>::new());
    }
}
