//! `/snapshot/fork`: what a fork has of its own is opened here, and what its process is to know of it is laid out for
//! the thread that forks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_reference::{
    Attachments, Command, CommandError, Consoles, DiskContent, ForkWish, ForkedDisk, ForkedTap,
    Reply, VmHandle, Watched,
};

use super::configuration::{Configuration, Network, Vsock, tap_error};
use super::disk::{self, Drive};
use super::start;
use super::start::{disk_id, net_id};
use super::terms::{Options, Outcome};
use crate::api::answers::ForkedInfo;
use crate::api::snapshots::{DriveOverride, ForkParams};
use crate::arguments::check_id;
use crate::files::{new_for_lines, open_for_lines};
use crate::seccomp::Filters;
use crate::sockets::listen;
use crate::texts::{Fault, ForkFault, refused};

/// Where the process of a fork finds what it is to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place(Arc<Mutex<Option<Plan>>>);

impl Place {
    fn put(&self, plan: Option<Plan>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = plan;
    }

    /// What was laid out.
    pub(crate) fn take(&self) -> Option<Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What the process of a fork is to know.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) listener: UnixListener,
    pub(crate) metrics: Option<File>,
    pub(super) configuration: Configuration,
    pub(super) options: Options,
    pub(super) is_paused: bool,
}

impl Plan {
    /// What the machine is called.
    pub(crate) fn id(&self) -> &str {
        &self.options.id
    }

    /// The filters of its threads, if they have any.
    pub(crate) fn filters(&self) -> Option<&Arc<Filters>> {
        self.options.filters.as_ref()
    }

    /// What the machine gets beside its configuration.
    ///
    /// # Errors
    /// When the host has no timer or no random bytes for the metadata service.
    pub(crate) fn attachments(&self, consoles: Consoles) -> Result<Attachments, Fault> {
        start::attachments(&self.configuration, &self.options, consoles)
    }

    /// The descriptors that its process is to have.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let metrics = self.metrics.iter().map(AsFd::as_fd);
        metrics.chain([self.listener.as_fd()])
    }
}

/// A file that was made for a fork, and goes unless there is one.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    stays: bool,
}

impl Made {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stays: false,
        }
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// All that was made for a fork.
#[derive(Debug, Default)]
struct AllMade(Vec<Made>);

impl AllMade {
    fn keep(mut self) {
        self.0.iter_mut().for_each(|made| made.stays = true);
    }
}

/// A fork that is on its way.
#[derive(Debug)]
pub(crate) struct OnItsWay {
    answer: Arc<Watched>,
    made: Option<AllMade>,
    place: Place,
}

impl OnItsWay {
    /// What is readable once it is known what came of it.
    pub(crate) fn watched(&self) -> &Arc<Watched> {
        &self.answer
    }

    /// What came of it, if that is known.
    pub(crate) fn settled(&mut self) -> Option<Result<Outcome, Fault>> {
        let answer = self.answer.take()?;
        // Whoever forks has taken it, if anybody did.
        self.place.put(None);
        let made = self.made.take();
        // A machine that has ended does not say any more what became of it: what was made may be a fork's.
        if let (Ok(_) | Err(CommandError::Ended(_)), Some(made)) = (&answer, made) {
            made.keep();
        }
        Some(match answer {
            Ok(Reply::Forked(forked)) => Ok(Outcome::json(&ForkedInfo {
                pid: forked.pid,
                still_us: forked.still_us,
                ready_us: forked.ready_us,
            })),
            Ok(_) => Ok(Outcome::Done),
            Err(error) => Err(ForkFault::Refused(refused(&error)).into()),
        })
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let is_settled = self.settled().is_some();
        if let (false, Some(made)) = (is_settled, self.made.take()) {
            made.keep();
        }
    }
}

/// Opens what the fork has of its own, and has the machine forked.
pub(super) fn begin(
    handle: &VmHandle,
    params: &ForkParams,
    configuration: &Configuration,
    options: &Options,
    place: &Place,
) -> Result<OnItsWay, ForkFault> {
    // Whatever thread is made has the filters of the one that makes it, and a user's are made for one kind of thread each.
    if options.filters.as_ref().is_some_and(|it| it.are_given()) {
        return Err(ForkFault::Filters);
    }
    let mut opening = Opening {
        configuration: forked(configuration),
        wish: ForkWish::default(),
        made: AllMade::default(),
    };
    let mut options = options.clone();
    if let Some(id) = &params.id {
        check_id(id).map_err(|error| ForkFault::Id(error.to_string()))?;
        options.id.clone_from(id);
    }
    opening.wish.paused = !params.resume_vm;
    let mut files = opening.drives(params)?;
    files.extend(opening.networks(params)?);
    files.extend(opening.vsock(params)?);
    files.extend(opening.serial(params)?);
    let metrics = params.metrics_path.as_deref();
    let metrics = metrics.map(|path| opening.lines("metrics_path", path));
    let metrics = metrics.transpose()?;
    // Last: whoever finds it waits for the fork.
    let path = &params.api_sock;
    let listener = listen(path).map_err(in_file(path))?;
    opening.made.0.push(Made::new(path));
    let Opening {
        configuration,
        wish,
        made,
    } = opening;
    place.put(Some(Plan {
        listener,
        metrics,
        configuration,
        options,
        is_paused: !params.resume_vm,
    }));
    let answer = handle.watch_command(Command::Fork(wish), files);
    let answer = answer.map_err(|error| {
        place.put(None);
        ForkFault::Refused(refused(&error))
    })?;
    Ok(OnItsWay {
        answer: Arc::new(answer),
        made: Some(made),
        place: place.clone(),
    })
}

fn in_file(path: &Path) -> impl FnOnce(io::Error) -> ForkFault {
    let path = path.to_owned();
    move |error| ForkFault::File { path, error }
}

/// What the API knows of a fork of such a machine. It has no kernel, and nothing open.
fn forked(configuration: &Configuration) -> Configuration {
    let drives = configuration.drives.iter();
    let networks = configuration.networks.iter();
    let vsock = configuration.vsock.as_ref();
    Configuration {
        machine: configuration.machine.clone(),
        features: Vec::new(),
        boot: None,
        drives: drives
            .map(|drive| Drive {
                config: drive.config.clone(),
                file: None,
            })
            .collect(),
        networks: networks
            .map(|network| Network {
                config: network.config.clone(),
                tap: None,
            })
            .collect(),
        vsock: vsock.map(|vsock| Vsock {
            config: vsock.config.clone(),
            listener: None,
        }),
        balloon: configuration.balloon.clone(),
        entropy: configuration.entropy.clone(),
        mmds: Arc::clone(&configuration.mmds),
        serial: None,
    }
}

/// A path that means the same to the process of the fork.
fn absolute(path: &Path) -> Result<String, ForkFault> {
    let absolute = std::path::absolute(path).map_err(in_file(path))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| ForkFault::File {
            path: path.into(),
            error: io::Error::other("the path is no UTF-8"),
        })
}

/// What is opened for a fork, in the order in which the command takes it.
struct Opening {
    configuration: Configuration,
    wish: ForkWish,
    made: AllMade,
}

impl Opening {
    fn drives(&mut self, params: &ForkParams) -> Result<Vec<OwnedFd>, ForkFault> {
        let given = params.drive_overrides.iter();
        let given = given.map(|drive| (drive, DiskContent::File));
        let copies = params.drive_copies.iter();
        let copies = copies.map(|drive| (drive, DiskContent::Copy));
        let all: Vec<(&DriveOverride, DiskContent)> = given.chain(copies).collect();
        for (number, (new, _)) in all.iter().enumerate() {
            let id = &new.drive_id;
            if all
                .iter()
                .take(number)
                .any(|(other, _)| other.drive_id == *id)
            {
                return Err(ForkFault::Twice(id.clone()));
            }
            let mut drives = self.configuration.drives.iter();
            if !drives.any(|drive| drive.config.drive_id == *id) {
                return Err(ForkFault::NoDrive(id.clone()));
            }
        }
        let mut files = Vec::new();
        for drive in &mut self.configuration.drives {
            let id = &drive.config.drive_id;
            let Some((new, content)) = all.iter().find(|(new, _)| new.drive_id == *id) else {
                if drive.is_read_only() {
                    continue;
                }
                return Err(ForkFault::SharedDrive(id.clone()));
            };
            let path = Path::new(&new.path_on_host);
            let file = match content {
                DiskContent::Copy => new_file(path).map_err(in_file(path))?,
                _ => disk::open(&new.path_on_host, drive.is_read_only()).map_err(in_file(path))?,
            };
            if matches!(content, DiskContent::Copy) {
                self.made.0.push(Made::new(path));
            }
            let told = ForkedDisk::new(disk_id(id), absolute(path)?, *content);
            self.wish.blk.push(told);
            files.push(file.into());
            drive.config.path_on_host = Some(new.path_on_host.clone());
        }
        Ok(files)
    }

    fn networks(&mut self, params: &ForkParams) -> Result<Vec<OwnedFd>, ForkFault> {
        let news = &params.network_overrides;
        let known = |id: &str| {
            let mut networks = self.configuration.networks.iter();
            networks.any(|network| network.config.iface_id == id)
        };
        if let Some(new) = news.iter().find(|new| !known(&new.iface_id)) {
            return Err(ForkFault::NoNetwork(new.iface_id.clone()));
        }
        let mut taps = Vec::new();
        for network in &mut self.configuration.networks {
            let id = &network.config.iface_id;
            let new = news.iter().find(|new| new.iface_id == *id);
            let new = new.ok_or_else(|| ForkFault::SharedNetwork(id.clone()))?;
            let name = &new.host_dev_name;
            let tap = vmm_reference::open_tap(name).map_err(|error| ForkFault::Tap {
                name: name.clone(),
                error: tap_error(&error),
            })?;
            taps.push(tap);
            let told = ForkedTap::new(net_id(id), Some(name.clone()));
            self.wish.net.push(told);
            network.config.host_dev_name.clone_from(name);
        }
        Ok(taps)
    }

    fn vsock(&mut self, params: &ForkParams) -> Result<Option<OwnedFd>, ForkFault> {
        let (vsock, new) = match (&mut self.configuration.vsock, &params.vsock_override) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(ForkFault::NoVsock),
            (Some(_), None) => return Err(ForkFault::SharedVsock),
            (Some(vsock), Some(new)) => (vsock, new),
        };
        let path = Path::new(&new.uds_path);
        let socket = listen(path).map_err(ForkFault::Socket)?;
        self.made.0.push(Made::new(path));
        self.wish.vsock = Some(absolute(path)?);
        vsock.config.uds_path.clone_from(&new.uds_path);
        Ok(Some(socket.into()))
    }

    fn serial(&mut self, params: &ForkParams) -> Result<Option<OwnedFd>, ForkFault> {
        let Some(path) = &params.serial_out_path else {
            return Ok(None);
        };
        let file = self.lines("serial_out_path", path)?;
        self.wish.serial = Some(absolute(path)?);
        Ok(Some(file.into()))
    }

    /// A new file for lines, or one that is there and has nothing, or a FIFO.
    fn lines(&mut self, field: &'static str, path: &Path) -> Result<File, ForkFault> {
        match new_for_lines(path) {
            Ok(file) => {
                self.made.0.push(Made::new(path));
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(in_file(path)(error)),
        }
        let file = open_for_lines(path).map_err(in_file(path))?;
        let found = file.metadata().map_err(in_file(path))?;
        // It may be anything that is in use.
        if found.is_file() && found.len() > 0 {
            let path = path.to_owned();
            return Err(ForkFault::NotEmpty { field, path });
        }
        Ok(file)
    }
}

/// A file that was not there, for its owner only.
fn new_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}
