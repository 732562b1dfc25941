//! Checked data through a connection, in both directions at once.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::{Duration, Instant};

use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

use crate::{Random, Result};

/// How long the other side may take to listen: longer than whoever waits for both, and who knows why.
const PATIENCE: Duration = Duration::from_secs(1000);

/// The two directions of a connection.
struct Stream {
    input: Box<dyn Read + Send>,
    output: Box<dyn Write + Send>,
    /// Ends the output.
    finish: Box<dyn FnOnce() -> io::Result<()> + Send>,
}

macro_rules! stream {
    ($stream:expr) => {{
        let stream = $stream;
        let (input, output) = (stream.try_clone()?, stream.try_clone()?);
        Stream {
            input: Box::new(input),
            output: Box::new(output),
            finish: Box::new(move || stream.shutdown(Shutdown::Write)),
        }
    }};
}

fn accept(address: &str) -> Result<Stream> {
    let stream = match address.split_once(':') {
        Some(("tcp", address)) => stream!(TcpListener::bind(address)?.accept()?.0),
        Some(("unix", path)) => stream!(UnixListener::bind(path)?.accept()?.0),
        Some(("vsock", rest)) => {
            let (_, port) = rest.split_once(':').ok_or("vsock:CID:PORT")?;
            let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, port.parse()?)?;
            stream!(listener.accept()?.0)
        }
        _ => return Err("cannot listen there".into()),
    };
    Ok(stream)
}

fn connect(address: &str) -> Result<Stream> {
    let stream = match address.split_once(':') {
        Some(("tcp", address)) => stream!(TcpStream::connect(address)?),
        Some(("unix", path)) => stream!(UnixStream::connect(path)?),
        Some(("vsock", rest)) => {
            let (cid, port) = rest.split_once(':').ok_or("vsock:CID:PORT")?;
            stream!(VsockStream::connect_with_cid_port(
                cid.parse()?,
                port.parse()?
            )?)
        }
        Some(("hybrid", rest)) => {
            let (path, port) = rest.rsplit_once(':').ok_or("hybrid:PATH:PORT")?;
            let mut stream = UnixStream::connect(path)?;
            writeln!(stream, "CONNECT {port}")?;
            // Byte by byte: what follows the line is data.
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                line.extend(byte);
            }
            if !line.starts_with(b"OK ") {
                return Err(String::from_utf8_lossy(&line).into_owned().into());
            }
            stream!(stream)
        }
        _ => return Err("cannot connect there".into()),
    };
    Ok(stream)
}

pub(crate) fn echo(address: &str) -> Result<String> {
    let mut stream = accept(address)?;
    let bytes = io::copy(&mut stream.input, &mut stream.output)?;
    stream.output.flush()?;
    (stream.finish)()?;
    Ok(format!("echoed {bytes}"))
}

pub(crate) fn refused(address: &str) -> Result<String> {
    match connect(address) {
        Ok(_) => Err("somebody listens there".into()),
        Err(_) => Ok(format!("refused by {address}")),
    }
}

pub(crate) fn check(address: &str, bytes: u64) -> Result<String> {
    let start = Instant::now();
    let stream = loop {
        match connect(address) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    };
    let Stream {
        mut input,
        mut output,
        finish,
    } = stream;
    let sender = thread::spawn(move || -> io::Result<()> {
        let (mut random, mut left) = (Random::new(1), bytes);
        let mut buffer = [0; 8192];
        while left > 0 {
            random.fill(&mut buffer);
            let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            output.write_all(&buffer[..len])?;
            left -= len as u64;
        }
        output.flush()?;
        finish()
    });
    let (mut random, mut left) = (Random::new(1), bytes);
    let (mut expected, mut found) = ([0; 8192], [0; 8192]);
    while left > 0 {
        random.fill(&mut expected);
        let len = usize::try_from(left).map_or(found.len(), |left| left.min(found.len()));
        input.read_exact(&mut found[..len])?;
        if found[..len] != expected[..len] {
            return Err("other bytes came back than were sent".into());
        }
        left -= len as u64;
    }
    if input.read(&mut found)? != 0 {
        return Err("more bytes came back than were sent".into());
    }
    sender.join().map_err(|_| "the sender panicked")??;
    Ok(format!("checked {address} {bytes}"))
}
