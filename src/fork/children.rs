//! The processes of a machine's forks, from their birth to their end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use devices::micros;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitOptions, WaitStatus, pidfd_open, waitpid};

use super::report::{Heard, News};
use super::told::Told;
use crate::control::command::{CommandError, Reply};
use crate::control::event::Happening;
use crate::control::forking::Forked;
use crate::control::handle::VmHandle;
use crate::control::requests::Requests;

/// How long a machine that ends waits for forks that are not ready yet.
const PATIENCE: Duration = Duration::from_secs(5);

/// The forks that this process has made and that have not ended. Dropping it answers those that are not ready yet: what has
/// no answer by then gets none.
#[derive(Debug, Default)]
pub(crate) struct Children(Vec<Child>);

#[derive(Debug)]
struct Child {
    pid: Pid,
    /// Readable when it has ended; none before Linux 5.3, where it is looked for when there is something else to do.
    ended: Option<OwnedFd>,
    birth: Option<Birth>,
    /// Its guest went on.
    runs: bool,
}

/// A fork that was not answered yet.
#[derive(Debug)]
struct Birth {
    heard: Option<Heard>,
    told: Told,
    still_us: u64,
    /// The machine that it is a fork of.
    handle: VmHandle,
}

impl Children {
    /// Another one. `reserved` is a descriptor that is of no other use, so that one can be had.
    pub(crate) fn add(
        &mut self,
        pid: Pid,
        heard: Heard,
        told: Told,
        reserved: OwnedFd,
        handle: VmHandle,
    ) {
        drop(reserved);
        let ended = pidfd_open(pid, PidfdFlags::empty()).ok();
        self.0.push(Child {
            pid,
            ended,
            birth: Some(Birth {
                heard: Some(heard),
                told,
                still_us: 0,
                handle,
            }),
            runs: false,
        });
    }

    /// The guest goes on whose fork came last.
    pub(crate) fn goes_on(&mut self) {
        if let Some(birth) = self.0.last_mut().and_then(|child| child.birth.as_mut()) {
            birth.still_us = micros(birth.told.begin.elapsed());
        }
    }

    /// What there is to wait for.
    pub(crate) fn watched(&self) -> Vec<RawFd> {
        let watched = self.0.iter().flat_map(Child::watched);
        watched.map(|fd| fd.as_raw_fd()).collect()
    }

    /// Answers for those that have told something, and buries those that have ended. Gives what need not be waited for
    /// any more.
    pub(crate) fn look(&mut self, handle: &VmHandle) -> Vec<OwnedFd> {
        let mut done = Vec::new();
        self.0.retain_mut(|child| {
            let mut silent = false;
            if let Some(birth) = &mut child.birth
                && let Some(heard) = &mut birth.heard
                && let Some(news) = heard.read()
            {
                done.extend(birth.heard.take().map(Heard::into_fd));
                silent = news.is_none();
                if let (Some(news), Some(birth)) = (news, child.birth.take_if(|_| !silent)) {
                    child.runs = birth.answer(child.pid, news);
                }
            }
            let Some(end) = end(child.pid, silent && child.ended.is_none()) else {
                return true;
            };
            if child.runs {
                log::info!("the fork {}: {end}", child.pid.as_raw_nonzero());
                handle.publish(Happening::ForkEnded {
                    pid: child.pid.as_raw_nonzero().get().unsigned_abs(),
                    status: end.clone(),
                });
            }
            if let Some(birth) = child.birth.take() {
                birth.fail(format!(
                    "its process has ended before its guest went on: {end}"
                ));
            }
            done.extend(child.ended.take());
            false
        });
        done
    }

    /// Waits for those that are not ready yet, for a while or until somebody asks for the end once more, and answers for
    /// all of them.
    pub(crate) fn answer_all(&mut self, requests: Option<&Requests>) {
        let mut births = self.0.iter().filter_map(|child| child.birth.as_ref());
        let Some(handle) = births.next().map(|birth| birth.handle.clone()) else {
            return;
        };
        let impatient = requests.map(Requests::once_more).unwrap_or_default();
        let deadline = Instant::now() + PATIENCE;
        let patience = loop {
            self.look(&handle);
            let unanswered = self.0.iter().filter(|child| child.birth.is_some());
            let watched: Vec<_> = unanswered.flat_map(Child::watched).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if watched.is_empty() || left.is_zero() {
                break Patience::Over;
            }
            let mut fds: Vec<_> = impatient
                .iter()
                .chain(&watched)
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
                .collect();
            // Interrupted, it is looked at again.
            let found = poll(&mut fds, left.try_into().ok().as_ref());
            let mut asked = fds.iter().take(impatient.len());
            if found.is_ok() && asked.any(|fd| !fd.revents().is_empty()) {
                break Patience::None;
            }
        };
        self.give_up(patience);
    }

    fn give_up(&mut self, patience: Patience) {
        for child in &mut self.0 {
            if let Some(birth) = child.birth.take() {
                birth.give_up(child.pid, patience);
            }
        }
    }
}

/// Why forks are not waited for any longer.
#[derive(Debug, Clone, Copy)]
enum Patience {
    /// They had their time.
    Over,
    /// The end is to come at once.
    None,
}

impl Drop for Children {
    fn drop(&mut self) {
        if thread::panicking() {
            self.give_up(Patience::None);
        } else {
            self.answer_all(None);
        }
    }
}

impl Child {
    /// What there is to wait for.
    fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let heard = self.birth.iter().filter_map(|birth| birth.heard.as_ref());
        let ended = self.ended.iter();
        ended.map(AsFd::as_fd).chain(heard.map(AsFd::as_fd))
    }
}

impl Birth {
    /// There is a fork if it has told so by now, else none: it ends when it comes to tell it.
    fn give_up(mut self, pid: Pid, patience: Patience) {
        if let Some(news) = self.heard.take().and_then(Heard::close) {
            self.answer(pid, news);
            return;
        }
        let when = match patience {
            Patience::Over => format!("{} s later", PATIENCE.as_secs()),
            Patience::None => "when that was to be over at once".to_owned(),
        };
        self.fail(format!(
            "the VM that it is a fork of has ended, and it was not ready {when}"
        ));
    }

    /// Says whether there is a fork.
    fn answer(mut self, pid: Pid, news: News) -> bool {
        let pid = pid.as_raw_nonzero().get().unsigned_abs();
        match news {
            News::Ready(ready_us) => {
                log::info!("forked: the process {pid}");
                self.handle.publish(Happening::Forked { pid });
                let forked = Forked {
                    pid,
                    still_us: self.still_us,
                    ready_us,
                    copies: std::mem::take(&mut self.told.copies),
                };
                if let Some(answer) = self.told.answer.take() {
                    answer.send(Ok(Reply::Forked(forked)));
                }
                true
            }
            News::Failed(cause) => {
                self.fail(cause);
                false
            }
        }
    }

    fn fail(mut self, cause: String) {
        log::info!("not forked: {cause}");
        if let Some(answer) = self.told.answer.take() {
            answer.send(Err(CommandError::NotForked(cause)));
        }
    }
}

/// How a child has ended, if it has. Whoever is `sure` that it is about to waits for it.
fn end(pid: Pid, sure: bool) -> Option<String> {
    let how = if sure {
        WaitOptions::empty()
    } else {
        WaitOptions::NOHANG
    };
    loop {
        return match waitpid(Some(pid), how) {
            Ok(Some((_, status))) => Some(text(status)),
            Ok(None) => None,
            Err(Errno::INTR) => continue,
            // Another part of the program has waited for it.
            Err(_) => Some("it has ended".to_owned()),
        };
    }
}

fn text(status: WaitStatus) -> String {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => format!("exit status {status}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "it has ended".to_owned(),
    }
}
