//! The metadata service as Linux reaches it: the host's own TCP, over a tap device, in a network of the test's own.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use vmm_firecracker::mmds::{Mmds, Stack};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The header of virtio, in front of each frame of a tap device of ours.
const HEADER: usize = 12;
const START: usize = 64;
const PATIENCE: Duration = Duration::from_secs(60);
/// Says to this program that it is in the network already.
const INSIDE: &str = "VMM_TEST_INSIDE_NETWORK";

/// Serves the tap device for ever, as a network device would its guest.
fn serve(tap: File, mut stack: Stack) {
    let mut frame = vec![0; 1 << 16];
    loop {
        let wait = stack.wakes_at().map_or(PATIENCE, |time| {
            time.saturating_duration_since(Instant::now())
        });
        let wait = Timespec::try_from(wait).unwrap();
        poll(&mut [PollFd::new(&tap.as_fd(), PollFlags::IN)], Some(&wait)).unwrap();
        while let Ok(len) = (&tap).read(&mut frame) {
            let frame = &frame[HEADER..len];
            if stack.wants(&frame[..START.min(frame.len())]) {
                stack.take(frame, Instant::now());
            }
        }
        let mut room = [0; HEADER + 1514];
        loop {
            let len = stack.give(&mut room[HEADER..], Instant::now());
            if len == 0 {
                break;
            }
            (&tap).write_all(&room[..HEADER + len]).unwrap();
        }
    }
}

fn connect() -> TcpStream {
    let to = SocketAddr::from((ADDRESS, 80));
    let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The body of the answer, which ends the connection.
fn get(path: &str) -> String {
    let mut stream = connect();
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 \r\n"),
        "{path}: {:.200}",
        answer
    );
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    body.to_owned()
}

/// The test, in its network.
fn inside() {
    let tap = vmm_reference::open_tap("tap0").unwrap();
    for words in [
        "link set lo up",
        "addr add 10.0.0.2/24 dev tap0",
        "link set tap0 up",
        "route add 169.254.169.254 dev tap0",
    ] {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    }
    let mut mmds = Mmds::new(4 << 20).unwrap();
    let large: String = (0..100_000).map(|number| format!("{number},")).collect();
    mmds.put(json!({ "small": "value", "large": large }))
        .unwrap();
    let stack = Stack::new(ADDRESS, Arc::new(Mutex::new(mmds)), 1);
    thread::spawn(move || serve(tap.into(), stack));

    assert_eq!(get("/small"), "value");
    assert!(get("/large") == large);
    // Several at a time, some of which are broken off.
    let clients = (0..16).map(|client| {
        let large = large.clone();
        thread::spawn(move || {
            for round in 0..8 {
                match (client + round) % 4 {
                    0 => assert!(get("/large") == large),
                    1 => {
                        let mut stream = connect();
                        write!(stream, "GET /large HTTP/1.1\r\n\r\n").unwrap();
                        let mut some = [0; 1000];
                        // What is unread at its end is reset.
                        stream.read_exact(&mut some).unwrap();
                    }
                    2 => drop(connect()),
                    _ => assert_eq!(get("/small"), "value"),
                }
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().unwrap();
    }
    // One connection, one request after the other.
    let mut stream = connect();
    for _ in 0..100 {
        write!(stream, "GET /small HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\nvalue") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
    }
    let refused = TcpStream::connect_timeout(&SocketAddr::from((ADDRESS, 81)), PATIENCE);
    let refused = refused.unwrap_err().kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn linux_reads_the_metadata_over_its_own_tcp() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let apart = || {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--net");
        command
    };
    let tried = apart().args(["test", "-w", "/dev/net/tun"]).status();
    if !tried.is_ok_and(|tried| tried.success()) {
        eprintln!("SKIPPED: no network namespace, or no /dev/net/tun");
        return;
    }
    let name = "linux_reads_the_metadata_over_its_own_tcp";
    let mut itself = apart();
    itself.arg(std::env::current_exe().unwrap());
    let status = itself.args(["--exact", name]).env(INSIDE, "1").status();
    assert!(status.unwrap().success());
}
