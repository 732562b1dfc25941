//! How long a saved machine takes to go on, and how long a guest stands still to be saved.
//!
//! The guest waits for a byte of input, prints one and asks for a reset: it is saved while it waits, and what a restored
//! one prints is the first thing that it does. Each round runs each VMM as a process of its own, in turn: the restored
//! machine, lean and full, with its sandbox and without, and the least any program must do: map a file of that size privately, make a VM with it and
//! one vCPU, run the same code. Measured is from spawn to that byte, and from spawn to the end of the process. Prints
//! medians and ratios, for several sizes of memory: `cargo bench --bench snapshot`.
//! `VMM_BENCH_PEER_FIRECRACKER=/path/to/firecracker` adds that VMM, with the same guest, for up to 1 GiB.
//!
//! Then how long a guest with 1 GiB stands still when only what changed is saved: nothing, and 64 MiB.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/floor.rs"]
mod floor;
mod peer;
#[path = "../common/timed.rs"]
mod timed;

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use common::{RESET, print};
use floor::{FLOOR, MEMORY};
use peer::Peer;
use timed::Timed;

const ROUNDS: usize = 50;
const MIB: [u64; 3] = [128, 1024, 6144];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::var(FLOOR) {
        Ok(kind) => floor::run(&kind, &[print("\x07"), RESET.to_vec()].concat()),
        Err(_) => MIB
            .into_iter()
            .try_for_each(compare)
            .and_then(|()| changes()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snapshot bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// mov dx, 0x3fd; in al, dx; test al, 1; jz back to in; mov dx, 0x3f8; in al, dx
const WAIT: [u8; 14] = [
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec,
];

/// Prints a bell, waits for input, prints another one and resets.
fn code() -> Vec<u8> {
    [print("\x07"), WAIT.to_vec(), print("\x07"), RESET.to_vec()].concat()
}

/// Prints a bell, waits for input, writes to each page of 64 MiB, and begins anew.
fn writer() -> Vec<u8> {
    let write = [
        0xbe, 0x00, 0x00, 0x00, 0x04, // mov esi, 64 MiB
        0xff, 0x06, // next: inc dword [rsi]
        0x81, 0xc6, 0x00, 0x10, 0x00, 0x00, // add esi, 4096
        0x81, 0xfe, 0x00, 0x00, 0x00, 0x08, // cmp esi, 128 MiB
        0x72, 0xf0, // jb next
    ];
    let mut code = [print("\x07"), WAIT.to_vec(), write.to_vec()].concat();
    let back = i32::try_from(code.len() + 5).unwrap_or_default();
    code.push(0xe9); // jmp
    code.extend((-back).to_le_bytes());
    code
}

/// Runs it once; a peer's process is told what to do.
fn measure(row: &mut Timed, peer: Option<&Peer>) -> Result<()> {
    let start = Instant::now();
    let mut child = piped(&mut row.command)?;
    child.stdin.as_mut().ok_or("no stdin")?.write_all(b"\n")?;
    peer.map_or(Ok(()), Peer::restore)?;
    bell(&mut child)?;
    row.first_byte.push(start.elapsed());
    let status = child.wait()?;
    row.life.push(start.elapsed());
    peer.map_or(Ok(()), Peer::tidy)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{:?} ended with {status}", row.command).into())
    }
}

fn piped(command: &mut Command) -> Result<Child> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command.stderr(Stdio::null()).spawn()?)
}

/// Saves a machine that waits for input; gives what `ctl` says of it.
fn save(kernel: &Path, mib: u64, lean: &str, folder: &Path) -> Result<String> {
    let (mut child, socket) = start(kernel, mib, lean, folder)?;
    bell(&mut child)?;
    let name = folder.join(lean);
    let said = ctl(&socket, &["snapshot", &name.display().to_string()])?;
    ctl(&socket, &["stop"])?;
    child.wait()?;
    Ok(said)
}

/// Starts a machine; gives its control socket too.
fn start(kernel: &Path, mib: u64, lean: &str, folder: &Path) -> Result<(Child, PathBuf)> {
    let socket = folder.join("control");
    let mut command = Command::new(common::binary());
    command
        .arg(format!("--kernel={}", kernel.display()))
        .arg(format!("--control={}", socket.display()))
        .args([&format!("--guest-memory={mib}"), &format!("--lean={lean}")]);
    Ok((piped(&mut command)?, socket))
}

/// Waits for one.
fn bell(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.as_mut().ok_or("no stdout")?;
    let mut byte = [0];
    stdout.read_exact(&mut byte)?;
    match byte {
        [b'\x07'] => Ok(()),
        other => Err(format!("the guest printed {other:?}").into()),
    }
}

/// Asks a machine; gives what `ctl` says.
fn ctl(socket: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(common::binary());
    let output = command.arg("ctl").arg(socket).args(arguments).output()?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    } else {
        Err(String::from_utf8(output.stderr)?.into())
    }
}

/// Saves a machine again and again, of which nothing or 64 MiB has changed since.
fn changes() -> Result<()> {
    const MIB: u64 = 1024;
    let folder = tempfile::tempdir()?;
    let kernel = common::kernel(&writer());
    let (mut child, socket) = start(kernel.path(), MIB, "on", folder.path())?;
    bell(&mut child)?;
    let saved = folder.path().join("saved").display().to_string();
    println!("{MIB} MiB, what changed");
    for changed in [0, 0, 64, 64, 64, 0] {
        if changed > 0 {
            let stdin = child.stdin.as_mut().ok_or("no stdin")?;
            stdin.write_all(b"\n")?;
            bell(&mut child)?;
        }
        let said = ctl(&socket, &["snapshot", &saved, "--diff"])?;
        println!("  {changed:2} MiB: {said}");
    }
    // All of it, which is no more than what was written ever.
    let said = ctl(&socket, &["snapshot", &saved])?;
    println!("  64 MiB: {said}");
    ctl(&socket, &["stop"])?;
    child.wait()?;
    if let Some(peer) = Peer::new(folder.path()) {
        let still = peer.save(kernel.path(), MIB, 1)?.as_millis();
        println!("  64 MiB: firecracker: the guest stood still for {still} ms");
    }
    Ok(())
}

fn compare(mib: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = common::kernel(&code());
    let memory = folder.path().join("memory");
    File::create(&memory)?.set_len(mib << 20)?;
    let floor = |kind: &str| {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(FLOOR, kind).env(MEMORY, &memory);
        Ok::<_, std::io::Error>(command)
    };
    println!("{mib} MiB");
    let mut rows = vec![
        Timed::new("floor", floor("bare")?),
        Timed::new("floor+irqchip", floor("irqchip")?),
    ];
    for (name, lean) in [("restored", "off"), ("restored, lean", "on")] {
        println!(
            "  {lean:3}: {}",
            save(kernel.path(), mib, lean, folder.path())?
        );
        let mut command = Command::new(common::binary());
        command.arg("restore").arg(folder.path().join(lean));
        rows.push(Timed::new(name, command));
    }
    let mut command = Command::new(common::binary());
    command.args(["restore", "--sandbox=off"]);
    command.arg(folder.path().join("on"));
    rows.push(Timed::new("the same, no sandbox", command));
    let peer = Peer::new(folder.path()).filter(|_| mib <= peer::MOST_MIB);
    let mut peers = Vec::new();
    if let Some(peer) = &peer {
        let still = peer.save(kernel.path(), mib, 0)?.as_millis();
        println!("  firecracker: the guest stood still for {still} ms");
        peers.push(Timed::new("firecracker", peer.command()));
    }
    for _ in 0..ROUNDS {
        rows.iter_mut().try_for_each(|row| measure(row, None))?;
        peers
            .iter_mut()
            .try_for_each(|row| measure(row, peer.as_ref()))?;
    }
    rows.append(&mut peers);
    println!(
        "  {:16} {:>16} {:>7} {:>14}",
        "", "first byte", "ratio", "whole life"
    );
    let (base, _) = rows[0].medians();
    for row in &mut rows {
        let (byte, life) = row.medians();
        println!(
            "  {:16} {byte:13.2} ms {:7.2} {life:11.2} ms",
            row.name,
            byte / base
        );
    }
    Ok(())
}
