//! `cargo xtask dist`: what a release hands out.

use std::fs;
use std::path::Path;

use crate::lab::ARCHITECTURES;
use crate::step::{Result, cargo};

pub(crate) fn run() -> Result<()> {
    let folder = Path::new("target/dist");
    fs::create_dir_all(folder)?;
    let mut lines = Vec::new();
    for arch in ARCHITECTURES {
        let target = arch.target;
        cargo(&format!("build --profile=dist --target={target}"))?;
        let name = format!("vmm-reference-{}", arch.name);
        let size = fs::copy(
            Path::new("target").join(target).join("dist/vmm-reference"),
            folder.join(&name),
        )?;
        lines.push(format!("{size:>9} bytes  target/dist/{name}"));
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
