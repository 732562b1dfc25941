//! With a handler in this process.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use arch::MachinePlan;
use vm_memory::{Bytes, GuestAddress, GuestMemoryRegion};

use std::thread;

use super::*;
use crate::HugePages;
use crate::memory::{Backing, map_ram};

#[path = "../../../tests/common/faults.rs"]
mod faults;
use faults::{Handler, PAGE, give_back, remove};
#[path = "../../../tests/common/pool.rs"]
#[allow(clippy::duplicate_mod)]
mod pool;
use pool::HugePagePool;

/// A machine's plan, and a file of memory whose pages begin with their numbers.
fn saved() -> (MachinePlan, File) {
    let planner = crate::planner(crate::ARCHITECTURES[0]).unwrap();
    let config = crate::VmConfig::default().with_memory_mib(16);
    let plan = planner.plan(&config.machine().unwrap()).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(plan.ram_size()).unwrap();
    for page in 0..plan.ram_size() / PAGE {
        file.write_all_at(&page.to_ne_bytes(), page * PAGE).unwrap();
    }
    (plan, file)
}

struct Trial {
    ram: GuestRam,
    handle: VmHandle,
    handled: Option<Handled>,
}

impl Trial {
    /// RAM that a handler brings, with which `act` does something in a thread. `None`, loudly, where this process may not.
    fn new<T: Send + 'static>(
        act: impl FnOnce(Handler) -> T + Send + 'static,
    ) -> Option<(Self, JoinHandle<T>)> {
        Self::with(Backing::default(), act)
    }

    /// The same, of such pages.
    fn with<T: Send + 'static>(
        backing: Backing,
        act: impl FnOnce(Handler) -> T + Send + 'static,
    ) -> Option<(Self, JoinHandle<T>)> {
        let (plan, file) = saved();
        let ram = map_ram(&plan, backing).unwrap();
        let page = backing.pool().unwrap_or(PAGE);
        let layout = MemoryLayout::whole(&plan.ram, "memory");
        let (ours, theirs) = UnixStream::pair().unwrap();
        let thread = thread::spawn(move || act(Handler::new(theirs, file)));
        let handle = VmHandle::new().unwrap();
        let uffd = match Uffd::for_handler() {
            Ok(uffd) => uffd,
            Err(error) => {
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        match Handled::new(&ram, &layout, page, (ours, uffd), handle.clone()) {
            Ok(handled) => {
                let handled = Some(handled);
                let trial = Self {
                    ram,
                    handle,
                    handled,
                };
                Some((trial, thread))
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The first word of a page.
    fn word(&self, page: u64) -> u64 {
        let address = GuestAddress(self.ram.iter().next().unwrap().start_addr().0 + page * PAGE);
        self.ram.read_obj(address).unwrap()
    }

    fn give_back(&self, page: u64) {
        let region = self.ram.iter().next().unwrap();
        let [start, len] = [page * PAGE, PAGE].map(|bytes| usize::try_from(bytes).unwrap());
        give_back(region.as_ptr().wrapping_add(start), len);
    }
}

#[test]
fn pages_come_from_the_handler_and_what_was_given_back_does_not_come_back() {
    let served = Trial::new(|mut handler| {
        handler.serve(u64::MAX);
        handler
    });
    let Some((mut trial, thread)) = served else {
        return;
    };
    for page in [0, 7, 4095] {
        assert_eq!(trial.word(page), page);
    }
    trial.give_back(7);
    assert_eq!(trial.word(7), 0);
    assert_eq!(trial.word(8), 8);
    assert!(!trial.handle.has_ended());
    drop(trial.handled.take());
    let handler = thread.join().unwrap();
    assert_eq!(handler.brought, 5);
    let start = trial.ram.iter().next().unwrap().as_ptr().addr() as u64;
    assert_eq!(handler.removed.len(), 1);
    assert_eq!(handler.removed[0], start + 7 * PAGE..start + 8 * PAGE);
    let offsets = handler.mappings.iter().map(|mapping| mapping.offset);
    assert_eq!(offsets.collect::<Vec<_>>()[0], 0);
    assert!(!trial.handle.has_ended(), "it was no loss");
}

#[test]
fn large_pages_come_from_the_handler_too() {
    let Some(_pool) = HugePagePool::with(8) else {
        return;
    };
    let backing = Backing {
        pages: HugePages::Reserved2M,
        ..Backing::default()
    };
    let served = Trial::with(backing, |mut handler| {
        handler.serve(u64::MAX);
        handler
    });
    let Some((mut trial, thread)) = served else {
        return;
    };
    for page in [0, 7, 512, 4095] {
        assert_eq!(trial.word(page), page);
    }
    let region = trial.ram.iter().next().unwrap();
    let large = 2 << 20;
    remove(region.as_ptr().wrapping_add(large), large);
    assert_eq!([511, 512, 1023].map(|page| trial.word(page)), [511, 0, 0]);
    drop(trial.handled.take());
    let handler = thread.join().unwrap();
    // The second one twice.
    assert_eq!((handler.brought, handler.removed.len()), (4, 1));
}

/// Who gives memory back waits until the handler has read of it.
#[test]
fn r74_nobody_waits_for_a_handler_that_is_gone() {
    let (goes, may_go) = mpsc::channel();
    let gone = Trial::new(move |handler| {
        may_go.recv().unwrap();
        drop(handler);
    });
    let Some((mut trial, thread)) = gone else {
        return;
    };
    let waits = thread::scope(|scope| {
        let waiter = scope.spawn(|| trial.give_back(3));
        thread::sleep(Duration::from_millis(100));
        let waits = !waiter.is_finished();
        goes.send(()).unwrap();
        waiter.join().unwrap();
        waits
    });
    assert!(waits);
    thread.join().unwrap();
    assert!(trial.handle.has_ended());
    drop(trial.handled.take());
    let error = trial.handle.take().unwrap().unwrap_err();
    let said = "guest memory is lost: the handler of its page faults has closed its socket";
    assert_eq!(error.to_string(), said);
    assert!(error.cure().unwrap().contains("memory=lazy"));
}

/// The same for a system call that reads memory: it fails, and finds no zeros.
#[test]
fn r74_nobody_waits_at_the_end_for_a_handler_that_does_not_answer() {
    let (ends, may_end) = mpsc::channel::<()>();
    let silent = Trial::new(move |handler| {
        let _ = may_end.recv();
        drop(handler);
    });
    let Some((mut trial, thread)) = silent else {
        return;
    };
    let file = tempfile::tempfile().unwrap();
    let begin = Instant::now();
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let region = trial.ram.iter().next().unwrap();
            faults::write(&file, region.as_ptr(), 4096)
        });
        thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished());
        trial.handle.request_stop();
        writer.join().unwrap()
    });
    let error = written.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    assert_eq!(file.metadata().unwrap().len(), 0);
    assert!(begin.elapsed() < 3 * PATIENCE);
    drop(trial.handled.take());
    drop(ends);
    thread.join().unwrap();
    assert!(trial.handle.take().unwrap().is_ok());
}

/// A page that somebody waits for is no reason while others come, however long that takes.
#[test]
fn what_is_done_at_the_end_has_its_memory() {
    let served = Trial::new(|mut handler| handler.serve(u64::MAX));
    let Some((mut trial, thread)) = served else {
        return;
    };
    trial.handle.request_stop();
    let begin = Instant::now();
    let mut page = 0;
    while begin.elapsed() < PATIENCE + Duration::from_secs(1) {
        assert_eq!(trial.word(page), page);
        page += 1;
        thread::sleep(Duration::from_millis(10));
    }
    drop(trial.handled.take());
    thread.join().unwrap();
}
