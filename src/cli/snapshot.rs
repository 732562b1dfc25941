//! `ctl PATH snapshot FOLDER`: the files of a saved VM, which the VM itself does not open; `snapshot merge FOLDER`.
//!
//! The state names the files with the memory. It and the new one of those have no names while they are written, where the
//! file system has such files, else names of their own; then they get those, and renaming the state is what makes them the
//! folder's saved VM. Memory in the folder that the new one does not name goes afterwards. Whatever fails before that
//! leaves the one before as it was.

use std::fs::{self, File};
use std::io;
#[cfg(feature = "control")]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(feature = "control")]
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
#[cfg(feature = "control")]
use vmm_reference::DiskCopy;
use vmm_reference::{BlkCopy, Error, Snapshot};

use super::arguments::SnapshotOptions;
use super::copies::{self, CopyFile};
use super::files::print;
use super::new_file::NewFile;
use super::restore::{STATE, open, open_memory};

/// How the names of files with memory begin, and those of states that have not taken their place.
const MEMORY: &str = "memory-";
const NEW_STATE: &str = "state-";

/// New files of a saved VM; those that are not published are gone.
#[derive(Debug)]
pub(super) struct Files {
    // Fields drop in this order.
    state: NewFile,
    ram: NewFile,
    copies: Vec<CopyFile>,
    folder: Folder,
    /// The folder's saved VM.
    before: Option<Snapshot>,
    /// The name of the file with the memory.
    pub(super) memory: String,
}

/// A folder, in which nobody else puts a saved VM meanwhile; one that was made and stayed empty goes.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    created: bool,
    /// All that is done in it goes by this one: the path may come to be another folder's meanwhile.
    open: File,
    /// It is locked. File systems that cannot lock a folder leave that to the user.
    is_locked: bool,
}

impl Folder {
    /// Makes the folder if there is none.
    #[cfg(feature = "control")]
    pub(super) fn create(path: &Path) -> Result<Self, Error> {
        let created = fs::DirBuilder::new().mode(0o700).create(path);
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(refused(path, &error, WRITABLE))
            }
            created => Self::lock(path, created.is_ok()),
        }
    }

    /// One that is there.
    fn open(path: &Path) -> Result<Self, Error> {
        Self::lock(path, false)
    }

    fn lock(path: &Path, created: bool) -> Result<Self, Error> {
        let mut folder = Self {
            open: File::open(path).map_err(|error| refused(path, &error, WRITABLE))?,
            path: path.to_owned(),
            created,
            is_locked: false,
        };
        match flock(&folder.open, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                // What is made in it is the other command's.
                folder.created = false;
                let locked = io::Error::other("another command puts a saved VM into it just now");
                Err(refused(
                    path,
                    &locked,
                    "wait until that is done, or name another folder",
                ))
            }
            locked => {
                folder.is_locked = locked.is_ok();
                Ok(folder)
            }
        }
    }

    /// A path of the folder that stays its own.
    fn place(&self) -> PathBuf {
        copies::place(&self.open)
    }

    /// Whether a path is one of this folder.
    fn is_at(&self, path: &Path) -> io::Result<bool> {
        let [own, named] = [self.open.metadata()?, fs::metadata(path)?];
        Ok((own.dev(), own.ino()) == (named.dev(), named.ino()))
    }

    /// Whether the user's path still names it.
    fn check(&self) -> io::Result<()> {
        if self.is_at(&self.path)? {
            return Ok(());
        }
        Err(io::Error::other(
            "another folder has taken the place of this one meanwhile: nothing was changed in either",
        ))
    }

    /// Removes what commands have left there that were killed, and memory of before. What a state names by other names than
    /// ours stays.
    fn clean(&self, new: &Snapshot, before: Option<&Snapshot>) {
        let mut names: Vec<_> = before
            .iter()
            .flat_map(|before| before.memory_files())
            .map(str::to_owned)
            .collect();
        // Else another command may write them.
        if self.is_locked {
            let entries = fs::read_dir(self.place()).into_iter().flatten().flatten();
            let files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
            names.extend(files.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        let named = new.memory_files();
        for name in names {
            let is_ours = is_unique(&name, MEMORY) || is_unique(&name, NEW_STATE);
            if is_ours && !named.contains(&&*name) {
                // It is in nobody's way.
                let _ = fs::remove_file(self.place().join(name));
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.created {
            // Fails if there is something in it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

const WRITABLE: &str = "name a folder in which this user may make files";

fn refused(path: &Path, error: &io::Error, cure: &str) -> Error {
    Error::Config {
        field: "snapshot".into(),
        value: path.display().to_string(),
        cause: error.to_string(),
        cure: cure.to_owned(),
    }
}

/// What no other command's files are called: the time in nanoseconds, and the process.
fn unique() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", now.as_nanos(), process::id())
}

/// Whether a name is one that [`unique`] has made.
fn is_unique(name: &str, begin: &str) -> bool {
    let is_number = |text: &str| {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        !text.is_empty() && text.bytes().all(is_digit)
    };
    let numbers = name
        .strip_prefix(begin)
        .and_then(|rest| rest.split_once('-'));
    numbers.is_some_and(|(time, process)| is_number(time) && is_number(process))
}

impl Files {
    /// Makes them.
    pub(super) fn new(folder: Folder, copies: &[BlkCopy]) -> Result<Self, Error> {
        let refused = |error: io::Error| refused(&folder.path, &error, WRITABLE);
        let place = folder.place();
        let before = before(&folder.path.join(STATE))?;
        let unique = unique();
        let memory = format!("{MEMORY}{unique}");
        let is_reserved = |parent: &Path, name: &Path| {
            let name = name.to_string_lossy();
            folder.is_at(parent).unwrap_or(false)
                && (name == STATE || is_unique(&name, MEMORY) || is_unique(&name, NEW_STATE))
        };
        let copies = (0..).zip(copies).map(|(number, copy)| {
            let temporary = format!(".copy-{unique}-{number}");
            CopyFile::new(copy, &temporary, is_reserved)
        });
        Ok(Self {
            state: NewFile::new(&place, &format!("{NEW_STATE}{unique}")).map_err(refused)?,
            ram: NewFile::new(&place, &memory).map_err(refused)?,
            copies: copies.collect::<Result<_, _>>()?,
            folder,
            before,
            memory,
        })
    }

    /// The id of the folder's saved VM; empty if there is none, or not all of it.
    #[cfg(feature = "control")]
    pub(super) fn id(&self) -> &str {
        let Some(before) = &self.before else {
            return "";
        };
        let memory = open_memory(&self.folder.path, before);
        match memory.and_then(|files| before.check_memory(&files)) {
            Ok(()) => before.id(),
            Err(error) => {
                let path = self.folder.path.display();
                log::warn!(
                    "{path}: all of the VM is saved, since what is there is not whole: {error}"
                );
                ""
            }
        }
    }

    /// State, memory and copies of disks.
    #[cfg(feature = "control")]
    pub(super) fn open(&self) -> Vec<BorrowedFd<'_>> {
        let copies = self.copies.iter().map(CopyFile::file);
        [&self.state.file, &self.ram.file]
            .into_iter()
            .chain(copies)
            .map(AsFd::as_fd)
            .collect()
    }

    /// The disks that are copied.
    #[cfg(feature = "control")]
    pub(super) fn copies(&self) -> Vec<DiskCopy> {
        self.copies.iter().map(|copy| copy.told.clone()).collect()
    }

    /// Makes them the folder's saved VM.
    pub(super) fn publish(self) -> Result<(), Error> {
        let Self {
            folder,
            before,
            mut state,
            mut ram,
            mut copies,
            ..
        } = self;
        let shown = folder.path.join(STATE);
        let place = folder.place().join(STATE);
        let sync = || File::open(folder.place())?.sync_all();
        let sync_with_name = || {
            sync()?;
            if !folder.created {
                return Ok(());
            }
            let parent = folder
                .path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        let mut put = || {
            folder.check()?;
            copies.iter_mut().try_for_each(CopyFile::publish)?;
            ram.name()?;
            state.name()?;
            // The state never names what is not there.
            sync()?;
            fs::rename(&state.path, &place)
        };
        let failed = |source| Error::Host {
            what: format!("cannot put the saved VM at {}", shown.display()),
            source,
        };
        put().map_err(failed)?;
        state.keep();
        ram.keep();
        copies.into_iter().for_each(CopyFile::keep);
        sync_with_name().map_err(|source| Error::Host {
            what: format!(
                "the saved VM is at {}, but may not survive a power cut",
                shown.display()
            ),
            source,
        })?;
        if let Ok(new) = open(&place).and_then(|file| Snapshot::read(STATE, file)) {
            folder.clean(&new, before.as_ref());
        }
        Ok(())
    }
}

/// The saved VM whose state this is, if there is one.
fn before(state: &Path) -> Result<Option<Snapshot>, Error> {
    if state.symlink_metadata().is_err() {
        return Ok(None);
    }
    let before = open(state).and_then(|file| Snapshot::read(STATE, file));
    before.map(Some).map_err(|error| Error::Config {
        field: "snapshot".into(),
        value: state.display().to_string(),
        cause: match error {
            Error::Config { cause, .. } => format!("it is in the way: {cause}"),
            other => format!("it is in the way: {other}"),
        },
        cure: "name another folder, or one with a saved VM".to_owned(),
    })
}

/// `snapshot merge`: puts the memory of a saved VM into one file.
pub(super) fn run(options: &SnapshotOptions) -> Result<(), Error> {
    let SnapshotOptions::Merge { folder } = options;
    // Nothing is made where nothing is.
    open(&folder.join(STATE))?;
    let files = Files::new(Folder::open(folder)?, &[])?;
    let Some(before) = &files.before else {
        // It has gone since.
        return open(&folder.join(STATE)).map(drop);
    };
    let layers = before.memory_files().len();
    if layers < 2 {
        return print(&format!(
            "{}: its memory is one file already",
            folder.display()
        ));
    }
    let memory = open_memory(folder, before)?;
    let new = [&files.state.file, &files.ram.file];
    let written = before.merge(memory, &files.memory, new)?;
    files.publish()?;
    print(&format!(
        "{}: merged {layers} layers: {} KiB of memory",
        folder.display(),
        written >> 10
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_the_place_of_another_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = |name: &str| parent.path().join(name);
        let files = Files::new(Folder::create(&path("saved")).unwrap(), &[]).unwrap();
        fs::rename(path("saved"), path("before")).unwrap();
        fs::create_dir(path("saved")).unwrap();
        fs::write(path("saved").join(STATE), "another one").unwrap();
        let refused = files.publish().unwrap_err();
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert!(cause.contains("has taken the place"), "{cause}");
        let state = fs::read(path("saved").join(STATE)).unwrap();
        assert_eq!(state, b"another one");
        assert_eq!(fs::read_dir(path("saved")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(path("before")).unwrap().count(), 0);
    }
}
