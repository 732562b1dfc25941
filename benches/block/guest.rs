//! The VMMs that the guest runs on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::case::{Case, Sample};
use crate::common::binary;
use crate::measure::{Calls, Measured, Result, Run};

/// What is counted while the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    Cpu,
    Calls,
}

#[derive(Debug)]
enum Kind {
    Ours { mmio: u64 },
    Firecracker,
}

/// A VMM with a disk.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) name: String,
    kind: Kind,
    binary: PathBuf,
    guest: PathBuf,
    disk: PathBuf,
    engine: String,
    /// The name of the thread that does the disk's work.
    thread: &'static str,
}

/// Registers at a known place, which the bench's driver takes as they are.
const TRANSPORT: &str = "--transport=mmio";

/// Where our VMM puts its disk.
fn address(disk: &str) -> Result<u64> {
    let plan = Command::new(binary())
        .args(["plan", "--json", TRANSPORT, disk])
        .output()?;
    let plan: serde_json::Value = serde_json::from_slice(&plan.stdout)?;
    let devices = plan["devices"].as_array().ok_or("a plan without devices")?;
    devices
        .iter()
        .find(|device| device["kind"]["virtio-mmio"] == "block")
        .and_then(|device| device["range"]["base"].as_u64())
        .ok_or_else(|| "a plan without a disk".into())
}

impl Vmm {
    pub(crate) fn ours(guest: &Path, disk: &Path, engine: &str) -> Result<Self> {
        Ok(Self {
            name: engine.to_owned(),
            kind: Kind::Ours {
                mmio: address(&format!("--blk={}", disk.display()))?,
            },
            binary: binary().into(),
            guest: guest.to_owned(),
            disk: disk.to_owned(),
            engine: engine.to_owned(),
            thread: "virtio-blk",
        })
    }

    pub(crate) fn firecracker(binary: &Path, guest: &Path, disk: &Path, engine: &str) -> Self {
        Self {
            name: format!("firecracker {engine}"),
            kind: Kind::Firecracker,
            binary: binary.to_owned(),
            guest: guest.to_owned(),
            disk: disk.to_owned(),
            engine: engine.to_owned(),
            thread: "firecracker",
        }
    }

    fn command(&self, cmdline: &str) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        match self.kind {
            Kind::Ours { mmio } => command
                .arg(format!("--kernel={}", self.guest.display()))
                .arg(TRANSPORT)
                .arg(format!(
                    "--blk=path={},engine={}",
                    self.disk.display(),
                    self.engine
                ))
                .arg(format!("--append={cmdline} mmio={mmio:#x}")),
            Kind::Firecracker => {
                let config = serde_json::json!({
                    "boot-source": {
                        "kernel_image_path": self.guest,
                        "boot_args": format!("{cmdline} console=ttyS0"),
                    },
                    "drives": [{
                        "drive_id": "disk",
                        "path_on_host": self.disk,
                        "is_root_device": false,
                        "is_read_only": false,
                        "io_engine": self.engine,
                    }],
                    "machine-config": { "vcpu_count": 1, "mem_size_mib": 256 },
                });
                let path = self.disk.with_extension("json");
                fs::write(&path, config.to_string())?;
                command.args(["--no-api", "--config-file"]).arg(path)
            }
        };
        Ok(command)
    }

    /// Runs a case once.
    pub(crate) fn run(&self, case: &Case, rate: f64, watch: Watch) -> Result<(Sample, Calls)> {
        let Case {
            bench,
            depth,
            count,
            ..
        } = case;
        let cmdline = format!("bench={bench} depth={depth} count={count}");
        let run = Run {
            name: &self.name,
            command: self.command(&cmdline)?,
            thread: self.thread,
            calls: (watch == Watch::Calls).then(|| self.disk.with_extension("calls")),
        };
        let Measured {
            cpu,
            waited,
            said,
            calls,
        } = run.measure(|| Ok(()))?;
        let ticks = said.get("ticks").ok_or("no ticks in the result")?;
        let sample = Sample {
            seconds: ticks / rate,
            cpu,
            waited,
            said,
        };
        Ok((sample, calls))
    }
}
