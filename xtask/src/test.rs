//! `cargo xtask test`: every check, in order of cost, stopping at the first failure.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::apt::{self, Unavailable};
use crate::fuzz;
use crate::lab::{self, ARCHITECTURES};
use crate::step::{Result, cargo, step};

/// Targets that the pure crates and the core must compile for, besides the host.
const FOREIGN: [&str; 2] = ["aarch64-unknown-linux-gnu", "riscv64gc-unknown-linux-gnu"];
/// Targets of the guests' programs and of the static build.
const OTHERS: [&str; 5] = [
    "aarch64-unknown-linux-musl",
    "aarch64-unknown-none-softfloat",
    "riscv64gc-unknown-none-elf",
    "x86_64-unknown-linux-musl",
    "x86_64-unknown-none",
];

/// How long each fuzz target runs here; `cargo xtask fuzz` searches longer.
const FUZZ_SECONDS: u32 = 10;

pub(crate) fn run(with_lab: bool) -> Result<()> {
    let start = Instant::now();
    cargo("fmt --all --check")?;
    step(
        "rustfmt of the built-in guests",
        Command::new("rustfmt")
            .args(["--check", "--edition=2024"])
            .args(
                ["aarch64", "riscv64", "x86_64"].map(|arch| format!("arch/{arch}/hello/main.rs")),
            ),
    )?;
    cargo("clippy --workspace --all-targets -- -D warnings")?;
    for arguments in [
        "fmt --all --check",
        "clippy --release -- -D warnings",
        "clippy --release -p micro-guest-aarch64 --target=aarch64-unknown-none-softfloat -- -D warnings",
        "clippy --release -p micro-guest-riscv64 --target=riscv64gc-unknown-none-elf -- -D warnings",
    ] {
        step(
            &format!("cargo {arguments} (micro-guests)"),
            Command::new("cargo")
                .args(arguments.split(' '))
                .current_dir("tests/guests"),
        )?;
    }
    for arguments in ["fmt --check", "clippy -- -D warnings"] {
        step(
            &format!("cargo {arguments} (fuzz targets)"),
            Command::new("cargo")
                .args(arguments.split(' '))
                .current_dir("fuzz"),
        )?;
    }
    for target in FOREIGN {
        let pure = "-p vmm-arch -p vmm-devices -p vmm-arch-aarch64 -p vmm-arch-riscv64 -p vmm-arch-x86-64 \
             -p vmm-arch-host";
        cargo(&format!("clippy {pure} --target {target} -- -D warnings"))?;
        cargo(&format!(
            "clippy --lib --no-default-features --target {target} -- -D warnings"
        ))?;
        cargo(&format!(
            "clippy --workspace --lib --bins --tests --target {target} -- -D warnings"
        ))?;
    }
    step(
        "cargo doc",
        Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    for features in [
        "",
        "host",
        "host,elf",
        "cli,elf",
        "cli,serial,elf",
        "cli,pci",
        "completions",
        "config-file",
        "cli,virtio-balloon",
        "cli,virtio-blk",
        "cli,virtio-console",
        "cli,virtio-net",
        "cli,virtio-rng",
        "cli,virtio-vsock",
    ] {
        cargo(&format!(
            "clippy --lib --bins --no-default-features --features={features} -- -D warnings"
        ))?;
    }
    cargo("test --no-default-features --test planner")?;
    require_kvm()?;
    // The least that boots.
    cargo("test --no-default-features --features=host,elf --test library")?;
    cargo("test --workspace")?;
    cargo("test --features=completions --test completions")?;
    // The other builds' own unit tests, under QEMU's user-mode emulation.
    for target in FOREIGN {
        cargo(&format!("test --workspace --lib --target {target}"))?;
    }
    fuzz::run(None, FUZZ_SECONDS)?;
    let mut skipped = String::new();
    if with_lab {
        for arch in ARCHITECTURES {
            match lab::run(arch, false, None) {
                Err(error) if error.is::<Unavailable>() => {
                    skipped = format!("{skipped}SKIPPED: lab {}: {error}\n", arch.name);
                }
                result => result?,
            }
        }
    } else {
        skipped.push_str("SKIPPED: the lab (--no-lab)\n");
    }
    print!("{skipped}");
    println!("all checks passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Installs what is missing, where that is possible; says what to do where it is not.
pub(crate) fn set_up() -> Result<()> {
    step(
        "rustup target add",
        Command::new("rustup")
            .args(["target", "add"])
            .args(FOREIGN.iter().chain(&OTHERS)),
    )?;
    apt::install(&[
        ("iasl", "acpica-tools"),
        ("dtc", "device-tree-compiler"),
        ("c++", "g++"),
        ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ("aarch64-linux-gnu-gcc", "libc6-dev-arm64-cross"),
        ("riscv64-linux-gnu-gcc", "gcc-riscv64-linux-gnu"),
        ("riscv64-linux-gnu-gcc", "libc6-dev-riscv64-cross"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ])
}

fn require_kvm() -> Result<()> {
    if Path::new("/dev/kvm").exists() {
        Ok(())
    } else {
        Err("/dev/kvm is missing, and the integration tests run on it; `cargo run -- doctor` says more".into())
    }
}
