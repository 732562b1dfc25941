//! Makes edges on wired lines.
//!
//! KVM_IRQFD would do that, but on this architecture it raises a line and never lowers it (Linux
//! 6.12, kvm_arch_set_irq_inatomic): of all edges only the first would arrive. So one thread waits
//! for the devices' events and calls KVM_IRQ_LINE. Messages, which are what PCI devices send, go
//! through irqfds like everywhere.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use arch::{Gsi, ThreadBegin};
use kvm_ioctls::VmFd;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The lines that have edges by events.
#[derive(Debug)]
pub(super) struct Lines {
    edges: Arc<Edges>,
    /// Tells the thread of events, and of its end.
    news: Arc<Epoll>,
    stop: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
    begin: OnceLock<Begin>,
}

/// What the thread does first.
struct Begin(ThreadBegin);

impl fmt::Debug for Begin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Begin")
    }
}

/// The events of devices that no edge was made for yet.
#[derive(Debug)]
struct Edges {
    events: Epoll,
    /// Held by whoever takes events until their edges are made.
    turn: Mutex<()>,
}

/// The news by which the thread ends, and those of an event.
const STOP: u64 = 0;
const EVENT: u64 = 1;
/// Events of one look.
const EVENTS: usize = 16;

impl Lines {
    pub(super) fn new() -> io::Result<Self> {
        let (events, news) = (Epoll::new()?, Epoll::new()?);
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        for (descriptor, what) in [(stop.as_raw_fd(), STOP), (events.as_raw_fd(), EVENT)] {
            let event = EpollEvent::new(EventSet::IN, what);
            news.ctl(ControlOperation::Add, descriptor, event)?;
        }
        let turn = Mutex::default();
        Ok(Self {
            edges: Arc::new(Edges { events, turn }),
            news: Arc::new(news),
            stop,
            thread: Mutex::default(),
            begin: OnceLock::new(),
        })
    }

    /// What the thread does first, from now on.
    pub(super) fn begin_with(&self, begin: ThreadBegin) {
        // Told once.
        let _ = self.begin.set(Begin(begin));
    }

    pub(super) fn watch(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        // Edge-triggered: each write is told, and the counter need not be read.
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, gsi.into());
        let events = &self.edges.events;
        events.ctl(ControlOperation::Add, event.as_raw_fd(), edge)?;
        self.unpark(vm)
    }

    /// Ends the thread, until [`Self::unpark`] or the next event.
    pub(super) fn park(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // The counter cannot overflow: it is read again.
            let _ = self.stop.write(1);
            let _ = thread.join();
            let _ = self.stop.read();
        }
    }

    /// There is a thread again.
    pub(super) fn unpark(&self, vm: &Arc<VmFd>) -> io::Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (vm, edges, news) = (
                Arc::clone(vm),
                Arc::clone(&self.edges),
                Arc::clone(&self.news),
            );
            let begin = self.begin.get().map(|Begin(begin)| Arc::clone(begin));
            let name = thread::Builder::new().name("lines".to_owned());
            *thread = Some(name.spawn(move || {
                if let Some(begin) = begin {
                    begin();
                }
                serve(&vm, &edges, &news);
            })?);
        }
        Ok(())
    }

    /// Makes the edges of all events until now: when it returns, the thread has none in hand either.
    pub(super) fn make_edges(&self, vm: &VmFd) {
        self.edges.make(vm);
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.park();
    }
}

fn serve(vm: &VmFd, edges: &Edges, news: &Epoll) {
    let mut told = [EpollEvent::default(); 2];
    loop {
        // Only a signal of the embedding program interrupts it.
        let count = news.wait(-1, &mut told).unwrap_or(0);
        if told.iter().take(count).any(|event| event.data() == STOP) {
            return;
        }
        edges.make(vm);
    }
}

impl Edges {
    fn make(&self, vm: &VmFd) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = [EpollEvent::default(); EVENTS];
        loop {
            let count = self.events.wait(0, &mut told).unwrap_or(0);
            for event in told.iter().take(count) {
                let gsi = u32::try_from(event.data()).unwrap_or(0);
                for level in [true, false] {
                    // It fails for lines that are not there, and all were planned.
                    let _ = vm.set_irq_line(gsi, level);
                }
            }
            if count < EVENTS {
                return;
            }
        }
    }
}
