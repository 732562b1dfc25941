//! `ctl PATH snapshot FOLDER`: the files of a saved VM, which the VM itself does not open.
//!
//! The state names the file with the memory. Both are written under names of their own first; renaming the state is what
//! makes them the folder's saved VM, and the memory of the one before goes afterwards. Whatever fails before that leaves
//! that one as it was.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use vmm_reference::{Error, Snapshot};

use super::restore::{STATE, open};

/// How the names of files with memory begin.
const MEMORY: &str = "memory-";

/// New files of a saved VM; those that are not published are removed.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// The name of the file with the memory.
    pub(super) memory: String,
    /// The state until it is published.
    partial: PathBuf,
    /// State and memory.
    pub(super) open: [File; 2],
    published: bool,
    /// The folder was made for them.
    created: bool,
}

impl Files {
    /// Makes them, and the folder if there is none.
    pub(super) fn new(folder: &Path) -> Result<Self, Error> {
        let refused = |path: &Path, error: &io::Error| Error::Config {
            field: "snapshot".into(),
            value: path.display().to_string(),
            cause: error.to_string(),
            cure: "name a folder in which this user may make files".to_owned(),
        };
        let state = folder.join(STATE);
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
        let mut builder = fs::DirBuilder::new();
        let created = match builder.mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(refused(folder, &error));
            }
            created => created.is_ok(),
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let unique = format!("{:x}-{:x}", now.as_nanos(), process::id());
        let create = |path: &Path| {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create_new(true).mode(0o600);
            options.open(path).map_err(|error| refused(path, &error))
        };
        let (memory, partial) = (format!("{MEMORY}{unique}"), format!("{STATE}-{unique}"));
        let partial = folder.join(partial);
        let state = create(&partial)?;
        let ram = create(&folder.join(&memory)).inspect_err(|_| {
            let _ = fs::remove_file(&partial);
        })?;
        Ok(Self {
            folder: folder.to_owned(),
            memory,
            partial,
            open: [state, ram],
            published: false,
            created,
        })
    }

    /// Makes them the folder's saved VM.
    pub(super) fn publish(mut self) -> Result<(), Error> {
        let state = self.folder.join(STATE);
        // What is no saved VM names nothing.
        let before = open(&state).and_then(|file| Snapshot::read(STATE, file));
        let failed = |source| Error::Host {
            what: format!("cannot put the saved VM at {}", state.display()),
            source,
        };
        fs::rename(&self.partial, &state).map_err(failed)?;
        self.published = true;
        let folder = File::open(&self.folder).and_then(|folder| folder.sync_all());
        folder.map_err(failed)?;
        // Only what this command has made: a state may name any file.
        if let Ok(before) = before
            && before.memory_file() != self.memory
            && before.memory_file().starts_with(MEMORY)
        {
            // It is in nobody's way.
            let _ = fs::remove_file(self.folder.join(before.memory_file()));
        }
        Ok(())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.partial);
            let _ = fs::remove_file(self.folder.join(&self.memory));
            if self.created {
                let _ = fs::remove_dir(&self.folder);
            }
        }
    }
}
