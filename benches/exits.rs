//! What an exit costs beyond what KVM and the processor take.
//!
//! A guest reads a port that nothing is behind, or a register of the machine's last device, again and
//! again; in turn with it the same reads on a floor VMM that answers at once. Measured is the time
//! between the bytes that the guest prints before and after. Prints lower quartiles, and the difference to
//! the floor: `cargo bench --bench exits`.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "common/floor.rs"]
mod floor;

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use common::{RESET, print};
use floor::FLOOR;

const ROUNDS: usize = 40;
const EXITS: u32 = 20_000;
/// Nothing is at this port.
const PORT: u16 = 0x99;
/// Nothing is there, on a floor VMM.
const NOWHERE: u32 = 0xd000_0000;
/// Disks of a machine.
const DISKS: [usize; 3] = [2, 8, 32];
/// KVM's I/O APIC has pins for 15 devices, that of a lean machine for more.
const MACHINE: [&str; 2] = ["--transport=mmio", "--lean=on"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let result = match std::env::var(FLOOR).as_deref() {
        Ok("port") => floor::run("cpuid", &code(None)),
        Ok("memory") => floor::run("cpuid", &code(Some(NOWHERE))),
        _ => compare(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("exits bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The guest, which reads the port or there.
fn code(address: Option<u32>) -> Vec<u8> {
    let mut code = print(".");
    code.push(0xb9); // mov ecx, EXITS
    code.extend(EXITS.to_le_bytes());
    if let Some(address) = address {
        code.push(0xbf); // mov edi, address
        code.extend(address.to_le_bytes());
        code.extend([0x8b, 0x07, 0xff, 0xc9, 0x75, 0xfa]); // mov eax, [rdi]; dec ecx; jnz
    } else {
        code.extend([0x66, 0xba]); // mov dx, PORT
        code.extend(PORT.to_le_bytes());
        code.extend([0xec, 0xff, 0xc9, 0x75, 0xfb]); // in al, dx; dec ecx; jnz
    }
    code.extend(print("."));
    code.extend(RESET);
    code
}

/// The registers of the last disk.
fn address(options: &[String]) -> Result<u32> {
    let plan = Command::new(common::binary())
        .args(["plan", "--json"])
        .args(options)
        .output()?;
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    let devices = plan["devices"].as_array().ok_or("a plan without devices")?;
    devices
        .iter()
        .filter(|device| device["kind"]["virtio-mmio"] == "block")
        .filter_map(|device| device["range"]["base"].as_u64())
        .max()
        .and_then(|address| address.try_into().ok())
        .ok_or_else(|| "a plan without a disk".into())
}

/// Nanoseconds of one exit.
fn measure(command: &mut Command) -> Result<f64> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut byte = [0];
    stdout.read_exact(&mut byte)?;
    let start = Instant::now();
    stdout.read_exact(&mut byte)?;
    let time = start.elapsed();
    if !child.wait()?.success() {
        return Err(format!("{command:?} failed").into());
    }
    Ok(time.as_nanos() as f64 / f64::from(EXITS))
}

/// A VMM, and its floor's place in the list.
struct Row {
    name: String,
    command: Command,
    floor: usize,
    samples: Vec<f64>,
}

fn compare() -> Result<()> {
    let this = std::env::current_exe()?;
    let row = |name: String, command, floor| Row {
        name,
        command,
        floor,
        samples: Vec::new(),
    };
    let mut rows = Vec::new();
    for (place, kind) in ["port", "memory"].into_iter().enumerate() {
        let mut command = Command::new(&this);
        command.env(FLOOR, kind);
        rows.push(row(format!("floor, {kind}"), command, place));
    }
    let disk = tempfile::NamedTempFile::new()?;
    disk.as_file().set_len(1 << 20)?;
    let mut kernels = Vec::new();
    for disks in DISKS {
        let mut options = vec![format!("--blk={},ro", disk.path().display()); disks];
        options.extend(MACHINE.map(str::to_owned));
        for (floor, place) in [None, Some(address(&options)?)].into_iter().enumerate() {
            let kernel = common::kernel(&code(place));
            let mut command = Command::new(common::binary());
            command
                .arg(format!("--kernel={}", kernel.path().display()))
                .args(&options);
            let kind = ["port", "memory"][floor];
            rows.push(row(format!("vmm, {kind}, {disks} disks"), command, floor));
            kernels.push(kernel);
        }
    }
    for _ in 0..ROUNDS {
        for row in &mut rows {
            row.samples.push(measure(&mut row.command)?);
        }
    }
    // What else runs on the machine makes an exit slower, never faster.
    let quartile = |row: &Row| {
        let mut samples = row.samples.clone();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 4]
    };
    println!("{:24} {:>10} {:>14}", "", "an exit", "over the floor");
    for row in &rows {
        let (time, floor) = (quartile(row), quartile(&rows[row.floor]));
        println!("{:24} {time:7.0} ns {:11.0} ns", row.name, time - floor);
    }
    Ok(())
}
