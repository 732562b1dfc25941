//! The README's first command, as on a machine with stable Rust and nothing else: with a copy of the
//! toolchain that has the host's own target alone.

use std::path::Path;
use std::process::Command;

use fs_err as fs;

use crate::build::{cargo_command, target};
use crate::step::{Result, run as run_command, text, timed};

/// What the built-in guest says first.
pub(crate) const GREETING: &str = "hello from vmm-reference: ";

pub(crate) fn run() -> Result<()> {
    timed("cargo run, with the host's target alone", || {
        let toolchain = target().join("toolchain");
        copy(&toolchain)?;
        let bin = toolchain.join("bin");
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = cargo_command();
        command
            .args(["run", "--quiet"])
            .env("PATH", format!("{}:{path}", bin.display()))
            .env("CARGO", bin.join("cargo"))
            .env("RUSTC", bin.join("rustc"));
        let said = text(&mut command)?;
        println!("    {}", said.lines().next().unwrap_or_default());
        fs::remove_dir_all(&toolchain)?;
        if said.starts_with(GREETING) {
            Ok(())
        } else {
            Err(format!("the built-in guest did not say {GREETING:?} but {said:?}").into())
        }
    })
}

/// Compiler, linker and the host's libraries; linked where the file system allows it.
fn copy(to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let sysroot = text(Command::new("rustc").args(["--print", "sysroot"]))?;
    let version = text(Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .ok_or("rustc names no host")?;
    let from = Path::new(&sysroot);
    for name in ["bin", "lib/rustlib"] {
        fs::create_dir_all(to.join(name))?;
    }
    let mut parts = vec!["bin/cargo".to_owned(), "bin/rustc".to_owned()];
    for entry in fs::read_dir(from.join("lib"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.contains(".so") {
            parts.push(format!("lib/{name}"));
        }
    }
    parts.push(format!("lib/rustlib/{host}"));
    for part in parts {
        let copy = |options: &str| {
            let mut command = Command::new("cp");
            command
                .arg(options)
                .arg(from.join(&part))
                .arg(to.join(&part));
            command
        };
        let linked = copy("-alT").output()?;
        if !linked.status.success() {
            run_command(&mut copy("-aT"))?;
        }
    }
    Ok(())
}
