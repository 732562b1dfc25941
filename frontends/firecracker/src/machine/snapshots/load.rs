//! A machine that was saved goes on.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use vmm_reference::{
    Attachments, BlkReplacement, NetReplacement, RestoredClock, SavedMemory, Snapshot,
    VsockReplacement,
};

use super::super::configuration::{Configuration, Network, tap_error};
use super::super::disk;
use super::super::start::{attachments_on_stdio, disk_id, huge_pages, net_id, open_path};
use super::super::terms::Options;
use super::check::check;
use super::{files, note};
use crate::api::snapshots::{LoadSnapshotParams, MemBackendType};
use crate::files::open_regular;
use crate::note::Note;
use crate::saved::{self, Content, LastMemory};
use crate::texts::{Fault, LoadFault, MemoryFault, StateFault};

/// A saved machine with all that it needs, open.
#[derive(Debug)]
pub(in crate::machine) struct Restored {
    pub(in crate::machine) snapshot: Snapshot,
    pub(in crate::machine) memory: SavedMemory,
    pub(in crate::machine) attachments: Attachments,
    /// What its memory is known by.
    pub(in crate::machine) last: LastMemory,
    /// What the API knows of it; it has the descriptors that the machine names.
    pub(in crate::machine) configuration: Configuration,
}

impl Restored {
    /// Opens all that a request names, and what the machine had open. `before` is what was configured, `options` what the
    /// command line says; they become what the machine has.
    pub(in crate::machine) fn open(
        params: &LoadSnapshotParams,
        before: &Configuration,
        options: &mut Options,
    ) -> Result<Self, Fault> {
        let memory = memory(params).map_err(LoadFault::Memory)?;
        let mut snapshot = read(params, &memory).map_err(LoadFault::State)?;
        let noted = snapshot.note().and_then(Note::read);
        let mark = noted.as_ref().map(|noted| noted.memory.clone());
        let mark = mark.unwrap_or_default();
        check_label(params, file_of(&memory), &mark).map_err(LoadFault::Memory)?;
        let last = LastMemory::new(mark, file_of(&memory), None);
        let mut configuration = match noted {
            Some(noted) => {
                options.boot_timer = noted.boot_timer;
                note::configuration(noted, Arc::clone(&before.mmds))
            }
            None => {
                options.boot_timer = false;
                // Another front end has saved it.
                Configuration::new(Arc::clone(&before.mmds))
            }
        };
        // A note may say anything.
        let machine = &mut configuration.machine;
        machine.vcpu_count = u8::try_from(snapshot.config().vcpus).unwrap_or(u8::MAX);
        let mib = snapshot.plan().ram_size() >> 20;
        machine.mem_size_mib = usize::try_from(mib).unwrap_or(usize::MAX);
        machine.track_dirty_pages = params.track_dirty_pages;
        configuration.serial.clone_from(&before.serial);
        check(&configuration, snapshot.config()).map_err(LoadFault::State)?;
        override_all(&mut configuration, params)?;
        open_drives(&mut configuration, &mut snapshot)?;
        open_networks(&mut configuration, &mut snapshot)?;
        open_vsock(&mut configuration, &mut snapshot)?;
        if params.clock_realtime {
            snapshot.set_clock(RestoredClock::Realtime);
        }
        if let Some(pages) = params.huge_pages.other() {
            configuration.machine.huge_pages = pages;
            snapshot.set_huge_pages(huge_pages(pages));
        }
        let attachments = attachments_on_stdio(&configuration, options)?;
        Ok(Self {
            snapshot,
            memory,
            last,
            attachments,
            configuration,
        })
    }
}

fn memory(params: &LoadSnapshotParams) -> Result<SavedMemory, MemoryFault> {
    let path = &params.mem_backend.backend_path;
    match params.mem_backend.backend_type {
        MemBackendType::File => {
            let file = open_regular(path, false).map_err(MemoryFault::File)?;
            Ok(SavedMemory::Lazy(vec![file]))
        }
        MemBackendType::Uffd => {
            let socket = UnixStream::connect(path).map_err(MemoryFault::Socket)?;
            Ok(SavedMemory::Uffd(socket))
        }
    }
}

/// Refuses a file that says of itself that it is not all the memory that belongs to the state with this mark, if it is as
/// it was written. Copies may say nothing.
fn check_label(
    params: &LoadSnapshotParams,
    file: Option<&File>,
    mark: &str,
) -> Result<(), MemoryFault> {
    let path = || params.mem_backend.backend_path.clone();
    match file.and_then(saved::label) {
        Some((_, Content::Diff)) => Err(MemoryFault::Diff(path())),
        Some((other, _)) if !mark.is_empty() && other != mark => {
            Err(MemoryFault::OtherState(path()))
        }
        _ => Ok(()),
    }
}

/// The file that has it, if there is one.
fn file_of(memory: &SavedMemory) -> Option<&File> {
    match memory {
        SavedMemory::Lazy(files) => files.first(),
        _ => None,
    }
}

fn read(params: &LoadSnapshotParams, memory: &SavedMemory) -> Result<Snapshot, StateFault> {
    let path = &params.snapshot_path;
    let (file, is_next) = files::state(path, file_of(memory)).map_err(StateFault::Open)?;
    if is_next {
        log::warn!(
            "{}: the state that belongs to this memory had not taken its place, and is read",
            path.display()
        );
    }
    saved::read_open(path, file)
}

/// What the request names takes the places of what the machine had.
fn override_all(
    configuration: &mut Configuration,
    params: &LoadSnapshotParams,
) -> Result<(), LoadFault> {
    for new in &params.network_overrides {
        let mut networks = configuration.networks.iter_mut();
        let found = networks.find(|network| network.config.iface_id == new.iface_id);
        let found = found.ok_or_else(|| LoadFault::NoNetwork(new.iface_id.clone()))?;
        found.config.host_dev_name.clone_from(&new.host_dev_name);
    }
    for new in &params.drive_overrides {
        let mut drives = configuration.drives.iter_mut();
        let found = drives.find(|drive| drive.config.drive_id == new.drive_id);
        let found = found.ok_or_else(|| LoadFault::NoDrive(new.drive_id.clone()))?;
        found.config.path_on_host = Some(new.path_on_host.clone());
    }
    if let Some(new) = &params.vsock_override {
        let vsock = configuration.vsock.as_mut().ok_or(LoadFault::NoVsock)?;
        vsock.config.uds_path.clone_from(&new.uds_path);
    }
    Ok(())
}

fn refused(error: &vmm_reference::Error) -> LoadFault {
    LoadFault::Device(error.chain())
}

/// Clients restore a machine beside the one that it was, and swap its disks before: whether a file was written since is
/// theirs to know.
fn open_drives(
    configuration: &mut Configuration,
    snapshot: &mut Snapshot,
) -> Result<(), LoadFault> {
    for drive in &mut configuration.drives {
        let path = drive.config.path_on_host.clone().unwrap_or_default();
        let file = disk::open(&path, drive.is_read_only()).map_err(|error| {
            LoadFault::Device(format!(
                "Virtio backend error: Error manipulating the backing file: {error} {path}"
            ))
        })?;
        let mut new = BlkReplacement::default();
        new.id = disk_id(&drive.config.drive_id);
        new.path = Some(open_path(&file).into());
        new.changed = true;
        snapshot
            .replace_blk(&new)
            .map_err(|error| refused(&error))?;
        drive.file = Some(file);
    }
    Ok(())
}

fn open_networks(
    configuration: &mut Configuration,
    snapshot: &mut Snapshot,
) -> Result<(), LoadFault> {
    for Network { config, tap } in &mut configuration.networks {
        let name = &config.host_dev_name;
        let opened = vmm_reference::open_tap(name).map_err(|error| {
            LoadFault::Device(format!(
                "Open tap device failed: Error while creating ifreq structure: {}. Invalid TUN/TAP Backend provided by \
                 {name}.",
                tap_error(&error)
            ))
        })?;
        let id = net_id(&config.iface_id);
        let new: NetReplacement = format!("id={id},fd={}", opened.as_raw_fd())
            .parse()
            .map_err(|error| LoadFault::Device(format!("{error}")))?;
        snapshot
            .replace_net(&new)
            .map_err(|error| refused(&error))?;
        *tap = Some(opened);
    }
    Ok(())
}

fn open_vsock(configuration: &mut Configuration, snapshot: &mut Snapshot) -> Result<(), LoadFault> {
    let Some(vsock) = &mut configuration.vsock else {
        return Ok(());
    };
    let listener = UnixListener::bind(&vsock.config.uds_path).map_err(|error| {
        LoadFault::Device(format!(
            "Cannot create backend for vsock device: Error binding to the host-side Unix socket: {error}"
        ))
    })?;
    let new: VsockReplacement = format!("path={}", open_path(&listener))
        .parse()
        .map_err(|error| LoadFault::Device(format!("{error}")))?;
    snapshot
        .replace_vsock(&new)
        .map_err(|error| refused(&error))?;
    vsock.listener = Some(listener);
    Ok(())
}
