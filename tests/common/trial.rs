//! VMs that are processes, and are saved and restored.

use std::fs;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{Ended, finish, vmm, wait};

/// Prints 1, 2, 3 and so on, for ever, as in tests/snapshot.rs.
pub(crate) const COUNT: &[u8] = &[
    0xfe, 0xc3, 0x88, 0xd8, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xb9, 200, 0, 0, 0, 0xe2, 0xfe, 0xeb,
    0xee,
];

/// A folder for VMs that are processes, one after the other, and for a saved one.
pub(crate) struct Trial(TempDir);

/// A VM that does not outlive its test, however that ends.
pub(crate) struct Spawned(Option<Child>);

impl Spawned {
    pub(crate) fn new(child: Child) -> Self {
        Self(Some(child))
    }

    pub(crate) fn child(&self) -> &Child {
        self.0.as_ref().unwrap()
    }

    pub(crate) fn child_mut(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }

    /// Waits for its end, and not for the ends of its forks, which may go on with what it prints to.
    pub(crate) fn wait(mut self) -> ExitStatus {
        wait(&mut self.0.take().unwrap())
    }

    pub(crate) fn finish(mut self) -> Ended {
        finish(self.0.take().unwrap())
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Trial {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn spawn(&self, generation: u32, arguments: &[&str]) -> Spawned {
        let serial = format!("--serial=file={}", self.output(generation));
        let control = format!("--control={}", self.path("control"));
        let child = vmm(&[arguments, &[&serial, &control]].concat()).spawn();
        let mut child = child.unwrap();
        while !Path::new(&self.path("control")).exists() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}");
            thread::yield_now();
        }
        let spawned = Spawned(Some(child));
        // It answers before its machine is there.
        while self.ctl(&["status"]).stdout.contains("created") {
            thread::yield_now();
        }
        spawned
    }

    pub(crate) fn output(&self, generation: u32) -> String {
        self.path(&format!("output{generation}"))
    }

    /// Waits until a VM has printed something.
    pub(crate) fn wait(&self, generation: u32) {
        let begin = Instant::now();
        while fs::read(self.output(generation)).unwrap().is_empty() {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "it prints nothing"
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// What was saved is restored, prints something and is stopped.
    pub(crate) fn goes_on(&self) {
        let child = self.spawn(1, &["restore", &self.path("saved")]);
        self.wait(1);
        self.said(&["stop"]);
        let ended = child.finish();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }

    pub(crate) fn ctl(&self, arguments: &[&str]) -> Ended {
        let control = self.path("control");
        finish(
            vmm(&[&["ctl", &control], arguments].concat())
                .spawn()
                .unwrap(),
        )
    }

    pub(crate) fn said(&self, arguments: &[&str]) -> String {
        let ended = self.ctl(arguments);
        assert_eq!(ended.status.code(), Some(0), "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Waits until the VM is no longer written for a command that is gone.
    pub(crate) fn is_written(&self) {
        while self.said(&["status", "--json"]).contains("\"saving\"") {
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The names in the folder of the saved VM.
    pub(crate) fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("saved")).unwrap();
        let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(|entry| name(entry.unwrap())).collect();
        names.sort();
        names
    }
}
