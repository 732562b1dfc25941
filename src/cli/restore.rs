//! `restore`: a VM that goes on where a saved one was; and what a saved one is, for `inspect`.

use std::fs::{File, OpenOptions};
use std::io;
use std::iter;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
#[cfg(any(feature = "virtio-console", feature = "virtio-vsock"))]
use vmm_reference::VmConfig;
#[cfg(feature = "virtio-vsock")]
use vmm_reference::VsockReplacement;
use vmm_reference::{Command, Error, SavedMemory, Snapshot, Vm};

use super::arguments::RestoreOptions;
use super::config::Config;
#[cfg(feature = "virtio-console")]
use super::config::ConsoleTarget;
use super::errors::Failure;
use super::restored::RestoredMemory;
use super::{lost_memory, run};

/// The file with the state, in the folder of a saved VM.
pub(super) const STATE: &str = "state";
/// How often another state is read because the memory of the one before has gone.
const ATTEMPTS: u32 = 16;

pub(super) fn run(options: RestoreOptions) -> Result<ExitCode, Failure> {
    // First: what is opened may get the number of a descriptor that is named.
    let handler = options.memory.unwrap_or_default();
    let prefault = handler == RestoredMemory::Prefault;
    let (mut snapshot, saved) = match handler.connect()? {
        Some(handled) => (read_state(&options.folder)?, handled),
        None => {
            let (snapshot, files) = read(&options.folder)?;
            let saved = if prefault {
                SavedMemory::Prefault(files)
            } else {
                SavedMemory::Lazy(files)
            };
            (snapshot, saved)
        }
    };
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
    snapshot.set_clock(options.clock.unwrap_or_default());
    let path = options.folder.join(STATE);
    let memory = paths(&options.folder, &snapshot);
    lost_memory::end_with_a_message(&saved)?;
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
    config.sandbox = options.sandbox;
    let inputs: Vec<_> = iter::once(&path)
        .chain(&memory)
        .map(|path| ("restore", path.as_path()))
        .collect();
    let result = config.check().and_then(|()| {
        run::run(&config, &inputs, None, |inside, attachments| {
            #[cfg(feature = "virtio-vsock")]
            move_vsock(&mut snapshot, inside)?;
            #[cfg(not(feature = "virtio-vsock"))]
            let _ = inside;
            let vm = Vm::restore(snapshot, saved, attachments)?;
            if options.paused {
                // It does not run yet, so nothing keeps it from that.
                let _ = vm.handle().command(Command::Pause {});
            }
            Ok(vm)
        })
    });
    result.map_err(|error| Failure::of(error, &config.vm, |_| None))
}

/// The socket is at the path that it has in `config`.
#[cfg(feature = "virtio-vsock")]
fn move_vsock(snapshot: &mut Snapshot, config: &VmConfig) -> Result<(), Error> {
    let Some(vsock) = &config.vsock else {
        return Ok(());
    };
    if snapshot.config().vsock.as_ref() == Some(vsock) {
        return Ok(());
    }
    snapshot.replace_vsock(&VsockReplacement::new(&vsock.path))
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

/// The state of the saved VM in a folder.
fn read_state(folder: &Path) -> Result<Snapshot, Error> {
    let path = folder.join(STATE);
    Snapshot::read(path.display().to_string(), open(&path)?)
}

/// Where the files of memory are.
fn paths(folder: &Path, snapshot: &Snapshot) -> Vec<PathBuf> {
    let names = snapshot.memory_files();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// The state of the saved VM in a folder, and its files of memory.
fn read(folder: &Path) -> Result<(Snapshot, Vec<File>), Error> {
    read_patiently(folder, |_| ())
}

/// The same; calls `before` before memory is opened, with the number of the attempt.
fn read_patiently(
    folder: &Path,
    mut before: impl FnMut(u32),
) -> Result<(Snapshot, Vec<File>), Error> {
    let mut snapshot = read_state(folder)?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        before(attempt);
        let lost = match open_memory(folder, &snapshot) {
            Ok(files) => return Ok((snapshot, files)),
            Err(lost) => lost,
        };
        // A command may have put another one into the folder meanwhile, and taken the memory of this one away.
        let next = read_state(folder)?;
        if next.id() == snapshot.id() || attempt == ATTEMPTS {
            return Err(lost);
        }
        snapshot = next;
    }
}

pub(super) fn open_memory(folder: &Path, snapshot: &Snapshot) -> Result<Vec<File>, Error> {
    let paths = paths(folder, snapshot);
    let open = |path: &PathBuf| {
        open_file(path).map_err(|error| Error::Config {
            field: "restore".into(),
            value: path.display().to_string(),
            cause: format!("the memory of the saved VM: {error}"),
            cure: "put the file back beside the state, as it was when the VM was saved; without it, save a VM again"
                .to_owned(),
        })
    };
    paths.iter().map(open).collect()
}

/// Opens a file of a saved VM; nothing hangs.
fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        // A saved VM has its files in its folder.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) if path.is_symlink() => io::Error::other(
                "it is a symbolic link, and a saved VM has its files in its folder",
            ),
            _ => error,
        })?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// Opens the state of a saved VM.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    open_file(path).map_err(|error| Error::Config {
        field: "restore".into(),
        value: path.display().to_string(),
        cause: error.to_string(),
        cure: "name the folder that `vmm-reference ctl PATH snapshot FOLDER` has written"
            .to_owned(),
    })
}

/// What the saved VM in a folder is, as text or as JSON.
pub(super) fn describe(folder: &Path, json: bool) -> Result<String, Error> {
    let (snapshot, files) = read(folder)?;
    let plan = snapshot.plan();
    let stored = files.iter().map(|file| {
        let found = file.metadata();
        found.map_or(0, |found| found.blocks() * 512)
    });
    let layers: Vec<_> = snapshot.memory_files().into_iter().zip(stored).collect();
    if json {
        let about = json!({
            "version": snapshot.version(),
            "saved_ms": snapshot.saved_ms(),
            "id": snapshot.id(),
            "memory": layers
                .iter()
                .map(|(file, bytes)| json!({ "file": file, "bytes": bytes }))
                .collect::<Vec<_>>(),
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
        ("memory", format!("{} MiB", plan.ram_size() >> 20)),
        ("devices", devices.join(", ")),
    ];
    let layers = layers.iter().map(|(file, bytes)| {
        let text = format!("{} KiB in {}", bytes >> 10, file.escape_debug());
        ("layer", text)
    });
    let opens = opens(&snapshot);
    let opens = opens
        .iter()
        .map(|text| ("opens", text.escape_debug().to_string()));
    let lines: Vec<_> = lines
        .into_iter()
        .chain(layers)
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

#[cfg(all(test, feature = "packed-kernels"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::*;

    /// A saved VM in a folder, and others that take its place there.
    struct Saved {
        folder: tempfile::TempDir,
        now: Snapshot,
        count: u32,
    }

    impl Saved {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let golden = |name: &str| {
                let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("tests/golden")
                    .join(std::env::consts::ARCH)
                    .join(format!("{name}.gz"));
                let mut bytes = Vec::new();
                let mut packed = flate2::read::GzDecoder::new(File::open(path).unwrap());
                packed.read_to_end(&mut bytes).unwrap();
                bytes
            };
            fs::write(folder.path().join(STATE), golden("state")).unwrap();
            let now = read_state(folder.path()).unwrap();
            let memory = folder.path().join(now.memory_files()[0]);
            fs::write(memory, golden("memory")).unwrap();
            Self {
                folder,
                now,
                count: 0,
            }
        }

        fn path(&self) -> &Path {
            self.folder.path()
        }

        /// What a command does that saves another one.
        fn replace(&mut self) {
            self.count += 1;
            let name = format!("memory-{}", self.count);
            let create = |name: &str| {
                let mut options = OpenOptions::new();
                let options = options.read(true).write(true).create_new(true);
                options.open(self.path().join(name)).unwrap()
            };
            let (state, ram) = (create("new"), create(&name));
            let memory = open_memory(self.path(), &self.now).unwrap();
            self.now.merge(memory, &name, [&state, &ram]).unwrap();
            fs::rename(self.path().join("new"), self.path().join(STATE)).unwrap();
            fs::remove_file(self.path().join(self.now.memory_files()[0])).unwrap();
            self.now = read_state(self.path()).unwrap();
        }
    }

    #[test]
    fn a_saved_vm_that_takes_the_place_of_another_meanwhile_is_read() {
        let mut saved = Saved::new();
        let folder = saved.path().to_owned();
        let (first, _) = read(&folder).unwrap();
        let (next, files) = read_patiently(&folder, |attempt| {
            if attempt < 3 {
                saved.replace();
            }
        })
        .unwrap();
        assert_eq!(next.id(), saved.now.id());
        assert_ne!(next.id(), first.id());
        next.check_memory(&files).unwrap();
    }

    #[test]
    fn memory_that_is_gone_is_not_waited_for() {
        let mut saved = Saved::new();
        let folder = saved.path().to_owned();
        let mut attempts = 0;
        let lost = read_patiently(&folder, |attempt| {
            attempts = attempt;
            saved.replace();
        });
        assert!(lost.is_err());
        assert_eq!(attempts, ATTEMPTS);
        fs::remove_file(folder.join(saved.now.memory_files()[0])).unwrap();
        let lost = read_patiently(&folder, |attempt| attempts = attempt).unwrap_err();
        assert_eq!(attempts, 1);
        assert!(
            lost.to_string()
                .contains("the memory of the saved VM: No such"),
            "{lost}"
        );
        assert!(lost.cure().unwrap().starts_with("put the file back"));
    }
}
