//! Forks of a running machine, for the program that runs it.

use std::fmt;
use std::io::ErrorKind;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use arch::{GuestRam, KvmPlatform};
use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use crate::console::{Console, Consoles, EscapeKeys};
use crate::control::command::{Command, CommandError};
use crate::control::ending::ExitReason;
use crate::control::handle::VmHandle;
use crate::control::metrics::{Metrics, Resident};
use crate::control::requests::Requests;
#[cfg(feature = "control")]
use crate::control::server::ControlSocket;
use crate::fork::forks::{Forks, Next, Stage};
use crate::fork::order::Order;
use crate::fork::process::{Blocked, close_all_but, fork, leave_session, wait_to_be_alone};
use crate::fork::report::Report;
use crate::memory::proc_files::ProcFiles;
use crate::snapshot::load::Saved;
use crate::timeline::{Milestone, Timeline};
use crate::vm::machine::{Machine, Outside};
use crate::vm::opening::{Images, Opened};
use crate::vm::run::{Finish, Kept, Stood, Stop};
use crate::vm::story::Story;
use crate::{Attachments, BlkEngine, Error, OwnDevice, VmConfig};

/// What a machine's run has come to.
#[derive(Debug)]
pub enum Ran<P: KvmPlatform> {
    /// It has ended.
    Ended(ExitReason),
    /// Somebody wants a fork of it.
    Fork(Parked<P>),
}

/// A machine that stands still without any thread, to be forked. Dropping it ends it.
#[derive(Debug)]
pub struct Parked<P: KvmPlatform> {
    stood: Box<Stood<P>>,
    finish: Finish,
}

/// What comes of a fork.
#[derive(Debug)]
pub enum Forking<P: KvmPlatform> {
    /// This is the process that there was; its machine runs again. Whether there is a fork, whoever asked for it is told.
    Parent(Parked<P>),
    /// This is the new process. Its machine is still to be built.
    Child(Fork<P>),
}

/// A fork of a machine, in its own process.
pub struct Fork<P: KvmPlatform> {
    order: Box<Order>,
    saved: Box<Saved<P>>,
    report: Report,
    kept: Box<Kept<P>>,
    /// Signals wait until the machine is built: the parent's handlers are gone, and the program's own have to come.
    blocked: Box<Blocked>,
}

impl<P: KvmPlatform> fmt::Debug for Fork<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fork")
            .field("order", &self.order)
            .finish_non_exhaustive()
    }
}

impl<P: KvmPlatform> Machine<P> {
    /// As [`Machine::run`], but returns too when somebody wants a fork of the machine
    /// ([`Command::Fork`](crate::Command::Fork)): its guest stands still then, and it has no thread until that is decided.
    /// The program ends its own threads and goes on with [`Parked::fork`], or with [`Parked::go_on`] if there is to be no
    /// fork.
    ///
    /// The processes of forks that end are waited for while the machine runs.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn run_until_fork(mut self) -> Result<Ran<P>, Error> {
        self.forks.taken = true;
        let finish = Finish(Some(self.handle()));
        match self.begin() {
            Ok(stood) => {
                let stood = Box::new(stood);
                Parked { stood, finish }.run()
            }
            Err(error) => {
                let outcome = Err(error);
                finish.with(&outcome);
                outcome.map(Ran::Ended)
            }
        }
    }
}

impl<P: KvmPlatform> Parked<P> {
    fn run(self) -> Result<Ran<P>, Error> {
        let Self { stood, finish } = self;
        let outcome = match stood.run() {
            Ok(Stop::Fork(mut stood)) => {
                if let Err(error) = stood.main_loop.engine.park() {
                    // What has no thread by now gets one when it goes on.
                    stood.refuse(CommandError::Host {
                        command: "fork",
                        source: error,
                    });
                }
                return Ok(Ran::Fork(Self { stood, finish }));
            }
            Ok(Stop::Ended(reason)) => Ok(reason),
            Err(error) => Err(error),
        };
        finish.with(&outcome);
        outcome.map(Ran::Ended)
    }

    /// The machine goes on. Without a fork, whoever wants one is told that there is none.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn go_on(mut self) -> Result<Ran<P>, Error> {
        self.stood.refuse(CommandError::NotForked(
            "the program that runs it made none".to_owned(),
        ));
        self.run()
    }

    /// Forks this process. Its parent's machine goes on at once.
    ///
    /// `first` is called in the child before anything else, while it takes no signals but SIGSYS, SIGSEGV and SIGBUS: to
    /// take away handlers of signals that write to descriptors. Afterwards every descriptor from 3 on is closed there, but for those that its machine needs and `keep`.
    ///
    /// The child leaves the session of its parent ([`setsid(2)`](https://man7.org/linux/man-pages/man2/setsid.2.html)), and
    /// so the terminal.
    ///
    /// # Safety
    /// In the child nothing is used or dropped any more that owns another descriptor than these ([`mem::forget`] them), or
    /// that belongs to a thread. The process may have had threads, but has none besides this one now, which is its first
    /// one (that is checked).
    #[must_use]
    pub unsafe fn fork(mut self, keep: &[BorrowedFd<'_>], first: impl FnOnce()) -> Forking<P> {
        let engine = &mut self.stood.main_loop.engine;
        let Stage::Next(next) = mem::take(&mut engine.forks.stage) else {
            return Forking::Parent(self);
        };
        let refused = |source| CommandError::Host {
            command: "fork",
            source,
        };
        let blocked = Blocked::all();
        let sees = !self.stood.beside.handle().confined().is_some();
        // SAFETY: there is one thread; what belonged to the machine's is forgotten in the child, and the rest the caller
        // promises.
        let forked = wait_to_be_alone(sees).and_then(|()| unsafe { fork() });
        let pid = match forked {
            Ok(None) => {
                // SAFETY: as the caller promises.
                return Forking::Child(unsafe { self.child(*next, keep, first, blocked) });
            }
            Ok(Some(pid)) => pid,
            Err(error) => {
                drop(blocked);
                engine.forks.stage = Stage::Next(next);
                self.stood.refuse(refused(error));
                return Forking::Parent(self);
            }
        };
        drop(blocked);
        let Next {
            told,
            ends,
            order,
            saved,
        } = *next;
        let goes_on = told.goes_on;
        let handle = self.stood.beside.handle().clone();
        let children = &mut engine.forks.children;
        children.add(pid, ends.heard, told, ends.reserved, handle);
        engine.unpark();
        if goes_on {
            engine.go_on();
        }
        engine.forks.children.goes_on();
        ends.go.go();
        drop((ends.report, order, saved));
        self.stood.beside.handle().requested().set();
        Forking::Parent(self)
    }

    /// # Safety
    /// This is the child, and nothing of the parent's is used or dropped any more.
    unsafe fn child(
        self,
        next: Next<P>,
        keep: &[BorrowedFd<'_>],
        first: impl FnOnce(),
        blocked: Blocked,
    ) -> Fork<P> {
        // What comes next may be refused by a filter of system calls, which a handler tells of.
        first();
        leave_session();
        let Next {
            order,
            saved,
            told,
            ends,
        } = next;
        let Self { stood, finish } = self;
        let Stood { main_loop, beside } = *stood;
        let mut needed: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
        needed.extend(beside.kvm.as_ref().map(AsRawFd::as_raw_fd));
        needed.push(ends.report.raw());
        needed.extend(order.descriptors());
        needed.extend(saved.descriptors());
        needed.extend(saved.ram().into_iter().flat_map(files));
        needed.extend(beside.images.iter().flat_map(Images::descriptors));
        let kept = Box::new(beside.keep());
        // Their descriptors are closed; rings of io_uring and what is mapped of vCPUs are not here, and what has taken their
        // place must not be unmapped with them.
        mem::forget((
            main_loop,
            finish,
            told,
            (ends.heard, ends.go, ends.reserved),
        ));
        // SAFETY: the machine is forgotten but for what is needed, the rest the caller promises.
        unsafe { close_all_but(&mut needed) };
        Fork {
            blocked: Box::new(blocked),
            order: Box::new(order),
            saved: Box::new(saved),
            report: ends.report,
            kept,
        }
    }
}

/// The files that memory is mapped to.
fn files(ram: &GuestRam) -> impl Iterator<Item = RawFd> + '_ {
    let files = ram.iter().filter_map(GuestMemoryRegion::file_offset);
    files.map(FileOffset::file).map(AsRawFd::as_raw_fd)
}

impl<P: KvmPlatform> Stood<P> {
    /// There is no fork; the machine goes on if it has stood still for it.
    fn refuse(&mut self, error: CommandError) {
        let engine = &mut self.main_loop.engine;
        let Stage::Next(next) = mem::take(&mut engine.forks.stage) else {
            return;
        };
        let mut told = next.told;
        engine.unpark();
        if told.goes_on {
            engine.go_on();
        }
        if let Some(answer) = told.answer.take() {
            answer.send(Err(error));
        }
        self.beside.handle().requested().set();
    }
}

impl<P: KvmPlatform> Fork<P> {
    /// The machine's configuration, with what the fork has of its own.
    #[must_use]
    pub fn config(&self) -> &VmConfig {
        self.saved.snapshot.config()
    }

    /// The control socket, if it has one. It can be had once.
    ///
    /// # Errors
    /// When what was given for it is none.
    #[cfg(feature = "control")]
    pub fn control(&mut self) -> Result<Option<ControlSocket>, Error> {
        let control = self.order.control.take();
        control
            .map(|(path, socket)| ControlSocket::given(&path, socket))
            .transpose()
    }

    /// Where its consoles go, as whoever wants the fork has said. They can be had once.
    #[must_use]
    pub fn consoles(&mut self) -> Consoles {
        let console = |output| match output {
            Some((_, file)) => Console::from_fds(None, Some(file), EscapeKeys::Off),
            None => Console::null(),
        };
        let serial = console(self.order.serial.take());
        let mut consoles = Consoles::from(serial);
        consoles.virtio = console(self.order.console.take());
        consoles
    }

    /// Devices of the embedder's own, as its parent has them.
    #[must_use]
    pub fn devices(&self) -> &[OwnDevice] {
        &self.kept.own
    }

    /// Builds the machine, up to where its guest goes on; from here on this process takes signals again. Whoever wants the fork is told when this fails, and when it runs.
    ///
    /// # Errors
    /// When the host or KVM refuses something, or what the fork was given does not fit its guest.
    pub fn build(self, attachments: impl Into<Attachments>) -> Result<Machine<P>, Error> {
        let Self {
            mut order,
            saved,
            report,
            kept,
            blocked,
        } = self;
        drop(blocked);
        let Kept {
            images,
            kernel,
            initrd,
            kvm,
            platform,
            own: _,
            confined,
        } = *kept;
        let mut config = saved.snapshot.config().clone();
        (config.kernel, config.initrd) = (kernel, initrd);
        if confined.is_some() {
            // There are no new rings in a sandbox.
            for disk in &mut config.blk {
                disk.engine = BlkEngine::Auto;
            }
        }
        let timeline = Timeline::default();
        timeline.reach(Milestone::Begun);
        timeline.reach(Milestone::Probed);
        let mut story = Story::default();
        story.begin();
        let built = (|| {
            let given = order.given();
            // A machine without it is not forked.
            let kvm =
                kvm.ok_or_else(|| Error::host("/dev/kvm is closed")(ErrorKind::NotFound.into()))?;
            let mut opened =
                Opened::without_images(kvm, &config, attachments.into(), given, &timeline)?;
            // The process has been confined since its parent was.
            opened.confined = confined.clone();
            opened.images = images;
            let (resident, proc_files) = if confined.is_some() {
                (Resident::unknown(), ProcFiles::none())
            } else {
                (Resident::open(), ProcFiles::open())
            };
            Machine::build(Outside {
                config,
                platform,
                opened,
                stop: Requests::default(),
                handle: VmHandle::confined_by(confined, resident, proc_files)?,
                timeline,
                metrics: Metrics::default(),
                story,
                saved: Some(saved),
                forks: Forks::default(),
                remark: None,
                makes_machines: true,
            })
        })();
        match built {
            Ok(mut machine) => {
                if order.paused {
                    // It does not run yet, so nothing keeps it from that.
                    let _ = machine.handle().command(Command::Pause {});
                }
                machine.report = Some(report);
                Ok(machine)
            }
            Err(error) => {
                report.tell_of(Err::<(), _>(&error));
                Err(error)
            }
        }
    }

    /// The program cannot go on with the fork; whoever wants it is told why.
    pub fn fail(self, error: &Error) {
        self.report.tell_of(Err::<(), _>(error));
    }
}
