use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::super::{EscapeKeys, Output};
use super::*;

/// A main loop with one line, whose device is this test.
struct Bench {
    events: EventManager<MainLoop>,
    ring: devices::OutputRing,
    reader: UnixStream,
}

impl Bench {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let console = Console::from_fds(None, Some(theirs.into()), EscapeKeys::Off);
        let output = Output::new().unwrap();
        let ring = output.ring.clone();
        let port = Port {
            receive: Box::new(|_| 0),
            room: crate::devices::eventfd().unwrap(),
            resize: None,
            output,
        };
        let handle = VmHandle::new().unwrap();
        let watch = OutputWatch::new(Timeline::default());
        let line = Line::new(0, console, port, handle.clone(), watch).unwrap();
        let main_loop = MainLoop::new(vec![line], Requests::default(), handle).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(main_loop);
        Self {
            events,
            ring,
            reader: ours,
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
        let _ = self.reader.read_to_end(&mut bytes);
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
