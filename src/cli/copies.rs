//! Copies of disks that `ctl PATH snapshot FOLDER --blk id=ID,copy=FILE` makes: files of the user's choice, which this
//! command opens and names.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use vmm_reference::{BlkCopy, DiskCopy, Error};

use super::new_file::{NewFile, is_at};

/// A copy of a disk.
#[derive(Debug)]
pub(super) struct CopyFile {
    new: NewFile,
    /// What the VM is told.
    #[cfg_attr(not(feature = "control"), allow(dead_code))]
    pub(super) told: DiskCopy,
    /// The user's path, from the root on.
    path: PathBuf,
    /// Its folder, open: the path may come to be another folder's meanwhile.
    folder: File,
    /// Its name there.
    name: PathBuf,
}

impl CopyFile {
    /// Makes the file, which has no name yet, or has `temporary` for one. `is_reserved` says whether a saved VM may have
    /// a file of this name in this folder.
    pub(super) fn new(
        copy: &BlkCopy,
        temporary: &str,
        is_reserved: impl FnOnce(&Path, &Path) -> bool,
    ) -> Result<Self, Error> {
        let refused = |cause: String, cure: &str| Error::Config {
            field: "blk".into(),
            value: format!("id={},copy={}", copy.id, copy.path.display()),
            cause,
            cure: cure.to_owned(),
        };
        let another = "name a new file: every saved VM has disks of its own";
        let cannot = |error: io::Error| {
            let cure = "name a new file in a folder in which this user may make files";
            refused(error.to_string(), cure)
        };
        let path = std::path::absolute(&copy.path).map_err(cannot)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused("it names no file".to_owned(), another));
        };
        let Some(text) = path.to_str() else {
            let cause = "the folder that it is in has a path that is not text in UTF-8";
            return Err(refused(cause.to_owned(), another));
        };
        if path.symlink_metadata().is_ok() {
            return Err(refused("there is such a file already".to_owned(), another));
        }
        if is_reserved(parent, Path::new(name)) {
            let cause = "the files of the saved VM itself have such names in its folder";
            return Err(refused(cause.to_owned(), "give it another name"));
        }
        let folder = File::open(parent).map_err(cannot)?;
        let new = NewFile::new(&place(&folder), temporary).map_err(cannot)?;
        Ok(Self {
            new,
            told: DiskCopy {
                device: copy.id.clone(),
                name: text.to_owned(),
            },
            folder,
            name: name.into(),
            path,
        })
    }

    #[cfg(feature = "control")]
    pub(super) fn file(&self) -> &File {
        &self.new.file
    }

    /// Gives it its name, of which the saved VM then finds it.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        let failed = |error: io::Error| {
            let text = format!("the copy {}: {error}", self.path.display());
            io::Error::new(error.kind(), text)
        };
        let named = self.new.name_as(place(&self.folder).join(&self.name));
        named.map_err(failed)?;
        if !is_at(&self.new.file, &self.path).map_err(failed)? {
            let cause = "another folder has taken the place of its own meanwhile";
            return Err(failed(io::Error::other(cause)));
        }
        self.folder.sync_all().map_err(failed)
    }

    pub(super) fn keep(self) {
        self.new.keep();
    }
}

/// A path of an open folder that stays its own.
pub(super) fn place(folder: &File) -> PathBuf {
    format!("/proc/self/fd/{}", folder.as_raw_fd()).into()
}

/// Refuses two copies of one disk, and more than a VM takes at once.
#[cfg(feature = "control")]
pub(super) fn check(copies: &[BlkCopy], most: usize) -> Result<(), Error> {
    let refused = |copy: &BlkCopy, cause: String, cure: &str| Error::Config {
        field: "blk".into(),
        value: format!("id={},copy={}", copy.id, copy.path.display()),
        cause,
        cure: cure.to_owned(),
    };
    for (number, copy) in copies.iter().enumerate() {
        let before = copies.get(..number).unwrap_or_default();
        if before.iter().any(|other| other.id == copy.id) {
            let cause = format!("the disk {} is copied once only", copy.id);
            return Err(refused(copy, cause, "leave one of the two away"));
        }
        if number >= most {
            let cause = format!("{most} disks are copied at once and no more");
            return Err(refused(copy, cause, "copy others while the VM is paused"));
        }
    }
    Ok(())
}

#[cfg(all(test, feature = "control"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_copied_once_and_no_more_are_copied_than_a_command_takes() {
        let copy = |id: u32| -> BlkCopy { format!("id=blk{id},copy=/copy{id}").parse().unwrap() };
        let copies: Vec<_> = (0..3).map(copy).collect();
        assert!(check(&copies, 3).is_ok());
        let refused = check(&copies, 2).unwrap_err().to_string();
        assert!(refused.contains("2 disks are copied at once"), "{refused}");
        let refused = check(&[copy(1), copy(2), copy(1)], 3).unwrap_err();
        assert!(
            refused.to_string().contains("copied once only"),
            "{refused}"
        );
    }
}
