//! Builds the guest that runs when no kernel is named (feature `hello-guest`).
//!
//! The guest is a program without an operating system, so it is not a crate that Cargo could build
//! as a dependency: this script calls the compiler itself.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A guest.
struct Guest {
    /// Rust's name of the architecture.
    arch: &'static str,
    /// The bare-metal target.
    target: &'static str,
    /// The folder with `main.rs` and `link.ld`.
    folder: &'static str,
    /// How it is linked.
    options: &'static str,
}

const GUESTS: [Guest; 3] = [
    Guest {
        arch: "aarch64",
        target: "aarch64-unknown-none-softfloat",
        folder: "../aarch64/hello",
        options: "-C relocation-model=pic -C link-arg=-pie",
    },
    Guest {
        arch: "riscv64",
        target: "riscv64gc-unknown-none-elf",
        folder: "../riscv64/hello",
        options: "-C relocation-model=pic -C link-arg=-pie",
    },
    Guest {
        arch: "x86_64",
        target: "x86_64-unknown-none",
        folder: "../x86_64/hello",
        options: "-C relocation-model=static",
    },
];

/// Small.
const OPTIONS: &str =
    "--edition 2024 --crate-type bin -C opt-level=z -C panic=abort -C strip=symbols";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(has_hello)");
    if env::var_os("CARGO_FEATURE_HELLO_GUEST").is_none() {
        return Ok(());
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let Some(guest) = GUESTS.iter().find(|guest| guest.arch == arch) else {
        return Ok(());
    };
    let target = guest.target;
    let rustc = env::var_os("RUSTC").ok_or("RUSTC is not set")?;
    if !is_installed(Path::new(&rustc), target)? {
        println!(
            "cargo::warning=no built-in guest, the Rust target {target} is missing; \
             cure: rustup target add {target}"
        );
        return Ok(());
    }
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join(guest.folder);
    println!("cargo::rerun-if-changed={}", folder.display());
    // What guests share.
    println!("cargo::rerun-if-changed=../hello");
    let output = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("hello");
    let mut script = std::ffi::OsString::from("link-arg=-T");
    script.push(folder.join("link.ld"));
    let status = Command::new(&rustc)
        .args(OPTIONS.split(' '))
        .args(guest.options.split(' '))
        .args(["--target", target, "-C"])
        .arg(script)
        .arg("-o")
        .arg(output)
        .arg(folder.join("main.rs"))
        .status()?;
    if !status.success() {
        return Err(format!("the built-in guest does not compile for {target}: {status}").into());
    }
    println!("cargo::rustc-cfg=has_hello");
    Ok(())
}

/// Whether the compiler has the target's `core`. When not, the script runs again once it has.
fn is_installed(rustc: &Path, target: &str) -> Result<bool, Box<dyn Error>> {
    let libraries = Command::new(rustc)
        .args(["--print", "target-libdir", "--target", target])
        .output()?;
    let libraries = PathBuf::from(String::from_utf8(libraries.stdout)?.trim());
    let found = libraries.read_dir().is_ok_and(|mut files| {
        files.any(|file| {
            file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
        })
    });
    if !found {
        println!("cargo::rerun-if-changed={}", libraries.display());
    }
    Ok(found)
}
