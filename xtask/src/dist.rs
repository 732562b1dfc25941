//! `cargo xtask dist`: what a release hands out.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

use crate::build::{cargo, target};
use crate::first::GREETING;
use crate::lab::ARCHITECTURES;
use crate::needs::Needs;
use crate::step::{Result, text, timed};

/// The most that the host's program may have, in bytes, with everything and with the least that boots a kernel.
const MOST: u64 = 4_100_000;
const MOST_MINIMAL: u64 = 1_000_000;
/// The front end's programs, which have to have these names wherever they are.
pub(crate) const FRONT_END: [&str; 4] = [
    "firecracker",
    "jailer",
    "seccompiler-bin",
    "snapshot-editor",
];

pub(crate) fn run() -> Result<()> {
    Needs::default()
        .targets(ARCHITECTURES.iter().map(|arch| arch.target))
        .provide()?;
    let folder = target().join("dist");
    fs::create_dir_all(&folder)?;
    let mut lines = Vec::new();
    for arch in ARCHITECTURES {
        let built = build(arch.target)?;
        if arch.name == std::env::consts::ARCH {
            says_hello(&built)?;
        }
        let file = folder.join(format!("vmm-reference-{}", arch.name));
        let size = fs::copy(built, &file)?;
        lines.push(format!("{size:>9} bytes  {}", file.display()));
        let folder = folder.join(arch.name);
        fs::create_dir_all(&folder)?;
        let built = build_front_end(arch.target)?;
        for name in FRONT_END {
            let file = folder.join(name);
            let size = fs::copy(built.join(name), &file)?;
            lines.push(format!("{size:>9} bytes  {}", file.display()));
        }
    }
    // The same for every architecture, and no part of the programs.
    let files = folder.join("files");
    fs::create_dir_all(&files)?;
    let files = files.display();
    cargo(&format!(
        "run --features=completions -- generate-files {files}"
    ))?;
    lines.push(format!("{files}: completions and man pages"));
    println!("{}", lines.join("\n"));
    Ok(())
}

/// Builds the static program.
fn build(target_name: &str) -> Result<PathBuf> {
    cargo(&format!("build --profile=dist --target={target_name}"))?;
    Ok(target().join(target_name).join("dist/vmm-reference"))
}

/// Builds the static programs with Firecracker's interface; gives their folder.
pub(crate) fn build_front_end(target_name: &str) -> Result<PathBuf> {
    cargo(&format!(
        "build --profile=dist --package=vmm-firecracker --package=vmm-jailer --bin=firecracker --bin=jailer \
         --bin=seccompiler-bin --bin=snapshot-editor --target={target_name}"
    ))?;
    Ok(target().join(target_name).join("dist"))
}

/// Runs the built-in guest: what is optimized as a whole is another program than the one that is tested.
fn says_hello(program: &Path) -> Result<()> {
    timed("the static program's first command", || {
        let said = text(&mut Command::new(program))?;
        if said.starts_with(GREETING) {
            return Ok(());
        }
        Err(format!("the built-in guest did not say {GREETING:?} but {said:?}").into())
    })
}

/// Builds the program of this machine's architecture as a release has it; checks that it runs, and its size.
pub(crate) fn check() -> Result<()> {
    let host = std::env::consts::ARCH;
    let arch = ARCHITECTURES.iter().find(|arch| arch.name == host);
    let arch = arch.ok_or("there is no static program for this architecture")?;
    let program = build(arch.target)?;
    says_hello(&program)?;
    cargo(&format!(
        "build --profile=dist --target={} --no-default-features --features=host,elf --example=minimal",
        arch.target
    ))?;
    let minimal = target().join(arch.target).join("dist/examples/minimal");
    for (file, most) in [(program, MOST), (minimal, MOST_MINIMAL)] {
        let size = fs::metadata(&file)?.len();
        println!("    {size} bytes  {}", file.display());
        if size > most {
            return Err(format!("{} has more than {most} bytes", file.display()).into());
        }
    }
    Ok(())
}
