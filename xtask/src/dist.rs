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
    println!("{}", lines.join("\n"));
    Ok(())
}
