//! How long a saved machine takes to go on, and how long a guest stands still to be saved.
//!
//! The guest waits for a byte of input, prints one and asks for a reset: it is saved while it waits, and what a restored
//! one prints is the first thing that it does. Each round runs each VMM as a process of its own, in turn: the restored
//! machine, lean and full, and the least any program must do: map a file of that size privately, make a VM with it and
//! one vCPU, run the same code. Measured is from spawn to that byte, and from spawn to the end of the process. Prints
//! medians and ratios, for several sizes of memory: `cargo bench --bench snapshot`.

#[path = "../../tests/common/mod.rs"]
mod common;
#[path = "../common/floor.rs"]
mod floor;
#[path = "../common/timed.rs"]
mod timed;

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use common::{RESET, print};
use floor::{FLOOR, MEMORY};
use timed::Timed;

const ROUNDS: usize = 50;
const MIB: [u64; 3] = [128, 1024, 6144];
/// More than this much memory a floor has in one piece only.
const FLOOR_MIB: u64 = 3072;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::var(FLOOR) {
        Ok(kind) => floor::run(&kind, &[print("\x07"), RESET.to_vec()].concat()),
        Err(_) => MIB.into_iter().try_for_each(compare),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("snapshot bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a bell, waits for input, prints another one and resets.
fn code() -> Vec<u8> {
    // mov dx, 0x3fd; in al, dx; test al, 1; jz back to in; mov dx, 0x3f8; in al, dx
    let wait = [
        0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec,
    ];
    [print("\x07"), wait.to_vec(), print("\x07"), RESET.to_vec()].concat()
}

/// Runs it once.
fn measure(row: &mut Timed) -> Result<()> {
    let start = Instant::now();
    let mut child = piped(&mut row.command)?;
    child.stdin.take().ok_or("no stdin")?.write_all(b"\n")?;
    let mut byte = [0];
    child
        .stdout
        .as_mut()
        .ok_or("no stdout")?
        .read_exact(&mut byte)?;
    row.first_byte.push(start.elapsed());
    let status = child.wait()?;
    row.life.push(start.elapsed());
    if byte == *b"\x07" && status.success() {
        Ok(())
    } else {
        Err(format!("{:?} printed {byte:?}, ended with {status}", row.command).into())
    }
}

fn piped(command: &mut Command) -> Result<Child> {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(command.stderr(Stdio::null()).spawn()?)
}

/// Saves a machine that waits for input; gives what `ctl` says of it.
fn save(kernel: &Path, mib: u64, lean: &str, folder: &Path) -> Result<String> {
    let socket = folder.join("control");
    let ctl = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new(common::binary());
        let output = command.arg("ctl").arg(&socket).args(arguments).output()?;
        let said = String::from_utf8(output.stdout)?;
        if output.status.success() {
            Ok(said)
        } else {
            Err(String::from_utf8(output.stderr)?.into())
        }
    };
    let mut command = Command::new(common::binary());
    command
        .arg(format!("--kernel={}", kernel.display()))
        .arg(format!("--control={}", socket.display()))
        .args([&format!("--guest-memory={mib}"), &format!("--lean={lean}")]);
    let mut child = piped(&mut command)?;
    child
        .stdout
        .as_mut()
        .ok_or("no stdout")?
        .read_exact(&mut [0])?;
    let name = folder.join(lean);
    let said = ctl(&["snapshot", &name.display().to_string()])?;
    ctl(&["stop"])?;
    child.wait()?;
    Ok(said.trim().to_owned())
}

fn compare(mib: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kernel = common::kernel(&code());
    let memory = folder.path().join("memory");
    File::create(&memory)?.set_len(mib.min(FLOOR_MIB) << 20)?;
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
    for _ in 0..ROUNDS {
        rows.iter_mut().try_for_each(measure)?;
    }
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
