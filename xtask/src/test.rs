//! `cargo xtask test`: every check, in order of cost, stopping at the first failure.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Targets that the pure crates and the core must compile for, besides the host.
const FOREIGN: [&str; 2] = ["aarch64-unknown-linux-gnu", "riscv64gc-unknown-linux-gnu"];
const BARE_METAL: &str = "x86_64-unknown-none";

pub(crate) fn run() -> Result<()> {
    set_up()?;
    let start = Instant::now();
    cargo("fmt --all --check")?;
    step(
        "rustfmt of the built-in guest",
        Command::new("rustfmt").args(["--check", "--edition=2024", "arch/x86_64/hello/main.rs"]),
    )?;
    cargo("clippy --workspace --all-targets -- -D warnings")?;
    for arguments in ["fmt --check", "clippy --release -- -D warnings"] {
        step(
            &format!("cargo {arguments} (micro-guests)"),
            Command::new("cargo")
                .args(arguments.split(' '))
                .current_dir("tests/guests"),
        )?;
    }
    for target in FOREIGN {
        let pure = "-p vmm-arch -p vmm-devices -p vmm-arch-x86-64 -p vmm-arch-host";
        cargo(&format!("clippy {pure} --target {target} -- -D warnings"))?;
        cargo(&format!(
            "clippy --lib --no-default-features --target {target} -- -D warnings"
        ))?;
    }
    step(
        "cargo doc",
        Command::new("cargo")
            .args(["doc", "--workspace", "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    for features in ["", "host", "host,elf", "cli,elf", "cli,serial,elf"] {
        cargo(&format!(
            "clippy --lib --bins --no-default-features --features={features} -- -D warnings"
        ))?;
    }
    require_kvm()?;
    cargo("test --workspace")?;
    println!("all checks passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Installs what is missing, where that is possible; says what to do where it is not.
fn set_up() -> Result<()> {
    let mut targets = FOREIGN.to_vec();
    targets.push(BARE_METAL);
    step(
        "rustup target add",
        Command::new("rustup")
            .args(["target", "add"])
            .args(&targets),
    )?;
    if Command::new("iasl").arg("-v").output().is_ok() {
        return Ok(());
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    step("apt-get update", &mut apt(&["update", "-q"]))?;
    step(
        "apt-get install acpica-tools",
        &mut apt(&["install", "-qy", "acpica-tools"]),
    )
    .map_err(|error| {
        format!("{error}\n  cure: install iasl (Debian: acpica-tools) and run again").into()
    })
}

fn require_kvm() -> Result<()> {
    if Path::new("/dev/kvm").exists() {
        Ok(())
    } else {
        Err("/dev/kvm is missing, and the integration tests run on it; `cargo run -- doctor` says more".into())
    }
}

fn cargo(arguments: &str) -> Result<()> {
    step(
        &format!("cargo {arguments}"),
        Command::new("cargo").args(arguments.split(' ')),
    )
}

fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("==> {name}");
    let start = Instant::now();
    let status = command
        .status()
        .map_err(|error| format!("{name}: {error}"))?;
    println!("    {:.1} s", start.elapsed().as_secs_f64());
    if status.success() {
        Ok(())
    } else {
        Err(format!("{name} failed: {status}").into())
    }
}
