//! A driver for tests: rings in guest memory, filled by hand, well or badly.

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use std::io;
use std::os::fd::RawFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::state::{StateError, VirtioDeviceState};

use super::{
    Chain, ConfigSpace, Event, GuestRam, Interrupt, QueueError, Queues, Ring, VirtioDevice,
};

pub(crate) const SIZE: u16 = 16;
pub(crate) const RAM: usize = 1 << 20;
/// From one queue's rings to those of the next.
pub(crate) const QUEUE: u32 = 0x3000;
pub(crate) const DESCRIPTORS: u64 = 0x1000;
pub(crate) const AVAILABLE: u64 = 0x2000;
pub(crate) const USED: u64 = 0x3000;
/// Where buffers may lie.
pub(crate) const DATA: u64 = 0x1_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

pub(crate) fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap()
}

/// The registers of a queue that is set up.
pub(crate) fn queue() -> Queue {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(0x1000), Some(0));
    queue.set_avail_ring_address(Some(0x2000), Some(0));
    queue.set_used_ring_address(Some(0x3000), Some(0));
    queue.set_ready(true);
    queue
}

/// Queues of a running device, all but the first without a driver of its own.
pub(crate) fn queues(ram: &GuestRam, count: usize) -> Queues {
    queues_with(
        ram,
        count,
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
    )
}

/// Queues that raise this interrupt.
pub(crate) fn queues_with(ram: &GuestRam, count: usize, line: EventFd) -> Queues {
    let rings = (0..count).map(|number| {
        let mut queue = queue();
        let offset = u32::try_from(number).unwrap() * QUEUE;
        queue.set_desc_table_address(Some(0x1000 + offset), Some(0));
        queue.set_avail_ring_address(Some(0x2000 + offset), Some(0));
        queue.set_used_ring_address(Some(0x3000 + offset), Some(0));
        Some(Ring::new(&queue, ram.clone()).unwrap())
    });
    Queues::new(rings.collect(), Arc::new(Interrupt::new(line)))
}

/// What [`Sink`] offers.
pub(crate) const FEATURE: u64 = 1 << 3;

/// Completes every chain with the number of bytes it could write.
#[derive(Debug, Default)]
pub(crate) struct Sink(Chain);

impl VirtioDevice for Sink {
    fn id(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![SIZE, SIZE]
    }

    fn name(&self) -> &'static str {
        "sink"
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::new(ConfigSpace::new(b"config".to_vec(), 0..0))
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Ok(VirtioDeviceState::Stateless {})
    }

    fn load(&mut self, _: &VirtioDeviceState, _: bool) -> Result<(), StateError> {
        Ok(())
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        if let Event::Queue(number) = event
            && let Some(ring) = queues.ring(number)
        {
            while ring.pop(&mut self.0)? {
                let len = self.0.writable().iter().map(|buffer| buffer.len).sum();
                ring.complete(self.0.head(), len)?;
            }
        }
        queues.publish()?;
        Ok(false)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) ram: GuestRam,
    /// The number of its queue.
    queue: usize,
    /// Where the queue's rings are, from those of the first.
    base: u64,
    offered: u16,
    seen: u16,
}

impl Driver {
    pub(crate) fn new(ram: &GuestRam) -> Self {
        Self::of_queue(ram, 0)
    }

    pub(crate) fn of_queue(ram: &GuestRam, queue: usize) -> Self {
        Self {
            ram: ram.clone(),
            queue,
            base: queue as u64 * u64::from(QUEUE),
            offered: 0,
            seen: 0,
        }
    }

    pub(crate) fn put<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.ram.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.ram.read_obj(GuestAddress(address)).unwrap()
    }

    /// Writes a descriptor to any table.
    pub(crate) fn descriptor_at(
        &self,
        table: u64,
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let high = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.put(table + 16 * u64::from(index), [address, high]);
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor_at(self.base + DESCRIPTORS, index, address, len, flags, next);
    }

    /// Makes a chain available.
    pub(crate) fn offer(&mut self, head: u16) {
        self.put(
            self.base + AVAILABLE + 4 + 2 * u64::from(self.offered % SIZE),
            head,
        );
        self.offered = self.offered.wrapping_add(1);
        // The device may be looking already.
        fence(Ordering::Release);
        self.put(self.base + AVAILABLE + 2, self.offered);
    }

    /// Describes buffers (address, length, writable) from descriptor 0 on and offers them.
    pub(crate) fn request(&mut self, buffers: &[(u64, u32, bool)]) {
        for (index, &(address, len, writable)) in (0u16..).zip(buffers) {
            let last = usize::from(index) + 1 == buffers.len();
            let flags = if writable { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(index, address, len, flags, index + 1);
        }
        self.offer(0);
    }

    /// Notifies a device and serves it until something comes back.
    pub(crate) fn serve(
        &mut self,
        device: &mut dyn VirtioDevice,
        queues: &mut Queues,
    ) -> Vec<(u32, u32)> {
        let mut more = device.serve(Event::Queue(self.queue), queues).unwrap();
        loop {
            let used = self.used();
            if !used.is_empty() {
                return used;
            }
            if !more {
                wait(device);
            }
            for source in 0..device.sources().len() {
                more |= device.serve(Event::Source(source), queues).unwrap();
            }
        }
    }

    /// What came back since the last call: heads and lengths.
    pub(crate) fn used(&mut self) -> Vec<(u32, u32)> {
        let index: u16 = self.get(self.base + USED + 2);
        fence(Ordering::Acquire);
        let mut used = Vec::new();
        while self.seen != index {
            let [head, len]: [u32; 2] =
                self.get(self.base + USED + 4 + 8 * u64::from(self.seen % SIZE));
            used.push((head, len));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

/// Waits until one of a device's sources is ready.
pub(crate) fn wait(device: &dyn VirtioDevice) {
    wait_for(&device.sources());
}

/// Waits until one of these is ready; the caller keeps them open.
pub(crate) fn wait_for(sources: &[RawFd]) {
    // SAFETY: the descriptors stay open meanwhile.
    let sources: Vec<_> = sources
        .iter()
        .map(|fd| unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) })
        .collect();
    let mut fds: Vec<_> = sources
        .iter()
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    assert_ne!(poll(&mut fds, Some(&patience)).unwrap(), 0, "nothing comes");
}

/// Makes these system calls fail with an error, for this thread alone, as a container's filter does
/// (seccomp(2)).
pub(crate) fn refuse(calls: &[libc::c_long], errno: libc::c_int) {
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    // include/uapi/linux/bpf_common.h: load a word, jump if equal, return. The number comes first.
    const LOAD: u16 = 0x20;
    const JUMP: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut filter = vec![statement(LOAD, 0)];
    for call in calls {
        filter.push(libc::sock_filter {
            jf: 1,
            ..statement(JUMP, u32::try_from(*call).unwrap())
        });
        let error = u32::try_from(errno).unwrap();
        filter.push(statement(RETURN, libc::SECCOMP_RET_ERRNO | error));
    }
    filter.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog {
        len: filter.len().try_into().unwrap(),
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: plain system calls; the kernel copies the program.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let filter = libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        );
        assert_eq!(filter, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Goes on as another user and group without rights, for this thread alone. Says whether it could.
pub(crate) fn become_user(id: libc::uid_t) -> bool {
    // SAFETY: plain system calls, which concern this thread alone (the C library's functions would not).
    unsafe {
        let none: [libc::gid_t; 0] = [];
        libc::syscall(libc::SYS_setgroups, 0, none.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, id, id, id) == 0
            && libc::syscall(libc::SYS_setresuid, id, id, id) == 0
    }
}

/// Held while a program starts: its process has every descriptor of this one until it executes the program.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a program; every test of this crate that does so does it here, for [`close`].
pub(crate) fn spawn(command: &mut Command) -> io::Result<Child> {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    command.spawn()
}

/// Runs a program to its end.
pub(crate) fn output(command: &mut Command) -> io::Result<Output> {
    let command = command.stdin(Stdio::null());
    spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}

/// Drops what has descriptors, and waits until no program that another test starts has copies of them. Only then
/// does a socket's peer see the end, and a lock go.
pub(crate) fn close<T>(value: T) {
    drop(value);
    drop(STARTING.lock().unwrap_or_else(PoisonError::into_inner));
}

/// A loop device of the test's own; it goes with the value.
pub(crate) struct Loop {
    pub(crate) path: String,
}

impl Loop {
    /// `None` where there are none, or no rights.
    fn with(options: &[&str], file: &std::path::Path) -> Option<Self> {
        let mut losetup = Command::new("losetup");
        let losetup = losetup.args(["--find", "--show"]).args(options).arg(file);
        let output = output(losetup).ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !path.is_empty()).then_some(Self { path })
    }

    pub(crate) fn read_only(file: &std::path::Path) -> Option<Self> {
        Self::with(&["--read-only"], file)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = output(Command::new("losetup").args(["--detach", &self.path]));
    }
}

/// Gives up CAP_NET_ADMIN, for this thread alone (capset(2)).
pub(crate) fn drop_network_rights() {
    const VERSION_3: u32 = 0x2008_0522;
    const NET_ADMIN: u32 = 12;
    let header = [VERSION_3, 0];
    // Effective, permitted, inheritable: the lower halves, then the upper ones.
    let mut sets = [0u32; 6];
    // SAFETY: plain system calls; header and sets have the size that this version has.
    unsafe {
        let result = libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr());
        assert_eq!(result, 0);
        sets[0] &= !(1 << NET_ADMIN);
        sets[1] &= !(1 << NET_ADMIN);
        assert_eq!(
            libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()),
            0
        );
    }
}

thread_local! {
    static LINES: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Keeps the log's lines for the thread that wrote them.
struct Lines;

impl log::Log for Lines {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{}: {}", record.level(), record.args());
        LINES.with_borrow_mut(|lines| lines.push(line));
    }

    fn flush(&self) {}
}

/// Does some work; gives what this thread has logged meanwhile, from `warn` on.
pub(crate) fn logged<T>(work: impl FnOnce() -> T) -> (T, Vec<String>) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Lines).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
    });
    LINES.take();
    let result = work();
    (result, LINES.take())
}

/// A file system in memory that only this thread sees; it goes with the thread.
pub(crate) struct Mount(pub(crate) tempfile::TempDir);

impl Mount {
    /// `None` where this process may not mount.
    pub(crate) fn new(options: &str) -> Option<Self> {
        // SAFETY: a plain system call, for this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNS) } != 0 {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mount = Self(folder);
        let private = Self::run("mount", &["--make-rprivate", "/"]);
        let path = mount.0.path().to_str()?;
        let done = private && Self::run("mount", &["-t", "tmpfs", "-o", options, "none", path]);
        done.then_some(mount)
    }

    fn run(program: &str, arguments: &[&str]) -> bool {
        let output = output(Command::new(program).args(arguments));
        output.is_ok_and(|output| output.status.success())
    }

    pub(crate) fn again(&self, options: &str) -> bool {
        let options = format!("remount,{options}");
        Self::run("mount", &["-o", &options, self.0.path().to_str().unwrap()])
    }

    /// Whether nothing keeps it busy.
    pub(crate) fn unmount(&self) -> bool {
        Self::run("umount", &[self.0.path().to_str().unwrap()])
    }
}
