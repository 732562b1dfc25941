//! Files that are named: those that lines are written to, logs and metrics, and those that are read or copied.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, OFlags, RenameFlags, SeekFrom, renameat_with, seek};
use rustix::io::Errno;
use signal_hook::consts::SIGXFSZ;
use signal_hook::flag;

/// What is copied at once, in bytes.
const CHUNK: usize = 1 << 20;

/// A file that becomes larger than the process may make one (RLIMIT_FSIZE) is an error of that write, and not the end of
/// a program of one thread.
pub(crate) fn too_large_is_an_error() {
    // The signal's number is no forbidden one, which is all that is refused.
    let _ = flag::register(SIGXFSZ, Arc::default());
}

/// Opens a file or a FIFO for lines. A FIFO needs no reader yet, and no reader is waited for: what it does not take is
/// lost, and counted. A file that is there is written from its beginning.
pub(crate) fn open_for_lines(path: &Path) -> io::Result<File> {
    for_lines().create(true).truncate(false).open(path)
}

/// The same of a file that was not there, which is an error (`AlreadyExists`) otherwise.
pub(crate) fn new_for_lines(path: &Path) -> io::Result<File> {
    for_lines().create_new(true).open(path)
}

fn for_lines() -> OpenOptions {
    // The bits of O_NONBLOCK and O_NOCTTY fit on every architecture.
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options
}

/// Opens a regular file that is there; nothing hangs.
pub(crate) fn open_regular(path: &Path, write: bool) -> io::Result<File> {
    open_with(path, write, OFlags::empty())
}

/// Opens one to read it that is there itself, and not by a link.
pub(crate) fn open_no_link(path: &Path) -> io::Result<File> {
    open_with(path, false, OFlags::NOFOLLOW)
}

fn open_with(path: &Path, write: bool, flags: OFlags) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | flags).bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(write)
        .custom_flags(flags)
        .open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Whether something of a file is a hole.
pub(crate) fn has_holes(file: &File) -> io::Result<bool> {
    let len = file.metadata()?.len();
    match seek(file, SeekFrom::Hole(0)) {
        Ok(hole) => Ok(hole < len),
        // It is empty, or the file system knows of no holes.
        Err(Errno::NXIO | Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Gives a file another name, and that of one that is there, by the call that every architecture has.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::empty())?)
}

/// Puts a file with these bytes in the place of `before`, whole or not at all. It gets that one's owner and mode, as far as
/// this process may give them.
pub(crate) fn replace(path: &Path, bytes: &[u8], before: &File) -> io::Result<()> {
    put(path, bytes, |name, file| {
        take_owner_and_mode(file, before)?;
        rename(name, path)
    })
}

/// Puts a file with these bytes where nothing is, whole or not at all.
///
/// # Errors
/// `AlreadyExists` when something is there, which stays.
pub(crate) fn put_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, |name, _| {
        match renameat_with(CWD, name, CWD, path, RenameFlags::NOREPLACE) {
            // The file system cannot do that.
            Err(Errno::INVAL) => {
                fs::hard_link(name, path)?;
                fs::remove_file(name)
            }
            done => Ok(done?),
        }
    })
}

/// Writes a file beside a path, and has it put there.
fn put(
    path: &Path,
    bytes: &[u8],
    place: impl FnOnce(&Path, &File) -> io::Result<()>,
) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let name = Path::new(&name);
    let mut file = OpenOptions::new().write(true).create_new(true).open(name)?;
    let put = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| place(name, &file));
    if put.is_err() {
        let _ = fs::remove_file(name);
    }
    put
}

/// A file gets the owner and the mode of another one. It is as good as it can be: not everybody may give files away.
pub(crate) fn take_owner_and_mode(file: &File, from: &File) -> io::Result<()> {
    let found = from.metadata()?;
    let _ = fchown(file, Some(found.uid()), Some(found.gid()));
    let _ = file.set_permissions(Permissions::from_mode(found.mode()));
    Ok(())
}

/// The folder of a file.
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The path without links, whether or not there is a file.
pub(crate) fn resolved(path: &Path) -> io::Result<PathBuf> {
    // As many as the kernel follows (path_resolution(7)).
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        match fs::read_link(&path) {
            // It leads to a file that is still to be made.
            Ok(to) => path = folder(&path).join(to),
            Err(_) => {
                let name = path.file_name().ok_or(io::ErrorKind::IsADirectory)?;
                return Ok(fs::canonicalize(folder(&path))?.join(name));
            }
        }
    }
    Err(Errno::LOOP.into())
}

/// The next range at or behind a place, and before `len`, that is data and no hole.
fn next_data(file: &File, at: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start.min(len),
        // Nothing but a hole is left.
        Err(Errno::NXIO) => return Ok(None),
        // The file system knows of no holes.
        Err(Errno::INVAL) => at,
        Err(error) => return Err(error.into()),
    };
    let end = match seek(file, SeekFrom::Hole(start)) {
        Ok(end) => end.min(len),
        Err(Errno::INVAL | Errno::NXIO) => len,
        Err(error) => return Err(error.into()),
    };
    Ok((start < end).then_some(start..end))
}

/// The bytes of a file that are data, and no holes.
pub(crate) fn data_bytes(file: &File) -> io::Result<u64> {
    let len = file.metadata()?.len();
    let (mut at, mut bytes) = (0, 0);
    while let Some(data) = next_data(file, at, len)? {
        bytes += data.end - data.start;
        at = data.end;
    }
    Ok(bytes)
}

/// Copies what of the beginning of a file is data, and no hole, to the same places of another one. Gives the bytes.
pub(crate) fn copy_data(from: &File, to: &File, len: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut copied) = (0, 0);
    while let Some(Range { start, end }) = next_data(from, at, len)? {
        for place in (start..end).step_by(CHUNK) {
            let count = usize::try_from(end - place).unwrap_or(CHUNK).min(CHUNK);
            let part = buffer.get_mut(..count).unwrap_or_default();
            from.read_exact_at(part, place)?;
            to.write_all_at(part, place)?;
        }
        copied += end - start;
        at = end;
    }
    Ok(copied)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_takes_the_place_of_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        put_new(&path, b"first").unwrap();
        let error = put_new(&path, b"second").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn holes_of_a_file_change_nothing_and_zeros_do() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let len = 8 << 20;
        from.set_len(len).unwrap();
        from.write_all_at(&[0; 4096], 1 << 20).unwrap();
        from.write_all_at(&[7; 3 << 20], 4 << 20).unwrap();
        to.write_all_at(&[1; 8 << 20], 0).unwrap();
        let copied = copy_data(&from, &to, len).unwrap();
        assert!((3 << 20) + 4096 <= copied && copied < len, "{copied}");
        assert_eq!(data_bytes(&from).unwrap(), copied);
        assert_eq!(data_bytes(&to).unwrap(), len);
        let read = |at| {
            let mut byte = [0];
            to.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        let expected = [0, 0, 7, 7, 1, 1];
        let places = [
            1 << 20,
            (1 << 20) + 4095,
            4 << 20,
            (7 << 20) - 1,
            8 << 19,
            len - 1,
        ];
        let found = places.map(read);
        assert_eq!(found[..4], expected[..4]);
        assert_eq!((read(0), read(len - 1)), (1, 1));
    }
}
