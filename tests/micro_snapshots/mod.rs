//! Guests that go on in another process, again and again, while their drivers and devices work.

#[cfg(all(feature = "virtio-balloon", target_arch = "x86_64"))]
mod balloon;
#[cfg(feature = "virtio-blk")]
mod copies;
#[cfg(all(
    feature = "packed-kernels",
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-rng",
    feature = "virtio-vsock"
))]
mod golden;
mod ticks;

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{Ended, finish, read_until, vmm};
use crate::{SECTOR, TRANSPORTS, disk, passed, sectors, start_virtio};

/// How long a VM may take to end that has told nothing more.
const PATIENCE: Duration = Duration::from_secs(60);

/// So that there is little to save.
const SMALL: &str = "--guest-memory=16";
/// What a test has time for; machines of other architectures are emulated.
const MOST: u32 = if cfg!(target_arch = "x86_64") { 12 } else { 4 };

/// A process that does not outlive its test, however that ends.
struct Running(Option<Child>);

impl Running {
    fn new(command: &mut Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    fn finish(mut self) -> Ended {
        finish(self.0.take().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A VM in one process after the other.
struct Wanderer {
    folder: TempDir,
    child: Running,
    stdout: String,
    /// How many processes it has had.
    generations: u32,
    /// Whether it is always saved as a whole.
    is_whole: bool,
}

impl Wanderer {
    fn new(start: impl FnOnce(&str) -> Child) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let control = format!("--control={}", folder.path().join("control").display());
        Self {
            child: Running(Some(start(&control))),
            folder,
            stdout: String::new(),
            generations: 1,
            is_whole: false,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Says whether the VM did it; one that ends does nothing more.
    fn ctl(&mut self, arguments: &[&str]) -> bool {
        let control = self.path("control");
        let asked = finish(
            vmm(&[&["ctl", &control], arguments].concat())
                .spawn()
                .unwrap(),
        );
        let done = asked.status.success();
        let begin = Instant::now();
        while !done && self.child.child().try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < PATIENCE, "{arguments:?}: {asked:?}");
            thread::sleep(Duration::from_millis(1));
        }
        done
    }

    fn listens(&self) -> bool {
        Path::new(&self.path("control")).exists()
    }

    /// Waits until its devices are there: then it answers.
    fn has_opened(&mut self) {
        while !self.listens() {
            assert!(self.child.child().try_wait().unwrap().is_none());
            thread::yield_now();
        }
        assert!(self.ctl(&["status"]));
    }

    /// Goes on in another process, unless the guest has ended.
    fn goes_on(&mut self, arguments: &[&str]) -> bool {
        let (control, saved) = (self.path("control"), self.path("saved"));
        while !self.listens() {
            if self.child.child().try_wait().unwrap().is_some() {
                return false;
            }
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(3));
        if !(self.ctl(&["pause"]) && self.saves(&saved) && self.ctl(&["stop"])) {
            return false;
        }
        self.settle();
        let control = format!("--control={control}");
        let restore = [&["restore", &saved, &control], arguments].concat();
        if self.generations % 4 == 1 {
            // One that stands still does nothing: its devices are as they were for the next one.
            self.child = Running::new(&mut vmm(&[&restore, &["--paused"][..]].concat()));
            self.has_opened();
            assert!(self.ctl(&["stop"]));
            self.settle();
        }
        let mut command = vmm(&restore);
        self.child = Running::new(command.stdin(Stdio::piped()));
        self.generations += 1;
        true
    }

    /// Saves what stands still: every third time all of it, else a layer. Every third time it goes on a little and is saved
    /// once more, and no page of the layers is another one than of all of it. Where the kernel does not tell what changes,
    /// it is always all of it.
    fn saves(&mut self, saved: &str) -> bool {
        if self.is_whole || self.generations.is_multiple_of(3) {
            return self.ctl(&["snapshot", saved]);
        }
        let control = self.path("control");
        let diff = ["ctl", &control, "snapshot", saved, "--diff"];
        let told = finish(vmm(&diff).spawn().unwrap());
        if !told.status.success() {
            assert!(!told.stderr.contains("does not tell") || std::env::var_os("CI").is_none());
            return self.ctl(&["snapshot", saved]);
        }
        if self.generations % 3 == 2 {
            return true;
        }
        if !self.ctl(&["resume"]) {
            return false;
        }
        thread::sleep(Duration::from_millis(3));
        let (whole, copy) = (self.path("whole"), self.path("copy"));
        if !(self.ctl(&["pause"]) && self.ctl(&diff[2..]) && self.ctl(&["snapshot", &whole])) {
            return false;
        }
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(saved).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, Path::new(&copy).join(path.file_name().unwrap())).unwrap();
        }
        let merged = finish(vmm(&["snapshot", "merge", &copy]).spawn().unwrap());
        assert!(merged.status.success(), "{merged:?}");
        assert!(memory(&copy) == memory(&whole), "a page is another one");
        true
    }

    /// Keeps what the process printed; it has ended.
    fn settle(&mut self) {
        let ended = finish(self.child.0.take().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        self.stdout.push_str(&ended.stdout);
    }

    /// Wanders until the guest ends, or through so many processes; gives all that it printed.
    fn wander(self, arguments: &[&str]) -> (Ended, u32) {
        self.wander_through(MOST, arguments)
    }

    fn wander_through(mut self, most: u32, arguments: &[&str]) -> (Ended, u32) {
        while self.generations < most && self.goes_on(arguments) {}
        let mut ended = self.child.finish();
        ended.stdout.insert_str(0, &self.stdout);
        (ended, self.generations)
    }
}

/// All of RAM, of a saved VM in one file.
fn memory(folder: &str) -> Vec<u8> {
    let mut entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let is_memory = |name: OsString| name.to_string_lossy().starts_with("memory-");
    let found = entries.find(|entry| is_memory(entry.file_name()));
    fs::read(found.unwrap().path()).unwrap()
}

#[test]
#[cfg(feature = "virtio-blk")]
fn a_driver_of_a_disk_notices_nothing_of_other_processes() {
    let content = sectors(0, 64);
    for transport in TRANSPORTS {
        for engine in ["io_uring", "sync"] {
            let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&content));
            let disks = [
                format!(
                    "--blk={},serial=micro-1,engine={engine}",
                    first.path().display()
                ),
                format!("--blk={},ro,engine={engine}", second.path().display()),
            ];
            let wanderer = Wanderer::new(|control| {
                start_virtio(
                    "virtio_blk",
                    transport,
                    &[&disks[0], &disks[1], control, SMALL],
                )
            });
            let (ended, generations) = wanderer.wander(&[]);
            let lines = passed(ended);
            assert_eq!(lines.last().unwrap(), "the second one is read-only");
            assert!(generations > 1, "it is over before it was saved");
            let mut expected = vec![0; 256 * SECTOR];
            expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
            assert!(std::fs::read(first.path()).unwrap() == expected);
        }
    }
}

/// The kernel's own accesses too, those of io_uring among them, wait for pages that a handler brings.
#[test]
#[cfg(feature = "virtio-blk")]
fn a_driver_of_a_disk_has_its_memory_from_a_handler() {
    use crate::common::faults::{may_handle, serve_all};
    if !may_handle() {
        return;
    }
    for engine in ["io_uring", "sync"] {
        let (first, second) = (disk(&[0; 256 * SECTOR]), disk(&sectors(0, 64)));
        let disks = [
            format!(
                "--blk={},serial=micro-1,engine={engine}",
                first.path().display()
            ),
            format!("--blk={},ro,engine={engine}", second.path().display()),
        ];
        let mut wanderer = Wanderer::new(|control| {
            let arguments = [&disks[0], &disks[1], control, SMALL];
            start_virtio("virtio_blk", TRANSPORTS[0], &arguments)
        });
        // A handler has one file.
        wanderer.is_whole = true;
        let (socket, saved) = (wanderer.path("faults"), wanderer.path("saved"));
        serve_all(Path::new(&socket), saved.into());
        let how = format!("--memory=uffd={socket}");
        // Each of them has to have all of its memory.
        let (ended, generations) = wanderer.wander_through(4, &[&how]);
        passed(ended);
        assert!(generations > 1, "it is over before it was saved");
        let mut expected = vec![0; 256 * SECTOR];
        expected[16 * SECTOR..80 * SECTOR].copy_from_slice(&sectors(16, 64));
        assert!(std::fs::read(first.path()).unwrap() == expected);
    }
}

#[test]
#[cfg(feature = "virtio-net")]
fn frames_come_back_from_every_process() {
    use crate::micro_peers::{FRAMES, comes_back, frame, packet_socket};
    for transport in TRANSPORTS {
        let tap = format!("ms{}", std::process::id());
        let net = format!("--net={tap},mac=02:00:00:00:00:07");
        let mut wanderer =
            Wanderer::new(|control| start_virtio("virtio_net", transport, &[&net, control, SMALL]));
        let stdout = wanderer.child.child().stdout.as_mut().unwrap();
        read_until(stdout, "mac 02:00:00:00:00:07\nready\n");
        for (fill, len) in FRAMES {
            assert!(wanderer.goes_on(&[]));
            wanderer.has_opened();
            // Each process has made the tap device anew.
            comes_back(&mut packet_socket(&tap), fill, len);
        }
        let mut host = packet_socket(&tap);
        host.write_all(&frame(b'q', 60)).unwrap();
        assert_eq!(passed(wanderer.child.finish()), ["4 frames echoed"]);
    }
}

/// Streams end with the machine that they were in; new ones come to where it is now.
#[test]
#[cfg(feature = "virtio-vsock")]
fn r47_sockets_are_there_in_every_process() {
    use crate::micro_peers::{connect, echoes};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let vsock = format!("--vsock=cid=9,path={}", path.display());
    for transport in TRANSPORTS {
        let mut wanderer = Wanderer::new(|control| {
            start_virtio("virtio_vsock", transport, &[&vsock, control, SMALL])
        });
        read_until(
            wanderer.child.child().stdout.as_mut().unwrap(),
            "cid 9\nready\n",
        );
        for _ in 0..3 {
            assert!(wanderer.goes_on(&[]));
        }
        wanderer.has_opened();
        let mut stream = connect(&path);
        echoes(&mut stream);
        drop(stream);
        let lines = passed(wanderer.child.finish());
        assert!(lines[0].starts_with("1512 bytes echoed, then"), "{lines:?}");
    }
}

#[test]
#[cfg(feature = "virtio-console")]
fn a_console_echoes_in_every_process() {
    for transport in TRANSPORTS {
        let serial = tempfile::NamedTempFile::new().unwrap();
        let file = format!("--serial=file={}", serial.path().display());
        let console = ["--console=stdio", &*file];
        let mut wanderer = Wanderer::new(|control| {
            let arguments = [&console, &[control, SMALL][..]].concat();
            start_virtio("virtio_console", transport, &arguments)
        });
        read_until(wanderer.child.child().stdout.as_mut().unwrap(), "ready\n");
        for line in ["hello\n", "one more\n", "a third one\n"] {
            assert!(wanderer.goes_on(&console));
            let child = wanderer.child.child();
            child
                .stdin
                .as_mut()
                .unwrap()
                .write_all(line.as_bytes())
                .unwrap();
            read_until(child.stdout.as_mut().unwrap(), &line.to_uppercase());
        }
        let mut running = wanderer.child;
        let child = running.child();
        child.stdin.as_mut().unwrap().write_all(b"q\n").unwrap();
        let ended = running.finish();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        let said = std::fs::read_to_string(serial.path()).unwrap();
        assert!(said.ends_with("the console echoed\nEXIT 0\n"), "{said}");
    }
}
