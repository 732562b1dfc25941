use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tempfile::TempDir;

use super::super::service::{Input, Next};
use super::*;

/// Echoes lines; `bye` ends the connection.
struct Echo {
    /// How long a line may take.
    patience: Duration,
}

impl Service for Echo {
    type Client = ();

    fn limits(&self) -> ClientLimits {
        ClientLimits::new(4, 100, 1000).with_deadlines(self.patience, self.patience)
    }

    fn greet(&mut self, output: &mut Vec<u8>) {
        output.extend(b"hello\n");
    }

    fn serve(&mut self, (): &mut (), input: &mut Input, output: &mut Vec<u8>) -> Next {
        let end = input.bytes().iter().position(|byte| *byte == b'\n');
        match end {
            Some(end) => {
                let (line, _) = input.take(end + 1);
                output.extend(&line);
                match line.as_slice() {
                    b"bye\n" => Next::Close,
                    _ => Next::Again,
                }
            }
            None if input.has_ended() => Next::Close,
            None if input.bytes().is_empty() => Next::Idle,
            None => Next::Wait,
        }
    }

    fn late(&mut self, (): &mut (), output: &mut Vec<u8>) {
        output.extend(b"late\n");
    }
}

const LONG: Duration = Duration::from_secs(60);

fn serve(patience: Duration) -> (TempDir, SocketServer) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let server = SocketServer::start("echo", listener, Echo { patience }).unwrap();
    (folder, server)
}

fn connect(folder: &TempDir) -> UnixStream {
    let stream = UnixStream::connect(folder.path().join("s")).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// What comes until the end.
fn rest(mut stream: &UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_request_has_its_time_and_silence_has_all() {
    let (folder, _server) = serve(Duration::from_millis(20));
    let (mut begun, idle) = (connect(&folder), connect(&folder));
    begun.write_all(b"whole\nbegun").unwrap();
    assert_eq!(rest(&begun), "hello\nwhole\nlate\n");
    // Much later than any deadline of its own: it has begun nothing.
    (&idle).write_all(b"still there\nbye\n").unwrap();
    assert_eq!(rest(&idle), "hello\nstill there\nbye\n");
}

#[test]
fn whoever_is_refused_reads_why_though_it_goes_on_sending() {
    let (folder, _server) = serve(LONG);
    let mut stream = connect(&folder);
    let mut bytes = b"bye\n".to_vec();
    bytes.resize(50_000, b'x');
    stream.write_all(&bytes).unwrap();
    assert_eq!(rest(&stream), "hello\nbye\n");
}

#[test]
fn who_fetches_nothing_has_to_go_in_the_end() {
    let (folder, _server) = serve(Duration::from_millis(20));
    let mut stream = connect(&folder);
    // Until nothing more is taken; the connection ends then, which is an error here.
    let line = [&[b'x'; 90][..], b"\n"].concat();
    while stream.write_all(&line).is_ok() {}
    assert_eq!(rest_of_one_line(&folder), "hello\n");
}

fn rest_of_one_line(folder: &TempDir) -> String {
    let stream = connect(folder);
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    rest(&stream)
}
