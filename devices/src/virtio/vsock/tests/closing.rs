//! Ends that come with or before what they end.

use super::*;

#[test]
fn a_client_that_writes_and_closes_at_once_is_served() {
    for whole in [true, false] {
        let mut guest = guest();
        let mut client = UnixStream::connect(guest.path()).unwrap();
        client
            .write_all(format!("CONNECT {PORT}\nall of it").as_bytes())
            .unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // Gone altogether, or still there to read the answer.
        let reader = (!whole).then_some(client);
        let (request, _) = guest.next();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, PORT));
        // Its end is seen before the guest answers.
        assert!(guest.is_quiet());
        guest.send(request.src_port, PORT, op::RESPONSE, &[]);
        assert_eq!(guest.next().1, b"all of it");
        let (end, _) = guest.next();
        let done = if whole { NO_RECEIVE | NO_SEND } else { NO_SEND };
        assert_eq!((end.op, end.flags), (op::SHUTDOWN, done));
        if let Some(mut reader) = reader {
            guest.send(request.src_port, PORT, op::RW, b"thanks");
            guest.shut_down(request.src_port, PORT, NO_RECEIVE | NO_SEND);
            let mut all = String::new();
            reader.read_to_string(&mut all).unwrap();
            assert_eq!(all, format!("OK {}\nthanks", request.src_port));
        }
        guest.send(request.src_port, PORT, op::RST, &[]);
        assert!(guest.device.streams.is_empty());
    }
}

#[test]
fn clients_that_leave_bytes_for_a_guest_that_never_answers_make_way() {
    let mut guest = guest();
    let leave = |guest: &mut Guest, text: &str| {
        let mut client = UnixStream::connect(guest.path()).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        close(client);
        guest.next()
    };
    // Nothing but a wish: it has given up, and the guest learns it.
    assert_eq!(leave(&mut guest, "CONNECT 7\n").0.op, op::REQUEST);
    assert_eq!(guest.next_op(), op::RST);
    for _ in 0..MAX_STREAMS {
        assert_eq!(leave(&mut guest, "CONNECT 7\nbytes").0.op, op::REQUEST);
    }
    assert!(guest.is_quiet());
    assert_eq!(guest.device.streams.len(), MAX_STREAMS);
    // One more: the oldest one ends.
    let mut ops = [leave(&mut guest, "CONNECT 8\nbytes").0.op, guest.next_op()];
    ops.sort_unstable();
    assert_eq!(ops, [op::REQUEST, op::RST]);
    assert_eq!(guest.device.streams.len(), MAX_STREAMS);
}

#[test]
fn a_guest_that_writes_and_closes_at_once_is_heard() {
    let mut guest = guest();
    let mut server = guest.connect_from_guest();
    // More than the socket takes at once: the rest goes when there is room, then comes the end.
    server.set_nonblocking(true).unwrap();
    let mut sent = Vec::new();
    while guest
        .device
        .streams
        .values()
        .all(|stream| stream.waiting() == 0)
    {
        let data = vec![sent.len().to_le_bytes()[0]; 3000];
        guest.send(PORT, OWN, op::RW, &data);
        sent.extend(data);
    }
    guest.got.clear();
    guest.shut_down(PORT, OWN, NO_RECEIVE | NO_SEND);
    guest.send(PORT, OWN, op::RST, &[]);
    let mut got: Vec<u8> = Vec::new();
    loop {
        let mut buffer = [0; 10_000];
        match server.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => got.extend(&buffer[..len]),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        guest.serve(Event::Source(0));
    }
    assert!(got == sent, "every byte, then the end");
    assert!(guest.device.streams.is_empty() && guest.is_quiet());
}
