//! `restore`: a VM that goes on where a saved one was; and what a saved one is, for `inspect`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
#[cfg(feature = "virtio-console")]
use vmm_reference::VmConfig;
use vmm_reference::{Command, Error, Snapshot, Vm};

use super::arguments::RestoreOptions;
use super::config::Config;
#[cfg(feature = "virtio-console")]
use super::config::ConsoleTarget;
use super::errors::Failure;
use super::{lost_memory, run};

/// The file with the state, in the folder of a saved VM.
pub(super) const STATE: &str = "state";

pub(super) fn run(options: RestoreOptions) -> Result<ExitCode, Failure> {
    #[cfg_attr(
        not(any(
            feature = "virtio-blk",
            feature = "virtio-net",
            feature = "virtio-vsock"
        )),
        allow(unused_mut)
    )]
    let (mut snapshot, file) = read(&options.folder)?;
    #[cfg(feature = "virtio-blk")]
    options
        .blk
        .iter()
        .try_for_each(|new| snapshot.replace_blk(new))?;
    #[cfg(feature = "virtio-net")]
    options
        .net
        .iter()
        .try_for_each(|new| snapshot.replace_net(new))?;
    #[cfg(feature = "virtio-vsock")]
    if let Some(new) = &options.vsock {
        snapshot.replace_vsock(new)?;
    }
    lost_memory::end_with_a_message()?;
    let path = options.folder.join(STATE);
    let memory = options.folder.join(snapshot.memory_file());
    let mut config = Config::default();
    config.vm = snapshot.config().clone();
    #[cfg(feature = "serial")]
    {
        config.serial = options.serial;
    }
    #[cfg(feature = "virtio-console")]
    {
        config.console = console(options.console, &config.vm)?;
    }
    #[cfg(feature = "control")]
    {
        config.control = options.control;
    }
    let inputs = [("restore", path.as_path()), ("restore", memory.as_path())];
    let result = config.check().and_then(|()| {
        run::run(&config, &inputs, None, |consoles| {
            let vm = Vm::restore(snapshot, file, consoles)?;
            if options.paused {
                // It does not run yet, so nothing keeps it from that.
                let _ = vm.handle().command(Command::Pause {});
            }
            Ok(vm)
        })
    });
    result.map_err(|error| Failure::of(error, &config.vm, |_| None))
}

/// Where the virtio console goes, if there is one.
#[cfg(feature = "virtio-console")]
fn console(
    target: Option<ConsoleTarget>,
    config: &VmConfig,
) -> Result<Option<ConsoleTarget>, Error> {
    match (target, config.console) {
        (target, true) => Ok(Some(target.unwrap_or(ConsoleTarget::Null))),
        (None, false) => Ok(None),
        (Some(target), false) => Err(Error::Config {
            field: "console".into(),
            value: target.to_string(),
            cause: "the saved VM has no virtio console".to_owned(),
            cure: "leave it away; --serial says where the serial console goes".to_owned(),
        }),
    }
}

/// The saved VM in a folder, and its file of memory.
fn read(folder: &Path) -> Result<(Snapshot, File), Error> {
    let path = folder.join(STATE);
    let snapshot = Snapshot::read(path.display().to_string(), open(&path)?)?;
    let memory = open(&folder.join(snapshot.memory_file()))?;
    Ok((snapshot, memory))
}

/// Opens a file of a saved VM; nothing hangs.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        // A saved VM has its files in its folder.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW);
    let refused = |cause: String| Error::Config {
        field: "restore".into(),
        value: path.display().to_string(),
        cause,
        cure: "name the folder that `vmm-reference ctl PATH snapshot FOLDER` has written"
            .to_owned(),
    };
    let file = options
        .open(path)
        .map_err(|error| refused(error.to_string()))?;
    let found = file
        .metadata()
        .map_err(|error| refused(error.to_string()))?;
    if found.is_file() {
        Ok(file)
    } else {
        Err(refused("it is no regular file".to_owned()))
    }
}

/// What the saved VM in a folder is, as text or as JSON.
pub(super) fn describe(folder: &Path, json: bool) -> Result<String, Error> {
    let (snapshot, file) = read(folder)?;
    let plan = snapshot.plan();
    let stored = file.metadata().map_or(0, |found| found.blocks() * 512);
    if json {
        let about = json!({
            "version": snapshot.version(),
            "saved_ms": snapshot.saved_ms(),
            "memory_file": snapshot.memory_file(),
            "memory_file_bytes": stored,
            "opens": opens(&snapshot),
            "plan": plan,
        });
        return serde_json::to_string_pretty(&about).map_err(super::plan::cannot_print);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let age = now
        .saturating_sub(Duration::from_millis(snapshot.saved_ms()))
        .as_secs();
    let devices: Vec<_> = plan
        .devices
        .iter()
        .map(|device| device.kind.to_string())
        .collect();
    let lines = [
        (
            "saved VM",
            format!(
                "of vmm-reference {}, saved {} ago",
                snapshot.version().escape_debug(),
                age_text(age)
            ),
        ),
        (
            "needs",
            format!(
                "a host of {} with what its processor had",
                plan.arch.escape_debug()
            ),
        ),
        ("vCPUs", plan.vcpus.to_string()),
        (
            "memory",
            format!(
                "{} MiB, {} KiB of it in {}",
                plan.ram_size() >> 20,
                stored >> 10,
                snapshot.memory_file().escape_debug()
            ),
        ),
        ("devices", devices.join(", ")),
    ];
    let opens = opens(&snapshot);
    let opens = opens
        .iter()
        .map(|text| ("opens", text.escape_debug().to_string()));
    let lines: Vec<_> = lines
        .into_iter()
        .chain(opens)
        .map(|(name, text)| format!("{name:9} {text}"))
        .collect();
    Ok(lines.join("\n"))
}

/// What of the host a restore opens, by the devices' ids.
fn opens(snapshot: &Snapshot) -> Vec<String> {
    let (config, plan) = (snapshot.config(), snapshot.plan());
    let ids = |name: &'static str| {
        let planned = plan.devices.iter();
        planned.filter_map(move |device| {
            let kind = device.kind.virtio()?;
            device.id.clone().filter(|_| kind.name() == name)
        })
    };
    let disks = ids("blk").zip(&config.blk);
    let disks = disks.map(|(id, disk)| format!("{id}: {}", disk.path.display()));
    let taps = ids("net").zip(&config.net);
    let taps = taps.map(|(id, net)| format!("{id}: {net}"));
    let sockets = ids("vsock").zip(&config.vsock);
    let sockets = sockets.map(|(id, vsock)| format!("{id}: {}", vsock.path.display()));
    disks.chain(taps).chain(sockets).collect()
}

/// A number of seconds, in the two units that say most.
fn age_text(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} days {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}
