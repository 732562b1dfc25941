//! Moves checked data through sockets and disks, inside the lab's machines and their guests.
//!
//! ```text
//! agent echo ADDRESS             answers every byte of one connection, then ends
//! agent check ADDRESS BYTES      sends bytes, expects them back, says how many
//! agent refused ADDRESS          expects that nobody listens there
//! agent verify DEVICE SECONDS    writes and reads a disk at random, knows what must be there
//! agent disturb SOCKET TIMES     pauses a VM and lets it go on, by its control socket
//! agent tap NAME USER            makes a tap device that a user, by number, may open
//! agent as USER GROUP PROGRAM …  executes a program as this user, by number, with this group and no other
//! ```
//! ADDRESS is `tcp:HOST:PORT`, `vsock:CID:PORT`, `unix:PATH`, or `hybrid:PATH:PORT` for a guest's
//! port behind the Unix socket of a VMM.

mod disk;
mod pauses;
mod sockets;
mod tap;

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn run(arguments: &[&str]) -> Result<String> {
    match arguments {
        ["echo", address] => sockets::echo(address),
        ["check", address, bytes] => sockets::check(address, bytes.parse()?),
        ["refused", address] => sockets::refused(address),
        ["verify", device, seconds] => disk::verify(device, seconds.parse()?),
        ["disturb", socket, times] => pauses::disturb(socket, times.parse()?),
        ["tap", name, user] => tap::make(name, user.parse()?),
        ["as", user, group, program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.uid(user.parse()?).gid(group.parse()?);
            // It returns only when that fails.
            Err(command.args(arguments).exec().into())
        }
        _ => Err(
            "usage: echo ADDRESS | check ADDRESS BYTES | refused ADDRESS | verify DEVICE SECONDS \
             | disturb SOCKET TIMES | tap NAME USER | as USER GROUP PROGRAM ARGUMENTS"
                .into(),
        ),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&arguments) {
        Ok(text) => {
            println!("@agent {text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("@agent failed: {arguments:?}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A cheap generator of bytes that repeat nowhere soon (xorshift64*, Vigna 2016).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(next) {
                *to = from;
            }
        }
    }
}
