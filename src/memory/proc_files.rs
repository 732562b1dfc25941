//! What the kernel tells of this process, from the start on: a process in a jail has no /proc, and another folder. The
//! files are about the memory of the process that opened them; one that was forked from it has others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The files, as far as there are any.
#[derive(Debug)]
pub(crate) struct ProcFiles {
    pagemap: io::Result<File>,
    maps: io::Result<File>,
    /// Where relative paths begin.
    folder: Option<PathBuf>,
}

/// Why a fork inside a sandbox has none: what its parent has open is about its parent, and nothing can be opened there.
#[cfg(feature = "snapshot")]
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error(
    "a fork inside a sandbox cannot ask which of its pages were written (once saved and restored it can, as any VM)"
)]
pub(crate) struct NoneInFork;

#[cfg(feature = "snapshot")]
impl NoneInFork {
    /// Whether an error is this one.
    pub(crate) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|cause| cause.is::<Self>())
    }
}

impl ProcFiles {
    pub(crate) fn open() -> Self {
        Self {
            pagemap: File::open("/proc/self/pagemap"),
            maps: File::open("/proc/self/maps"),
            folder: std::env::current_dir().ok(),
        }
    }

    /// Those of a fork inside a sandbox.
    #[cfg(feature = "snapshot")]
    pub(crate) fn none() -> Self {
        let none = || Err(io::Error::other(NoneInFork));
        Self {
            pagemap: none(),
            maps: none(),
            folder: None,
        }
    }

    /// A path that means the same wherever the machine goes on.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        let from = self.folder.as_deref().unwrap_or(Path::new(""));
        // Without what leads nowhere, as `.`.
        from.join(path).components().collect()
    }

    /// The pages of each mapping (Documentation/admin-guide/mm/pagemap.rst of Linux).
    ///
    /// # Errors
    /// When /proc does not tell.
    pub(crate) fn pagemap(&self) -> io::Result<File> {
        opened(&self.pagemap)?.try_clone()
    }

    /// The mappings, a line each (proc_pid_maps(5)). A path in it may be any bytes.
    ///
    /// # Errors
    /// When /proc does not tell.
    pub(crate) fn maps(&self) -> io::Result<Vec<u8>> {
        let file = opened(&self.maps)?;
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match file.read_at(&mut buffer, text.len() as u64)? {
                0 => return Ok(text),
                len => text.extend_from_slice(buffer.get(..len).unwrap_or_default()),
            }
        }
    }
}

fn opened(file: &io::Result<File>) -> io::Result<&File> {
    // An error cannot be had twice.
    file.as_ref().map_err(|error| match error.raw_os_error() {
        Some(errno) => io::Error::from_raw_os_error(errno),
        #[cfg(feature = "snapshot")]
        None if NoneInFork::is(error) => io::Error::other(NoneInFork),
        None => error.kind().into(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_anew_each_time_and_as_a_whole() {
        let files = ProcFiles::open();
        let before = files.maps().unwrap();
        // More than one read gives.
        let page = rustix::param::page_size();
        let pages: Vec<_> = (0..256).map(|_| mapped(page)).collect();
        let after = String::from_utf8(files.maps().unwrap()).unwrap();
        assert!(after.len() > before.len() && after.len() > 8192, "{after}");
        for page in &pages {
            let place = page.as_ptr().addr();
            let inside = |line: &str| {
                let range = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let [start, end] =
                    [range.0, range.1].map(|at| usize::from_str_radix(at, 16).unwrap());
                (start..end).contains(&place)
            };
            assert!(after.lines().any(inside), "{place:#x}");
        }
        files.pagemap().unwrap();
    }

    /// A mapping of its own file, so that the kernel joins none of them.
    fn mapped(len: usize) -> vm_memory::MmapRegion {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        vm_memory::MmapRegion::from_file(vm_memory::FileOffset::new(file, 0), len).unwrap()
    }
}
