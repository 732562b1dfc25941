//! New files: those that have no name until they are whole, where the file system has such files, and those that are there
//! at once. Nothing else is removed in their place.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags, linkat, renameat_with};
use rustix::io::Errno;

/// Whether an open file is the one at a path, where no link is followed.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let [own, found] = [file.metadata()?, fs::symlink_metadata(path)?];
    Ok((own.dev(), own.ino()) == (found.dev(), found.ino()))
}

/// Whether two open files are the same one.
#[cfg(all(feature = "control", feature = "snapshot"))]
pub(super) fn is_same(one: &File, other: &File) -> io::Result<bool> {
    let [one, other] = [one.metadata()?, other.metadata()?];
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Removes a file, unless another one has its name by now.
pub(super) fn remove(file: &File, path: &Path) {
    if is_at(file, path).unwrap_or(false) {
        let _ = fs::remove_file(path);
    }
}

/// A new file, which goes unless it is kept.
#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) file: File,
    /// The name that it has, or will have.
    pub(super) path: PathBuf,
    /// It has its name already.
    is_named: bool,
}

impl NewFile {
    pub(super) fn new(folder: &Path, name: &str) -> io::Result<Self> {
        let path = folder.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let unnamed = options.clone().custom_flags(libc::O_TMPFILE).open(folder);
        let (file, is_named) = match unnamed {
            Ok(file) => (file, false),
            // A file system without such files.
            Err(_) => (options.create_new(true).open(&path)?, true),
        };
        Ok(Self {
            file,
            path,
            is_named,
        })
    }

    /// Gives it its name.
    pub(super) fn name(&mut self) -> io::Result<()> {
        if !self.is_named {
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Gives it another name, which nothing has.
    pub(super) fn name_as(&mut self, path: PathBuf) -> io::Result<()> {
        if !self.is_named {
            self.path = path;
            return self.name();
        }
        match renameat_with(CWD, &self.path, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // The file system cannot (NFS).
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(&self.path, &path)?;
                fs::remove_file(&self.path)?;
            }
            Err(error) => return Err(error.into()),
        }
        self.path = path;
        Ok(())
    }

    /// It stays, or has another name by now.
    pub(super) fn keep(mut self) {
        self.is_named = false;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.is_named {
            remove(&self.file, &self.path);
        }
    }
}

/// A file for output. If it was made here, it goes unless it is kept or has content.
#[cfg(feature = "control")]
#[derive(Debug)]
pub(super) struct OutputFile {
    pub(super) file: File,
    path: PathBuf,
    is_new: bool,
}

#[cfg(feature = "control")]
impl OutputFile {
    /// Opens the file, or makes it.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options
            .write(true)
            // A FIFO without a reader must not block.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let (file, is_new) = match options.clone().create_new(true).open(path) {
            Ok(file) => (file, true),
            // Something is there, perhaps a link to what is not; or else it is said once more why not.
            Err(_) => (options.create(true).truncate(false).open(path)?, false),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            is_new,
        })
    }

    pub(super) fn keep(mut self) {
        self.is_new = false;
    }
}

#[cfg(feature = "control")]
impl Drop for OutputFile {
    fn drop(&mut self) {
        if self.is_new && self.file.metadata().is_ok_and(|found| found.len() == 0) {
            remove(&self.file, &self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A file of a file system where files have names from the beginning, or without a name.
    fn new_file(folder: &Path, has_name: bool) -> NewFile {
        let mut new = NewFile::new(folder, "new").unwrap();
        if has_name {
            new.name().unwrap();
        }
        new.file.write_all(b"whole").unwrap();
        new
    }

    #[test]
    fn a_name_is_given_once_and_takes_the_place_of_nothing() {
        for has_name in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let path = |name: &str| folder.path().join(name);
            fs::write(path("precious"), "precious").unwrap();
            let mut new = new_file(folder.path(), has_name);
            let refused = new.name_as(path("precious")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            drop(new);
            assert_eq!(fs::read(path("precious")).unwrap(), b"precious");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            let mut new = new_file(folder.path(), has_name);
            new.name_as(path("copy")).unwrap();
            assert_eq!(fs::read(path("copy")).unwrap(), b"whole");
            drop(new);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            let mut new = new_file(folder.path(), has_name);
            new.name_as(path("copy")).unwrap();
            new.keep();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn what_has_taken_the_place_of_a_new_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        let new = new_file(folder.path(), true);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another one's").unwrap();
        drop(new);
        assert_eq!(fs::read(&path).unwrap(), b"another one's");
    }

    #[cfg(feature = "control")]
    #[test]
    fn a_file_for_output_goes_if_it_was_made_for_it_and_has_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        drop(OutputFile::new(&path("empty")).unwrap());
        assert!(!path("empty").exists());
        OutputFile::new(&path("kept")).unwrap().keep();
        assert!(path("kept").exists());
        // It was there before.
        drop(OutputFile::new(&path("kept")).unwrap());
        assert!(path("kept").exists());
        let mut written = OutputFile::new(&path("written")).unwrap();
        written.file.write_all(b"from a guest").unwrap();
        drop(written);
        assert_eq!(fs::read(path("written")).unwrap(), b"from a guest");
        let replaced = OutputFile::new(&path("replaced")).unwrap();
        fs::rename(path("kept"), path("replaced")).unwrap();
        drop(replaced);
        assert!(path("replaced").exists());
        std::os::unix::fs::symlink(path("target"), path("link")).unwrap();
        drop(OutputFile::new(&path("link")).unwrap());
        assert!(path("link").is_symlink());
    }
}
