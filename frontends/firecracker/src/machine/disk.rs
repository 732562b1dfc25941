//! Disks: their files, which are opened when they are named, and their order, which is the guest's.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use rustix::fs::OFlags;

use super::limits::shown;
use crate::api::bodies::{BlockDeviceConfig, FileEngineType};
use crate::texts::Fault;

/// A disk.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) config: BlockDeviceConfig,
    /// Until the machine has it.
    pub(super) file: Option<File>,
}

impl Drive {
    pub(super) fn is_read_only(&self) -> bool {
        self.config.is_read_only.unwrap_or(false)
    }

    /// As a client is shown it.
    pub(super) fn shown(&self) -> BlockDeviceConfig {
        BlockDeviceConfig {
            is_read_only: Some(self.is_read_only()),
            io_engine: Some(self.config.io_engine.unwrap_or(FileEngineType::Sync)),
            ..self.config.clone()
        }
    }

    /// What the guest is told as serial number: the file's place on the host, 20 bytes of it.
    pub(super) fn serial(&self) -> Option<String> {
        const LONGEST: usize = 20;
        let found = self.file.as_ref()?.metadata().ok()?;
        let mut text = format!("{}{}{}", found.dev(), found.rdev(), found.ino());
        text.truncate(LONGEST);
        Some(text)
    }
}

/// Opens a file; one that is a FIFO does not block.
pub(super) fn open(path: &str, read_only: bool) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(flags)
        .open(path)
}

/// Adds a disk, or replaces the one with its id.
pub(super) fn set(drives: &mut Vec<Drive>, mut config: BlockDeviceConfig) -> Result<(), Fault> {
    if config.socket.is_some() && config.path_on_host.is_none() {
        return Err(Fault::NotSupported(
            "there are no vhost-user disks (socket)".to_owned(),
        ));
    }
    let (Some(path), None) = (config.path_on_host.clone(), &config.socket) else {
        return Err(Fault::DriveConfig);
    };
    let place = drives
        .iter()
        .position(|drive| drive.config.drive_id == config.drive_id);
    let root = drives.iter().position(|drive| drive.config.is_root_device);
    if config.is_root_device && root.is_some() && root != place {
        return Err(Fault::SecondRoot);
    }
    let read_only = config.is_read_only.unwrap_or(false);
    let file = open(&path, read_only).map_err(|error| Fault::Drive { error, path })?;
    let is_root = config.is_root_device;
    config.rate_limiter = shown(config.rate_limiter);
    let drive = Drive {
        config,
        file: Some(file),
    };
    match place.and_then(|place| Some((place, drives.get_mut(place)?))) {
        Some((place, before)) => {
            *before = drive;
            if is_root {
                drives.swap(0, place);
            }
        }
        None if is_root => drives.insert(0, drive),
        None => drives.push(drive),
    }
    Ok(())
}
