//! `ctl`: asks a VM that runs with --control, from another process.

use std::env;
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vmm_reference::{
    Change, Command, Error, Metrics, MissingPart, Report, State, Status, VcpuRegisters,
};

use super::connection::Connection;
use super::errors::print_error;
use super::files::print;
use super::request::{CtlOptions, What};
use super::status::FAILED;
#[cfg(feature = "snapshot")]
use super::{fork, save};
use super::{metrics, report, usage};

/// After that time the VM is asked again for what its guest has not told yet.
const AGAIN: Duration = Duration::from_millis(10);

/// Does what the command line asks for.
pub(super) fn run(options: &CtlOptions) -> Result<ExitCode, Error> {
    let mut command = match options.what.command() {
        Ok(command) => command,
        Err(error) => {
            let arguments: Vec<OsString> = env::args_os().collect();
            return Ok(usage::end(&error, &arguments));
        }
    };
    let files = match &options.what {
        What::Device { part, .. } => part.open()?,
        _ => Vec::new(),
    };
    if let Some(Command::Device {
        change: Change::File(file),
        ..
    }) = &mut command
    {
        file.twice = files.len() > 1;
    }
    let mut vm = Connection::open(&options.socket)?;
    #[cfg(feature = "snapshot")]
    if let What::Snapshot { folder, diff, blk } = &options.what {
        let (diff, copies) = (*diff, blk);
        return save::save(&mut vm, folder, save::How { diff, copies }, options.json);
    }
    #[cfg(feature = "snapshot")]
    if let What::Fork(wanted) = &options.what {
        return fork::fork(&mut vm, wanted, options.json);
    }
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    match command {
        Some(command) => {
            let asked = Instant::now();
            loop {
                let answer = match vm.ask(&json!(command), &files)? {
                    Ok(answer) => answer,
                    Err(refusal) if options.json => {
                        print_error(&refusal);
                        return Ok(FAILED.into());
                    }
                    Err(refusal) => return Err(vm.refused(&refusal)),
                };
                let ends = matches!(command, Command::Stop {});
                let reply = text(&answer, &command, &options.what, asked);
                match reply {
                    Ok(Text::NotYet) => {
                        thread::sleep(AGAIN);
                        continue;
                    }
                    Ok(Text::Is(text)) if !options.json => print(&text)?,
                    // What a later version answers besides is shown as it is.
                    _ => print(&answer.to_string())?,
                }
                if ends {
                    // Whoever starts another one next finds its socket and its disks free.
                    vm.wait_for_end();
                }
                break;
            }
        }
        None => {
            if let Err(refusal) = vm.ask(&json!({ "subscribe": [] }), &[])? {
                return Err(vm.refused(&refusal));
            }
            vm.wait_for_ever()?;
            while let Some(line) = vm.line()? {
                // Events of kinds that are not known here, likewise.
                match event_text(&line) {
                    Some(text) if !options.json => print(&text)?,
                    _ => print(line.trim_end())?,
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is printed of an answer.
enum Text {
    Is(String),
    /// The guest is about to tell something newer.
    NotYet,
}

/// `asked` is when the command was first sent.
fn text(
    answer: &Value,
    command: &Command,
    what: &What,
    asked: Instant,
) -> serde_json::Result<Text> {
    let answer = answer.clone();
    Ok(Text::Is(match command {
        Command::Status {} => status_text(&serde_json::from_value(answer)?),
        Command::Metrics {} => {
            let counted: Metrics = serde_json::from_value(answer)?;
            match what {
                What::Metrics { prometheus: true } => metrics::prometheus(&counted),
                _ => metrics::text(&counted),
            }
        }
        Command::Registers {} => {
            let vcpus: Vec<VcpuRegisters> =
                serde_json::from_value(answer.get("vcpus").cloned().unwrap_or_default())?;
            registers_text(&vcpus)
        }
        Command::Query { .. } => {
            let report: Report = serde_json::from_value(answer)?;
            if report::has_newer(&report, asked) {
                return Ok(Text::NotYet);
            }
            report::text(&report)
        }
        Command::Shutdown { .. } => "the guest was asked to power off".to_owned(),
        Command::CtrlAltDel {} => "the guest was told".to_owned(),
        Command::Device { device, change } => format!("{device}: {change}"),
        Command::Reset {} => "the guest starts again".to_owned(),
        _ => {
            let state: State =
                serde_json::from_value(answer.get("state").cloned().unwrap_or_default())?;
            state.to_string()
        }
    }))
}

fn status_text(status: &Status) -> String {
    let mut text = format!("{:9} {}\n", "state", status.state);
    text += &format!("{:9} {}\n", "vCPUs", status.vcpus);
    text += &format!("{:9} {} MiB\n", "memory", status.memory_bytes >> 20);
    text += &format!("{:9} {}", "restarts", status.restarts);
    let sandbox = status.sandbox.as_ref();
    text += &format!(
        "\n{:9} {}",
        "sandbox",
        sandbox.map_or("off", |report| &report.level)
    );
    for MissingPart { part, why, .. } in sandbox.iter().flat_map(|report| &report.missing) {
        text += &format!("\n{:9} without {part}: {why}", "");
    }
    for device in &status.devices {
        text += &format!("\n{:9} {}", device.id, device.state);
    }
    text
}

fn registers_text(vcpus: &[VcpuRegisters]) -> String {
    let text = |vcpu: &VcpuRegisters| format!("vCPU {}\n{}", vcpu.id, vcpu.report.trim_end());
    vcpus.iter().map(text).collect::<Vec<_>>().join("\n\n")
}

/// An event in words, if it is one that is known here.
fn event_text(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    let text = |key| event.get(key).and_then(Value::as_str);
    let number = |key| event.get(key).and_then(Value::as_u64);
    let times = || number("times").map(so_far);
    let cause = || text("cause");
    let device = || text("device");
    let what = match text("event")? {
        "state" => text("state")?.to_owned(),
        "shutdown-asked" => format!(
            "the guest was asked to power off, within {} ms",
            number("timeout_ms")?
        ),
        "restart" => format!("the guest starts again, restart {}", number("restarts")?),
        "guest-crashed" => format!("the guest crashed: vCPU {}: {}", number("vcpu")?, cause()?),
        "driver-ready" => format!("{}: a driver is ready{}", device()?, times()?),
        "needs-reset" => format!(
            "{}: its driver has to reset it{}: {}",
            device()?,
            times()?,
            cause()?
        ),
        "device-lost" => format!("{}: lost: {}", device()?, cause()?),
        "device-changed" => format!("{}: {}", device()?, text("change")?),
        "limited" => format!("{}: its limits hold requests back{}", device()?, times()?),
        "error" => {
            let device = device().map(|device| format!("{device}: "));
            let device = device.unwrap_or_default();
            format!("{device}error{}: {}", times()?, cause()?)
        }
        "forked" => format!("forked: the process {}", number("pid")?),
        "fork-ended" => format!("the fork {} has ended: {}", number("pid")?, text("status")?),
        "ended" => format!("ended: {}", text("reason")?),
        "lost" => format!("{} events are missing here", number("count")?),
        _ => return None,
    };
    let time = metrics::seconds(number("monotonic_us")?);
    Some(format!("{time:12.6} s  {what}"))
}

/// Of what has happened before.
fn so_far(times: u64) -> String {
    match times {
        0 | 1 => String::new(),
        times => format!(", {times} times so far"),
    }
}

#[cfg(test)]
mod tests {
    use vmm_reference::Happening;

    use super::*;

    fn said(what: &Happening) -> Option<String> {
        let mut event = json!(what);
        event["monotonic_us"] = 1_500_000.into();
        event_text(&event.to_string())
    }

    #[test]
    fn every_event_has_a_text() {
        let (device, cause) = (|| "blk0".to_owned(), || "no".to_owned());
        for (what, expected) in [
            (
                Happening::State {
                    state: State::Paused,
                },
                "paused",
            ),
            (
                Happening::ShutdownAsked { timeout_ms: 5 },
                "the guest was asked to power off, within 5 ms",
            ),
            (
                Happening::Restart { restarts: 2 },
                "the guest starts again, restart 2",
            ),
            (
                Happening::GuestCrashed {
                    vcpu: 1,
                    cause: cause(),
                },
                "the guest crashed: vCPU 1: no",
            ),
            (
                Happening::DriverReady {
                    device: device(),
                    times: 1,
                },
                "blk0: a driver is ready",
            ),
            (
                Happening::NeedsReset {
                    device: device(),
                    cause: cause(),
                    times: 2,
                },
                "blk0: its driver has to reset it, 2 times so far: no",
            ),
            (
                Happening::DeviceLost {
                    device: device(),
                    cause: cause(),
                },
                "blk0: lost: no",
            ),
            (
                Happening::DeviceChanged {
                    device: device(),
                    change: "link up".to_owned(),
                },
                "blk0: link up",
            ),
            (
                Happening::Limited {
                    device: device(),
                    times: 3,
                },
                "blk0: its limits hold requests back, 3 times so far",
            ),
            (
                Happening::Error {
                    device: None,
                    cause: cause(),
                    times: 1,
                },
                "error: no",
            ),
            (Happening::Forked { pid: 7 }, "forked: the process 7"),
            (
                Happening::ForkEnded {
                    pid: 7,
                    status: "signal 9".to_owned(),
                },
                "the fork 7 has ended: signal 9",
            ),
            (
                Happening::Ended {
                    reason: cause(),
                    failed: false,
                },
                "ended: no",
            ),
            (Happening::Lost { count: 7 }, "7 events are missing here"),
        ] {
            let expected = format!("    1.500000 s  {expected}");
            assert_eq!(said(&what), Some(expected), "{what:?}");
        }
        assert_eq!(event_text(r#"{"event":"news","monotonic_us":1}"#), None);
    }
}
