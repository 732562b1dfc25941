//! Programs out of Debian's packages that are downloaded and unpacked, not installed: the services that come with
//! them stay away.

use std::process::Command;

use fs_err as fs;

use crate::apt::Archive;
use crate::build::unpacked;
use crate::step::{Result, step};

/// Downloads a package for this machine, and keeps its program.
pub(crate) fn provide(program: &str, package: &str) -> Result<()> {
    let kept = unpacked(program);
    let folder = kept.with_extension("new");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let file = Archive::of_machine()?.download(package, &folder)?;
    let content = folder.join("content");
    step(
        &format!("unpacking {package}"),
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(file)
            .arg(&content),
    )?;
    fs::rename(content.join("usr/bin").join(program), kept)?;
    Ok(fs::remove_dir_all(folder)?)
}
