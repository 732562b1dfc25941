//! `ctl PATH snapshot FOLDER`: the files of a saved VM, which the VM itself does not open.
//!
//! The state names the file with the memory. Both have no names while they are written, where the file system has such
//! files, else names of their own; then they get those, and renaming the state is what makes them the folder's saved VM.
//! The memory of the one before goes afterwards. Whatever fails before that leaves that one as it was.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, linkat};
use vmm_reference::{Error, Snapshot};

use super::restore::{STATE, open};

/// How the names of files with memory begin.
const MEMORY: &str = "memory-";

/// A new file, which goes unless it is kept.
#[derive(Debug)]
struct NewFile {
    file: File,
    path: PathBuf,
    /// It has its name already.
    is_named: bool,
}

impl NewFile {
    fn new(folder: &Path, name: &str) -> io::Result<Self> {
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
    fn name(&mut self) -> io::Result<()> {
        if !self.is_named {
            let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            linkat(CWD, unnamed, CWD, &self.path, AtFlags::SYMLINK_FOLLOW)?;
            self.is_named = true;
        }
        Ok(())
    }

    /// It stays, or has another name by now.
    fn keep(mut self) {
        self.is_named = false;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.is_named {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// New files of a saved VM; those that are not published are gone.
#[derive(Debug)]
pub(super) struct Files {
    // Fields drop in this order.
    state: NewFile,
    ram: NewFile,
    folder: Folder,
    /// The name of the file with the memory.
    pub(super) memory: String,
}

/// A folder; one that was made and stayed empty goes.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    created: bool,
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.created {
            // Fails if there is something in it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl Files {
    /// Makes them, and the folder if there is none.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let refused = |error: io::Error| Error::Config {
            field: "snapshot".into(),
            value: path.display().to_string(),
            cause: error.to_string(),
            cure: "name a folder in which this user may make files".to_owned(),
        };
        let state = path.join(STATE);
        if state.symlink_metadata().is_ok()
            && let Err(error) = open(&state).and_then(|file| Snapshot::read(STATE, file))
        {
            let cause = match error {
                Error::Config { cause, .. } => cause,
                other => other.to_string(),
            };
            return Err(Error::Config {
                field: "snapshot".into(),
                value: state.display().to_string(),
                cause: format!("it is in the way: {cause}"),
                cure: "name another folder, or one with a saved VM".to_owned(),
            });
        }
        let created = fs::DirBuilder::new().mode(0o700).create(path);
        let folder = Folder {
            created: created.is_ok(),
            path: path.to_owned(),
        };
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refused(error));
            }
            _ => {}
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let unique = format!("{:x}-{:x}", now.as_nanos(), process::id());
        let memory = format!("{MEMORY}{unique}");
        Ok(Self {
            state: NewFile::new(path, &format!("{STATE}-{unique}")).map_err(refused)?,
            ram: NewFile::new(path, &memory).map_err(refused)?,
            folder,
            memory,
        })
    }

    /// State and memory.
    pub(super) fn open(&self) -> [&File; 2] {
        [&self.state.file, &self.ram.file]
    }

    /// Makes them the folder's saved VM.
    pub(super) fn publish(self) -> Result<(), Error> {
        let Self {
            folder,
            memory,
            mut state,
            mut ram,
        } = self;
        let place = folder.path.join(STATE);
        // What is no saved VM names nothing.
        let before = open(&place).and_then(|file| Snapshot::read(STATE, file));
        let sync = || File::open(&folder.path)?.sync_all();
        let mut put = || {
            ram.name()?;
            state.name()?;
            // The state never names what is not there.
            sync()?;
            fs::rename(&state.path, &place)
        };
        let failed = |source| Error::Host {
            what: format!("cannot put the saved VM at {}", place.display()),
            source,
        };
        put().map_err(failed)?;
        state.keep();
        ram.keep();
        sync().map_err(failed)?;
        // Only what this command has made: a state may name any file.
        if let Ok(before) = before
            && before.memory_file() != memory
            && before.memory_file().starts_with(MEMORY)
        {
            // It is in nobody's way.
            let _ = fs::remove_file(folder.path.join(before.memory_file()));
        }
        Ok(())
    }
}
