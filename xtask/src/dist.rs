//! `cargo xtask dist`: what a release hands out.

use fs_err as fs;

use crate::build::{cargo, target};
use crate::lab::ARCHITECTURES;
use crate::needs::Needs;
use crate::step::Result;

pub(crate) fn run() -> Result<()> {
    Needs::default()
        .targets(ARCHITECTURES.iter().map(|arch| arch.target))
        .provide()?;
    let folder = target().join("dist");
    fs::create_dir_all(&folder)?;
    let mut lines = Vec::new();
    for arch in ARCHITECTURES {
        let target_name = arch.target;
        cargo(&format!("build --profile=dist --target={target_name}"))?;
        let file = folder.join(format!("vmm-reference-{}", arch.name));
        let size = fs::copy(target().join(target_name).join("dist/vmm-reference"), &file)?;
        lines.push(format!("{size:>9} bytes  {}", file.display()));
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
