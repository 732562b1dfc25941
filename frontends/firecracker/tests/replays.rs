//! What known clients say to this API, written down in `replays/`, played and checked.
//!
//! A replay is a JSON object: `about`, `guest` (one of [`guest`]), `files` with their content (a text, a number of zero
//! bytes, or `"fifo"` under `fifos`), `network` when it needs a tap, `arguments`, and `steps`. A step is one of
//! `{"ask": "PUT /path", "body": …, "status": 204, "answer": {part of it}}`, `{"until": "GET /", "answer": …}` (asked until
//! the answer has this part), `{"another": [arguments]}` (of another process in the same folder, which is asked from then
//! on), `{"handler": SOCKET, "memory": PATH}` (which brings the memory of one machine), `{"remove": PATH}`,
//! `{"is": "socket"}` and `{"exists": PATH}`, `{"prints": TEXT}`, `{"read": FIFO, "has": TEXT}`,
//! `{"signal": NAME}`, `{"ends": STATUS or "NAME of a signal"}`, `{"has": TEXT}` (of what was printed until its end).

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../../tests/common/faults.rs"]
mod faults;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Client, Ended, Process, program, program_with_network, wait_for};
use serde_json::Value;
use tempfile::TempDir;

fn guest(name: &str) -> Vec<u8> {
    match name {
        "busy" => common::busy(),
        "short" => common::short(),
        "keyboard" => common::keyboard(),
        _ => panic!("no guest {name}"),
    }
}

/// Whether a value has all that another one has.
fn has(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| has(whole, part))),
        (Value::String(whole), Value::String(part)) => whole.contains(&**part),
        (whole, part) => whole == part,
    }
}

fn text<'a>(step: &'a Value, key: &str) -> Option<&'a str> {
    step[key].as_str()
}

fn signal(name: &str) -> i32 {
    match name {
        "TERM" => libc::SIGTERM,
        "KILL" => libc::SIGKILL,
        "INT" => libc::SIGINT,
        _ => panic!("no signal {name}"),
    }
}

struct Player {
    process: Option<Process>,
    /// Those that were asked before, and run still.
    before: Vec<Process>,
    /// Whether processes have a network of their own.
    network: bool,
    folder: Arc<TempDir>,
    socket: PathBuf,
    /// A connection that is kept, as clients keep theirs.
    client: Option<Client>,
    ended: Option<Ended>,
}

impl Player {
    fn ask(&mut self, request: &str, body: &Value) -> (u16, Value) {
        let (method, path) = request.split_once(' ').unwrap();
        let body = match body {
            Value::Null => String::new(),
            // As it is: no JSON, or JSON with a form of its own.
            Value::String(text) => text.clone(),
            body => body.to_string(),
        };
        let socket = &self.socket;
        let client = self.client.get_or_insert_with(|| Client::connect(socket));
        let answer = client.ask(method, path, &body);
        let value = match &*answer.body {
            "" => Value::Null,
            _ => answer.json(),
        };
        (answer.status, value)
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    fn step(&mut self, step: &Value) {
        if let Some(request) = text(step, "ask") {
            let (status, answer) = self.ask(request, &step["body"]);
            assert_eq!(status, step["status"], "{step}: {answer}");
            assert!(
                step["answer"].is_null() || has(&answer, &step["answer"]),
                "{step}: {answer}"
            );
        } else if let Some(request) = text(step, "until") {
            let wanted = &step["answer"];
            wait_for(request, || {
                has(&self.ask(request, &Value::Null).1, wanted).then_some(())
            });
        } else if step["another"].is_array() {
            let arguments = words(&step["another"]);
            self.before.extend(self.process.take());
            let folder = self.folder.path();
            let command = command(folder, self.network, &arguments).unwrap();
            let process = Process::of(Arc::clone(&self.folder), command);
            self.socket = process.path(socket(&arguments));
            self.client = None;
            self.process = Some(process);
        } else if let Some(name) = text(step, "handler") {
            let memory = File::open(self.folder.path().join(text(step, "memory").unwrap()));
            let socket = self.folder.path().join(name);
            // It ends with the machine.
            faults::listen(&socket, memory.unwrap(), |mut handler| {
                handler.serve(u64::MAX)
            });
        } else if let Some(path) = text(step, "remove") {
            fs::remove_file(self.folder.path().join(path)).unwrap();
        } else if step["is"] == "socket" {
            let socket = self.socket.clone();
            wait_for("the socket", || socket.exists().then_some(()));
        } else if let Some(path) = text(step, "exists") {
            assert!(self.folder.path().join(path).exists(), "{step}");
        } else if let Some(said) = text(step, "prints") {
            self.process().wait_for(said);
        } else if let Some(fifo) = text(step, "read") {
            let lines = BufReader::new(File::open(self.folder.path().join(fifo)).unwrap()).lines();
            let wanted = text(step, "has").unwrap();
            assert!(
                lines
                    .map_while(Result::ok)
                    .any(|line| line.contains(wanted)),
                "{step}"
            );
        } else if let Some(name) = text(step, "signal") {
            self.process().signal(signal(name));
        } else if !step["ends"].is_null() {
            let ended = self.process.take().unwrap().end();
            match &step["ends"] {
                Value::String(name) => {
                    assert_eq!(ended.status.signal(), Some(signal(name)), "{ended:?}")
                }
                status => assert_eq!(
                    ended.status.code().map(Value::from).as_ref(),
                    Some(status),
                    "{ended:?}"
                ),
            }
            self.ended = Some(ended);
        } else {
            let wanted = text(step, "has").unwrap_or_else(|| panic!("{step}"));
            let ended = self.ended.as_ref().unwrap();
            let printed = [&ended.stdout, &ended.stderr, &ended.guest()];
            let found = printed.iter().any(|text| text.contains(wanted));
            assert!(found, "{step}: {ended:?}");
        }
    }
}

fn words(list: &Value) -> Vec<&str> {
    let words = list.as_array().unwrap().iter();
    words.map(|word| word.as_str().unwrap()).collect()
}

/// The name of the API's socket.
fn socket<'a>(arguments: &[&'a str]) -> &'a str {
    let mut socket = arguments.iter().skip_while(|word| **word != "--api-sock");
    socket.nth(1).copied().unwrap_or("none")
}

/// The program, if there can be one with a network of its own.
fn command(folder: &Path, network: bool, arguments: &[&str]) -> Option<Command> {
    match network {
        true => program_with_network(folder, arguments),
        false => Some(program(folder, arguments)),
    }
}

fn file(path: &Path, content: &Value) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).unwrap();
    }
    match content {
        Value::String(text) => fs::write(path, text).unwrap(),
        Value::Number(len) => File::create(path)
            .unwrap()
            .set_len(len.as_u64().unwrap())
            .unwrap(),
        content => fs::write(path, content.to_string()).unwrap(),
    }
}

fn play(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/replays")
        .join(name);
    let replay: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let folder = common::folder(&guest(text(&replay, "guest").unwrap()));
    for (name, content) in replay["files"].as_object().into_iter().flatten() {
        file(&folder.path().join(name), content);
    }
    for name in replay["fifos"].as_array().into_iter().flatten() {
        let path = folder.path().join(name.as_str().unwrap());
        let status = Command::new("mkfifo").arg(path).status().unwrap();
        assert!(status.success());
    }
    let needs_handler = replay["steps"].as_array().unwrap().iter();
    let needs_handler = needs_handler
        .into_iter()
        .any(|step| step["handler"].is_string());
    if needs_handler && !faults::may_handle() {
        return;
    }
    let arguments = words(&replay["arguments"]);
    let network = replay["network"] == true;
    let Some(command) = command(folder.path(), network, &arguments) else {
        eprintln!("SKIPPED {name}: no network namespace, or no /dev/net/tun");
        return;
    };
    let process = Process::of(folder, command);
    let mut player = Player {
        socket: process.path(socket(&arguments)),
        before: Vec::new(),
        network,
        folder: Arc::clone(&process.folder),
        process: Some(process),
        client: None,
        ended: None,
    };
    for (number, step) in replay["steps"].as_array().unwrap().iter().enumerate() {
        println!("{name}, step {number}: {step}");
        player.step(step);
    }
}

macro_rules! replays {
    ($($test:ident: $file:literal,)*) => {
        $(#[test] fn $test() { play($file); })*

        #[test]
        fn every_replay_is_played() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replays");
            for entry in fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                assert!([$($file),*].contains(&&*name), "{name}");
            }
        }
    };
}

replays! {
    kata_with_its_runtime_in_go: "kata-go.json",
    kata_with_its_runtime_in_rust: "kata-rs.json",
    firecracker_go_sdk: "go-sdk.json",
    firecracker_containerd: "firecracker-containerd.json",
    flintlock: "flintlock.json",
    the_nomad_driver: "nomad.json",
    urunc: "urunc.json",
    clients_in_python: "python.json",
    firecracker_go_sdk_with_snapshots: "go-sdk-snapshots.json",
    firecracker_containerd_with_snapshots: "firecracker-containerd-snapshots.json",
    e2b_with_the_calls_that_are_not_of_its_fork: "e2b.json",
}
