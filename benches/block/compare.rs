//! Runs the cases in turn and prints how they compare.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::case::{Case, Places, Sample};
use crate::common::guest_image;
use crate::floor;
use crate::guest::{Vmm, Watch};
use crate::measure::{Result, ticks_per_second};

const ROUNDS: usize = 5;
const MIB: u64 = 1 << 20;
const FILE_LEN: u64 = 256 * MIB;
/// Each block of the file begins with its number.
const BLOCK: u64 = 4096;

const fn read4k(bench: &'static str, depth: u32, count: u32) -> Case {
    Case {
        bench,
        places: Places::Random,
        len: 4096,
        depth,
        count,
    }
}

const DEPTH_32: Case = read4k("read4k", 32, 200_000);
const CASES: [Case; 5] = [
    read4k("read4k", 1, 50_000),
    DEPTH_32,
    read4k("read4k", 128, 200_000),
    Case {
        bench: "read1m",
        places: Places::Sequential,
        len: 1 << 20,
        depth: 4,
        count: 2000,
    },
    read4k("latency", 1, 50_000),
];

/// A file with numbered blocks; writing it has brought it into the page cache.
fn disk(path: &Path) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut block = [0; 4096];
    for number in 0..FILE_LEN / BLOCK {
        block[..8].copy_from_slice(&number.to_le_bytes());
        file.write_all(&block)?;
    }
    // Nothing is left to be written back meanwhile.
    file.into_inner()?.sync_all()?;
    Ok(())
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn compare() -> Result<()> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = folder.path().join("disk");
    disk(&path)?;
    let guest = guest_image().with_file_name("bench-guest");
    let mut vmms = vec![
        Vmm::ours(&guest, &path, "io_uring")?,
        Vmm::ours(&guest, &path, "sync")?,
    ];
    if let Some(binary) = std::env::var_os("VMM_BENCH_PEER_FIRECRACKER").map(PathBuf::from) {
        for engine in ["Async", "Sync"] {
            vmms.push(Vmm::firecracker(&binary, &guest, &path, engine));
        }
    }
    let rate = ticks_per_second();
    for case in &CASES {
        measure(case, &vmms, &path, rate)?;
    }
    system_calls(&vmms)?;
    fs::remove_file(path)?;
    Ok(())
}

fn measure(case: &Case, vmms: &[Vmm], path: &Path, rate: f64) -> Result<()> {
    let mut floor = Vec::new();
    let mut samples = vec![Vec::new(); vmms.len()];
    for _ in 0..ROUNDS {
        floor.push(floor::run(case, path)?);
        for (vmm, samples) in vmms.iter().zip(&mut samples) {
            samples.push(vmm.run(case, rate, Watch::Cpu)?.0);
        }
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{} depth {}\n{:20} {:>10} {:>9} {:>8} {:>6} {:>8} {:>6} {:>8} {:>7}",
        case.bench,
        case.depth,
        "",
        "requests/s",
        "MiB/s",
        "µs",
        "ratio",
        "CPU µs",
        "ratio",
        "notified",
        "waited",
    )?;
    let count = f64::from(case.count);
    let seconds = |samples: &[Sample]| median(samples, |sample| sample.seconds);
    let cpu = |samples: &[Sample]| median(samples, |sample| sample.cpu);
    let rows = vmms.iter().map(|vmm| vmm.name.as_str()).zip(&samples);
    for (name, samples) in std::iter::once(("floor", &floor)).chain(rows) {
        let (time, busy) = (seconds(samples), cpu(samples));
        let said = |name: &str| {
            median(samples, |sample| {
                sample.said.get(name).copied().unwrap_or(0.0)
            })
        };
        write!(
            out,
            "{name:20} {:10.0} {:9.0} {:8.2} {:6.2} {:8.2} {:6.2} {:8.3} {:6.0}%",
            count / time,
            count * f64::from(case.len) / time / MIB as f64,
            time / count * 1e6,
            time / seconds(&floor),
            busy / count * 1e6,
            busy / cpu(&floor),
            said("notifications") / count,
            median(samples, |sample| sample.waited / sample.seconds) * 100.0,
        )?;
        if said("median") > 0.0 {
            let micros = |name| said(name) / rate * 1e6;
            write!(
                out,
                "  min {:.1} median {:.1} p99 {:.1} µs",
                micros("min"),
                micros("median"),
                micros("p99")
            )?;
        }
        if said("depth") > 0.0 && said("depth") < f64::from(case.depth) {
            write!(out, "  depth {} only", said("depth"))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Counts the system calls of the device's thread. Being traced slows it down.
fn system_calls(vmms: &[Vmm]) -> Result<()> {
    if std::process::Command::new("strace")
        .arg("-V")
        .output()
        .is_err()
    {
        println!("\nsystem calls: SKIPPED, strace is not installed");
        return Ok(());
    }
    for case in [&CASES[0], &DEPTH_32] {
        println!(
            "\nsystem calls of a request, {} depth {}",
            case.bench, case.depth
        );
        for vmm in vmms {
            let (_, calls) = vmm.run(case, 1.0, Watch::Calls)?;
            let per_request = |calls: &u64| *calls as f64 / f64::from(case.count);
            let total: u64 = calls.values().sum();
            print!("{:20} {:8.3}", vmm.name, per_request(&total));
            for (name, calls) in &calls {
                print!("  {name} {:.3}", per_request(calls));
            }
            println!();
        }
    }
    Ok(())
}
