//! Firecracker, driven by its API: a machine is saved, and restored by a process of its own.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::{Result, bell, piped};

/// Its whole memory is written, and nobody needs more of that.
pub(crate) const MOST_MIB: u64 = 1024;

/// The program, and where it saves.
pub(crate) struct Peer {
    binary: OsString,
    folder: PathBuf,
}

impl Peer {
    /// The one that the environment names.
    pub(crate) fn new(folder: &Path) -> Option<Self> {
        Some(Self {
            binary: std::env::var_os("VMM_BENCH_PEER_FIRECRACKER")?,
            folder: folder.to_owned(),
        })
    }

    /// A process that waits for what it is asked to do.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--api-sock").arg(self.socket());
        command.args(["--level", "Error"]);
        command
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("peer.socket")
    }

    /// Saves a machine that waits for input, after as many bytes of it; gives how long its guest stood still.
    pub(crate) fn save(&self, kernel: &Path, mib: u64, bytes: usize) -> Result<Duration> {
        let mut child = piped(&mut self.command())?;
        let mut stream = self.connect()?;
        let kernel = kernel.display();
        let machine = format!(r#"{{"vcpu_count":1,"mem_size_mib":{mib}}}"#);
        let boot = format!(
            r#"{{"kernel_image_path":"{kernel}","boot_args":"console=ttyS0 reboot=k panic=-1"}}"#
        );
        ask(&mut stream, "PUT /machine-config", &machine)?;
        ask(&mut stream, "PUT /boot-source", &boot)?;
        ask(
            &mut stream,
            "PUT /actions",
            r#"{"action_type":"InstanceStart"}"#,
        )?;
        bell(&mut child)?;
        for _ in 0..bytes {
            let stdin = child.stdin.as_mut().ok_or("no stdin")?;
            stdin.write_all(b"\n")?;
            bell(&mut child)?;
        }
        let start = Instant::now();
        ask(&mut stream, "PATCH /vm", r#"{"state":"Paused"}"#)?;
        let (state, memory) = self.files();
        let files = format!(r#"{{"snapshot_path":"{state}","mem_file_path":"{memory}"}}"#);
        ask(&mut stream, "PUT /snapshot/create", &files)?;
        let took = start.elapsed();
        self.end(child)?;
        Ok(took)
    }

    /// Has a process restore it, and waits until it says that the guest goes on.
    pub(crate) fn restore(&self) -> Result<()> {
        let (state, memory) = self.files();
        let files = format!(
            r#"{{"snapshot_path":"{state}","mem_backend":{{"backend_type":"File","backend_path":"{memory}"}},"resume_vm":true}}"#
        );
        ask(&mut self.connect()?, "PUT /snapshot/load", &files)
    }

    fn files(&self) -> (String, String) {
        let name = |name: &str| self.folder.join(name).display().to_string();
        (name("peer.state"), name("peer.memory"))
    }

    /// It leaves its socket, which its next process does not start with.
    pub(crate) fn tidy(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.socket())?)
    }

    fn end(&self, mut child: Child) -> Result<()> {
        child.kill()?;
        child.wait()?;
        self.tidy()
    }

    fn connect(&self) -> Result<UnixStream> {
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}

/// One request, which succeeds.
fn ask(stream: &mut UnixStream, what: &str, body: &str) -> Result<()> {
    let length = body.len();
    write!(
        stream,
        "{what} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = [0; 4096];
    let length = stream.read(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer[..length]);
    match answer.starts_with("HTTP/1.1 204") {
        true => Ok(()),
        false => Err(format!("{what}: {answer}").into()),
    }
}
