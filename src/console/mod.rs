//! The host's side of the guest's consoles.
//!
//! Any kind of descriptor may be given: terminals, pipes, sockets, and the regular files and
//! /dev/null that epoll refuses.

mod escape;
pub(crate) mod line;
mod parameter;

use std::collections::VecDeque;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use devices::OutputRing;
use devices::descriptor;
use devices::sealed::is_sealed;
use rustix::termios::tcgetpgrp;
use vmm_sys_util::eventfd::EventFd;

pub use self::parameter::MainConsole;

use crate::process_ids::own_group;

/// Whether the keys after Ctrl-a are commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EscapeKeys {
    /// `Ctrl-a x` ends the VM, `Ctrl-a h` shows help, `Ctrl-a Ctrl-a` sends Ctrl-a.
    On,
    /// Every byte goes to the guest.
    Off,
}

/// Where a console's input comes from and its output goes.
#[derive(Debug)]
pub struct Console {
    input: Option<File>,
    output: Option<File>,
    escape: EscapeKeys,
    /// The output is this file, to be emptied when the VM starts.
    file: Option<PathBuf>,
    /// Readable when the terminal has another size.
    resized: Option<File>,
    /// Input that was read and that no device has taken yet.
    pending: VecDeque<u8>,
    /// There was an output that takes no more: what it would have got is counted.
    closed: bool,
}

/// Where the consoles of a VM go. One [`Console`] stands for the serial console alone.
#[derive(Debug)]
#[non_exhaustive]
pub struct Consoles {
    /// The serial console.
    pub serial: Console,
    /// The virtio console, in a VM that has one.
    pub virtio: Console,
}

impl Consoles {
    /// Both, by the names of their options.
    pub(crate) fn each(&self) -> [(&'static str, &Console); 2] {
        [("serial", &self.serial), ("console", &self.virtio)]
    }

    /// The devices and inodes of the regular files that they write to, with their names.
    #[cfg(feature = "snapshot")]
    pub(crate) fn files(&self) -> Vec<(&'static str, (u64, u64))> {
        let file = |console: &Console| {
            let found = console.output.as_ref()?.metadata().ok()?;
            found.is_file().then(|| (found.dev(), found.ino()))
        };
        let all = self.each().into_iter();
        all.filter_map(|(name, console)| Some((name, file(console)?)))
            .collect()
    }
}

/// Neither goes anywhere.
impl Default for Consoles {
    fn default() -> Self {
        Console::null().into()
    }
}

impl From<Console> for Consoles {
    fn from(serial: Console) -> Self {
        Self {
            serial,
            virtio: Console::null(),
        }
    }
}

impl Console {
    /// No input; output is dropped.
    #[must_use]
    pub fn null() -> Self {
        Self {
            input: None,
            output: None,
            escape: EscapeKeys::Off,
            file: None,
            resized: None,
            pending: VecDeque::new(),
            closed: false,
        }
    }

    /// stdin and stdout of this process, which stay open and keep their flags. Escape keys are on
    /// when stdin is a terminal; putting it in raw mode is the caller's business.
    ///
    /// # Errors
    /// When a descriptor cannot be duplicated.
    pub fn stdio() -> io::Result<Self> {
        let stdin = io::stdin();
        let escape = if stdin.is_terminal() {
            EscapeKeys::On
        } else {
            EscapeKeys::Off
        };
        // A closed stdin or stdout is as good as none. So is a terminal that belongs to another
        // job: reading it would stop this process.
        let input = if in_background(&stdin) {
            None
        } else {
            stdin.as_fd().try_clone_to_owned().ok()
        };
        let output = io::stdout().as_fd().try_clone_to_owned().ok();
        Ok(Self::from_fds(input, output, escape))
    }

    /// Output to a file that is created now, and emptied when the VM runs. A VM refuses a file that it reads,
    /// or that another one writes.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn file(path: &Path) -> io::Result<Self> {
        // O_NONBLOCK: opening a FIFO without a reader fails instead of waiting for one.
        let mut options = OpenOptions::new();
        options
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        let output = descriptor::open(path, &options)?;
        Ok(Self {
            input: None,
            output: Some(output),
            escape: EscapeKeys::Off,
            file: Some(path.to_owned()),
            resized: None,
            pending: VecDeque::new(),
            closed: false,
        })
    }

    /// Any pair of descriptors.
    #[must_use]
    pub fn from_fds(input: Option<OwnedFd>, output: Option<OwnedFd>, escape: EscapeKeys) -> Self {
        Self {
            input: input.map(|fd| nonblocking(fd, OpenOptions::new().read(true))),
            output: output.map(|fd| nonblocking(fd, OpenOptions::new().write(true))),
            escape,
            file: None,
            resized: None,
            pending: VecDeque::new(),
            closed: false,
        }
    }

    /// Looks at the terminal's size again whenever `fd` has bytes to read, for devices that tell the
    /// guest. They are read; one end of a socket pair that a handler of SIGWINCH writes to is fine.
    #[must_use]
    pub fn resized_by(mut self, fd: OwnedFd) -> Self {
        self.resized = Some(File::from(fd));
        self
    }

    /// The file of [`Self::file`] and its name.
    pub(crate) fn output_file(&self) -> Option<(&Path, &File)> {
        self.file.as_deref().zip(self.output.as_ref())
    }

    /// Empties the file of [`Self::file`]: the VM starts.
    fn start(&self) -> io::Result<()> {
        match &self.output {
            Some(file) if self.file.is_some() && file.metadata()?.is_file() => file.set_len(0),
            _ => Ok(()),
        }
    }
}

/// Whether a descriptor is a terminal whose foreground belongs to another process group.
pub fn in_background(terminal: impl AsFd) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group.as_raw_nonzero().get() != own_group())
}

/// A descriptor for the same file that does not block. O_NONBLOCK belongs to the open file
/// description, which we may share with other processes, so it is opened anew. What cannot be
/// opened anew keeps blocking and is used only when it polls ready: a socket, a terminal of another
/// user, the master of a pseudo-terminal, which would become the master of another one, and whatever
/// a fork inside a sandbox was given: nothing can be opened there.
fn nonblocking(fd: OwnedFd, options: &mut OpenOptions) -> File {
    /// Major and minor number of /dev/ptmx (Linux Documentation/admin-guide/devices.txt).
    const PTMX: u64 = libc::makedev(5, 2);
    let file = File::from(fd);
    let keep = file.metadata().is_ok_and(|metadata| {
        let kind = metadata.file_type();
        // A regular file never blocks, and its offset is shared.
        metadata.is_file() || kind.is_socket() || (kind.is_char_device() && metadata.rdev() == PTMX)
    });
    if keep || is_sealed() {
        return file;
    }
    options
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .unwrap_or(file)
}

/// Takes as many bytes as fit and says how many.
type Receive = Box<dyn Fn(&[u8]) -> usize + Send>;
/// Tells a device its terminal's columns and rows.
type Resize = Box<dyn Fn(u16, u16) + Send>;

/// The main loop's view of a console device.
pub(crate) struct Port {
    /// Offers bytes to the device and says how many it took.
    pub(crate) receive: Receive,
    /// Written when the device has room again.
    pub(crate) room: EventFd,
    /// For a device that wants to know.
    pub(crate) resize: Option<Resize>,
    /// What the guest prints.
    pub(crate) output: Output,
}

/// What a guest prints, and the event for when there is some.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) ring: OutputRing,
    wake: EventFd,
}

/// Output kept for a slow reader, in bytes.
#[cfg(any(feature = "serial", feature = "virtio-console"))]
const OUTPUT_RING: usize = 64 << 10;

#[cfg(any(feature = "serial", feature = "virtio-console"))]
impl Output {
    pub(crate) fn new() -> Result<Self, crate::Error> {
        let wake = crate::wake::eventfd()?;
        let for_ring = wake
            .try_clone()
            .map_err(crate::Error::host("cannot clone an eventfd"))?;
        Ok(Self {
            ring: OutputRing::new(OUTPUT_RING, for_ring),
            wake,
        })
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").finish_non_exhaustive()
    }
}
