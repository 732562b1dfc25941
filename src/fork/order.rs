//! What a fork has of its own, and whether it has all that it cannot share.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use arch::VirtioKind;
use devices::descriptor::{self, DiskFile};

use super::outputs::{self, Output, Taken};
use crate::control::command::CommandError;
use crate::control::forking::{DiskContent, ForkWish, ForkedDisk, ForkedTap};
use crate::devices::opened::Given;
use crate::outputs::is_same;
use crate::snapshot::saved::Parts;
use crate::{MemoryBacking, VmConfig};

/// What a fork has of its own, open.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) control: Option<(PathBuf, OwnedFd)>,
    pub(crate) disks: Vec<Disk>,
    taps: Vec<(ForkedTap, Vec<OwnedFd>)>,
    vsock: Option<(PathBuf, OwnedFd)>,
    pub(crate) serial: Option<(PathBuf, OwnedFd)>,
    pub(crate) console: Option<(PathBuf, OwnedFd)>,
    pub(crate) paused: bool,
    /// Those that it was asked to share.
    asked: Vec<String>,
    /// Disks that are only read, which it shares.
    shared: Vec<(String, DiskFile)>,
}

/// The disk of a fork.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) told: ForkedDisk,
    pub(crate) file: DiskFile,
}

fn refused(cause: impl Into<String>) -> CommandError {
    CommandError::NotForked(cause.into())
}

/// Whether the memory of a machine can become two.
///
/// # Errors
/// Says why not.
pub(crate) fn check_memory(config: &VmConfig, is_handled: bool) -> Result<(), CommandError> {
    let cause = match config.memory_backing {
        _ if is_handled => {
            "another process brings its pages, and knows of one machine; restore it with memory=lazy"
        }
        MemoryBacking::Shared => {
            "its memory is a file in memory (memory-backing=shared), which both would write to; start it with \
             memory-backing=anonymous"
        }
        _ => return Ok(()),
    };
    Err(refused(cause))
}

impl Order {
    /// `files` are as many as the wish takes; `share` gives the open file of a disk once more, and `taken` is what the
    /// machine has open besides.
    ///
    /// # Errors
    /// When there is something that the fork cannot share and has not got, or that the machine has not.
    pub(crate) fn new(
        wish: ForkWish,
        files: Vec<OwnedFd>,
        config: &VmConfig,
        share: impl Fn(&str) -> Result<DiskFile, CommandError>,
        taken: Taken<'_>,
    ) -> Result<Self, CommandError> {
        let given = files.len();
        let lost = || CommandError::Descriptors {
            command: "fork",
            takes: given + 1,
            given,
        };
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or_else(lost);
        let mut named = |path: Option<String>| {
            path.map(|path| absolute(path).and_then(|path| Ok((path, next()?))))
                .transpose()
        };
        let control = named(wish.control)?;
        let disk = |told: ForkedDisk| {
            absolute(told.name.clone())?;
            let file = next()?.into();
            let again = told.twice.then(&mut next).transpose()?.map(File::from);
            Ok(Disk {
                told,
                file: DiskFile { file, again },
            })
        };
        let disks: Vec<_> = wish.blk.into_iter().map(disk).collect::<Result<_, _>>()?;
        let tap = |told: ForkedTap| {
            let queues = (0..told.queues).map(|_| next()).collect::<Result<_, _>>()?;
            Ok((told, queues))
        };
        let taps: Vec<_> = wish
            .net
            .into_iter()
            .map(tap)
            .collect::<Result<_, CommandError>>()?;
        let mut named = |path: Option<String>| {
            path.map(|path| absolute(path).and_then(|path| Ok((path, next()?))))
                .transpose()
        };
        let vsock = named(wish.vsock)?;
        let mut order = Self {
            control,
            disks,
            taps,
            vsock,
            serial: named(wish.serial)?,
            console: named(wish.console)?,
            paused: wish.paused,
            asked: wish.shared,
            shared: Vec::new(),
        };
        order.check(config)?;
        order.share(config, &share)?;
        order.check_files(config, &share)?;
        order.check_outputs(config, &share, taken)?;
        Ok(order)
    }

    /// Nothing is of another machine, or there twice.
    fn check(&self, config: &VmConfig) -> Result<(), CommandError> {
        let devices = config.named_devices();
        let disks = self.disks.iter().map(|disk| &disk.told.device);
        let disks = disks.map(|id| (id, VirtioKind::Block));
        let taps = self
            .taps
            .iter()
            .map(|(tap, _)| (&tap.device, VirtioKind::Net));
        let asked = self.asked.iter().map(|id| (id, VirtioKind::Block));
        let all: Vec<_> = disks.chain(taps).chain(asked).collect();
        for (number, (id, kind)) in all.iter().enumerate() {
            match devices.iter().find(|device| device.id == **id) {
                None => {
                    return Err(CommandError::NoDevice {
                        device: (*id).clone(),
                        ids: devices.into_iter().map(|device| device.id).collect(),
                    });
                }
                Some(device) if device.kind != *kind => {
                    let (is, not) = (device.kind.name(), kind.name());
                    return Err(refused(format!(
                        "{id} is a device of the kind {is}, not {not}"
                    )));
                }
                Some(_) => {}
            }
            if all.iter().take(number).any(|(other, _)| other == id) {
                return Err(refused(format!("{id} is named twice")));
            }
        }
        if self.vsock.is_some() && config.vsock.is_none() {
            return Err(refused("it has no vsock device"));
        }
        if self.console.is_some() && !config.console {
            return Err(refused("it has no virtio console"));
        }
        Ok(())
    }

    /// Everything that is not the fork's own can be shared.
    fn share(
        &mut self,
        config: &VmConfig,
        share: impl Fn(&str) -> Result<DiskFile, CommandError>,
    ) -> Result<(), CommandError> {
        for device in config.named_devices() {
            let id = &device.id;
            match device.kind {
                VirtioKind::Block => {
                    if self.disks.iter().any(|disk| disk.told.device == *id) {
                        continue;
                    }
                    let disk = config.blk.get(device.place);
                    if disk.is_none_or(|disk| !disk.read_only) {
                        return Err(refused(format!(
                            "the disk {id} may be written by its guest, and two guests would destroy what is on it; \
                             give the fork a copy of it, or another file"
                        )));
                    }
                    self.shared.push((id.clone(), share(id)?));
                }
                VirtioKind::Net => {
                    let mut taps = self.taps.iter();
                    let Some((tap, _)) = taps.find(|(tap, _)| tap.device == *id) else {
                        return Err(refused(format!(
                            "the network device {id} needs another tap device in the fork"
                        )));
                    };
                    let net = config.net.get(device.place);
                    if let Some(net) = net.filter(|net| net.queues != tap.queues) {
                        return Err(refused(format!(
                            "the network device {id} has queues={}, and its tap device in the fork has queues={}; open \
                             as many",
                            net.queues, tap.queues
                        )));
                    }
                }
                VirtioKind::Vsock if self.vsock.is_none() => {
                    return Err(refused(format!(
                        "the vsock device {id} needs another socket in the fork"
                    )));
                }
                VirtioKind::Vsock | VirtioKind::Console | VirtioKind::Rng | VirtioKind::Balloon => {
                }
            }
        }
        Ok(())
    }

    /// No file that a guest writes to is another disk's, of its own or of the machine's, by whatever name. The lock of a
    /// disk would say so too, but not every disk takes one.
    fn check_files(
        &self,
        config: &VmConfig,
        share: impl Fn(&str) -> Result<DiskFile, CommandError>,
    ) -> Result<(), CommandError> {
        let devices = config.named_devices();
        let writes = |id: &str| {
            let mut devices = devices.iter();
            let disk = devices.find(|device| device.id == id);
            let disk = disk.and_then(|device| config.blk.get(device.place));
            disk.is_none_or(|disk| !disk.read_only)
        };
        if !self.disks.iter().any(|disk| writes(&disk.told.device)) {
            return Ok(());
        }
        let mut taken = Vec::new();
        for device in devices.iter().filter(|it| it.kind == VirtioKind::Block) {
            taken.push((&device.id, found(&share(&device.id)?)?));
        }
        let mut news: Vec<(&ForkedDisk, Vec<Metadata>)> = Vec::new();
        for Disk { told, file } in &self.disks {
            let (id, name, files) = (&told.device, &told.name, found(file)?);
            let taken = taken
                .iter()
                .find(|(_, taken)| writes(id) && are_same(taken, &files));
            if let Some((other, _)) = taken {
                return Err(refused(format!(
                    "{name} is to be the fork's disk {id} and is in use as the VM's disk {other}, and two guests would \
                     destroy what is on it; give the fork a copy of it, or another file"
                )));
            }
            let clash = news.iter().find(|(other, others)| {
                (writes(id) || writes(&other.device)) && are_same(others, &files)
            });
            if let Some((other, _)) = clash {
                return Err(refused(format!(
                    "{name} is to be two disks of the fork, {} and {id}, which would destroy what is on it; give each of \
                     them a file of its own",
                    other.device
                )));
            }
            news.push((told, files));
        }
        Ok(())
    }

    /// Nothing else is written to that a console writes to.
    fn check_outputs(
        &self,
        config: &VmConfig,
        share: impl Fn(&str) -> Result<DiskFile, CommandError>,
        taken: Taken<'_>,
    ) -> Result<(), CommandError> {
        let all = [("serial", &self.serial), ("console", &self.console)];
        let outputs: Vec<_> = all
            .into_iter()
            .filter_map(|(name, output)| {
                let (path, file) = output.as_ref()?;
                Some(Output { name, path, file })
            })
            .collect();
        if outputs.is_empty() {
            return Ok(());
        }
        let mut disks = Vec::new();
        for device in config.named_devices() {
            if device.kind == VirtioKind::Block {
                let files = found(&share(&device.id)?)?;
                disks.push((format!("the VM's disk {}", device.id), files));
            }
        }
        for Disk { told, file } in &self.disks {
            disks.push((format!("the fork's disk {}", told.device), found(file)?));
        }
        outputs::check(&outputs, &disks, taken)
    }

    /// Whether there is something to copy.
    pub(crate) fn has_copies(&self) -> bool {
        let mut disks = self.disks.iter();
        disks.any(|disk| disk.told.content == DiskContent::Copy)
    }

    /// The machine that was saved has these from now on.
    ///
    /// # Errors
    /// When a file cannot be the disk.
    #[cfg_attr(
        not(feature = "virtio"),
        allow(unused_variables, clippy::unnecessary_wraps)
    )]
    pub(crate) fn take_over(&self, parts: &mut Parts) -> Result<(), CommandError> {
        #[cfg(feature = "virtio")]
        for Disk { told, .. } in &self.disks {
            let saved = parts.move_disk(&told.device, Path::new(&told.name));
            let saved =
                saved.ok_or_else(|| refused(format!("the device {} is no disk", told.device)))?;
            if let devices::state::VirtioDeviceState::Block(disk) = &mut saved.state.device {
                disk.written = None;
            }
        }
        for device in parts.config.named_devices() {
            let tap = self.taps.iter().find(|(tap, _)| tap.device == device.id);
            if let (VirtioKind::Net, Some((tap, _)), Some(net)) =
                (device.kind, tap, parts.config.net.get_mut(device.place))
            {
                net.fd = None;
                net.tap.clone_from(&tap.tap);
            }
        }
        if let (Some((path, _)), Some(vsock)) = (&self.vsock, &mut parts.config.vsock) {
            vsock.path.clone_from(path);
        }
        Ok(())
    }

    /// The numbers of the descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let sockets = self.control.iter().chain(&self.vsock);
        let sockets = sockets.map(|(_, socket)| socket.as_raw_fd());
        let disks = self.disks.iter().map(|disk| &disk.file);
        let shared = self.shared.iter().map(|(_, file)| file);
        let disks = disks
            .chain(shared)
            .flat_map(|DiskFile { file, again }| [Some(file), again.as_ref()])
            .flatten()
            .map(AsRawFd::as_raw_fd);
        let taps = self.taps.iter().flat_map(|(_, queues)| queues);
        let taps = taps.map(AsRawFd::as_raw_fd);
        let consoles = self.serial.iter().chain(&self.console);
        let consoles = consoles.map(|(_, file)| file.as_raw_fd());
        sockets.chain(disks).chain(taps).chain(consoles)
    }

    /// What the devices are opened with.
    pub(crate) fn given(&mut self) -> Given {
        let own = self.disks.drain(..);
        let own = own.map(|disk| (disk.told.device, disk.file));
        Given {
            files: own.chain(self.shared.drain(..)).collect(),
            taps: self
                .taps
                .drain(..)
                .map(|(tap, queues)| (tap.device, queues))
                .collect(),
            socket: self.vsock.take().map(|(_, socket)| socket),
        }
    }
}

/// What the files of a disk are.
fn found(disk: &DiskFile) -> Result<Vec<Metadata>, CommandError> {
    let files = [Some(&disk.file), disk.again.as_ref()];
    let files = files.into_iter().flatten().map(File::metadata);
    let found: io::Result<_> = files.collect();
    found.map_err(|source| CommandError::Host {
        command: "fork",
        source,
    })
}

/// Whether the files of two disks are the same.
fn are_same(one: &[Metadata], other: &[Metadata]) -> bool {
    one.iter()
        .any(|one| other.iter().any(|other| is_same(one, other)))
}

/// A name that means the same file wherever the fork is.
fn absolute(path: String) -> Result<PathBuf, CommandError> {
    let named = Path::new(&path);
    if named.is_absolute() && descriptor::of_path(named).is_none() {
        return Ok(path.into());
    }
    Err(refused(format!("{path:?} is no absolute path")))
}

#[cfg(test)]
mod tests;
