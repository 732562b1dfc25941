//! Files that a VM writes: none that it reads, and none that somebody else writes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use arch::ConfigPath;
use devices::descriptor;
use rustix::fs::{Access, FlockOperation, access, flock};
use rustix::io::Errno;

use crate::error::with_text;
use crate::{Error, VmConfig};

/// A file, and what names it: a key of the configuration, or a word of the caller's.
pub type NamedFile<'a> = (&'static str, &'a Path);

/// Files beside those that a [`VmConfig`] names: the caller's own.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NamedFiles<'a> {
    /// What is read.
    pub inputs: Vec<NamedFile<'a>>,
    /// What is written.
    pub outputs: Vec<NamedFile<'a>>,
    /// Sockets that are made.
    pub sockets: Vec<NamedFile<'a>>,
}

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
        let refuse = |source: io::Error, cure: &str| Error::Refused {
            field: field.into(),
            value: shown(field, path),
            source,
            cure: cure.to_owned(),
        };
        let metadata = file
            .metadata()
            .map_err(|error| refuse(error, "name another file"))?;
        for (what, input) in self.inputs() {
            if fs::metadata(input).is_ok_and(|input| is_same(&input, &metadata)) {
                return Err(refused_input(field, path, what));
            }
        }
        if metadata.is_file() {
            lock(file).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => refuse(
                    with_text(error, |_| {
                        "another VM writes it, or has it as a disk".to_owned()
                    }),
                    "name another file, or end that VM",
                ),
                _ => refuse(error, "name a file that can be locked"),
            })?;
        }
        Ok(())
    }
}

/// A path at which something is made, and what names it.
#[derive(Debug, Clone, Copy)]
struct Made<'a> {
    name: &'static str,
    path: &'a Path,
    is_socket: bool,
}

impl Made<'_> {
    /// Where a configuration has it.
    fn field(&self) -> ConfigPath {
        match self.name {
            "vsock" => ConfigPath::from("vsock").key("path"),
            name => name.into(),
        }
    }

    /// As a text of the command line and of a file has it.
    fn text(&self) -> String {
        let key = if self.name == "vsock" { "path=" } else { "" };
        format!("{}={key}{}", self.name, shown(self.name, self.path))
    }
}

/// Refuses a path that two things are to be made at. What is there and neither a file nor a socket may have any
/// number of writers.
fn check_twice(all: &[Made<'_>]) -> Result<(), Error> {
    let seen: Vec<_> = all
        .iter()
        .map(|made| (made, fs::metadata(made.path).ok()))
        .collect();
    for (place, (made, found)) in seen.iter().enumerate() {
        let is_one = found
            .as_ref()
            .is_none_or(|found| found.is_file() || found.file_type().is_socket());
        let same = |(_, other): &&(&Made<'_>, Option<Metadata>)| match (found, other) {
            (Some(found), Some(other)) => is_same(found, other),
            _ => false,
        };
        let mut before = seen.iter().take(place).filter(|_| is_one);
        let twice = before.find(|other| same(other) || whole(made.path) == whole(other.0.path));
        if let Some((other, _)) = twice {
            return Err(Error::Config {
                field: made.field(),
                value: shown(made.name, made.path),
                cause: format!("{} names the same path", other.text()),
                cure: "name two paths".to_owned(),
            });
        }
    }
    Ok(())
}

/// The value as it was given.
fn shown(field: &str, path: &Path) -> String {
    match field {
        "serial" | "console" => format!("file={}", path.display()),
        _ => path.display().to_string(),
    }
}

fn refused_input(field: &'static str, path: &Path, what: &str) -> Error {
    Error::Config {
        field: field.into(),
        value: shown(field, path),
        cause: format!("it is {} as well, and would be overwritten", named(what)),
        cure: "name another file".to_owned(),
    }
}

/// What is read, in a sentence.
fn named(what: &str) -> String {
    match what {
        "kernel" | "initrd" | "disk" => format!("the {what} of this VM"),
        name => format!("the file of {name}"),
    }
}

impl VmConfig {
    /// What the VM reads.
    fn inputs(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let disks = self.blk.iter().map(|disk| ("disk", disk.path.as_path()));
        self.images().chain(disks)
    }

    fn images(&self) -> impl Iterator<Item = NamedFile<'_>> {
        let images = [("kernel", &self.kernel), ("initrd", &self.initrd)];
        images
            .into_iter()
            .filter_map(|(what, path)| Some((what, path.as_deref()?)))
    }

    /// What is made or written to, beside disks.
    fn made<'a>(&'a self, files: &NamedFiles<'a>) -> Vec<Made<'a>> {
        let made = |is_socket| {
            move |&(name, path): &NamedFile<'a>| Made {
                name,
                path,
                is_socket,
            }
        };
        let vsock = self.vsock.as_ref();
        let vsock = vsock.map(|vsock| ("vsock", vsock.path.as_path()));
        let sockets = vsock.iter().chain(&files.sockets).map(made(true));
        sockets
            .chain(files.outputs.iter().map(made(false)))
            .collect()
    }

    /// Every path names something, and no two of the files and sockets that are made have one.
    ///
    /// # Errors
    /// Names the field, the path, and what speaks against it.
    pub fn check_paths(&self, files: &NamedFiles<'_>) -> Result<(), Error> {
        let mut named = self.images().chain(files.sockets.iter().copied());
        if let Some((name, _)) = named.find(|(_, path)| path.as_os_str().is_empty()) {
            return Err(Error::Config {
                field: name.into(),
                value: String::new(),
                cause: "it is an empty path".to_owned(),
                cure: "give a path, or leave it away".to_owned(),
            });
        }
        check_twice(&self.made(files))
    }

    /// The same for what the configuration names itself.
    pub(crate) fn check_own_paths(&self) -> Result<(), Error> {
        self.check_paths(&NamedFiles::default())
    }

    /// The numbers of the descriptors that the configuration and `files` name: those of taps, and those that paths
    /// like `/dev/fd/3` stand for.
    #[must_use]
    pub fn descriptors(&self, files: &NamedFiles<'_>) -> Vec<RawFd> {
        let inputs = self.inputs().chain(files.inputs.iter().copied());
        let made = self.made(files).into_iter().map(|made| made.path);
        let paths = inputs.map(|(_, path)| path).chain(made);
        let taps = self.net.iter().filter_map(|net| net.fd);
        paths.filter_map(descriptor::of_path).chain(taps).collect()
    }

    /// What paths like /dev/fd/3 stand for is open.
    pub(crate) fn check_descriptor_paths(&self) -> Result<(), Error> {
        let disks = self.blk.iter().enumerate();
        let disks = disks.map(|(place, disk)| {
            let field = ConfigPath::from("blk").item(place).key("path");
            (field, disk.path.as_path(), disk.path.display().to_string())
        });
        let images = self
            .images()
            .map(|(name, path)| (name.into(), path, shown(name, path)));
        let made = self.made(&NamedFiles::default()).into_iter();
        let made = made.map(|made| (made.field(), made.path, shown(made.name, made.path)));
        disks
            .chain(images)
            .chain(made)
            .try_for_each(|(field, path, value)| check_descriptor(field, path, value))
    }

    /// A disk that the guest may write is nothing that the VM reads.
    fn check_disks(&self, inputs: &[NamedFile<'_>]) -> Result<(), Error> {
        for (place, disk) in self.blk.iter().enumerate() {
            let found = fs::metadata(&disk.path);
            let Some(found) = found.ok().filter(|_| !disk.read_only) else {
                continue;
            };
            let read = self.images().chain(inputs.iter().copied());
            for (what, input) in read {
                if fs::metadata(input).is_ok_and(|input| is_same(&input, &found)) {
                    return Err(Error::Config {
                        field: ConfigPath::from("blk").item(place).key("path"),
                        value: disk.path.display().to_string(),
                        cause: format!(
                            "it is {} as well, and the guest could write it",
                            named(what)
                        ),
                        cure: "name another file, or add ,ro".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Finds out whether the outputs of `files` can be written, before any of them is opened or created: each is
    /// there or can be made, none is one that the VM reads or one of the inputs, and none is named twice.
    ///
    /// # Errors
    /// Names the field, the file, and what speaks against it.
    pub fn check_outputs(&self, files: &NamedFiles<'_>) -> Result<(), Error> {
        let inputs = &*files.inputs;
        self.check_disks(inputs)?;
        self.check_paths(files)?;
        let made = self.made(files);
        // A socket has checks of its own.
        for made in made.iter().filter(|made| !made.is_socket) {
            let (field, path) = (made.name, made.path);
            if let Ok(found) = &fs::metadata(path) {
                for (what, input) in self.inputs().chain(inputs.iter().copied()) {
                    if fs::metadata(input).is_ok_and(|input| is_same(&input, found)) {
                        return Err(refused_input(field, path, what));
                    }
                }
            }
            can_be_written(path).map_err(|error| refused_output(field, path, error))?;
        }
        Ok(())
    }
}

/// Checks that what a path like /dev/fd/3 stands for is open; any other path is fine. `field` names the path.
///
/// # Errors
/// When it is not open.
pub fn check_descriptor_path(field: &'static str, path: &Path) -> Result<(), Error> {
    check_descriptor(field.into(), path, shown(field, path))
}

fn check_descriptor(field: ConfigPath, path: &Path, value: String) -> Result<(), Error> {
    match descriptor::of_path(path).map(descriptor::duplicate) {
        Some(Err(source)) => Err(Error::Refused {
            field,
            value,
            source,
            cure: "give the number of a descriptor that this program is started with".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// What may keep a file from being written, as long as it is so: a remark for a plan. `field` is what names the
/// file. It is looked at and left as it is: a lock is let go at once, and a FIFO is not opened, since its reader
/// would see that, and then its end.
#[must_use]
pub fn busy_output(field: &'static str, path: &Path) -> Option<String> {
    // Whoever passed an open descriptor on may have locked what it is open for.
    if descriptor::of_path(path).is_some() {
        return None;
    }
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

/// A path by which the same file has the same name, whether it is there or not.
fn whole(path: &Path) -> Option<PathBuf> {
    if let Ok(found) = fs::canonicalize(path) {
        return Some(found);
    }
    let path = target_of(path.to_owned());
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    match (
        fs::canonicalize(folder.unwrap_or(Path::new("."))),
        path.file_name(),
    ) {
        (Ok(folder), Some(name)) => Some(folder.join(name)),
        _ => std::path::absolute(path).ok(),
    }
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
pub fn refused_output(field: &'static str, path: &Path, error: io::Error) -> Error {
    let (text, cure) = match error.raw_os_error() {
        Some(libc::ENXIO) => (
            Some("it is a FIFO or a socket that nobody reads"),
            "start the reader first, or name a regular file",
        ),
        Some(libc::ENOENT) => (
            Some("the folder that it is in does not exist"),
            "make the folder, or name a file in another one",
        ),
        _ => (None, "name a file that can be written"),
    };
    Error::Refused {
        field: field.into(),
        value: shown(field, path),
        source: match text {
            Some(text) => with_text(error, |_| text.to_owned()),
            None => error,
        },
        cure: cure.to_owned(),
    }
}

/// Whether both are the same file, or the same device.
pub(crate) fn is_same(one: &Metadata, other: &Metadata) -> bool {
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
pub(crate) fn lock(file: &File) -> io::Result<()> {
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
        result.err().map(|error| error.chain())
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
            .with_disk(BlkConfig::new(path("disk")));
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
        let config = VmConfig::default().with_kernel(path("kernel"));
        let log = path("log");
        let input = path("config");
        let check = |name: &str| {
            let output = path(name);
            let files = NamedFiles {
                inputs: vec![("config", &input)],
                outputs: vec![("serial", &log), ("boot-timeline", &output)],
                ..NamedFiles::default()
            };
            let result = config.check_outputs(&files);
            result.err().map(|error| error.chain())
        };
        for (name, said) in [
            ("kernel", "the kernel of this VM"),
            ("config", "the file of config"),
            ("link", "the file of config"),
            ("log", "log names the same path"),
            ("./log", "log names the same path"),
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
        let outputs: Vec<NamedFile<'_>> = vec![("serial", null), ("boot-timeline", null)];
        let files = NamedFiles {
            outputs,
            ..NamedFiles::default()
        };
        config.check_outputs(&files).unwrap();
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
