//! Builds the guest that runs when no kernel is named (feature `hello-guest`).
//!
//! The guest is a program without an operating system, so it is not a crate that Cargo could build
//! as a dependency: this script calls the compiler itself, for the build's own target, the one that is
//! there by definition. That target's `core` was compiled for programs with an operating system (vector
//! registers, unaligned accesses), so each guest's entry turns on what such code needs; and whole-program
//! optimization compiles the little of `core` that stays in the guest again, for size.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The architectures with a guest, and how theirs is linked: at a fixed address, or to run anywhere.
const GUESTS: [(&str, &str); 3] = [
    ("aarch64", "-C relocation-model=pic -C link-arg=-pie"),
    ("riscv64", "-C relocation-model=pic -C link-arg=-pie"),
    ("x86_64", "-C relocation-model=static"),
];

/// Small, and linked by nothing but the linker that comes with the compiler.
const OPTIONS: &str = "--edition 2024 --crate-type bin -C opt-level=z -C panic=abort -C lto=fat \
    -C codegen-units=1 -C strip=symbols -C linker=rust-lld -C linker-flavor=ld.lld \
    -C link-self-contained=no -C default-linker-libraries=no";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=RUSTC");
    println!("cargo::rustc-check-cfg=cfg(has_hello)");
    if env::var_os("CARGO_FEATURE_HELLO_GUEST").is_none() {
        return Ok(());
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let Some((_, linked)) = GUESTS.iter().find(|(name, _)| *name == arch) else {
        return Ok(());
    };
    let target = env::var("TARGET")?;
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(format!("../{arch}/hello"));
    println!("cargo::rerun-if-changed={}", folder.display());
    // What guests share.
    println!("cargo::rerun-if-changed=../hello");
    let output = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("hello");
    let mut script = OsString::from("link-arg=-T");
    script.push(folder.join("link.ld"));
    let status = Command::new(env::var_os("RUSTC").ok_or("RUSTC is not set")?)
        .args(OPTIONS.split_whitespace())
        .args(linked.split(' '))
        .args(["--target", &target, "-C"])
        .arg(script)
        .arg("-o")
        .arg(output)
        .arg(folder.join("main.rs"))
        .status()?;
    if !status.success() {
        return Err(format!(
            "the built-in guest does not compile for {target} ({status}); \
             cure: build without the feature hello-guest"
        )
        .into());
    }
    println!("cargo::rustc-cfg=has_hello");
    Ok(())
}
