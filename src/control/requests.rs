//! How a program that has no handle asks: by descriptors.

use std::fs::File;
#[cfg(feature = "snapshot")]
use std::io;
use std::os::fd::OwnedFd;
#[cfg(feature = "snapshot")]
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

#[cfg(feature = "snapshot")]
use rustix::event::{PollFd, PollFlags, Timespec, poll};
#[cfg(feature = "snapshot")]
use rustix::net::{RecvFlags, recv};

/// Descriptors by which somebody outside wants the VM to end.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Readable when it shall end at once.
    pub(crate) end: Option<OwnedFd>,
    /// Readable when the guest shall power off, and how long it may take.
    pub(crate) shutdown: Option<(File, Duration)>,
}

#[cfg(feature = "snapshot")]
impl Requests {
    /// Those of them that become readable when somebody asks once more.
    pub(crate) fn once_more(&self) -> Vec<BorrowedFd<'_>> {
        let end = self.end.iter().map(AsFd::as_fd);
        let shutdown = self.shutdown.iter().map(|(file, _)| file.as_fd());
        let mut all: Vec<_> = end.chain(shutdown).collect();
        all.retain(|fd| {
            // What was asked for is done. Other files than sockets are left as they are: whoever gave them may read them.
            let mut buffer = [0; 64];
            while matches!(recv(fd, &mut buffer, RecvFlags::DONTWAIT), Ok((1.., _))) {}
            Asked::on(fd) == Asked::Nothing
        });
        all
    }

    /// The same ones, for whoever looks at them elsewhere.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let end = self.end.as_ref().map(OwnedFd::try_clone);
        let shutdown = self.shutdown.as_ref();
        let shutdown =
            shutdown.map(|(file, patience)| file.try_clone().map(|file| (file, *patience)));
        Ok(Self {
            end: end.transpose()?,
            shutdown: shutdown.transpose()?,
        })
    }
}

/// What there is to read from a descriptor, without waiting for it.
#[cfg(feature = "snapshot")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Nothing,
    Something,
    /// Nobody writes to it any more.
    Ended,
}

#[cfg(feature = "snapshot")]
impl Asked {
    pub(crate) fn on(fd: &impl AsFd) -> Self {
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        // Interrupted, it is looked at the next time.
        let _ = poll(&mut fds, Some(&Timespec::default()));
        let found = fds.first().map_or(PollFlags::empty(), PollFd::revents);
        if found.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
            Self::Ended
        } else if found.contains(PollFlags::IN) {
            Self::Something
        } else {
            Self::Nothing
        }
    }
}
