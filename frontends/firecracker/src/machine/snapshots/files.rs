//! The two files of a saved machine, which take the places of those that are there when they are whole.
//!
//! Two files cannot be renamed at once. So the new state is put beside the old one first, under a name of its own, and
//! knows the new memory by a mark (an extended attribute). Then memory takes its place, then the state does.
//! Whoever is killed or loses power in between leaves the old pair, or the new memory with the new state beside the old one:
//! a load finds that by the mark.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, MemfdFlags, OFlags, SeekFrom, StatxAttributes, StatxFlags, ioctl_ficlone, linkat,
    memfd_create, seek, statx,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::files::{
    copy_data, folder, open_no_link, open_regular, rename, resolved, take_owner_and_mode,
};
use crate::saved::{self, Mark};

/// Who may read and write a new file, before the process' mask.
const MODE: u32 = 0o666;

/// The bits of a mode by which others than the owner may write (inode(7)).
const OTHERS_WRITE: u32 = 0o022;
const OF_OTHERS: &str = "it is of another user, or others may write to it";
const NO_ROOM: &str =
    "it is left alone, and who is killed now may leave new memory with the old state";

/// A file that is written, to take a path's place.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    /// Its place.
    path: PathBuf,
    /// The name that it has meanwhile; none if it is written where it is.
    name: Option<PathBuf>,
    is_named: bool,
    /// The name stays whatever happens.
    is_kept: bool,
    /// The one that is there.
    before: Option<File>,
    /// What is written first, where the file itself is written where it is.
    scratch: Option<File>,
}

/// What is at the place of a file of memory.
#[derive(Debug)]
pub(super) enum Has<'a> {
    /// A file as long as memory, with something in it.
    Memory(&'a File),
    /// Nothing, or something else.
    Other,
}

impl NewFile {
    /// An empty file for a path. One that is there is a regular one, which keeps its owner and mode.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // What a link leads to is replaced, and not the link.
        let path = resolved(path)?;
        let before = match open_regular(&path, true) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_mounted = before.is_some() && is_mounted(&path);
        let created = match is_mounted {
            true => Err(io::ErrorKind::ResourceBusy.into()),
            false => Self::beside(path.clone()),
        };
        match (created, before) {
            (Ok(mut new), Some(before)) => {
                take_owner_and_mode(&new.file, &before)?;
                new.before = Some(before);
                Ok(new)
            }
            (Ok(new), None) => Ok(new),
            // A file that was made for this process, in a folder that is not its own.
            (Err(error), Some(file)) => {
                log::warn!(
                    "{}: the file is written where it is, and not replaced when it is whole: {error}",
                    path.display()
                );
                Ok(Self {
                    before: Some(file.try_clone()?),
                    file,
                    path,
                    name: None,
                    is_named: false,
                    is_kept: false,
                    scratch: None,
                })
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Without a name, where the file system has such files, and they can get one.
    fn beside(path: PathBuf) -> io::Result<Self> {
        let name = path.with_file_name(format!(".{}.new", saved::random()?));
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(MODE);
        let unnamed = || {
            let flags = OFlags::TMPFILE.bits().cast_signed();
            let file = options.clone().custom_flags(flags).open(folder(&path));
            // A jail may have no /proc.
            file.ok().filter(|file| open_path(file).exists())
        };
        let (file, is_named) = match unnamed() {
            Some(file) => (file, false),
            None => (options.create_new(true).open(&name)?, true),
        };
        Ok(Self {
            file,
            path,
            name: Some(name),
            is_named,
            is_kept: false,
            before: None,
            scratch: None,
        })
    }

    /// One that is written where it is keeps what it has until it is put in its place: what is written goes to memory first.
    pub(super) fn with_scratch(mut self) -> io::Result<Self> {
        if self.name.is_none() {
            self.scratch = Some(memfd_create("state", MemfdFlags::CLOEXEC)?.into());
        }
        Ok(self)
    }

    /// What is written to.
    pub(super) fn written(&self) -> &File {
        self.scratch.as_ref().unwrap_or(&self.file)
    }

    /// What is there.
    pub(super) fn has(&self, len: u64) -> Has<'_> {
        let is_memory = |file: &&File| {
            let has_len = file.metadata().is_ok_and(|found| found.len() == len);
            // One that was only made so long is as good as a new one.
            has_len && !matches!(seek(*file, SeekFrom::Data(0)), Err(Errno::NXIO))
        };
        match self.before.as_ref().filter(is_memory) {
            Some(file) => Has::Memory(file),
            None => Has::Other,
        }
    }

    /// Whether memory is for the place of this state, or for where it waits until it takes that; or both are written to one
    /// file that has two names.
    pub(super) fn is_same(&self, memory: &Self) -> bool {
        let identity = |new: &Self| {
            let found = new.file.metadata().ok().filter(|_| new.name.is_none())?;
            Some((found.dev(), found.ino()))
        };
        let own = identity(self);
        self.path == memory.path
            || next(&self.path).is_ok_and(|next| next == memory.path)
            || own.is_some() && own == identity(memory)
    }

    /// What is there is of no use.
    pub(super) fn empty(&self) -> io::Result<()> {
        self.written().set_len(0)
    }

    /// The length of a file that is written where it is.
    pub(super) fn stays(&self) -> Option<u64> {
        let len = || self.file.metadata().map_or(0, |found| found.len());
        self.name.is_none().then(len)
    }

    /// It begins with what is there, if that has as many bytes, else empty.
    pub(super) fn begin_with(&self, len: u64) -> io::Result<()> {
        let before = self.before.as_ref();
        let has_len = |file: &File| file.metadata().is_ok_and(|found| found.len() == len);
        match before.filter(|file| has_len(file)) {
            None => self.file.set_len(0),
            Some(_) if self.name.is_none() => Ok(()),
            Some(before) => match ioctl_ficlone(&self.file, before) {
                Ok(()) => Ok(()),
                Err(_) => {
                    self.file.set_len(len)?;
                    copy_data(before, &self.file, len).map(drop)
                }
            },
        }
    }

    /// Gives it its name beside its place.
    fn name(&mut self) -> io::Result<()> {
        if let Some(name) = self.name.as_ref().filter(|_| !self.is_named) {
            let unnamed = open_path(&self.file);
            linkat(CWD, unnamed, CWD, name, AtFlags::SYMLINK_FOLLOW)?;
            self.is_named = true;
        }
        Ok(())
    }

    /// Gives it another one.
    fn rename(&mut self, name: PathBuf) -> io::Result<()> {
        self.name()?;
        if let Some(now) = &self.name {
            rename(now, &name)?;
            self.name = Some(name);
        }
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// It takes its place.
    fn put(&mut self) -> io::Result<()> {
        self.name()?;
        if let Some(name) = &self.name {
            rename(name, &self.path)?;
            self.is_named = false;
        }
        if let Some(scratch) = &self.scratch {
            let len = scratch.metadata()?.len();
            copy_data(scratch, &self.file, len)?;
            self.file.set_len(len)?;
            self.file.sync_all()?;
        }
        Ok(())
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(folder(&self.path))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let own = self.name.as_ref();
        if let Some(name) = own.filter(|_| self.is_named && !self.is_kept) {
            let _ = fs::remove_file(name);
        }
    }
}

/// Puts both in their places, the memory known by a mark that the state has too.
pub(super) fn publish(mut state: NewFile, mut memory: NewFile, mark: &Mark<'_>) -> io::Result<()> {
    let have_names = state.name.is_some() && memory.name.is_some();
    // Also where it is of no use: another one would tell of another state.
    let is_marked = saved::set_mark(&memory.file, mark);
    let mut waits = have_names && is_marked && make_room(&state, &memory)?;
    let mode = state.file.metadata()?.mode();
    if waits {
        memory.file.sync_all()?;
        // Others cannot write to a state that waits, or it is not taken for one.
        if mode & OTHERS_WRITE != 0 {
            state.set_mode(mode & !OTHERS_WRITE)?;
        }
        let renamed = state.rename(next(&state.path)?);
        // Its name may be too long for that.
        waits = renamed.is_ok();
    }
    if waits {
        state.sync_folder()?;
    }
    memory.put()?;
    // The state belongs to the memory that is there now, and waits for its place if it does not get it.
    state.is_kept = waits;
    let synced = memory.sync_folder();
    state.put()?;
    if waits && mode & OTHERS_WRITE != 0 {
        let _ = state.set_mode(mode);
    }
    synced.and(state.sync_folder())
}

/// Whether a state can wait beside its place. One that waits there for the memory of before gets its place first, and a file
/// of somebody else is left alone.
fn make_room(state: &NewFile, memory: &NewFile) -> io::Result<bool> {
    let path = next(&state.path)?;
    let waiting = match open_no_link(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        // A name that is too long, or a link.
        Err(error) => {
            log::warn!("{}: {error}: {NO_ROOM}", path.display());
            return Ok(false);
        }
    };
    let owners = [memory.before.as_ref(), state.before.as_ref()];
    if !is_own(&waiting, owners) {
        log::warn!("{}: {OF_OTHERS}: {NO_ROOM}", path.display());
        return Ok(false);
    }
    let Some(known) = saved::mark_of_memory(&waiting) else {
        log::warn!("{}: it is no saved machine: {NO_ROOM}", path.display());
        return Ok(false);
    };
    let before = memory.before.as_ref().and_then(saved::mark);
    if before.is_some_and(|mark| mark == known) {
        rename(&path, &state.path).map_err(|error| {
            let (path, place) = (path.display(), state.path.display());
            let cause = format!(
                "{path} is the state of the memory that is there, and cannot take its place {place}: {error}; move it there, \
                 or to somewhere else, or remove it"
            );
            io::Error::new(error.kind(), cause)
        })?;
        state.sync_folder()?;
    }
    Ok(true)
}

/// Whether a state that waits is of this process' user, or of an owner of these files, and nobody else can have written to
/// it: in a folder that is everybody's somebody may have put it there.
fn is_own(waiting: &File, others: [Option<&File>; 2]) -> bool {
    let Ok(found) = waiting.metadata() else {
        return false;
    };
    let owner = |file: &File| file.metadata().ok().map(|found| found.uid());
    let mut owners = others.into_iter().flatten().filter_map(owner);
    let is_owner = found.uid() == geteuid().as_raw() || owners.any(|owner| owner == found.uid());
    is_owner && found.mode() & OTHERS_WRITE == 0
}

/// The state at a path, or the next one if that belongs to the memory.
pub(super) fn state(path: &Path, memory: Option<&File>) -> io::Result<(File, bool)> {
    let named = open_regular(path, false);
    let place = resolved(path).and_then(|path| next(&path));
    if let (Ok(place), Some(memory)) = (place, memory)
        && let Ok(pending) = open_no_link(&place)
        && let Some(mark) = saved::mark(memory)
    {
        if !is_own(&pending, [Some(memory), named.as_ref().ok()]) {
            log::warn!("{}: {OF_OTHERS}, and left alone", place.display());
        } else if saved::mark_of_memory(&pending).is_some_and(|known| known == mark) {
            return Ok((pending, true));
        }
    }
    named.map(|file| (file, false))
}

/// Where a new state waits until it takes its place.
fn next(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
    let mut next = OsString::from(".");
    next.push(name);
    next.push(".next");
    Ok(path.with_file_name(next))
}

/// Where the kernel shows what is open.
fn open_path(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Whether another file is mounted there: nothing can take its place.
fn is_mounted(path: &Path) -> bool {
    let found = statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    found.is_ok_and(|found| found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
#[path = "files_tests.rs"]
mod tests;
