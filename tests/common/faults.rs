//! Who brings the pages of a restored VM's memory, in a thread: written from the kernel's documentation (userfaultfd(2),
//! Documentation/admin-guide/mm/userfaultfd.rst) and from what docs/snapshot.md says, not from the VMM.

#![allow(dead_code, clippy::unwrap_used)] // every test binary uses a part

use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;

/// A small page, in bytes.
pub(crate) const PAGE: u64 = 4096;
/// UFFD_EVENT_PAGEFAULT and UFFD_EVENT_REMOVE.
const PAGE_FAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

const UFFDIO_COPY: libc::Ioctl = libc::_IOWR::<Copy>(0xaa, 0x03);
const UFFDIO_WAKE: libc::Ioctl = libc::_IOR::<[u64; 2]>(0xaa, 0x02);

/// A region of the VM's memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) base: u64,
    pub(crate) size: u64,
    pub(crate) offset: u64,
    /// Of its pages, in bytes.
    pub(crate) page: u64,
}

/// What a handler has been told and has done.
#[derive(Debug)]
pub(crate) struct Handler {
    socket: UnixStream,
    uffd: OwnedFd,
    memory: File,
    pub(crate) mappings: Vec<Mapping>,
    /// What the VM gave back: it finds zeros there.
    pub(crate) removed: Vec<Range<u64>>,
    /// What could not be brought yet.
    waiting: Vec<u64>,
    /// Pages that were brought.
    pub(crate) brought: u64,
}

impl Handler {
    /// Reads the message of a VM whose memory was saved in a file.
    pub(crate) fn new(socket: UnixStream, memory: File) -> Self {
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(&socket, &mut parts, &mut control, flags).unwrap();
        let mut files = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let uffd = files.next().unwrap().next().unwrap();
        let regions: Vec<Value> = serde_json::from_slice(&text[..received.bytes]).unwrap();
        let mapping = |region: &Value| {
            let field = |name: &str| region[name].as_u64().unwrap();
            // The latter is in bytes, too.
            assert_eq!(field("page_size"), field("page_size_kib"));
            Mapping {
                base: field("base_host_virt_addr"),
                size: field("size"),
                offset: field("offset"),
                page: field("page_size"),
            }
        };
        Self {
            mappings: regions.iter().map(mapping).collect(),
            socket,
            uffd,
            memory,
            removed: Vec::new(),
            waiting: Vec::new(),
            brought: 0,
        }
    }

    /// Serves so many pages, or until the VM goes: then there are none left to serve.
    pub(crate) fn serve(&mut self, most: u64) {
        while self.brought < most {
            let mut fds = [
                PollFd::new(&self.uffd, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::RDHUP),
            ];
            poll(&mut fds, None).unwrap();
            if !fds[1].revents().is_empty() {
                return;
            }
            self.next_event();
        }
    }

    fn next_event(&mut self) {
        let mut event = [0; 32];
        if rustix::io::read(&self.uffd, &mut event) != Ok(32) {
            return;
        }
        let word = |at: usize| u64::from_ne_bytes(event[at..at + 8].try_into().unwrap());
        match event[0] {
            PAGE_FAULT => self.waiting.push(word(16)),
            REMOVE => self.removed.push(word(8)..word(16)),
            other => panic!("nobody asked for event {other:#x}"),
        }
        for page in std::mem::take(&mut self.waiting) {
            if self.bring(page) {
                self.brought += 1;
            } else {
                self.waiting.push(page);
            }
        }
    }

    /// Says whether it is there.
    fn bring(&self, place: u64) -> bool {
        let of = |mapping: &&Mapping| (mapping.base..mapping.base + mapping.size).contains(&place);
        let mapping = self.mappings.iter().find(of).unwrap();
        let page = place / mapping.page * mapping.page;
        let mut content = vec![0; usize::try_from(mapping.page).unwrap()];
        if !self.removed.iter().any(|removed| removed.contains(&page)) {
            let at = mapping.offset + (page - mapping.base);
            self.memory.read_exact_at(&mut content, at).unwrap();
        }
        let mut copy = Copy {
            to: page,
            from: content.as_ptr().addr() as u64,
            len: mapping.page,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the kernel reads and writes a `struct uffdio_copy`, and reads a page of ours.
        if unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_COPY, &raw mut copy) } == 0 {
            return true;
        }
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            // Something is given back at the moment.
            Some(libc::EAGAIN) => return false,
            // It is there, or nobody needs it any more.
            Some(libc::EEXIST | libc::ENOENT | libc::ESRCH) => {}
            _ => panic!("{error}"),
        }
        let mut range = [page, mapping.page];
        // SAFETY: the kernel reads a `struct uffdio_range`.
        unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_WAKE, &raw mut range) };
        true
    }
}

/// Whether this process may have KVM's faults; says so if not.
pub(crate) fn may_handle() -> bool {
    let mut options = File::options();
    let device = options.read(true).write(true).open("/dev/userfaultfd");
    let call = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let may = device.is_ok() || call.is_ok_and(|call| call.trim() == "1");
    if !may {
        eprintln!("SKIPPED: neither /dev/userfaultfd nor userfaultfd(2) for this user");
    }
    may
}

/// Listens on a socket for one VM after the other, each of which was saved in this folder just before.
pub(crate) fn serve_all(socket: &Path, folder: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    let memory = move || {
        let mut files = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let is_memory = |path: &PathBuf| path.to_str().unwrap().contains("/memory-");
        File::open(files.find(is_memory).unwrap()).unwrap()
    };
    thread::spawn(move || {
        for socket in listener.incoming() {
            let (socket, memory) = (socket.unwrap(), memory());
            thread::spawn(move || Handler::new(socket, memory).serve(u64::MAX));
        }
    });
}

/// Listens on a socket for a VM whose memory was saved in a file, and does something with its handler.
pub(crate) fn listen<T: Send + 'static>(
    socket: &Path,
    memory: File,
    act: impl FnOnce(Handler) -> T + Send + 'static,
) -> JoinHandle<T> {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        act(Handler::new(socket, memory))
    })
}

/// Gives memory back, as devices do.
pub(crate) fn give_back(start: *mut u8, len: usize) {
    // SAFETY: it is memory of the test that calls it, which expects that its content is gone.
    unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxDontNeed) }.unwrap();
}

/// The same, of shared memory.
pub(crate) fn remove(start: *mut u8, len: usize) {
    // SAFETY: it is memory of the test that calls it, which expects that its content is gone.
    unsafe { rustix::mm::madvise(start.cast(), len, rustix::mm::Advice::LinuxRemove) }.unwrap();
}

/// Writes memory to a file (write(2)).
pub(crate) fn write(file: &File, start: *const u8, len: usize) -> std::io::Result<usize> {
    // SAFETY: the kernel reads memory that is mapped, whatever is there.
    let written = unsafe { libc::write(file.as_raw_fd(), start.cast(), len) };
    usize::try_from(written).map_err(|_| std::io::Error::last_os_error())
}
