//! `restore`: a VM that goes on where a saved one was.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use vmm_reference::{Command, Error, Snapshot, Vm};

use super::arguments::RestoreOptions;
use super::config::Config;
use super::errors::Failure;
use super::run;

/// The file with the state, in the folder of a saved VM.
pub(super) const STATE: &str = "state";

pub(super) fn run(options: RestoreOptions) -> Result<ExitCode, Failure> {
    let path = options.folder.join(STATE);
    let snapshot = Snapshot::read(path.display().to_string(), open(&path)?)?;
    let memory = options.folder.join(snapshot.memory_file());
    let config = Config {
        vm: snapshot.config().clone(),
        #[cfg(feature = "serial")]
        serial: options.serial,
        #[cfg(feature = "control")]
        control: options.control,
        ..Config::default()
    };
    let inputs = [("restore", path.as_path()), ("restore", memory.as_path())];
    let file = open(&memory)?;
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

/// Opens a file of a saved VM; nothing hangs.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
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
