use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tempfile::TempDir;

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::*;
use crate::control::command::{Reply, State};
use crate::control::event::Happening;

/// A machine that nobody runs: its handle answers by itself.
struct Bench {
    folder: TempDir,
    handle: VmHandle,
    server: Option<ControlServer>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let handle = VmHandle::new().unwrap();
        let socket = ControlSocket::bind(&folder.path().join("socket")).unwrap();
        let server = socket.serve(handle.clone()).unwrap();
        Self {
            folder,
            handle,
            server: Some(server),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn connect(&self) -> Peer {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Peer(BufReader::new(stream))
    }

    /// A client that has read its greeting.
    fn greeted(&self) -> Peer {
        let mut peer = self.connect();
        assert_eq!(peer.read()["vmm"], "vmm-reference");
        peer
    }
}

struct Peer(BufReader<UnixStream>);

impl Peer {
    fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.send(&format!("{request}\n"));
        self.read()
    }

    fn status(&mut self) -> Value {
        self.ask(&json!({ "id": 1, "command": "status" }))
    }

    /// Whether nothing comes any more. A server that closes before it has read everything resets the connection.
    fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn requests_are_answered_in_order_with_their_ids() {
    let bench = Bench::new();
    let mut peer = bench.greeted();
    let mut requests = String::new();
    for id in 0..500 {
        requests.push_str(&format!("{{\"id\":{id},\"command\":\"status\"}}\n\n"));
    }
    peer.send(&requests);
    for id in 0..500 {
        let answer = peer.read();
        assert_eq!(answer["id"], id);
        assert_eq!(answer["ok"]["state"], "created");
    }
    assert_eq!(
        peer.ask(&json!({ "command": "reset" }))["error"]["state"],
        "created"
    );
    assert_eq!(peer.ask(&json!({}))["error"]["kind"], "request");
    assert_eq!(peer.status()["id"], 1);
}

#[test]
fn r49_silent_slow_and_flooding_clients_lock_nobody_out() {
    let bench = Bench::new();
    let silent: Vec<_> = (0..10).map(|_| bench.connect()).collect();
    let slow: Vec<_> = (0..10)
        .map(|_| {
            let mut peer = bench.connect();
            peer.send("{\"comm");
            peer
        })
        .collect();
    // They ask without end and fetch nothing.
    let flooding: Vec<_> = (0..10)
        .map(|_| {
            let peer = bench.connect();
            let mut stream = peer.0.get_ref().try_clone().unwrap();
            stream.set_nonblocking(true).unwrap();
            let request = b"{\"command\":\"status\"}\n".repeat(1000);
            while matches!(stream.write(&request), Ok(1..)) {}
            peer
        })
        .collect();
    let mut good = bench.greeted();
    for _ in 0..100 {
        assert_eq!(good.status()["ok"]["state"], "created");
    }
    drop((silent, slow, flooding));
    for _ in 0..40 {
        assert_eq!(bench.greeted().status()["ok"]["state"], "created");
    }
}

#[test]
fn r49_a_client_that_waits_for_an_answer_is_not_idle() {
    let bench = Bench::new();
    // From here on a thread answers, which may take its time.
    bench.handle.begin();
    let mut waiting = bench.greeted();
    waiting.send("{\"command\":\"status\"}\n");
    let request = loop {
        match bench.handle.next_request() {
            Some((request, _)) => break request,
            None => thread::yield_now(),
        }
    };
    let mut listening = bench.greeted();
    listening.ask(&json!({ "subscribe": [] }));
    // Whoever comes finds room, also among those that listen.
    let others: Vec<_> = (0..40).map(|_| bench.greeted()).collect();
    for _ in 0..40 {
        bench.greeted().ask(&json!({ "subscribe": [] }));
    }
    let state = State::Running;
    request.answer.send(Ok(Reply::Done { state }));
    assert_eq!(waiting.read()["ok"]["state"], "running");
    drop((listening, others));
    // When all wait, the one that has waited the longest goes.
    let mut first = bench.greeted();
    first.send("{\"command\":\"status\"}\n");
    let all: Vec<_> = (0..40)
        .map(|_| {
            let mut peer = bench.greeted();
            peer.send("{\"command\":\"status\"}\n");
            peer
        })
        .collect();
    assert!(first.is_closed());
    drop(all);
}

#[test]
fn r49_a_line_has_a_bound() {
    let bench = Bench::new();
    let mut peer = bench.greeted();
    let longest = format!("{{\"command\":\"status\"{}}}\n", " ".repeat(65_000));
    peer.send(&longest);
    assert_eq!(peer.read()["ok"]["state"], "created");
    let endless = vec![b' '; 1 << 20];
    // The server may close before all of it is sent.
    let _ = peer.0.get_mut().write_all(&endless);
    assert_eq!(peer.read()["error"]["kind"], "request");
    assert!(peer.is_closed());
    assert_eq!(bench.greeted().status()["ok"]["state"], "created");
}

#[test]
fn r60_who_closes_its_side_is_answered() {
    let bench = Bench::new();
    for end in ["\n", ""] {
        let mut peer = bench.greeted();
        peer.send(&format!("{{\"command\":\"pause\"}}{end}"));
        peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.read()["ok"]["state"], "created");
        assert!(peer.is_closed());
    }
    // And who is gone at once is served all the same.
    let subscription = bench.handle.subscribe().unwrap();
    let mut peer = bench.greeted();
    peer.send("{\"command\":\"stop\"}\n");
    drop(peer);
    while !bench.handle.has_ended() {
        thread::yield_now();
    }
    assert!(subscription.try_next().is_none());
}

#[test]
fn events_reach_who_has_subscribed_and_the_last_ones_at_the_end() {
    let mut bench = Bench::new();
    let mut all = bench.greeted();
    assert_eq!(
        all.ask(&json!({ "subscribe": [] }))["ok"]["subscribed"],
        true
    );
    let mut ended = bench.greeted();
    ended.ask(&json!({ "subscribe": ["ended"] }));
    // It listens only.
    ended.0.get_ref().shutdown(Shutdown::Write).unwrap();
    bench.handle.begin();
    bench
        .handle
        .finish(Some(&Ok(crate::ExitReason::PoweredOff)));
    drop(bench.server.take());
    assert_eq!(all.read()["state"], "running");
    for peer in [&mut all, &mut ended] {
        let event = peer.read();
        assert_eq!(event["event"], "ended");
        assert_eq!(event["failed"], false);
        assert!(peer.is_closed());
    }
    assert!(!bench.path().exists());
}

#[test]
fn a_subscriber_that_fetches_nothing_is_told_what_it_has_lost() {
    let bench = Bench::new();
    let mut peer = bench.greeted();
    peer.ask(&json!({ "subscribe": [] }));
    // More than a socket and the server together keep.
    for restarts in 0..100_000 {
        bench.handle.publish(Happening::Restart { restarts });
    }
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < 100_000 {
        let event = peer.read();
        match event["count"].as_u64() {
            Some(count) => lost += count,
            None => {
                assert_eq!(event["restarts"], seen + lost);
                seen += 1;
            }
        }
    }
    assert!(lost > 0);
}

#[test]
fn a_socket_is_its_owner_s_alone_and_gone_with_its_server() {
    let bench = Bench::new();
    let mode = fs::metadata(bench.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = ControlSocket::bind(&bench.path()).unwrap_err();
    assert!(error.chain().contains("another program listens"));
    // What is not ours any more stays.
    let path = bench.path();
    fs::remove_file(&path).unwrap();
    fs::write(&path, "something").unwrap();
    let folder = bench.folder;
    drop(bench.server);
    assert_eq!(fs::read(&path).unwrap(), b"something");
    let error = ControlSocket::bind(&path).unwrap_err();
    assert!(error.chain().contains("which is no socket"));
    fs::remove_file(&path).unwrap();
    // A stale one is replaced.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(ControlSocket::bind(&path).unwrap());
    assert!(!path.exists());
    for path in [folder.path().join("x".repeat(200)), "/nowhere/x".into()] {
        assert!(ControlSocket::bind(&path).is_err());
    }
}

/// Sends bytes with a descriptor, so many times.
fn send(stream: &UnixStream, bytes: &[u8], file: impl AsFd, count: usize) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let files = vec![file.as_fd(); count];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    let bytes = [std::io::IoSlice::new(bytes)];
    sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn descriptors_belong_to_the_line_that_they_end_with() {
    let bench = Bench::new();
    let mut peer = bench.greeted();
    let file = fs::File::open("/dev/null").unwrap();
    let status = "{\"command\":\"status\"}\n";
    let change =
        "{\"command\":\"device\",\"device\":\"d\",\"change\":{\"file\":{\"name\":\"x\"}}}\n";
    // Lines before and after it take none. A machine that nobody runs changes no device.
    peer.send(status);
    send(peer.0.get_ref(), change.as_bytes(), &file, 1);
    peer.send(status);
    assert_eq!(peer.read()["ok"]["state"], "created");
    assert_eq!(peer.read()["error"]["kind"], "state");
    assert_eq!(peer.read()["ok"]["state"], "created");
    send(peer.0.get_ref(), status.as_bytes(), &file, 1);
    peer.send(change);
    send(peer.0.get_ref(), change.as_bytes(), &file, 2);
    for (takes, given) in [(0, 1), (1, 0), (1, 2)] {
        let error = peer.read()["error"].clone();
        assert_eq!(error["kind"], "request");
        let text = format!("takes {takes} open descriptors beside it here, and {given} came");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(&text), "{message}");
    }
}

#[test]
fn r49_a_client_that_sends_more_descriptors_than_anything_takes_goes_and_leaves_none() {
    let bench = Bench::new();
    for (count, times) in [(64, 1), (MAX_DESCRIPTORS, 2), (1, MAX_DESCRIPTORS + 1)] {
        let mut peer = bench.greeted();
        let (mut reader, writer) = std::io::pipe().unwrap();
        for _ in 0..times {
            // Without a line's end they wait.
            send(peer.0.get_ref(), b" ", &writer, count);
        }
        drop(writer);
        assert!(peer.is_closed(), "{count} x {times}");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the last one is closed");
    }
}
