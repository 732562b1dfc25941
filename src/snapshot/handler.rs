//! Restored RAM whose pages another process brings when they are touched, as Firecracker's page fault handlers do: what it
//! is told, and what happens when it goes.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arch::GuestRam;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Serialize;
use vm_memory::GuestMemoryBackend;

use super::layout::MemoryLayout;
use super::memory::find;
use crate::confinement::ThreadRole;
use crate::control::handle::VmHandle;
use crate::control::requests::{Asked, Requests};
use crate::memory::uffd::{Mode, Uffd, empty_file};
use crate::wake::Wake;
use crate::{Error, cures};

/// How often it is looked whether somebody waits for a page after the VM's end, in nanoseconds; and how long a page may
/// take then.
const LOOK: i64 = 100_000_000;
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the main loop may take to hear that the guest is to power off.
const NOTICE: Duration = Duration::from_secs(3);
/// How often in a row nobody waits before that counts.
const QUIET: u32 = 5;

/// A region of RAM, as the handler is told of it.
#[derive(Debug, Serialize)]
struct Mapping {
    /// Where it is in this process.
    base_host_virt_addr: u64,
    /// In bytes.
    size: u64,
    /// Where its content begins in the file of memory.
    offset: u64,
    /// In bytes, as is the other one, whatever its name says.
    page_size: u64,
    page_size_kib: u64,
}

/// RAM whose pages a handler brings. Dropping it takes away the RAM too: nobody may need it any more.
#[derive(Debug)]
pub(crate) struct Handled {
    stop: Arc<Wake>,
    asked: Arc<Asking>,
    thread: Option<JoinHandle<()>>,
}

impl Handled {
    /// Hands RAM that nobody has touched yet, which has pages of `page` bytes, over to the process behind a socket, and ends
    /// the VM when that goes.
    ///
    /// # Errors
    /// When this process may not, or the other one does not listen.
    pub(crate) fn new(
        ram: &GuestRam,
        layout: &MemoryLayout,
        page: u64,
        (socket, uffd): (UnixStream, Uffd),
        handle: VmHandle,
    ) -> Result<Self, Error> {
        ram.iter()
            .try_for_each(|region| uffd.register(region, Mode::Missing))
            .map_err(Error::host(
                "cannot leave faults of guest memory to another process",
            ))?;
        tell(&socket, &uffd, ram, layout, page).map_err(|source| Error::Refused {
            field: "memory".into(),
            value: "uffd".to_owned(),
            source,
            cure: cures::HANDLER.to_owned(),
        })?;
        let stop = Arc::new(Wake::new()?);
        let asked = Arc::new(Asking {
            requests: OnceLock::new(),
            known: Wake::new()?,
        });
        let watch = Watch {
            asked: Arc::clone(&asked),
            unheard: Unheard::default(),
            uffd,
            empty: empty_file().map_err(Error::host("cannot create a file in memory"))?,
            socket,
            ram: ram.clone(),
            handle,
            stop: Arc::clone(&stop),
        };
        let threads = watch.handle.confined().threads(ThreadRole::PageFaults);
        let thread = threads
            .spawn("page-faults", "page-faults", move || watch.run())
            .map_err(Error::host(
                "cannot start the thread that watches the handler of page faults",
            ))?;
        Ok(Self {
            stop,
            asked,
            thread: Some(thread),
        })
    }
}

/// Those who ask for the VM's end, once they are known.
#[derive(Debug)]
struct Asking {
    requests: OnceLock<Requests>,
    /// They are.
    known: Wake,
}

impl Handled {
    /// The main loop hears these requests, unless it waits for a page that does not come.
    pub(crate) fn listen(&self, requests: &Requests) -> Result<(), Error> {
        let requests = requests.try_clone();
        let requests = requests.map_err(Error::host("cannot have a descriptor twice"))?;
        // The machine runs once only.
        let _ = self.asked.requests.set(requests);
        self.asked.known.set();
        Ok(())
    }
}

impl Drop for Handled {
    fn drop(&mut self) {
        self.stop.set();
        // A panic in it would be a fault of ours, and has been printed.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One message: where RAM is, and the descriptor with its faults.
fn tell(
    socket: &UnixStream,
    uffd: &Uffd,
    ram: &GuestRam,
    layout: &MemoryLayout,
    page_size: u64,
) -> io::Result<()> {
    let mappings = layout.regions().map(|(range, offset)| {
        Ok(Mapping {
            base_host_virt_addr: find(ram, range)?.as_ptr().addr() as u64,
            size: range.len,
            offset,
            page_size,
            page_size_kib: page_size,
        })
    });
    let mappings = mappings.collect::<io::Result<Vec<_>>>()?;
    let text = serde_json::to_vec(&mappings)?;
    let files = [uffd.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let sent = sendmsg(
        socket,
        &[IoSlice::new(&text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    // A new socket has room for it.
    if sent == text.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// What a thread of its own does.
struct Watch {
    uffd: Uffd,
    /// For memory that is lost.
    empty: OwnedFd,
    socket: UnixStream,
    ram: GuestRam,
    handle: VmHandle,
    stop: Arc<Wake>,
    asked: Arc<Asking>,
    unheard: Unheard,
}

/// A request to power off that the main loop has not read.
#[derive(Debug, Default)]
struct Unheard {
    since: Option<Instant>,
    /// There will be no more of them.
    is_over: bool,
}

impl Watch {
    fn run(mut self) {
        let lost = self.wait();
        if let Some(cause) = lost {
            self.say(cause);
        }
        // Also without a loss: KVM's own threads may wait for pages still, and the VM's end for them.
        self.uffd.lose(&self.ram, &self.empty);
        if lost.is_some() {
            // Its memory is gone, and so is all that waits for it; what still gives some of it back, waits for us.
            while !self.is_stopped(LOOK) {
                self.uffd.drain();
            }
        }
    }

    /// Waits until RAM is needed no longer; or gives the cause when nobody will bring its pages any more.
    fn wait(&mut self) -> Option<&'static str> {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK,
        };
        let mut waited_for = None;
        // How often nobody waited since.
        let mut quiet = QUIET;
        loop {
            let has_ended = self.handle.has_ended();
            let mut fds = vec![
                // What it writes is not read: nothing is agreed on.
                PollFd::new(&self.socket, PollFlags::RDHUP),
                PollFd::new(&*self.stop, PollFlags::IN),
            ];
            if !has_ended {
                fds.push(PollFd::new(self.handle.event(), PollFlags::IN));
                fds.push(PollFd::new(&self.asked.known, PollFlags::IN));
                let requests = self.asked.requests.get();
                let end = requests.and_then(|requests| requests.end.as_ref());
                fds.extend(end.map(|end| PollFd::new(end, PollFlags::IN)));
                let shutdown = requests.and_then(|requests| requests.shutdown.as_ref());
                // One that waits is looked at by time.
                let shutdown =
                    shutdown.filter(|_| self.unheard.since.is_none() && !self.unheard.is_over);
                fds.extend(shutdown.map(|(file, _)| PollFd::new(file, PollFlags::IN)));
            }
            let looks = has_ended || self.unheard.since.is_some();
            // Interrupted or not, all is looked at again.
            let _ = poll(&mut fds, looks.then_some(&pause));
            let is_ready = |place| {
                fds.get(place)
                    .is_some_and(|fd: &PollFd<'_>| !fd.revents().is_empty())
            };
            if is_ready(1) {
                return None;
            }
            if is_ready(0) {
                return Some("the handler of its page faults has closed its socket");
            }
            drop(fds);
            if !has_ended {
                self.asked.known.clear();
                self.hear();
            }
            // While the guest runs a page may take its time: somebody may end the VM. Then nobody can.
            quiet = if has_ended && self.uffd.is_waited_for() {
                0
            } else {
                quiet + 1
            };
            // A vCPU with a signal does not wait but asks again and again; between that, nobody waits.
            if quiet < QUIET {
                let since = waited_for.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    return Some("the handler of its page faults does not answer");
                }
            } else {
                quiet = QUIET;
                waited_for = None;
            }
        }
    }

    /// Whoever wants the VM to end is heard, also while the main loop waits for a page: as long as that does not come, a guest
    /// takes no notice of its power button.
    fn hear(&mut self) {
        let Some(requests) = self.asked.requests.get() else {
            return;
        };
        let end = requests.end.as_ref().map(Asked::on);
        if end.is_some_and(|asked| asked != Asked::Nothing) {
            self.handle.request_stop();
        }
        let shutdown = requests.shutdown.as_ref();
        match shutdown.map(|(file, _)| Asked::on(file)) {
            Some(Asked::Something) => {
                let since = *self.unheard.since.get_or_insert_with(Instant::now);
                if since.elapsed() > NOTICE && self.uffd.is_waited_for() {
                    log::warn!("the handler of page faults does not answer; the VM ends");
                    self.handle.request_stop();
                }
            }
            Some(Asked::Nothing) => self.unheard.since = None,
            Some(Asked::Ended) => {
                self.unheard = Unheard {
                    since: None,
                    is_over: true,
                }
            }
            None => {}
        }
    }

    fn say(&self, cause: &str) {
        if self.handle.has_ended() {
            log::error!("guest memory is lost: {cause}");
        } else {
            self.handle.end(Err(Error::LostMemory {
                cause: cause.to_owned(),
                cure: cures::HANDLER,
            }));
        }
    }

    /// Waits so many nanoseconds for whoever has no need of RAM any more.
    fn is_stopped(&self, nanoseconds: i64) -> bool {
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: nanoseconds,
        };
        let mut fds = [PollFd::new(&*self.stop, PollFlags::IN)];
        poll(&mut fds, Some(&pause)) == Ok(1)
    }
}

#[cfg(test)]
#[path = "handler/tests.rs"]
mod tests;
