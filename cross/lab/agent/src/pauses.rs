//! Pauses a VM and lets it go on, again and again, by its control socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use crate::{Random, Result};

/// The longest pause, and the longest time between two, in milliseconds.
const LONGEST: u64 = 50;

pub(crate) fn disturb(socket: &str, times: u32) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let _greeting = lines.next().ok_or("no greeting")??;
    let mut random = Random::new(times.into());
    for _ in 0..times {
        for (command, state) in [("pause", "paused"), ("resume", "running")] {
            writeln!(stream, "{{\"command\":\"{command}\"}}")?;
            let answer = lines.next().ok_or("no answer")??;
            if answer != format!("{{\"ok\":{{\"state\":\"{state}\"}}}}") {
                return Err(format!("{command}: {answer}").into());
            }
            thread::sleep(Duration::from_millis(random.next() % LONGEST));
        }
    }
    Ok(format!("disturbed {socket} {times} times"))
}
