//! States of saved machines, and what binds them to their memory.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_reference::Snapshot;

use crate::files::open_regular;
use crate::note::Note;
use crate::texts::StateFault;

/// What no state is shorter than, in bytes.
const SHORTEST: u64 = 8;
/// The extended attribute of a file of memory by which its state knows it.
const MARK: &str = "user.vmm-reference.memory";
/// The longest mark that is read, in bytes.
const LONGEST_MARK: usize = 64;

/// The version of states, in the form that clients read.
pub(crate) fn version() -> String {
    format!("v{}.0.0", Snapshot::FORMAT_VERSION)
}

/// Reads a state.
pub(crate) fn read(path: &Path) -> Result<Snapshot, StateFault> {
    let file = open_regular(path, false).map_err(StateFault::Open)?;
    read_open(path, file)
}

/// Reads a state that is open.
pub(crate) fn read_open(path: &Path, file: File) -> Result<Snapshot, StateFault> {
    let len = file.metadata().map_err(StateFault::Open)?.len();
    if len < SHORTEST {
        return Err(StateFault::Short);
    }
    let name = path.display().to_string();
    Snapshot::read(name, file).map_err(|error| StateFault::Wrong(error.chain()))
}

/// A name that nothing else has.
pub(crate) fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty())?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Marks a file of memory; whether its file system can do that.
pub(crate) fn set_mark(memory: &File, mark: &str) -> bool {
    fsetxattr(memory, MARK, mark.as_bytes(), XattrFlags::empty()).is_ok()
}

/// The mark of a file of memory.
pub(crate) fn mark(memory: &File) -> Option<String> {
    let mut mark = vec![0; LONGEST_MARK];
    let len = fgetxattr(memory, MARK, &mut mark[..]).ok()?;
    mark.truncate(len);
    String::from_utf8(mark).ok()
}

/// A file of memory has the content of another one by now.
pub(crate) fn take_mark(memory: &File, from: &File) {
    let taken = mark(from).is_some_and(|mark| set_mark(memory, &mark));
    if !taken {
        // It may have none.
        let _ = fremovexattr(memory, MARK);
    }
}

/// The mark of the memory that belongs to a state, which can be read from its beginning afterwards.
pub(crate) fn mark_of_memory(mut state: &File) -> Option<String> {
    let snapshot = Snapshot::read("state", state.try_clone().ok()?).ok()?;
    // The place in an open file is that of its copies, too.
    state.rewind().ok()?;
    let note = Note::read(snapshot.note()?)?;
    Some(note.memory).filter(|mark| !mark.is_empty())
}
