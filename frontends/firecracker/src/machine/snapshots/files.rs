//! The two files of a saved machine, which take the places of those that are there when they are whole.
//!
//! Two files cannot be renamed at once. So the new state is put beside the old one first, under a name of its own, and
//! knows the new memory by a mark (an extended attribute). Then memory takes its place, then the state does.
//! Whoever is killed or loses power in between leaves the old pair, or the new memory with the new state beside the old one:
//! a load finds that by the mark.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, MemfdFlags, OFlags, SeekFrom, StatxAttributes, StatxFlags, ioctl_ficlone, linkat,
    memfd_create, seek, statx,
};
use rustix::io::Errno;

use crate::files::{copy_data, folder, open_regular, rename, resolved, take_owner_and_mode};
use crate::saved::{self, Content};

/// Who may read and write a new file, before the process' mask.
const MODE: u32 = 0o666;

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
pub(super) fn publish(
    mut state: NewFile,
    mut memory: NewFile,
    mark: &str,
    content: Content,
) -> io::Result<()> {
    let have_names = state.name.is_some() && memory.name.is_some();
    // Also where it is of no use: another one would tell of another state.
    let is_marked = saved::set_mark(&memory.file, mark, content);
    let mut waits = have_names && is_marked && make_room(&state, &memory)?;
    if waits {
        memory.file.sync_all()?;
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
    synced.and(state.sync_folder())
}

/// Whether a state can wait beside its place. One that waits there for the memory of before gets its place first, and a file
/// of somebody else is left alone.
fn make_room(state: &NewFile, memory: &NewFile) -> io::Result<bool> {
    let path = next(&state.path)?;
    let waiting = match open_regular(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        // A name that is too long, say.
        Err(_) => return Ok(false),
    };
    let Some(known) = saved::mark_of_memory(&waiting) else {
        log::warn!(
            "{}: it is no saved machine, and left alone: who is killed now may leave new memory with the old state",
            path.display()
        );
        return Ok(false);
    };
    if memory
        .before
        .as_ref()
        .and_then(saved::mark)
        .is_some_and(|mark| mark == known)
    {
        rename(&path, &state.path)?;
        state.sync_folder()?;
    }
    Ok(true)
}

/// The state at a path, or the next one if that belongs to the memory.
pub(super) fn state(path: &Path, memory: Option<&File>) -> io::Result<(File, bool)> {
    let pending = resolved(path).and_then(|path| open_regular(&next(&path)?, false));
    if let (Ok(pending), Some(memory)) = (pending, memory)
        && let Some(mark) = saved::mark(memory)
        && saved::mark_of_memory(&pending).is_some_and(|known| known == mark)
    {
        return Ok((pending, true));
    }
    open_regular(path, false).map(|file| (file, false))
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
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn pair(folder: &Path, name: &str) -> [NewFile; 2] {
        [name, "memory"].map(|name| {
            let new = NewFile::open(&folder.join(name)).unwrap();
            new.file.write_all_at(b"new", 0).unwrap();
            new
        })
    }

    fn names(folder: &Path) -> Vec<String> {
        let names = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn new_files_take_their_places_or_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join("state"), "old").unwrap();
        drop(pair(folder, "state"));
        assert_eq!(fs::read(folder.join("state")).unwrap(), b"old");
        assert_eq!(names(folder), ["state"]);
        // The longest name that there may be, too.
        let long = "x".repeat(255);
        for name in ["state", &long] {
            let [state, memory] = pair(folder, name);
            publish(state, memory, "mark", Content::Full).unwrap();
            assert_eq!(fs::read(folder.join(name)).unwrap(), b"new");
        }
        assert_eq!(names(folder), ["memory", "state", &long]);
    }

    #[test]
    fn r46_a_state_whose_memory_has_taken_its_place_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let [state, memory] = pair(folder, "state");
        let marks = saved::set_mark(&memory.file, "mark", Content::Full);
        // Something that no file can take the place of.
        fs::create_dir_all(folder.join("state/full")).unwrap();
        assert!(publish(state, memory, "mark", Content::Full).is_err());
        let expected: &[&str] = match marks {
            true => &[".state.next", "memory", "state"],
            false => &["memory", "state"],
        };
        assert_eq!(names(folder), expected);
    }

    #[test]
    fn nothing_of_anybody_else_is_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs::write(folder.join(".state.next"), "mine").unwrap();
        let [state, memory] = pair(folder, "state");
        publish(state, memory, "mark", Content::Full).unwrap();
        assert_eq!(fs::read(folder.join(".state.next")).unwrap(), b"mine");
        assert_eq!(names(folder), [".state.next", "memory", "state"]);
        let [state, memory] =
            ["state", ".state.next"].map(|name| NewFile::open(&folder.join(name)));
        assert!(state.unwrap().is_same(&memory.unwrap()));
        // A link to what is still to be made stays one.
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("memory");
        std::os::unix::fs::symlink(&target, folder.join("link")).unwrap();
        let [state, memory] = [folder.join("other"), folder.join("link")].map(|path| {
            let new = NewFile::open(&path).unwrap();
            new.file.write_all_at(b"new", 0).unwrap();
            new
        });
        publish(state, memory, "mark", Content::Full).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert!(folder.join("link").is_symlink());
    }

    #[test]
    fn what_is_merged_is_a_copy_with_the_holes_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory");
        let before = File::create(&path).unwrap();
        before.set_len(64 << 20).unwrap();
        before.write_all_at(b"old", 1 << 20).unwrap();
        let new = NewFile::open(&path).unwrap();
        new.begin_with(64 << 20).unwrap();
        let mut bytes = [0; 3];
        new.file.read_exact_at(&mut bytes, 1 << 20).unwrap();
        assert_eq!(&bytes, b"old");
        let found = new.file.metadata().unwrap();
        assert_eq!(found.len(), 64 << 20);
        assert!(found.blocks() * 512 < 1 << 20, "{found:?}");
        // Of another machine.
        new.begin_with(32 << 20).unwrap();
        assert_eq!(new.file.metadata().unwrap().len(), 0);
    }
}
