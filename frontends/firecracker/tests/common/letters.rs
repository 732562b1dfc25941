//! A machine whose guest prints letters, and is saved.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Output, Stdio};

use super::{Process, folder, letters, program, wait_for};

pub(crate) const CREATE: &str = "/snapshot/create";
pub(crate) const LOAD: &str = "/snapshot/load";
pub(crate) const FULL: &str =
    r#"{"snapshot_type":"Full","snapshot_path":"state","mem_file_path":"memory"}"#;
pub(crate) const FROM_FILE: &str = r#"{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true}"#;
pub(crate) const PAUSED: &str = r#"{"state":"Paused"}"#;
pub(crate) const DIFF: &str =
    r#"{"snapshot_type":"Diff","snapshot_path":"state2","mem_file_path":"diff"}"#;
pub(crate) const TRACKED: (&str, &str) = (
    "/machine-config",
    r#"{"vcpu_count":1,"mem_size_mib":128,"track_dirty_pages":true}"#,
);
pub(crate) const RESUMED: &str = r#"{"state":"Resumed"}"#;

/// A process whose guest prints letters.
pub(crate) struct Letters {
    pub(crate) process: Process,
    stdin: ChildStdin,
}

impl Letters {
    /// One that runs. What is said goes before the start.
    pub(crate) fn start(arguments: &[&str], puts: &[(&str, &str)]) -> Self {
        let folder = folder(&letters());
        let all = [&["--api-sock", "api"], arguments].concat();
        let mut command = program(folder.path(), &all);
        command.stdin(Stdio::piped());
        let mut process = Process::of(folder, command);
        wait_for("the socket", || process.path("api").exists().then_some(()));
        for (path, body) in puts {
            process.put(path, body);
        }
        process.boot();
        let stdin = process.stdin();
        Self { process, stdin }
    }

    /// One in the same folder, which has been told nothing.
    pub(crate) fn beside(&self, socket: &'static str, arguments: &[&str]) -> Self {
        let mut process = self.process.beside(socket, arguments);
        let stdin = process.stdin();
        Self { process, stdin }
    }

    /// Types a key; the guest has printed this then.
    pub(crate) fn types(&mut self, printed: &str) {
        self.stdin.write_all(b"x").unwrap();
        wait_for(printed, || {
            (self.process.printed() == printed).then_some(())
        });
    }
}

/// The program that looks at files.
pub(crate) fn editor(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapshot-editor"));
    command
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

pub(crate) fn said(output: &Output) -> &str {
    assert!(output.status.success(), "{output:?}");
    std::str::from_utf8(&output.stdout).unwrap()
}

impl Letters {
    pub(crate) fn save(&self, body: &str) {
        self.process.patch("/vm", PAUSED);
        self.process.put(CREATE, body);
        self.process.patch("/vm", RESUMED);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.process.path(name)
    }
}
