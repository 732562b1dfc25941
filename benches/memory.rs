//! What guest memory costs when it is touched, by what it is made of.
//!
//! A guest writes to one word of each 4 KiB of its memory, twice, and prints a byte before, between and after: the
//! first time the host has to find the pages, the second time they are there. The difference, and the time to the
//! first byte, are printed as medians, and as ratios to anonymous memory: `cargo bench --bench memory`.
//! `VMM_BENCH_MIB=N` says how much is touched (1024); what the host has no huge pages for is left out.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::Read;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use common::{RESET, print};

const ROUNDS: usize = 5;
/// Below are the guest and what it was told.
const FROM: u32 = 16 << 20;
const ROWS: [(&str, &str); 6] = [
    ("anonymous", "off"),
    ("anonymous", "transparent"),
    ("anonymous", "2M"),
    ("shared", "off"),
    ("shared", "transparent"),
    ("shared", "2M"),
];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Touches so many pages twice.
fn code(pages: u32) -> Vec<u8> {
    let mut touch = vec![0xbf]; // mov edi, FROM
    touch.extend(FROM.to_le_bytes());
    touch.push(0xb9); // mov ecx, pages
    touch.extend(pages.to_le_bytes());
    // again: mov [rdi], edi; add edi, 4096; dec ecx; jnz again
    touch.extend([
        0x89, 0x3f, 0x81, 0xc7, 0, 0x10, 0, 0, 0xff, 0xc9, 0x75, 0xf4,
    ]);
    [
        print("."),
        touch.clone(),
        print("."),
        touch,
        print("."),
        RESET.to_vec(),
    ]
    .concat()
}

/// Milliseconds to the first byte, and of the first touch beyond the second one.
fn measure(command: &mut Command) -> Result<[f64; 2]> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut times = [0.0; 3];
    for time in &mut times {
        stdout.read_exact(&mut [0])?;
        *time = start.elapsed().as_secs_f64() * 1e3;
    }
    if !child.wait()?.success() {
        return Err(format!("{command:?} failed").into());
    }
    let [first, touched, again] = times;
    Ok([first, (touched - first) - (again - touched)])
}

fn compare() -> Result<()> {
    let mib: u32 = std::env::var("VMM_BENCH_MIB").map_or(Ok(1024), |text| text.parse())?;
    let kernel = common::kernel(&code(mib << 8));
    let mut rows = Vec::new();
    for (backing, pages) in ROWS {
        let arguments = [
            format!("--kernel={}", kernel.path().display()),
            format!("--guest-memory={}M", mib + (FROM >> 20)),
            format!("--memory-backing={backing}"),
            format!("--huge-pages={pages}"),
        ];
        let plan = Command::new(common::binary())
            .arg("plan")
            .args(&arguments)
            .output()?;
        if plan.status.success() {
            let mut command = Command::new(common::binary());
            command.args(&arguments);
            rows.push((format!("{backing}, {pages}"), command, Vec::new()));
        } else {
            let why = String::from_utf8_lossy(&plan.stderr);
            eprint!("left out: {backing}, {pages}: {why}");
        }
    }
    for _ in 0..ROUNDS {
        for (_, command, samples) in &mut rows {
            // A host that is itself a virtual machine may have given its free memory back to its own host. This
            // run gets it, and the next one, at once, finds it.
            measure(command)?;
            samples.push(measure(command)?);
        }
    }
    let median = |samples: &[[f64; 2]], which: usize| {
        let mut samples: Vec<f64> = samples.iter().map(|sample| sample[which]).collect();
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    println!("{mib} MiB touched{:14} first byte       fault-in", "");
    let base = rows.first().map(|(_, _, samples)| samples.clone());
    let base = base.ok_or("nothing to measure")?;
    for (name, _, samples) in &rows {
        let (first, touch) = (median(samples, 0), median(samples, 1));
        println!(
            "{name:24} {first:8.2} ms {:5.2}  {touch:8.1} ms {:5.2}",
            first / median(&base, 0),
            touch / median(&base, 1)
        );
    }
    Ok(())
}
