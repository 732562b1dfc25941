//! Runs the cases in turn and prints how they compare.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::{Case, Sample, Way};
use crate::common::{binary, guest_image};
use crate::measure::{Calls, Result, Run, ticks_per_second};
use crate::namespace::{self, Namespace};
use crate::tap;

const ROUNDS: usize = 5;
const TAP: &str = "bench";

const fn case(way: Way, frame: usize, depth: u32, count: u32) -> Case {
    Case {
        way,
        frame,
        depth,
        count,
    }
}

const CASES: [Case; 8] = [
    case(Way::Send, 64, 1, 50_000),
    case(Way::Send, 64, 32, 200_000),
    case(Way::Send, 64, 128, 200_000),
    case(Way::Send, 1500, 128, 200_000),
    case(Way::Receive, 64, 1, 30_000),
    case(Way::Receive, 64, 32, 30_000),
    case(Way::Receive, 64, 128, 30_000),
    case(Way::Receive, 1500, 128, 30_000),
];

/// Compares, in a network namespace of its own.
pub(crate) fn in_namespace() -> Result<()> {
    match namespace::enter()? {
        Namespace::Own => compare(),
        Namespace::Done => Ok(()),
        Namespace::Refused => {
            println!("net bench: SKIPPED, a network namespace needs root and util-linux' unshare");
            Ok(())
        }
    }
}

/// Registers at a known place, which the bench's driver takes as they are.
const TRANSPORT: &str = "--transport=mmio";

/// Where our VMM puts its network device.
fn address() -> Result<u64> {
    let plan = Command::new(binary())
        .args(["plan", "--json", TRANSPORT, &format!("--net={TAP}")])
        .output()?;
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    let devices = plan["devices"].as_array().ok_or("a plan without devices")?;
    devices
        .iter()
        .find(|device| device["kind"]["virtio-mmio"] == "net")
        .and_then(|device| device["range"]["base"].as_u64())
        .ok_or_else(|| "a plan without a network device".into())
}

/// Runs a case once on our VMM.
fn run(
    guest: &Path,
    mmio: u64,
    case: &Case,
    calls: Option<PathBuf>,
) -> Result<(Sample, f64, Calls)> {
    let bench = match case.way {
        Way::Send => "send",
        Way::Receive => "receive",
    };
    let Case {
        frame,
        depth,
        count,
        ..
    } = case;
    let mut command = Command::new(binary());
    command
        .arg(format!("--kernel={}", guest.display()))
        .arg(TRANSPORT)
        .arg(format!("--net={TAP}"))
        .arg(format!(
            "--append=bench={bench} frame={frame} depth={depth} count={count} mmio={mmio:#x}"
        ));
    let run = Run {
        name: "vmm-reference",
        command,
        thread: "virtio-net",
        calls,
    };
    let measured = run.measure(|| match case.way {
        Way::Send => Ok(()),
        Way::Receive => tap::fill(TAP, case),
    })?;
    let said = |name| measured.said.get(name).copied();
    let sample = Sample {
        seconds: 0.0,
        cpu: measured.cpu,
        waited: measured.waited,
        notifications: said("notifications").unwrap_or_default(),
    };
    Ok((sample, said("ticks").ok_or("no ticks")?, measured.calls))
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<_> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn compare() -> Result<()> {
    tap::quiet()?;
    let guest = guest_image().with_file_name("bench-guest");
    let (mmio, rate) = (address()?, ticks_per_second());
    for case in &CASES {
        let (mut floor, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            floor.push(tap::floor(case)?);
            let (sample, ticks, _) = run(&guest, mmio, case, None)?;
            ours.push(Sample {
                seconds: ticks / rate,
                ..sample
            });
        }
        println!(
            "\n{:?} {} bytes, depth {}\n{:15} {:>10} {:>8} {:>6} {:>8} {:>6} {:>8} {:>7}",
            case.way,
            case.frame,
            case.depth,
            "",
            "frames/s",
            "µs",
            "ratio",
            "CPU µs",
            "ratio",
            "notified",
            "waited",
        );
        let count = f64::from(case.count);
        let of_floor = |value: fn(&Sample) -> f64| median(&floor, value);
        for (name, samples) in [("floor", &floor), ("vmm-reference", &ours)] {
            let seconds = median(samples, |sample| sample.seconds);
            let cpu = median(samples, |sample| sample.cpu);
            println!(
                "{name:15} {:10.0} {:8.2} {:6.2} {:8.2} {:6.2} {:8.3} {:6.0}%",
                count / seconds,
                seconds / count * 1e6,
                seconds / of_floor(|sample| sample.seconds),
                cpu / count * 1e6,
                cpu / of_floor(|sample| sample.cpu),
                median(samples, |sample| sample.notifications) / count,
                median(samples, |sample| sample.waited / sample.seconds) * 100.0,
            );
        }
    }
    system_calls(&guest, mmio)
}

/// Counts the system calls of the device's thread. Being traced slows it down.
fn system_calls(guest: &Path, mmio: u64) -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        println!("\nsystem calls: SKIPPED, strace is not installed");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    println!("\nsystem calls of a frame");
    for case in [&CASES[1], &CASES[5]] {
        let report = folder.path().join("calls");
        let (_, _, calls) = run(guest, mmio, case, Some(report))?;
        let per_frame = |calls: u64| calls as f64 / f64::from(case.count);
        print!(
            "{:?} depth {:3} {:8.3}",
            case.way,
            case.depth,
            per_frame(calls.values().sum())
        );
        for (name, calls) in &calls {
            print!("  {name} {:.3}", per_frame(*calls));
        }
        println!();
    }
    Ok(())
}
