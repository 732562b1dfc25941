//! What parent and child of a fork tell each other: the child when its guest is about to run, or why it does not; the parent
//! when it has its threads again. (The child makes none before: where there may be no more of them, the parent comes first.)
//!
//! The child tells it on a socket, not on a pipe: whoever stops listening to a socket still reads what was said before, and
//! what is said afterwards is an error for the other side. So both know in the same way whether there is a fork.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use devices::micros;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::Error;

/// The longest text of a child, in bytes.
const LONGEST: usize = 16 << 10;

/// What a child tells.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum News {
    /// Its guest runs now, so many microseconds after the fork was asked for.
    Ready(u64),
    /// It ends.
    Failed(String),
}

/// The ends of a fork's socket and pipe, but for what the child waits for.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) report: Report,
    pub(crate) heard: Heard,
    pub(crate) go: Go,
    /// Of no use, so that another descriptor can be had in its place.
    pub(crate) reserved: OwnedFd,
}

/// # Errors
/// When the host refuses sockets or pipes.
pub(crate) fn ends(begin: Instant) -> io::Result<(Ends, Wait)> {
    let (heard, report) = UnixStream::pair()?;
    heard.set_nonblocking(true)?;
    let (wait, go) = pipe_with(PipeFlags::CLOEXEC)?;
    let ends = Ends {
        report: Report {
            socket: report,
            begin,
        },
        heard: Heard {
            socket: heard,
            bytes: Vec::new(),
        },
        reserved: go.try_clone()?,
        go: Go(go),
    };
    Ok((ends, Wait(wait)))
}

/// The child's end. Dropped without a word, it says that the child has failed.
#[derive(Debug)]
pub(crate) struct Report {
    socket: UnixStream,
    /// When the fork was asked for.
    begin: Instant,
}

impl Report {
    /// That the guest runs now, or why it does not. Says whether anybody has heard it: if not, there is to be no fork.
    pub(crate) fn tell_of<T>(self, begun: Result<T, &Error>) -> bool {
        let news = match begun {
            Ok(_) => News::Ready(micros(self.begin.elapsed())),
            Err(error) => News::Failed(error.chain()),
        };
        self.tell(&news).is_ok()
    }

    fn tell(&self, news: &News) -> io::Result<()> {
        let news = match news {
            News::Failed(text) if text.len() > LONGEST => {
                let text = text.chars().take(LONGEST / 4).collect();
                serde_json::to_vec(&News::Failed(text))
            }
            news => serde_json::to_vec(news),
        };
        let news = news?;
        let mut rest = &*news;
        while !rest.is_empty() {
            match send(&self.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The parent's end.
#[derive(Debug)]
pub(crate) struct Heard {
    socket: UnixStream,
    bytes: Vec<u8>,
}

impl Heard {
    /// What the child has told, once it has closed its end: nothing if it has ended before.
    pub(crate) fn read(&mut self) -> Option<Option<News>> {
        let mut buffer = [0; 4096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Some(serde_json::from_slice(&self.bytes).ok()),
                Ok(len) if self.bytes.len() <= 2 * LONGEST => {
                    self.bytes.extend(buffer.iter().take(len));
                }
                // A child says no more than that.
                Ok(_) => return Some(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(_) => return Some(None),
            }
        }
    }

    /// What the child has told, of which nobody hears any more.
    pub(crate) fn close(mut self) -> Option<News> {
        // It fails when the child has gone.
        let _ = self.socket.shutdown(Shutdown::Read);
        self.read().flatten()
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.socket.into()
    }
}

impl AsFd for Heard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The parent lets the child go on, at the latest when it ends.
#[derive(Debug)]
pub(crate) struct Go(OwnedFd);

impl Go {
    pub(crate) fn go(self) {
        drop(self.0);
    }
}

/// The child waits for that.
#[derive(Debug)]
pub(crate) struct Wait(OwnedFd);

impl Wait {
    pub(crate) fn wait(&self) {
        // Nothing is written: it ends.
        while rustix::io::read(&self.0, &mut [0u8; 1]) == Err(Errno::INTR) {}
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_a_child_tells_is_heard_once_it_has_told_it() {
        let (ends, wait) = ends(Instant::now()).unwrap();
        let mut heard = ends.heard;
        assert_eq!(heard.read(), None);
        ends.report.tell(&News::Ready(7)).unwrap();
        drop(ends.report);
        assert_eq!(heard.read(), Some(Some(News::Ready(7))));
        drop(ends.reserved);
        ends.go.go();
        wait.wait();
    }

    #[test]
    fn a_child_that_is_gone_without_a_word_has_failed() {
        let (ends, _wait) = ends(Instant::now()).unwrap();
        let (report, mut heard) = (ends.report, ends.heard);
        drop(report);
        assert_eq!(heard.read(), Some(None));
    }

    /// What was told before counts, what is told afterwards nobody hears: there is no third way.
    #[test]
    fn both_sides_know_whether_there_is_a_fork() {
        let told = |before: bool| {
            let (ends, _wait) = ends(Instant::now()).unwrap();
            let (report, heard) = (ends.report, ends.heard);
            if before {
                assert!(report.tell(&News::Ready(7)).is_ok());
            }
            let news = heard.close();
            assert!(before || report.tell_of(Ok(())) == news.is_some());
            news
        };
        assert_eq!(told(true), Some(News::Ready(7)));
        assert_eq!(told(false), None);
    }

    #[test]
    fn a_text_of_any_length_is_told_and_not_waited_for() {
        let (ends, _wait) = ends(Instant::now()).unwrap();
        let (report, mut heard) = (ends.report, ends.heard);
        report.tell(&News::Failed("\u{1}".repeat(1 << 20))).unwrap();
        drop(report);
        let Some(Some(News::Failed(text))) = heard.read() else {
            panic!("nothing was heard")
        };
        assert_eq!(text.len(), LONGEST / 4);
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let (ends, _wait) = ends(Instant::now()).unwrap();
        let (report, mut heard) = (ends.report, ends.heard);
        (&report.socket).write_all(&[b' '; 40 << 10]).unwrap();
        assert_eq!(heard.read(), Some(None));
    }
}
