//! Golden snapshots: a saved VM of each architecture, which every later version goes on with. They are part of the
//! repository (`tests/golden`); here they are made.

use std::path::Path;
use std::process::Command;

use fs_err as fs;

use super::architecture::Architecture;
use super::case::Case;
use super::images;
use crate::build::{cargo, target};
use crate::step::{Result, output, text};

/// Makes that of this machine's architecture, with its KVM.
pub(super) fn make(arch: &Architecture) -> Result<()> {
    cargo("build --quiet")?;
    let binary = std::path::absolute(target().join("debug/vmm-reference"))?;
    let guest = std::path::absolute(images::build_guest(arch)?)?;
    let mut save = Command::new("sh");
    let said = text(save.arg(images::SAVE_GOLDEN).arg(binary).arg(guest))?;
    keep(arch.name, &said)
}

/// Makes one in a machine.
pub(super) fn case(arch: &'static Architecture) -> Case {
    let command = "/save-golden /vmm-reference /micro-guest";
    Case::new("golden snapshot", command, &[], |output| {
        keep(arch.name, output)
    })
}

/// Puts what the script has printed where the tests find it.
fn keep(name: &str, said: &str) -> Result<()> {
    let folder = Path::new("tests/golden").join(name);
    fs::create_dir_all(&folder)?;
    let (files, _) = said
        .split_once("@golden end")
        .ok_or_else(|| format!("{} has not printed all files", images::SAVE_GOLDEN))?;
    // The first part is what comes before them.
    let files = files.split("@golden ").skip(1);
    for file in files {
        let (name, encoded) = file.split_once('\n').unwrap_or_default();
        let path = folder.join(name);
        fs::write(&path, encoded)?;
        let decoded = output(Command::new("base64").arg("--decode").arg(&path))?;
        fs::write(&path, decoded)?;
    }
    println!("    {} has it", folder.display());
    Ok(())
}
