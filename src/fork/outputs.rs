//! What the consoles of a fork write to is nothing else that its machine or the fork has, and nobody else's.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::control::command::CommandError;
use crate::outputs::{is_same, lock};
use crate::snapshot::memory::identity;

/// What a machine has open besides its disks, as devices and inodes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken<'a> {
    /// Kernel and initrd.
    pub(crate) images: &'a [(u64, u64)],
    /// The regular files that its consoles write to.
    pub(crate) outputs: &'a [(&'static str, (u64, u64))],
}

/// The output of a console of a fork.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output<'a> {
    /// What the console is called.
    pub(super) name: &'static str,
    pub(super) path: &'a Path,
    pub(super) file: &'a OwnedFd,
}

/// No file that a console writes to is a disk, the kernel or another output, and nobody else writes it. The files are
/// locked from then on, for as long as they are open. What is there and no file, as /dev/null, may have any number of
/// writers. `disks` are the files of all disks of the machine and of the fork, with what they are.
pub(super) fn check(
    outputs: &[Output<'_>],
    disks: &[(String, Vec<Metadata>)],
    taken: Taken<'_>,
) -> Result<(), CommandError> {
    let host = |source| CommandError::Host {
        command: "fork",
        source,
    };
    let mut before: Option<(&str, (u64, u64))> = None;
    for Output { name, path, file } in outputs {
        let no = |cause: &str, cure: &str| {
            let path = path.display();
            let text = format!("{name}=file={path}: {cause}; {cure}");
            Err(CommandError::NotForked(text))
        };
        const ANOTHER: &str = "name another file";
        let file = File::from(file.try_clone().map_err(host)?);
        let found = file.metadata().map_err(host)?;
        let mut disks = disks.iter();
        let disk = disks.find(|(_, disk)| disk.iter().any(|disk| is_same(disk, &found)));
        if let Some((disk, _)) = disk {
            return no(&format!("it is {disk} as well"), ANOTHER);
        }
        if !found.is_file() {
            continue;
        }
        let own = identity(&file).map_err(host)?;
        if taken.images.contains(&own) {
            return no("the VM reads it, and it would be overwritten", ANOTHER);
        }
        if let Some((field, _)) = taken.outputs.iter().find(|(_, taken)| *taken == own) {
            let cause = format!("the VM itself writes it, as its {field}");
            return no(&cause, ANOTHER);
        }
        if let Some((other, _)) = before.filter(|(_, before)| *before == own) {
            let cause = format!("{other} of the fork writes it as well");
            return no(&cause, "name two files");
        }
        before = Some((name, own));
        lock(&file).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock => no(
                "another VM writes it, or has it as a disk",
                "name another file, or end that VM",
            ),
            _ => Err(host(error)),
        })?;
    }
    Ok(())
}
