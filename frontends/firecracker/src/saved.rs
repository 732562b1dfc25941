//! States of saved machines, and what binds them to their memory.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::rand::{GetRandomFlags, getrandom};
use vmm_reference::Snapshot;

use crate::files::{data_bytes, open_regular};
use crate::note::Note;
use crate::texts::StateFault;

/// What no state is shorter than, in bytes.
const SHORTEST: u64 = 8;
/// The extended attribute of a file of memory by which its state knows it.
const MARK: &str = "user.vmm-reference.memory";
/// Another one, which says what was written to it with this mark, when it was written to last, and how many bytes of data it
/// had then. Whoever writes something else to the file leaves the attribute behind, and does not have its time. Who makes a
/// copy may take both along, and zeros of holes: then it has more data.
const WRITTEN: &str = "user.vmm-reference.written";
/// The longest attribute that is read, in bytes.
const LONGEST: usize = 96;

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

/// What the file of a snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// All of memory: a hole is zeros.
    Full,
    /// What changed: a hole is what did not change.
    Diff,
}

impl Content {
    fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Diff => "diff",
        }
    }
}

/// What a file was known by when this program looked at it: device, inode, length, and the time of the last write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    file: (u64, u64),
    len: u64,
    written: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self {
            file: (found.dev(), found.ino()),
            len: found.len(),
            written: (found.mtime(), found.mtime_nsec()),
        })
    }
}

/// The memory that a machine was saved to last, or that it was loaded from.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastMemory {
    mark: String,
    /// None where another process has brought it. A file system may have no attributes for a mark.
    identity: Option<Identity>,
    content: Option<Content>,
}

impl LastMemory {
    /// `mark` is the one that its state knows, if there is one.
    pub(crate) fn new(mark: String, file: Option<&File>, content: Option<Content>) -> Self {
        let content = content.or_else(|| file.and_then(label).map(|(_, content)| content));
        Self {
            mark,
            identity: file.and_then(|file| Identity::of(file).ok()),
            content,
        }
    }

    /// What a file has, if it has that memory, and nobody has written to it since.
    pub(crate) fn is_in(&self, file: &File) -> Option<Content> {
        let identity = Identity::of(file).ok();
        let label = label(file).filter(|(mark, _)| !mark.is_empty() && *mark == self.mark);
        match label {
            Some((_, content)) => Some(content),
            None if identity.is_some() && identity == self.identity => {
                Some(self.content.unwrap_or(Content::Full))
            }
            None => None,
        }
    }
}

/// What a file of memory is marked with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark<'a> {
    pub(crate) text: &'a str,
    pub(crate) content: Content,
    /// The most bytes of data that a Diff has with all that was written to it. A file system whose holes are larger than a
    /// page makes more of them, of which nobody knows what they are.
    pub(crate) most: u64,
}

/// Marks a file of memory, which nobody writes to any more; whether its file system can do that.
pub(crate) fn set_mark(memory: &File, mark: &Mark<'_>) -> bool {
    let set = |name, text: &str| fsetxattr(memory, name, text.as_bytes(), XattrFlags::empty());
    let is_marked = set(MARK, mark.text).is_ok();
    let labelled = || -> io::Result<bool> {
        let (word, data) = (mark.content.word(), data_bytes(memory)?);
        if mark.content == Content::Diff && data > mark.most {
            return Ok(false);
        }
        let (seconds, nanos) = Identity::of(memory)?.written;
        let text = format!("{word} {seconds}.{nanos} {data} {}", mark.text);
        Ok(set(WRITTEN, &text).map(|()| true)?)
    };
    if !matches!(labelled(), Ok(true)) {
        // It may have none.
        let _ = fremovexattr(memory, WRITTEN);
    }
    is_marked
}

fn attribute(memory: &File, name: &str) -> Option<String> {
    let mut text = vec![0; LONGEST];
    let len = fgetxattr(memory, name, &mut text[..]).ok()?;
    text.truncate(len);
    String::from_utf8(text).ok()
}

/// The mark of a file of memory.
pub(crate) fn mark(memory: &File) -> Option<String> {
    attribute(memory, MARK)
}

/// The mark that a file of memory was written with, and what it has, if it is as it was written.
pub(crate) fn label(memory: &File) -> Option<(String, Content)> {
    let found = label_of(memory)?;
    let is_whole = found.content == Content::Full || data_bytes(memory).ok()? == found.data;
    let is_as_written = is_whole && found.time == Identity::of(memory).ok()?.written;
    is_as_written.then_some((found.mark, found.content))
}

/// The bytes of data that the file of a Diff had as it was written, and those that it has, where they are different.
pub(crate) fn other_data(memory: &File) -> Option<(u64, u64)> {
    let found = label_of(memory).filter(|found| found.content == Content::Diff)?;
    let data = data_bytes(memory).ok()?;
    (data != found.data).then_some((found.data, data))
}

/// What a file of memory had as it was written, and how many bytes of data, whatever was written to it since.
pub(crate) fn content(memory: &File) -> Option<(Content, u64)> {
    label_of(memory).map(|found| (found.content, found.data))
}

/// What the attribute says.
#[derive(Debug)]
struct Label {
    content: Content,
    time: (i64, i64),
    data: u64,
    mark: String,
}

fn label_of(memory: &File) -> Option<Label> {
    let text = attribute(memory, WRITTEN)?;
    let mut words = text.splitn(4, ' ');
    let word = words.next()?;
    let mut contents = [Content::Full, Content::Diff].into_iter();
    let content = contents.find(|content| content.word() == word)?;
    let (seconds, nanos) = words.next()?.split_once('.')?;
    Some(Label {
        content,
        time: (seconds.parse().ok()?, nanos.parse().ok()?),
        data: words.next()?.parse().ok()?,
        mark: words.next()?.to_owned(),
    })
}

/// A file of memory has the content of another one over it by now. `before` is what it had, if that is known, and the most
/// bytes of data that it has since.
pub(crate) fn take_mark(memory: &File, from: &File, before: Option<(Content, u64)>) {
    match (mark(from), before) {
        (Some(text), Some((content, most))) => {
            let text = &text;
            set_mark(
                memory,
                &Mark {
                    text,
                    content,
                    most,
                },
            );
        }
        (mark, _) => {
            let set = |mark: String| {
                fsetxattr(memory, MARK, mark.as_bytes(), XattrFlags::empty()).is_ok()
            };
            let _ = fremovexattr(memory, WRITTEN);
            if !mark.is_some_and(set) {
                // It may have none.
                let _ = fremovexattr(memory, MARK);
            }
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn mark(text: &str, content: Content) -> Mark<'_> {
        let most = u64::MAX;
        Mark {
            text,
            content,
            most,
        }
    }

    #[test]
    fn a_diff_with_other_data_than_it_was_written_with_is_none_any_more() {
        const PAGE: u64 = 4096;
        const BYTES: usize = 4096;
        let folder = tempfile::tempdir().unwrap();
        let create = |name| {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(true);
            let file = options.open(folder.path().join(name)).unwrap();
            file.set_len(64 * PAGE).unwrap();
            file.write_all_at(&[7; 2 * BYTES], 8 * PAGE).unwrap();
            file
        };
        let [diff, full, coarse] = ["diff", "full", "coarse"].map(create);
        if !set_mark(&diff, &mark("a", Content::Diff)) {
            eprintln!("SKIPPED: the file system has no extended attributes");
            return;
        }
        set_mark(&full, &mark("a", Content::Full));
        let most = 2 * PAGE - 1;
        let content = Content::Diff;
        let text = "a";
        // More data than was written: what a hole is cannot be known.
        set_mark(&coarse, &mark("b", Content::Diff));
        set_mark(
            &coarse,
            &Mark {
                text,
                content,
                most,
            },
        );
        assert_eq!((label(&coarse), other_data(&coarse)), (None, None));
        assert_eq!(super::mark(&coarse).as_deref(), Some("a"));
        assert_eq!(label(&diff), Some(("a".to_owned(), Content::Diff)));
        assert_eq!(other_data(&diff), None);
        // A program fills holes, and gives the file the times of before; or makes holes of zeros.
        let times = |file: &File| {
            let found = file.metadata().unwrap();
            std::fs::FileTimes::new().set_modified(found.modified().unwrap())
        };
        for (file, expected) in [
            (&diff, None),
            (&full, Some(("a".to_owned(), Content::Full))),
        ] {
            let before = times(file);
            file.write_all_at(&[0; BYTES], 0).unwrap();
            file.set_times(before).unwrap();
            assert_eq!(label(file), expected);
        }
        assert_eq!(other_data(&diff), Some((2 * PAGE, 3 * PAGE)));
        assert_eq!(other_data(&full), None);
        let before = times(&diff);
        diff.set_len(0).unwrap();
        diff.set_len(64 * PAGE).unwrap();
        diff.set_times(before).unwrap();
        assert_eq!(label(&diff), None);
        assert_eq!(other_data(&diff), Some((2 * PAGE, 0)));
    }

    #[test]
    fn memory_is_known_by_its_mark_or_as_the_file_that_it_was_until_somebody_writes_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let create = |name| {
            let mut options = File::options();
            let options = options.read(true).write(true).create(true).truncate(true);
            let file = options.open(folder.path().join(name)).unwrap();
            file.set_len(4096).unwrap();
            file
        };
        let [memory, other] = ["memory", "other"].map(create);
        let is_marked = set_mark(&memory, &mark("a", Content::Diff));
        let full = Some(Content::Full);
        let last = LastMemory::new("a".to_owned(), Some(&memory), full);
        let by_mark = is_marked.then_some(Content::Diff);
        assert_eq!(last.is_in(&memory), by_mark.or(full));
        assert_eq!(last.is_in(&other), None);
        set_mark(&other, &mark("b", Content::Full));
        assert_eq!(last.is_in(&other), None);
        set_mark(&other, &mark("a", Content::Full));
        assert_eq!(last.is_in(&other).is_some(), is_marked);
        // Without a mark, the file that it was; a machine without a mark is that of no file without one.
        set_mark(&other, &mark("", Content::Full));
        let nameless = LastMemory::new(String::new(), Some(&memory), full);
        assert_eq!(nameless.is_in(&memory), full);
        assert_eq!(nameless.is_in(&other), None);
        assert_eq!(LastMemory::default().is_in(&other), None);
        // Another program writes to it, in a later moment of the file system's clock.
        let before = memory.metadata().unwrap().modified().unwrap();
        while memory.metadata().unwrap().modified().unwrap() == before {
            memory.write_all_at(b"x", 0).unwrap();
        }
        assert_eq!(last.is_in(&memory), None);
        assert_eq!(label(&memory), None);
    }
}
