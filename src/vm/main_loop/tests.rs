use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use crate::console::{EscapeKeys, Output};
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

/// Nothing runs beside the main loop.
struct Nothing;

impl Engine for Nothing {
    type Rest = ();

    fn serve(&mut self) {}

    fn resume(&mut self) {}

    fn end_guest(&mut self) {}

    fn end(self) {}
}

/// A main loop with one line, whose device is this test.
struct Bench {
    events: EventManager<MainLoop<Nothing>>,
    ring: devices::OutputRing,
    room: EventFd,
    handle: VmHandle,
    /// What is typed and what is shown.
    outside: UnixStream,
}

impl Bench {
    fn new() -> Self {
        Self::with(EscapeKeys::Off, |_| 0)
    }

    fn with(keys: EscapeKeys, receive: impl Fn(&[u8]) -> usize + Send + 'static) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let input = theirs.try_clone().unwrap().into();
        let console = Console::from_fds(Some(input), Some(theirs.into()), keys);
        let output = Output::new().unwrap();
        let ring = output.ring.clone();
        let room = crate::wake::eventfd().unwrap();
        let port = Port {
            receive: Box::new(receive),
            room: room.try_clone().unwrap(),
            resize: None,
            output,
        };
        let handle = VmHandle::new().unwrap();
        let watch = OutputWatch::new(Timeline::default());
        let line = Line::new(0, console, port, handle.clone(), watch).unwrap();
        let main_loop =
            MainLoop::new(vec![line], Requests::default(), handle.clone(), Nothing).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(main_loop);
        Self {
            events,
            ring,
            room,
            handle,
            outside: ours,
        }
    }

    fn print(&mut self, text: &[u8]) {
        self.ring.write_all(text).unwrap();
    }

    /// What there is to do now; how many events it was.
    fn now(&mut self) -> usize {
        self.events.run_with_timeout(0).unwrap()
    }

    /// The next event, whenever it comes.
    fn next(&mut self) -> usize {
        self.events.run().unwrap()
    }

    fn read(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // It ends with WouldBlock.
        let _ = self.outside.read_to_end(&mut bytes);
        bytes
    }
}

#[test]
fn a_guest_that_prints_byte_by_byte_wakes_the_loop_once_and_not_for_each() {
    let mut bench = Bench::new();
    assert_eq!(bench.now(), 0, "nothing was printed");
    // The first byte after silence goes out at once.
    bench.print(b"a");
    assert_eq!((bench.now(), bench.read()), (1, b"a".to_vec()));
    for _ in 0..1000 {
        bench.print(b"b");
    }
    // One look for all of them, and one that finds nothing; then there is silence again.
    assert_eq!((bench.next(), bench.read()), (1, vec![b'b'; 1000]));
    assert_eq!((bench.next(), bench.read()), (1, vec![]));
    assert_eq!(bench.now(), 0, "nobody has anything to do");
    bench.print(b"c");
    assert_eq!((bench.now(), bench.read()), (1, b"c".to_vec()));
}

#[test]
fn a_burst_does_not_wait_for_the_next_look() {
    let mut bench = Bench::new();
    bench.print(b"a");
    assert_eq!((bench.now(), bench.read().len()), (1, 1));
    bench.print(&[b'b'; 40_000]);
    assert!(bench.now() >= 1);
    assert!(!bench.read().is_empty());
}

/// Types all of it, as far as the line takes it; how much that was.
fn type_all(bench: &mut Bench, bytes: &[u8]) -> usize {
    let mut typed = 0;
    loop {
        match bench.outside.write(&bytes[typed..]) {
            Ok(0) => return typed,
            Ok(len) => typed += len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if bench.now() == 0 {
                    return typed;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn r3_what_is_typed_reaches_a_slow_guest_whole_and_waits_in_the_terminal() {
    let got = Arc::new(Mutex::new(Vec::new()));
    // A FIFO of 64 bytes that the guest empties now and then.
    let fifo = Arc::new(Mutex::new(0));
    let (all, taken) = (Arc::clone(&got), Arc::clone(&fifo));
    let mut bench = Bench::with(EscapeKeys::On, move |bytes| {
        let mut filled = taken.lock().unwrap();
        let len = bytes.len().min(64 - *filled);
        all.lock().unwrap().extend_from_slice(&bytes[..len]);
        *filled += len;
        len
    });
    let pasted: Vec<u8> = (0..4_000_000u32)
        .map(|n| b'0' + n.to_le_bytes()[n as usize % 3] % 70)
        .collect();
    let first = type_all(&mut bench, &pasted);
    assert!(first >= 1 << 20, "{first}");
    assert!(
        first < 2 << 20,
        "the rest waits where it was typed: {first}"
    );
    let mut typed = first;
    while got.lock().unwrap().len() < pasted.len() {
        *fifo.lock().unwrap() = 0;
        bench.room.write(1).unwrap();
        bench.now();
        if typed < pasted.len() {
            typed += bench.outside.write(&pasted[typed..]).unwrap_or(0);
        }
    }
    assert!(*got.lock().unwrap() == pasted, "every byte in order");
}

#[test]
fn the_escape_keys_work_when_the_guest_reads_nothing() {
    let mut bench = Bench::with(EscapeKeys::On, |_| 0);
    let typed = vec![b'x'; 1_000_000];
    assert_eq!(type_all(&mut bench, &typed), typed.len());
    assert!(!bench.handle.has_ended());
    assert_eq!(type_all(&mut bench, b"\x01x"), 2);
    while !bench.handle.has_ended() {
        assert!(bench.now() > 0, "the rest of the input is not read");
    }
}
