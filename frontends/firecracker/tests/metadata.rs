//! The metadata service as a guest reaches it, over a link of this test: smoltcp is the guest's host.

#![allow(clippy::unwrap_used)]

#[path = "metadata/guest.rs"]
mod guest;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use guest::{Guest, Link};
use proptest::prelude::*;
use serde_json::json;
use smoltcp::socket::tcp::State;
use vmm_firecracker::mmds::{MmdsConfig, Version};

fn config(version: Version) -> MmdsConfig {
    MmdsConfig {
        version,
        network_interfaces: vec!["eth0".to_owned()],
        ipv4_address: None,
        imds_compat: false,
    }
}

fn link(version: Version) -> Link {
    let link = Link::new();
    let mut mmds = link.mmds.lock().unwrap();
    mmds.configure(config(version));
    mmds.put(json!({"latest": {"meta-data": {"id": "i-1", "tags": {"a": "b"}, "n": 5}}}))
        .unwrap();
    drop(mmds);
    link
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n")
}

#[test]
fn a_guest_reads_its_metadata() {
    let mut guest = Guest::new(link(Version::V1));
    for (path, headers, status, kind, body) in [
        ("/latest/meta-data/id", "", 200, "text/plain", "i-1"),
        ("/latest//meta-data/", "", 200, "text/plain", "id\nn\ntags/"),
        (
            "http://169.254.169.254/latest/meta-data/tags",
            "accept: application/json\r\n",
            200,
            "application/json",
            r#"{"a":"b"}"#,
        ),
        (
            "/latest/meta-data/n",
            "",
            501,
            "text/plain",
            "Cannot retrieve value. The value has an unsupported type.",
        ),
        ("/x", "", 404, "text/plain", "Resource not found: /x."),
        ("http://x", "", 400, "text/plain", "Invalid URI."),
    ] {
        let answer = guest.ask(&get(path, headers)).unwrap();
        assert_eq!((answer.status, &*answer.body), (status, body), "{path}");
        let head = &answer.head;
        assert!(
            head.contains(&format!("\r\nContent-Type: {kind}\r\n")),
            "{head}"
        );
    }
    let bytes = guest.ask(&get("/latest/meta-data/id", "")).unwrap();
    assert_eq!(
        bytes.head,
        "HTTP/1.1 200 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\
         Content-Type: text/plain\r\nContent-Length: 3\r\n\r\n"
    );
}

const NO_TOKEN: &str = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.";
const NO_TTL: &str = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";

fn put(path: &str, headers: &str) -> String {
    format!("PUT {path} HTTP/1.1\r\n{headers}\r\n")
}

#[test]
fn tokens_are_given_and_asked_for_as_the_version_has_it() {
    for version in [Version::V1, Version::V2] {
        let mut guest = Guest::new(link(version));
        for (path, headers, status, body) in [
            ("/latest/api/token", "", 400, NO_TTL),
            (
                "/latest/api/toke",
                "X-metadata-token-ttl-seconds: 60\r\n",
                404,
                "Resource not found: /latest/api/toke.",
            ),
            (
                "/",
                "X-Forwarded-For: foo\r\n",
                400,
                "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For",
            ),
            (
                "/latest/api/token",
                "X-metadata-token-ttl-seconds: 0\r\n",
                400,
                "Invalid time to live value provided for token: 0. Please provide a value between 1 and 21600.",
            ),
            (
                "/latest/api/token",
                "X-metadata-token-ttl-seconds: 21601\r\n",
                400,
                "Invalid time to live value provided for token: 21601. Please provide a value between 1 and 21600.",
            ),
            (
                "/latest/api/token",
                "X-metadata-token-ttl-seconds: -1\r\n",
                400,
                "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:-1",
            ),
        ] {
            let answer = guest.ask(&put(path, headers)).unwrap();
            assert_eq!((answer.status, &*answer.body), (status, body));
        }
        for prefix in ["X-metadata-token", "x-AWS-ec2-metadata-token"] {
            let header = format!("{prefix}-ttl-seconds: 60");
            let answer = guest.ask(&put("/latest/api//token", &format!("{header}\r\n")));
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200);
            assert!(
                answer.head.contains(&format!("\r\n{header}\r\n")),
                "{answer:?}"
            );
            let token = answer.body;
            let asked = get("/latest/meta-data/id", &format!("{prefix}: {token}\r\n"));
            assert_eq!(guest.ask(&asked).unwrap().body, "i-1");
            let old = version == Version::V1;
            for (headers, refusal) in [
                (String::new(), NO_TOKEN),
                (format!("{prefix}: {token}0\r\n"), "MMDS token not valid."),
                (format!("{prefix}: \r\n"), "MMDS token not valid."),
            ] {
                let answer = guest.ask(&get("/latest/meta-data/id", &headers)).unwrap();
                let wanted = if old { (200, "i-1") } else { (401, refusal) };
                assert_eq!((answer.status, &*answer.body), wanted);
            }
        }
    }
}

#[test]
fn what_is_no_request_is_answered_and_ends_the_connection() {
    let long = format!("GET /{}", "x".repeat(5000));
    let many = get("/", &"A: b\r\n".repeat(40));
    for (request, status, ends) in [
        ("POST / HTTP/1.1\r\n\r\n", 405, false),
        ("DELETE / HTTP/1.1\r\n\r\n", 405, false),
        (
            "GET / HTTP/1.1\r\nContent-Length: 100\r\n\r\nsome body",
            400,
            true,
        ),
        (
            "PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            true,
        ),
        ("GET / HTTP/3.0\r\n\r\n", 400, true),
        ("\0\r\n\r\n", 400, true),
        (&long, 400, true),
        (&many, 400, true),
        ("GET / HTTP/1.0\r\n\r\n", 200, true),
        (
            "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            200,
            false,
        ),
        ("GET / HTTP/1.1\r\nConnection: close\r\n\r\n", 200, true),
    ] {
        let mut guest = Guest::new(link(Version::V1));
        let handle = guest.connect(80);
        guest.say(handle, request);
        let answer = guest.answer(handle).unwrap();
        assert_eq!(answer.status, status, "{request}");
        let allowed = answer.head.contains("\r\nAllow: GET, PUT\r\n");
        assert_eq!(allowed, status == 405, "{answer:?}");
        let closes = answer.head.contains("\r\nConnection: close\r\n");
        assert_eq!(closes, ends, "{answer:?}");
        let ended = guest.until(handle, |socket| !socket.may_recv());
        assert_eq!(ended, ends, "{request}");
        if !ends {
            // It is there for another one.
            guest.say(handle, &get("/latest/meta-data/id", ""));
            assert_eq!(guest.answer(handle).unwrap().body, "i-1");
        }
    }
}

#[test]
fn requests_may_come_before_the_answers_are_fetched() {
    let mut guest = Guest::new(link(Version::V1));
    let handle = guest.connect(80);
    let requests = [
        get("/latest/meta-data/id", ""),
        get("/x", ""),
        get("/latest/meta-data/tags/a", ""),
    ];
    guest.say(handle, &requests.concat());
    for (status, body) in [(200, "i-1"), (404, "Resource not found: /x."), (200, "b")] {
        let answer = guest.answer(handle).unwrap();
        assert_eq!((answer.status, &*answer.body), (status, body));
    }
}

#[test]
fn data_may_change_between_two_answers() {
    let mut guest = Guest::new(link(Version::V1));
    let handle = guest.connect(80);
    for number in 0..3 {
        guest
            .link
            .mmds
            .lock()
            .unwrap()
            .patch(json!({"latest": {"n": number.to_string()}}))
            .unwrap();
        guest.say(handle, &get("/latest/n", ""));
        assert_eq!(guest.answer(handle).unwrap().body, number.to_string());
    }
}

/// Data of this many bytes, no part of which is another one's.
fn large(len: usize) -> String {
    let mut text = String::new();
    while text.len() < len {
        text.push_str(&format!("{:x},", text.len()));
    }
    text.truncate(len);
    text
}

#[test]
fn large_answers_pass_small_windows_and_buffers() {
    for (window, room) in [(100, 1514), (1460, 1514), (60_000, 1514), (8192, 200)] {
        let link = link(Version::V1);
        let value = large(50_000);
        link.mmds
            .lock()
            .unwrap()
            .put(json!({ "x": value }))
            .unwrap();
        let mut guest = Guest::new(link);
        (guest.window, guest.link.room) = (window, room);
        let answer = guest.ask(&get("/x", "")).unwrap();
        assert!(answer.body == value, "{window} {room}");
    }
}

#[test]
fn a_client_that_does_not_read_is_waited_for_with_its_window_closed() {
    let link = link(Version::V1);
    let value = large(5_000);
    link.mmds
        .lock()
        .unwrap()
        .put(json!({ "x": value }))
        .unwrap();
    let mut guest = Guest::new(link);
    guest.window = 1000;
    let handle = guest.connect(80);
    guest.say(handle, &get("/x", ""));
    let end = guest.link.now + Duration::from_secs(5);
    guest.until(handle, |_| false);
    assert!(guest.link.now > end);
    // Its patience has an end, too.
    assert_eq!(guest.link.stack.wakes_at(), None);
    assert!(guest.answer(handle).is_none());
}

#[test]
fn other_ports_are_closed_and_other_stations_are_left_alone() {
    let mut guest = Guest::new(link(Version::V1));
    let handle = guest.connect(81);
    assert!(guest.until(handle, |socket| socket.state() == State::Closed));
    assert!(guest.link.elsewhere.is_empty());
    let frame = |kind: [u8; 2], target: [u8; 4], place: usize| {
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&kind);
        frame[place..place + 4].copy_from_slice(&target);
        frame
    };
    let own = [169, 254, 169, 254];
    for (frame, ours) in [
        (frame([8, 6], own, 38), true),
        (frame([8, 6], [169, 254, 169, 253], 38), false),
        (frame([8, 0], own, 30), true),
        (frame([8, 0], own, 26), false),
        (frame([0x86, 0xdd], own, 30), false),
        (vec![8; 13], false),
        (Vec::new(), false),
    ] {
        assert_eq!(guest.link.stack.wants(&frame), ours, "{frame:?}");
    }
}

#[test]
fn a_guest_has_so_many_connections_and_then_the_silent_ones_end() {
    let mut guest = Guest::new(link(Version::V1));
    let handles: Vec<_> = (0..30).map(|_| guest.connect(80)).collect();
    for handle in &handles {
        assert!(guest.until(*handle, |socket| socket.state() == State::Established));
    }
    let one_more = guest.connect(80);
    assert!(guest.until(one_more, |socket| socket.state() == State::Closed));
    // All but the first are heard again, some time later.
    let end = guest.link.now + Duration::from_secs(6);
    while guest.link.now < end {
        guest.step();
    }
    for handle in &handles[1..] {
        guest.say(*handle, &get("/latest/meta-data/id", ""));
        assert_eq!(guest.answer(*handle).unwrap().body, "i-1");
    }
    assert_eq!(
        guest.ask(&get("/latest/meta-data/id", "")).unwrap().status,
        200
    );
    for handle in &handles[1..] {
        guest.say(*handle, &get("/latest/meta-data/id", ""));
        assert_eq!(guest.answer(*handle).unwrap().body, "i-1");
    }
    // Nobody is told, and who comes again is.
    guest.say(handles[0], &get("/", ""));
    assert!(guest.until(handles[0], |socket| socket.state() == State::Closed));
}

#[test]
fn after_a_reset_nobody_is_known() {
    let mut guest = Guest::new(link(Version::V1));
    let handle = guest.connect(80);
    assert!(guest.until(handle, |socket| socket.state() == State::Established));
    guest.link.stack.reset();
    guest.say(handle, &get("/", ""));
    assert!(guest.until(handle, |socket| socket.state() == State::Closed));
    assert_eq!(
        guest.ask(&get("/latest/meta-data/id", "")).unwrap().body,
        "i-1"
    );
}

#[test]
fn a_guest_that_is_gone_is_not_talked_to_for_ever() {
    let mut guest = Guest::new(link(Version::V1));
    let handle = guest.connect(80);
    assert!(guest.until(handle, |socket| socket.state() == State::Established));
    let frames = Rc::new(Cell::new(0));
    let counted = Rc::clone(&frames);
    guest.say(handle, &get("/", ""));
    // The request arrives, and nothing after it.
    guest.link.arrives = Box::new(move |_| {
        counted.set(counted.get() + 1);
        counted.get() == 1
    });
    guest.step();
    for _ in 0..100 {
        let Some(time) = guest.link.stack.wakes_at() else {
            break;
        };
        guest.link.now = guest.link.now.max(time);
        assert!(guest.link.fetch().is_none());
    }
    assert_eq!(guest.link.stack.wakes_at(), None);
    assert!((3..20).contains(&frames.get()), "{}", frames.get());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is lost on the way, both ways, what arrives in the end is what was sent, once. Every third frame
    /// arrives: nobody's patience is without end.
    #[test]
    fn lost_frames_come_again(lost in prop::collection::btree_set(1usize..120, 0..20), window in 300usize..9000) {
        let link = link(Version::V1);
        let value = large(20_000);
        link.mmds.lock().unwrap().put(json!({ "x": value })).unwrap();
        let mut guest = Guest::new(link);
        guest.window = window;
        guest.link.arrives = Box::new(move |number| number % 3 == 0 || !lost.contains(&number));
        let answer = guest.ask(&get("/x", ""));
        prop_assert!(answer.is_some_and(|answer| answer.body == value));
    }
}
