//! Files that a VM writes: none that it reads, and none that somebody else writes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::config::whole;
use crate::{ConsoleTarget, Error, VmConfig};

/// A file, and what names it: a key of the configuration, or a word of the caller's.
pub type NamedFile<'a> = (&'static str, &'a Path);

/// How many symbolic links may lead to a file (path_resolution(7)).
const MAX_LINKS: usize = 40;

impl VmConfig {
    /// Finds out whether a file that was opened for writing may be written: it is neither the kernel, the
    /// initrd nor a disk of this VM, by whatever name, and nobody else writes it. It is locked from then on,
    /// for as long as it is open. `field` is what named it.
    ///
    /// # Errors
    /// Names the field, the file, and what speaks against it.
    pub fn check_output(&self, field: &'static str, path: &Path, file: &File) -> Result<(), Error> {
        let refuse = |cause: String, cure: &str| Error::Config {
            field: field.into(),
            value: shown(field, path),
            cause,
            cure: cure.to_owned(),
        };
        let metadata = file
            .metadata()
            .map_err(|error| refuse(error.to_string(), "name another file"))?;
        for (what, input) in self.inputs() {
            if fs::metadata(input).is_ok_and(|input| is_same(&input, &metadata)) {
                return Err(refused_input(field, path, what));
            }
        }
        if metadata.is_file() {
            lock(file).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => refuse(
                    "another VM writes it, or has it as a disk".to_owned(),
                    "name another file, or end that VM",
                ),
                _ => refuse(error.to_string(), "name a file that can be locked"),
            })?;
        }
        Ok(())
    }
}

/// The value as it was given.
fn shown(field: &str, path: &Path) -> String {
    match field {
        "serial" | "console" => format!("file={}", path.display()),
        _ => path.display().to_string(),
    }
}

fn refused_input(field: &'static str, path: &Path, what: &str) -> Error {
    let what = match what {
        "kernel" | "initrd" | "disk" => format!("the {what} of this VM"),
        name => format!("the file of {name}"),
    };
    Error::Config {
        field: field.into(),
        value: shown(field, path),
        cause: format!("it is {what} as well, and would be overwritten"),
        cure: "name another file".to_owned(),
    }
}

impl VmConfig {
    /// What the VM reads.
    fn inputs(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let images = [("kernel", &self.kernel), ("initrd", &self.initrd)];
        let disks = self.blk.iter().map(|disk| ("disk", disk.path.as_path()));
        images
            .into_iter()
            .filter_map(|(what, path)| Some((what, path.as_deref()?)))
            .chain(disks)
    }

    /// Finds out whether the files that the consoles write to, and `outputs`, can be written, before any of
    /// them is opened or created: each is there or can be made, none is one that the VM reads or one of
    /// `inputs`, and none is named twice.
    ///
    /// # Errors
    /// Names the field, the file, and what speaks against it.
    pub fn check_outputs(
        &self,
        inputs: &[NamedFile<'_>],
        outputs: &[NamedFile<'_>],
    ) -> Result<(), Error> {
        let consoles = [
            ("serial", Some(&self.serial)),
            ("console", self.console.as_ref()),
        ];
        let consoles = consoles
            .into_iter()
            .filter_map(|(field, target)| match target {
                Some(ConsoleTarget::File(path)) => Some((field, path.as_path())),
                _ => None,
            });
        let outputs: Vec<NamedFile<'_>> = consoles.chain(outputs.iter().copied()).collect();
        for (place, &(field, path)) in outputs.iter().enumerate() {
            let found = fs::metadata(path).ok();
            if let Some(found) = &found {
                for (what, input) in self.inputs().chain(inputs.iter().copied()) {
                    if fs::metadata(input).is_ok_and(|input| is_same(&input, found)) {
                        return Err(refused_input(field, path, what));
                    }
                }
            }
            // What is no regular file may have any number of writers.
            let is_file = found.as_ref().is_none_or(Metadata::is_file);
            let twice = outputs.iter().take(place).find(|(_, other)| {
                is_file && {
                    let other_found = fs::metadata(other).ok();
                    match (&found, &other_found) {
                        (Some(one), Some(other)) => is_same(one, other),
                        _ => whole(path) == whole(other),
                    }
                }
            });
            if let Some((other, _)) = twice {
                return Err(Error::Config {
                    field: field.into(),
                    value: shown(field, path),
                    cause: format!("{other} writes to the same file"),
                    cure: "name two files".to_owned(),
                });
            }
            can_be_written(path).map_err(|error| refused_output(field, path, &error))?;
        }
        Ok(())
    }
}

impl VmConfig {
    /// Remarks on files of consoles that cannot be written now.
    pub(crate) fn busy_consoles(&self) -> Vec<String> {
        let consoles = [
            ("serial", Some(&self.serial)),
            ("console", self.console.as_ref()),
        ];
        let busy = |(field, target): (_, Option<&ConsoleTarget>)| match target {
            Some(ConsoleTarget::File(path)) => busy_output(field, path),
            _ => None,
        };
        consoles.into_iter().filter_map(busy).collect()
    }
}

/// What may keep a file from being written, as long as it is so: a remark for a plan. `field` is what names the
/// file. It is looked at and left as it is: a lock is let go at once, and a FIFO is not opened, since its reader
/// would see that, and then its end.
#[must_use]
pub fn busy_output(field: &'static str, path: &Path) -> Option<String> {
    let name = format!("{field}={}", shown(field, path));
    let found = fs::metadata(path).ok()?;
    if found.file_type().is_fifo() {
        return Some(format!(
            "{name} is a FIFO, and is refused unless somebody reads it then"
        ));
    }
    let file = File::options().write(true).open(path).ok();
    let locked = file.filter(|_| found.is_file()).map(|file| lock(&file));
    match locked {
        Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Some(format!(
            "{name}: another VM writes it, or has it as a disk, and it is refused as long as that is so"
        )),
        _ => None,
    }
}

/// Finds out whether a file could be opened for writing, or made.
fn can_be_written(path: &Path) -> io::Result<()> {
    let found = match fs::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = target_of(path.to_owned());
            // Only a folder may end so.
            if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                return Err(Errno::ISDIR.into());
            }
            let folder = path
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty());
            let writable = Access::WRITE_OK | Access::EXEC_OK;
            return Ok(access(folder.unwrap_or(Path::new(".")), writable)?);
        }
        Err(error) => return Err(error),
    };
    if found.is_dir() {
        return Err(Errno::ISDIR.into());
    }
    if found.file_type().is_socket() {
        return Err(Errno::NXIO.into());
    }
    Ok(access(path, Access::WRITE_OK)?)
}

/// Where symbolic links lead that end at nothing: there a file would be made.
fn target_of(mut path: PathBuf) -> PathBuf {
    for _ in 0..MAX_LINKS {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// The error for an output file that cannot be opened.
pub fn refused_output(field: &'static str, path: &Path, error: &io::Error) -> Error {
    let (cause, cure) = match error.raw_os_error() {
        Some(libc::ENXIO) => (
            "it is a FIFO or a socket that nobody reads".to_owned(),
            "start the reader first, or name a regular file",
        ),
        Some(libc::ENOENT) => (
            "the folder that it is in does not exist".to_owned(),
            "make the folder, or name a file in another one",
        ),
        _ => (error.to_string(), "name a file that can be written"),
    };
    Error::Config {
        field: field.into(),
        value: shown(field, path),
        cause,
        cure: cure.to_owned(),
    }
}

/// Whether both are the same file, or the same device.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let device = |metadata: &Metadata| {
        let is_block = metadata.file_type().is_block_device();
        is_block.then(|| metadata.rdev())
    };
    match (device(one), device(other)) {
        (Some(one), Some(other)) => one == other,
        _ => (one.dev(), one.ino()) == (other.dev(), other.ino()),
    }
}

/// One writer.
fn lock(file: &File) -> io::Result<()> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        // A file system without locks has no other way to tell either.
        Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use devices::config::BlkConfig;

    use super::*;

    fn refused(config: &VmConfig, path: &Path) -> Option<String> {
        let file = File::options().append(true).open(path).unwrap();
        let result = config.check_output("serial", path, &file);
        result.err().map(|error| error.to_string())
    }

    #[test]
    fn r62_what_a_vm_reads_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["kernel", "initrd", "disk", "log"] {
            fs::write(path(name), "content").unwrap();
        }
        fs::hard_link(path("disk"), path("other-name")).unwrap();
        std::os::unix::fs::symlink(path("kernel"), path("link")).unwrap();
        let config = VmConfig::default()
            .with_kernel(path("kernel"))
            .with_initrd(path("initrd"))
            .with_disk(BlkConfig {
                path: path("disk"),
                ..BlkConfig::default()
            });
        for (name, what) in [
            ("kernel", "the kernel"),
            ("link", "the kernel"),
            ("initrd", "the initrd"),
            ("disk", "the disk"),
            ("other-name", "the disk"),
        ] {
            let said = refused(&config, &path(name)).unwrap();
            assert!(said.contains(what), "{name}: {said}");
        }
        assert_eq!(refused(&config, &path("log")), None);
        assert_eq!(fs::read(path("disk")).unwrap(), b"content");
    }

    #[test]
    fn r62_outputs_are_checked_before_any_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["kernel", "config", "there"] {
            fs::write(path(name), "content").unwrap();
        }
        fs::create_dir(path("folder")).unwrap();
        let link = |target: &str, name: &str| {
            std::os::unix::fs::symlink(path(target), path(name)).unwrap();
        };
        link("config", "link");
        link("nowhere/file", "lost");
        link("made", "new-link");
        let config = VmConfig {
            serial: ConsoleTarget::File(path("log")),
            ..VmConfig::default().with_kernel(path("kernel"))
        };
        let input = path("config");
        let check = |name: &str| {
            let output = path(name);
            let inputs: [NamedFile<'_>; 1] = [("config", &input)];
            let result = config.check_outputs(&inputs, &[("boot-timeline", &output)]);
            result.err().map(|error| error.to_string())
        };
        for (name, said) in [
            ("kernel", "the kernel of this VM"),
            ("config", "the file of config"),
            ("link", "the file of config"),
            ("log", "serial writes to the same file"),
            ("./log", "serial writes to the same file"),
            ("folder", "Is a directory"),
            ("nowhere/file", "the folder that it is in does not exist"),
            ("lost", "the folder that it is in does not exist"),
            ("there/x", "Not a directory"),
        ] {
            let found = check(name).unwrap_or_default();
            assert!(found.contains(said), "{name}: {found}");
        }
        for name in ["there", "new", "new-link"] {
            assert_eq!(check(name), None, "{name}");
        }
        let null = Path::new("/dev/null");
        let outputs: [NamedFile<'_>; 2] = [("serial", null), ("boot-timeline", null)];
        config.check_outputs(&[], &outputs).unwrap();
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 7, "nothing was made");
    }

    #[test]
    fn r62_one_file_has_one_writer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = VmConfig::default();
        let first = file.reopen().unwrap();
        config.check_output("serial", file.path(), &first).unwrap();
        let said = refused(&config, file.path()).unwrap();
        assert!(said.contains("another VM writes it"), "{said}");
        drop(first);
        assert_eq!(refused(&config, file.path()), None);
    }
}
