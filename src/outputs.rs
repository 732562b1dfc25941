//! Files that a VM writes: none that it reads, and none that somebody else writes.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{Error, VmConfig};

impl VmConfig {
    /// Finds out whether a file that was opened for writing may be written: it is neither the kernel, the
    /// initrd nor a disk of this VM, by whatever name, and nobody else writes it. It is locked from then on,
    /// for as long as it is open. `field` is what named it.
    ///
    /// # Errors
    /// Names the field, the file, and what speaks against it.
    pub fn check_output(&self, field: &'static str, path: &Path, file: &File) -> Result<(), Error> {
        let refuse = |cause: String, cure: &str| Error::Config {
            field,
            value: path.display().to_string(),
            cause,
            cure: cure.to_owned(),
        };
        let metadata = file
            .metadata()
            .map_err(|error| refuse(error.to_string(), "name another file"))?;
        let inputs = [("kernel", &self.kernel), ("initrd", &self.initrd)];
        let inputs = inputs
            .into_iter()
            .filter_map(|(what, path)| Some((what, path.as_deref()?)))
            .chain(self.blk.iter().map(|disk| ("disk", disk.path.as_path())));
        for (what, input) in inputs {
            if fs::metadata(input).is_ok_and(|input| is_same(&input, &metadata)) {
                let cause =
                    format!("it is the {what} of this VM as well, and would be overwritten");
                return Err(refuse(cause, "name another file"));
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
