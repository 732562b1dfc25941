//! The program as a process with a watchdog, a client of its API, and tiny guests.

#![allow(dead_code, unused_imports)] // every test binary uses a part
#![allow(clippy::unwrap_used)]

#[path = "../../../../tests/common/guests.rs"]
mod guests;
pub(crate) mod interface;
#[path = "../../../../tests/common/kernels.rs"]
mod kernels;
pub(crate) mod letters;
pub(crate) mod mounted;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use guests::guest_image;
pub(crate) use kernels::*;

/// No test waits longer for anything.
const WATCHDOG: Duration = Duration::from_secs(120);

/// Prints a line, then reads COM1's line status for ever.
pub(crate) fn busy() -> Vec<u8> {
    let mut code = print("up\n");
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xeb, 0xfd]);
    code
}

/// Listens to the keyboard and prints a line; whenever Delete is typed (set 1 or 2 of scan codes), it comes to what is
/// behind this. The loop has 16 bytes.
fn until_delete() -> Vec<u8> {
    // The keyboard's interrupt is on.
    let mut code = vec![0xb0, 0x60, 0xe6, 0x64, 0xb0, 0x05, 0xe6, 0x60];
    code.extend(print("up\n"));
    code.extend([
        0xe4, 0x64, // in al, 0x64
        0xa8, 0x01, // test al, 1
        0x74, 0xfa, // jz to the start
        0xe4, 0x60, // in al, 0x60
        0x3c, 0x71, // cmp al, 0x71
        0x74, 0x04, // je behind all this
        0x3c, 0x53, // cmp al, 0x53
        0x75, 0xf0, // jne to the start
    ]);
    code
}

/// Resets when Delete is typed.
pub(crate) fn keyboard() -> Vec<u8> {
    let mut code = until_delete();
    code.extend(RESET);
    code
}

/// Prints whether a bit of ECX of leaf 0x80000001 is set, `y` or `n`; then resets.
pub(crate) fn cpuid_bit(bit: u32) -> Vec<u8> {
    let mut code = vec![
        0xb8, 0x01, 0x00, 0x00, 0x80, // mov eax, 0x80000001
        0x31, 0xc9, // xor ecx, ecx
        0x0f, 0xa2, // cpuid
        0xf7, 0xc1, // test ecx, the bit
    ];
    code.extend((1u32 << bit).to_le_bytes());
    code.extend([
        0xb0, b'n', // mov al, 'n'
        0x74, 0x02, // jz behind the next one
        0xb0, b'y', // mov al, 'y'
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
    ]);
    code.extend(RESET);
    code
}

/// Prints the next letter of the alphabet, from `a` on, for each byte that is typed.
pub(crate) fn letters() -> Vec<u8> {
    vec![
        0x66,
        0xba,
        0xfd,
        0x03, // mov dx, 0x3fd
        0xec, // in al, dx
        0xa8,
        0x01, // test al, 1
        0x74,
        0xf7, // jz to the start
        0x66,
        0xba,
        0xf8,
        0x03, // mov dx, 0x3f8
        0xec, // in al, dx
        0xfe,
        0x04,
        0x25,
        0x00,
        0x00,
        0x30,
        0x00, // inc byte [0x300000]
        0x8a,
        0x04,
        0x25,
        0x00,
        0x00,
        0x30,
        0x00, // mov al, [0x300000]
        0x04,
        b'a' - 1, // add al, 'a' - 1
        0xee,     // out dx, al
        0xeb,
        0xdb, // jmp to the start
    ]
}

/// Prints a line, then the next letter of the alphabet, from `a` on, whenever Delete is typed.
pub(crate) fn deletes() -> Vec<u8> {
    let mut code = until_delete();
    code.extend([
        0xfe, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, // inc byte [0x300000]
        0x8a, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, // mov al, [0x300000]
        0x04, 0x60, // add al, 'a' - 1
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xee, // out dx, al
        0xeb, 0xd9, // jmp to the start
    ]);
    code
}

/// Prints a line, then resets.
pub(crate) fn short() -> Vec<u8> {
    let mut code = print("hello\n");
    code.extend(RESET);
    code
}

/// Waits until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < WATCHDOG, "{what}: waited in vain");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A process of the program in a folder of its own, which is its working directory.
pub(crate) struct Process {
    child: Child,
    /// The name of its API's socket.
    socket: &'static str,
    pub(crate) folder: Arc<TempDir>,
    output: [Arc<Mutex<Vec<u8>>>; 2],
    readers: Vec<JoinHandle<()>>,
}

/// How a process ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// What its guest has printed.
    pub(crate) fn guest(&self) -> String {
        without_log(&self.stdout)
    }
}

/// What is no line of the log, of which there may be one in the middle of what a guest prints.
fn without_log(text: &str) -> String {
    const FORM: &str = "0000-00-00T00:00:00.000000000 [";
    let begins = |text: &str| {
        let mut pairs = text.bytes().zip(FORM.bytes());
        let fits = pairs.all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == form,
        });
        fits && text.len() >= FORM.len()
    };
    let (mut rest, mut guest) = (text, String::new());
    while let Some(first) = rest.chars().next() {
        if begins(rest) {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else {
            guest.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    guest
}

/// Files for a machine, by their names; a kernel of `code`, and a disk.
pub(crate) fn folder(code: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kernel"), elf(code)).unwrap();
    fs::write(folder.path().join("disk"), [0; 4096]).unwrap();
    folder
}

/// The program, with its working directory there.
pub(crate) fn program(folder: &Path, arguments: &[&str]) -> Command {
    // Whoever runs the tests may have signals ignored, which a program inherits.
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_firecracker")]);
    prepared(&mut command, folder, arguments);
    command
}

/// The same in a network namespace of its own, where it may make tap devices. Whether there can be one is tried first.
pub(crate) fn program_with_network(folder: &Path, arguments: &[&str]) -> Option<Command> {
    let apart = || {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--net");
        command
    };
    let tried = apart().args(["test", "-w", "/dev/net/tun"]).status();
    tried.ok().filter(ExitStatus::success)?;
    let mut command = apart();
    command.arg(env!("CARGO_BIN_EXE_firecracker"));
    prepared(&mut command, folder, arguments);
    Some(command)
}

fn prepared(command: &mut Command, folder: &Path, arguments: &[&str]) {
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

impl Process {
    /// Starts the program with its API's socket `api`, and waits for that.
    pub(crate) fn start(code: &[u8], arguments: &[&str]) -> Self {
        let all = [&["--api-sock", "api"], arguments].concat();
        let process = Self::spawn(folder(code), &all);
        wait_for("the socket", || process.path("api").exists().then_some(()));
        process
    }

    pub(crate) fn spawn(folder: TempDir, arguments: &[&str]) -> Self {
        let command = program(folder.path(), arguments);
        Self::of(folder, command)
    }

    /// Another one in the same folder, with the API's socket `socket`; what is typed there its guest gets.
    pub(crate) fn beside(&self, socket: &'static str, arguments: &[&str]) -> Self {
        let all = [&["--api-sock", socket], arguments].concat();
        let mut command = program(self.folder.path(), &all);
        command.stdin(Stdio::piped());
        let mut process = Self::of(Arc::clone(&self.folder), command);
        process.is_at(socket);
        process
    }

    /// Waits for its socket, which has this name.
    pub(crate) fn is_at(&mut self, socket: &'static str) {
        self.socket = socket;
        wait_for("the socket", || self.path(socket).exists().then_some(()));
    }

    pub(crate) fn of(folder: impl Into<Arc<TempDir>>, mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let output = [Arc::default(), Arc::default()];
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        let readers = streams.into_iter().zip(&output).map(|(stream, output)| {
            let output: Arc<Mutex<Vec<u8>>> = Arc::clone(output);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut stream = stream.unwrap();
                while let Ok(len @ 1..) = stream.read(&mut buffer) {
                    output.lock().unwrap().extend(&buffer[..len]);
                }
            })
        });
        Self {
            child,
            socket: "api",
            folder: folder.into(),
            readers: readers.collect(),
            output,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// What its guest has printed so far.
    pub(crate) fn printed(&self) -> String {
        without_log(&String::from_utf8_lossy(&self.output[0].lock().unwrap()))
    }

    /// Waits until its guest has printed this.
    pub(crate) fn wait_for(&self, text: &str) {
        wait_for(text, || self.printed().contains(text).then_some(()));
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path(self.socket))
    }

    /// A request on a connection of its own.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.client().ask(method, path, body)
    }

    /// A request that has to succeed with no answer.
    pub(crate) fn put(&self, path: &str, body: &str) {
        let answer = self.ask("PUT", path, body);
        assert_eq!(answer.status, 204, "PUT {path} {body}: {answer:?}");
    }

    pub(crate) fn patch(&self, path: &str, body: &str) {
        let answer = self.ask("PATCH", path, body);
        assert_eq!(answer.status, 204, "PATCH {path} {body}: {answer:?}");
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        let answer = self.ask("GET", path, "");
        assert_eq!(answer.status, 200, "GET {path}: {answer:?}");
        answer.json()
    }

    /// A request that has to fail; tells why.
    pub(crate) fn refused(&self, method: &str, path: &str, body: &str) -> String {
        let answer = self.ask(method, path, body);
        assert_eq!(answer.status, 400, "{method} {path} {body}: {answer:?}");
        answer.json()["fault_message"].as_str().unwrap().to_owned()
    }

    /// A machine with its kernel, one vCPU and 128 MiB, started.
    pub(crate) fn boot(&self) {
        self.put(
            "/boot-source",
            r#"{"kernel_image_path":"kernel","boot_args":"console=ttyS0"}"#,
        );
        self.put("/actions", r#"{"action_type":"InstanceStart"}"#);
    }

    pub(crate) fn signal(&self, signal: i32) {
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ended {
        let status = wait_for("the end", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let text =
            |stream: &Mutex<Vec<u8>>| String::from_utf8_lossy(&stream.lock().unwrap()).into();
        Ended {
            status,
            stdout: text(&self.output[0]),
            stderr: text(&self.output[1]),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to the API.
pub(crate) struct Client(pub(crate) UnixStream);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// All before the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(WATCHDOG)).unwrap();
        Self(stream)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub(crate) fn ask(&mut self, method: &str, path: &str, body: &str) -> Answer {
        let length = match body {
            "" => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        self.send(
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n{body}").as_bytes(),
        );
        let answer = self.answer().expect("an answer");
        let said = match &*answer.body {
            "" => Value::Null,
            _ => answer.json(),
        };
        interface::check(method, path, answer.status, &said).unwrap();
        answer
    }

    /// The next answer; none when the connection is closed.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte) {
                Ok(0) => {
                    assert!(head.is_empty(), "{}", String::from_utf8_lossy(&head));
                    return None;
                }
                Ok(_) => head.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        Some(Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: String::from_utf8(body).unwrap(),
        })
    }
}
