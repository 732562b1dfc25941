//! Files that the command line reads and writes, and standard output: nothing hangs, nothing of the user's is
//! overwritten by mistake, and what cannot be written is an error.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use vmm_reference::{Error, VmConfig, refused_output};

/// No text that is read is longer, in bytes.
const MAX_TEXT: u64 = 1 << 20;

/// An option's file that will be written: opened, checked, and not yet emptied.
#[derive(Debug)]
pub(super) struct OutputFile {
    what: &'static str,
    path: String,
    file: File,
}

impl OutputFile {
    /// Creates the file if there is none. `field` is the option's name.
    pub(super) fn open(field: &'static str, path: &Path, config: &VmConfig) -> Result<Self, Error> {
        // Opening a FIFO without a reader fails instead of waiting for one.
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| refused_output(field, path, error))?;
        config.check_output(field, path, &file)?;
        Ok(Self {
            what: field,
            path: path.display().to_string(),
            file,
        })
    }

    /// Replaces the file's content.
    pub(super) fn write(mut self, bytes: &[u8]) -> Result<(), Error> {
        let is_file = self.file.metadata().is_ok_and(|found| found.is_file());
        let emptied = if is_file {
            self.file.set_len(0)
        } else {
            Ok(())
        };
        emptied
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|source| Error::Host {
                what: format!("cannot write --{} to {}", self.what, self.path),
                source,
            })
    }
}

/// Reads a short text from a regular file.
pub(super) fn read_text(field: &'static str, path: &Path) -> Result<String, Error> {
    let refuse = |cause: String, cure: &str| Error::Config {
        field: field.into(),
        value: path.display().to_string(),
        cause,
        cure: cure.to_owned(),
    };
    let cannot = |error: io::Error| refuse(error.to_string(), "check the path and its permissions");
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.is_file() {
        return Err(refuse(
            "it is no regular file".to_owned(),
            "name a regular file",
        ));
    }
    let mut text = String::new();
    file.take(MAX_TEXT + 1)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    if text.len() as u64 > MAX_TEXT {
        return Err(refuse(
            format!("it has more than {} MiB", MAX_TEXT >> 20),
            "name the file that was meant",
        ));
    }
    Ok(text)
}

/// Prints a text and a line's end. A reader that has seen enough (`| head`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Error> {
    printed(writeln!(io::stdout(), "{}", text.trim_end()))
}

/// What came of writing to standard output, which may keep what it was given until it is flushed.
pub(super) fn printed(written: io::Result<()>) -> Result<(), Error> {
    match written.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Host {
            what: "cannot write to standard output".to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}
