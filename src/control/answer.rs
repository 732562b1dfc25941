//! Commands on their way, and their answers, which may take their time.

use std::os::fd::OwnedFd;
#[cfg(feature = "control")]
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
#[cfg(feature = "control")]
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::command::{Command, CommandError, Reply};
use crate::wake::Wake;

/// A command that waits for the machine's thread, and whoever waits for the answer.
pub(crate) struct Request {
    pub(crate) command: Command,
    /// As many as the command takes.
    pub(crate) files: Vec<OwnedFd>,
    pub(crate) answer: Answer,
}

/// Where an answer goes. Whoever waits for it is woken, also when there is none any more.
#[derive(Debug)]
pub(crate) struct Answer {
    sender: Option<mpsc::Sender<Result<Reply, CommandError>>>,
    wake: Option<Arc<Wake>>,
}

impl Answer {
    /// One to a command of this name, and where it arrives.
    pub(super) fn new(name: &'static str, wake: Option<Arc<Wake>>) -> (Self, Answered) {
        let (sender, receiver) = mpsc::channel();
        let answer = Self {
            sender: Some(sender),
            wake,
        };
        (answer, Answered { name, receiver })
    }

    pub(crate) fn send(mut self, answer: Result<Reply, CommandError>) {
        if let Some(sender) = self.sender.take() {
            // Whoever asked may be gone.
            let _ = sender.send(answer);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // First, so that it is seen.
        self.sender = None;
        if let Some(wake) = &self.wake {
            wake.set();
        }
    }
}

/// An answer that comes.
#[derive(Debug)]
pub(crate) struct Answered {
    name: &'static str,
    receiver: mpsc::Receiver<Result<Reply, CommandError>>,
}

#[cfg(feature = "control")]
impl Answered {
    /// The answer, if it has come.
    pub(crate) fn take(&self) -> Option<Result<Reply, CommandError>> {
        match self.receiver.try_recv() {
            Ok(answer) => Some(answer),
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => Some(Err(CommandError::Ended(self.name))),
        }
    }
}

/// The answer to a command, which may still have to come.
#[derive(Debug)]
pub struct Pending(pub(super) Asked);

impl Pending {
    /// Waits for it.
    ///
    /// # Errors
    /// As [`VmHandle::command`](crate::VmHandle::command).
    pub fn wait(self) -> Result<Reply, CommandError> {
        self.0.wait()
    }

    /// Waits for it, but no longer than this. It comes once.
    pub fn wait_for(&self, patience: Duration) -> Option<Result<Reply, CommandError>> {
        match &self.0 {
            Asked::Now(reply) => Some(Ok(reply.clone())),
            Asked::Later(Answered { name, receiver }) => match receiver.recv_timeout(patience) {
                Ok(answer) => Some(answer),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => Some(Err(CommandError::Ended(name))),
            },
        }
    }
}

/// The answer to a command, for a program that polls: its descriptor is readable once the answer can be taken.
#[cfg(feature = "control")]
#[derive(Debug)]
pub struct Watched {
    pub(super) asked: Mutex<Asked>,
    pub(super) wake: Arc<Wake>,
}

#[cfg(feature = "control")]
impl Watched {
    /// The answer, if it has come. It comes once.
    #[must_use]
    pub fn take(&self) -> Option<Result<Reply, CommandError>> {
        match &*self.asked.lock().unwrap_or_else(PoisonError::into_inner) {
            Asked::Now(reply) => Some(Ok(reply.clone())),
            Asked::Later(answered) => answered.take(),
        }
    }
}

#[cfg(feature = "control")]
impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// What comes of a command.
#[derive(Debug)]
pub(crate) enum Asked {
    Now(Reply),
    Later(Answered),
}

impl Asked {
    pub(super) fn wait(self) -> Result<Reply, CommandError> {
        match self {
            Self::Now(reply) => Ok(reply),
            Self::Later(Answered { name, receiver }) => {
                let ended = |_| Err(CommandError::Ended(name));
                receiver.recv().unwrap_or_else(ended)
            }
        }
    }
}

#[cfg(all(test, feature = "control"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::control::command::State;

    fn is_readable(watched: &Watched) -> bool {
        let mut fds = [PollFd::new(watched, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    fn watched() -> (Answer, Watched) {
        let wake = Arc::new(Wake::new().unwrap());
        let (answer, answered) = Answer::new("pause", Some(Arc::clone(&wake)));
        let asked = Mutex::new(Asked::Later(answered));
        (answer, Watched { asked, wake })
    }

    #[test]
    fn an_answer_that_is_watched_is_readable_when_it_has_come_or_will_not_come() {
        let (answer, watching) = watched();
        assert!(!is_readable(&watching) && watching.take().is_none());
        let state = State::Paused;
        answer.send(Ok(Reply::Done { state }));
        assert!(is_readable(&watching));
        assert!(matches!(watching.take(), Some(Ok(Reply::Done { .. }))));
        let (answer, watching) = watched();
        drop(answer);
        assert!(is_readable(&watching));
        let lost = watching.take();
        assert!(matches!(lost, Some(Err(CommandError::Ended("pause")))));
    }
}
