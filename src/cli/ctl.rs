//! `ctl`: asks a VM that runs with --control, from another process.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use vmm_reference::{Command, Error, Event, Happening, PROTOCOL, Reply, Status};

use super::errors::print_error;
use super::part::Part;
use super::{FAILED, files::print, metrics, report, usage, values};

/// The longest line of an answer, in bytes.
const MAX_LINE: u64 = 1 << 20;
/// How long a VM may take for an answer, and for its greeting.
const PATIENCE: Duration = Duration::from_secs(60);
const GREETING: Duration = Duration::from_secs(5);
/// After that time the VM is asked again for what its guest has not told yet.
const AGAIN: Duration = Duration::from_millis(10);

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The VM's control socket
    #[arg(value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    what: What,
    /// Prints the VM's answer as it is, and errors likewise: one JSON object a line
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// The guest stands still until it is resumed
    Pause,
    /// A paused guest goes on
    Resume,
    /// Says what the VM and its devices do
    Status,
    /// The VM ends now
    Stop,
    /// Asks the guest to power itself off
    Shutdown {
        /// How long it may take, before the VM ends [default: what the VM was started with]
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = values::seconds())]
        timeout: Option<u32>,
    },
    /// The guest starts again, with fresh memory and the same devices
    Reset,
    /// Says what the VM has done so far
    Metrics {
        /// In the text format of Prometheus
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// Prints what happens to the VM, until it ends
    Events,
    /// Changes a device while the VM runs or is paused, or has it tell something
    Device {
        /// The device's id, as `status` and `plan` tell it: blk0, net0, …
        id: String,
        #[command(subcommand)]
        part: Part,
    },
}

impl What {
    fn command(&self) -> Result<Option<Command>, clap::Error> {
        Ok(Some(match self {
            Self::Pause => Command::Pause {},
            Self::Resume => Command::Resume {},
            Self::Status => Command::Status {},
            Self::Stop => Command::Stop {},
            Self::Shutdown { timeout } => Command::Shutdown {
                timeout_s: *timeout,
            },
            Self::Reset => Command::Reset {},
            Self::Metrics { .. } => Command::Metrics {},
            Self::Device { id, part } => part.command(id.clone())?,
            Self::Events => return Ok(None),
        }))
    }
}

/// Does what the command line asks for.
pub(super) fn run(options: &Options) -> Result<ExitCode, Error> {
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
    match command {
        Some(command) => {
            let asked = Instant::now();
            loop {
                let answer = match vm.ask(&json!(command), file.as_ref())? {
                    Ok(answer) => answer,
                    Err(refusal) if options.json => {
                        print_error(&refusal);
                        return Ok(FAILED.into());
                    }
                    Err(refusal) => return Err(vm.refused(&refusal)),
                };
                let reply = Reply::deserialize(&answer);
                if let Ok(Reply::Device(report)) = &reply
                    && report::has_newer(report, asked)
                {
                    thread::sleep(AGAIN);
                    continue;
                }
                // What a later version answers besides is shown as it is.
                match reply {
                    Ok(reply) if !options.json => print(&text(&reply, &command, &options.what))?,
                    _ => print(&answer.to_string())?,
                }
                break;
            }
        }
        None => {
            if let Err(refusal) = vm.ask(&json!({ "subscribe": [] }), None)? {
                return Err(vm.refused(&refusal));
            }
            vm.wait_for_ever()?;
            while let Some(line) = vm.line()? {
                // Events of kinds that are not known here, likewise.
                match serde_json::from_str(&line) {
                    Ok(event) if !options.json => print(&event_text(&event))?,
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

    /// Asks, with a file that goes with the request; gives what the answer has under "ok", or else under "error".
    fn ask(&mut self, request: &Value, file: Option<&File>) -> Result<Result<Value, Value>, Error> {
        let sent = send(self.stream.get_mut(), &format!("{request}\n"), file);
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

/// Sends a line; a descriptor goes with its last byte.
fn send(stream: &mut UnixStream, line: &str, file: Option<&File>) -> std::io::Result<()> {
    let Some(file) = file else {
        return stream.write_all(line.as_bytes());
    };
    let (end, bytes) = line.as_bytes().split_last().unwrap_or((&b'\n', &[]));
    stream.write_all(bytes)?;
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
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

fn text(reply: &Reply, command: &Command, what: &What) -> String {
    match reply {
        Reply::Status(status) => status_text(status),
        Reply::Metrics(counted) => match what {
            What::Metrics { prometheus: true } => metrics::prometheus(counted),
            _ => metrics::text(counted),
        },
        Reply::Done { state } => match command {
            Command::Shutdown { .. } => "the guest was asked to power off".to_owned(),
            Command::Device { device, change } => format!("{device}: {change}"),
            Command::Reset {} => "the guest starts again".to_owned(),
            _ => state.to_string(),
        },
        Reply::Device(report) => report::text(report),
        // None that this version can have read.
        _ => String::new(),
    }
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

fn event_text(event: &Event) -> String {
    let what = match &event.what {
        Happening::State { state } => format!("{state}"),
        Happening::ShutdownAsked { timeout_ms } => {
            format!("the guest was asked to power off, within {timeout_ms} ms")
        }
        Happening::Restart { restarts } => format!("the guest starts again, restart {restarts}"),
        Happening::GuestCrashed { vcpu, cause } => {
            format!("the guest crashed: vCPU {vcpu}: {cause}")
        }
        Happening::DriverReady { device, times } => {
            format!("{device}: a driver is ready{}", so_far(*times))
        }
        Happening::NeedsReset {
            device,
            cause,
            times,
        } => format!(
            "{device}: its driver has to reset it{}: {cause}",
            so_far(*times)
        ),
        Happening::DeviceLost { device, cause } => format!("{device}: lost: {cause}"),
        Happening::DeviceChanged { device, change } => format!("{device}: {change}"),
        Happening::Limited { device, times } => {
            format!("{device}: its limits hold requests back{}", so_far(*times))
        }
        Happening::Error {
            device,
            cause,
            times,
        } => {
            let device = device.as_ref().map(|device| format!("{device}: "));
            let device = device.unwrap_or_default();
            format!("{device}error{}: {cause}", so_far(*times))
        }
        Happening::Ended { reason, .. } => format!("ended: {reason}"),
        Happening::Lost { count } => format!("{count} events are missing here"),
        other => other.name().to_owned(),
    };
    format!("{:12.6} s  {what}", metrics::seconds(event.monotonic_us))
}

/// Of what has happened before.
fn so_far(times: u64) -> String {
    match times {
        0 | 1 => String::new(),
        times => format!(", {times} times so far"),
    }
}
