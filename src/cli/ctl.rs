//! `ctl`: asks a VM that runs with --control, from another process.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
#[cfg(feature = "snapshot")]
use vmm_reference::Written;
use vmm_reference::{Command, Error, Metrics, PROTOCOL, Report, State, Status, VcpuRegisters};

use super::errors::print_error;
use super::files::print;
use super::request::{CtlOptions, What};
use super::status::FAILED;
use super::{metrics, report, usage};

/// The longest line of an answer, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// How long a VM may take for an answer, and for its greeting.
const PATIENCE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);
/// After that time the VM is asked again for what its guest has not told yet.
const AGAIN: Duration = Duration::from_millis(10);

/// Does what the command line asks for.
pub(super) fn run(options: &CtlOptions) -> Result<ExitCode, Error> {
    let command = match options.what.command() {
        Ok(command) => command,
        Err(error) => {
            let arguments: Vec<OsString> = env::args_os().collect();
            return Ok(usage::end(&error, &arguments));
        }
    };
    let file = match &options.what {
        What::Device { part, .. } => part.open()?,
        _ => None,
    };
    let mut vm = Connection::open(&options.socket)?;
    #[cfg(feature = "snapshot")]
    if let What::Snapshot { folder } = &options.what {
        return save(&mut vm, folder, options.json);
    }
    let files: Vec<_> = file.iter().collect();
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

/// A VM's control socket.
struct Connection<'a> {
    path: &'a Path,
    stream: BufReader<UnixStream>,
}

impl<'a> Connection<'a> {
    fn open(path: &'a Path) -> Result<Self, Error> {
        let refuse = |cause: String| Error::Config {
            field: "control".into(),
            value: path.display().to_string(),
            cause,
            cure: "name the socket of a VM that was started with --control=PATH, as the same user"
                .to_owned(),
        };
        let is_socket = std::fs::metadata(path).map(|found| found.file_type().is_socket());
        if is_socket.is_ok_and(|is_socket| !is_socket) {
            return Err(refuse("it is no socket".to_owned()));
        }
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                refuse("nobody listens there: its VM is gone".to_owned())
            }
            _ => refuse(error.to_string()),
        })?;
        let patience = |stream: &UnixStream, time| {
            let set = stream.set_read_timeout(Some(time));
            set.map_err(|error| refuse(error.to_string()))
        };
        patience(&stream, GREETING)?;
        let mut connection = Self {
            path,
            stream: BufReader::new(stream),
        };
        let greeting = connection.value().map_err(|error| match error {
            Error::Host { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock => {
                connection.strange("it is no control socket: it says nothing")
            }
            error => error,
        })?;
        patience(connection.stream.get_ref(), PATIENCE)?;
        match greeting.get("protocol").and_then(Value::as_u64) {
            Some(version) if version == u64::from(PROTOCOL) => Ok(connection),
            Some(version) => Err(connection.strange(&format!(
                "its protocol has version {version}, this program knows {PROTOCOL}"
            ))),
            None => Err(connection.strange("it is no control socket")),
        }
    }

    /// Asks, with files that go with the request; gives what the answer has under "ok", or else under "error".
    fn ask(&mut self, request: &Value, files: &[&File]) -> Result<Result<Value, Value>, Error> {
        let sent = send(self.stream.get_mut(), &format!("{request}\n"), files);
        sent.map_err(|error| self.failed(error))?;
        let mut answer = self.value()?;
        Ok(match answer.get_mut("error") {
            Some(error) => Err(error.take()),
            None => Ok(answer.get_mut("ok").map(Value::take).unwrap_or_default()),
        })
    }

    /// The error for what the VM says under "error".
    fn refused(&self, refusal: &Value) -> Error {
        let message = refusal.get("message").and_then(Value::as_str);
        Error::Host {
            what: format!("{}", self.path.display()),
            source: std::io::Error::other(message.unwrap_or("it was refused").to_owned()),
        }
    }

    /// Events may be as far apart as they like.
    fn wait_for_ever(&self) -> Result<(), Error> {
        let set = self.stream.get_ref().set_read_timeout(None);
        set.map_err(|error| self.failed(error))
    }

    fn value(&mut self) -> Result<Value, Error> {
        let line = self
            .line()?
            .ok_or_else(|| self.strange("it says nothing"))?;
        serde_json::from_str(&line)
            .map_err(|_| self.strange("what it says is no line of the protocol"))
    }

    /// The next line; `None` at the end.
    fn line(&mut self) -> Result<Option<String>, Error> {
        let mut line = String::new();
        let read = (&mut self.stream).take(MAX_LINE).read_line(&mut line);
        let len = read.map_err(|error| self.failed(error))?;
        Ok((len > 0).then_some(line))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        Error::Host {
            what: format!("{}: no answer", self.path.display()),
            source,
        }
    }

    fn strange(&self, what: &str) -> Error {
        self.failed(std::io::Error::other(what.to_owned()))
    }
}

/// Sends a line; descriptors go with its last byte.
fn send(stream: &mut UnixStream, line: &str, files: &[&File]) -> std::io::Result<()> {
    if files.is_empty() {
        return stream.write_all(line.as_bytes());
    }
    let (end, bytes) = line.as_bytes().split_last().unwrap_or((&b'\n', &[]));
    stream.write_all(bytes)?;
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    // No command takes more.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&files));
    let end = [*end];
    sendmsg(
        stream,
        &[IoSlice::new(&end)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Saves the VM into a folder.
#[cfg(feature = "snapshot")]
fn save(vm: &mut Connection<'_>, folder: &Path, json: bool) -> Result<ExitCode, Error> {
    let files = super::snapshot::Files::new(folder)?;
    let command = Command::Snapshot {
        memory: files.memory.clone(),
    };
    // It takes as long as the disk takes for the memory.
    vm.wait_for_ever()?;
    let answer = match vm.ask(&json!(command), &files.open())? {
        Ok(answer) => answer,
        Err(refusal) if json => {
            print_error(&refusal);
            return Ok(FAILED.into());
        }
        Err(refusal) => return Err(vm.refused(&refusal)),
    };
    files.publish()?;
    match serde_json::from_value::<Written>(answer.clone()) {
        Ok(written) if !json => print(&format!(
            "saved to {}: {} KiB of memory; the guest stood still for {} ms",
            folder.display(),
            written.memory_bytes >> 10,
            written.still_us.div_ceil(1000)
        ))?,
        _ => print(&answer.to_string())?,
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
