//! `ctl PATH fork`: what a fork has of its own is opened here, since a VM itself opens nothing.

// A build without some devices needs a part of this only.
#![cfg_attr(
    not(all(
        feature = "serial",
        feature = "virtio-blk",
        feature = "virtio-console",
        feature = "virtio-net",
        feature = "virtio-vsock"
    )),
    allow(dead_code, unused_imports)
)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde_json::json;
#[cfg(feature = "virtio-vsock")]
use vmm_reference::MadeSocket;
use vmm_reference::{
    Command, ControlSocket, DiskContent, Error, ForkWish, Forked, ForkedDisk, MAX_DESCRIPTORS,
};

use super::connection::Connection;
use super::copies::CopyFile;
use super::errors::print_error;
use super::fate::{self, Fate};
use super::files::print;
use super::new_file::{self, OutputFile};
#[cfg(feature = "virtio-net")]
use super::request::ForkNet;
use super::request::{ForkBlk, ForkConsole, ForkOptions, open_again, open_disk};
use super::save::copy_text;
use super::status::FAILED;

/// What is made for a fork, and goes unless there is one.
#[derive(Default)]
struct Made {
    wish: ForkWish,
    control: Option<ControlSocket>,
    /// Each with the same once more, unless there are too many.
    disks: Vec<(OwnedFd, Option<OwnedFd>)>,
    copies: Vec<CopyFile>,
    taps: Vec<OwnedFd>,
    #[cfg(feature = "virtio-vsock")]
    vsock: Option<MadeSocket>,
    consoles: Vec<OutputFile>,
}

/// A path that means the same to whoever runs the VM.
fn absolute(field: &'static str, path: &Path) -> Result<String, Error> {
    let refused = |cause: String| Error::Config {
        field: field.into(),
        value: path.display().to_string(),
        cause,
        cure: "name a file by a path that is text in UTF-8".to_owned(),
    };
    let absolute = std::path::absolute(path).map_err(|error| refused(error.to_string()))?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| refused("its path is not text in UTF-8".to_owned()))
}

/// The file of a disk, and the same once more.
fn twice(file: File) -> (OwnedFd, Option<OwnedFd>) {
    let again = open_again(&file).map(OwnedFd::from);
    (file.into(), again)
}

impl Made {
    fn new(wanted: &ForkOptions) -> Result<Self, Error> {
        let mut made = Self::default();
        made.wish.paused = wanted.paused;
        #[cfg(feature = "virtio-blk")]
        for disk in &wanted.blk {
            made.disk(disk)?;
        }
        #[cfg(feature = "virtio-net")]
        for ForkNet { new, queues } in &wanted.net {
            let taps = match (&new.tap, new.fd) {
                (Some(name), _) => vmm_reference::open_tap_queues(name, *queues)?,
                (None, fd) => vec![vmm_reference::own_descriptor("net", fd.unwrap_or(-1))?],
            };
            made.taps.extend(taps);
            let told = vmm_reference::ForkedTap::new(&new.id, new.tap.clone());
            made.wish.net.push(told.with_queues(*queues));
        }
        #[cfg(feature = "virtio-vsock")]
        if let Some(new) = &wanted.vsock {
            made.wish.vsock = Some(absolute("vsock", &new.path)?);
            made.vsock = Some(MadeSocket::vsock(&new.path)?);
        }
        #[cfg(feature = "serial")]
        if let Some(ForkConsole::File(path)) = &wanted.serial {
            made.wish.serial = Some(made.console("serial", path)?);
        }
        #[cfg(feature = "virtio-console")]
        if let Some(ForkConsole::File(path)) = &wanted.console {
            made.wish.console = Some(made.console("console", path)?);
        }
        made.wish.control = Some(absolute("control", &wanted.control)?);
        // Beside all else, and the control socket.
        let other = made.taps.len() + made.consoles.len() + 2;
        if other + 2 * made.disks.len() > MAX_DESCRIPTORS {
            made.disks.iter_mut().for_each(|(_, again)| *again = None);
        }
        for (told, (_, again)) in made.wish.blk.iter_mut().zip(&made.disks) {
            told.twice = again.is_some();
        }
        // Last: whoever finds it waits for the fork.
        made.control = Some(ControlSocket::bind(&wanted.control)?);
        Ok(made)
    }

    fn disk(&mut self, disk: &ForkBlk) -> Result<(), Error> {
        let told = match disk {
            ForkBlk::Shared(id) => {
                self.wish.shared.push(id.clone());
                return Ok(());
            }
            ForkBlk::File { id, path } => {
                let file = open_disk("blk", path)?;
                self.disks.push(twice(file));
                ForkedDisk::new(id, absolute("blk", path)?, DiskContent::File)
            }
            ForkBlk::Copy(copy) => {
                let temporary = format!(".copy-{}-{}", std::process::id(), self.copies.len());
                let mut new = CopyFile::new(copy, &temporary, |_, _| false)?;
                let refused = |source| Error::Refused {
                    field: "blk".into(),
                    value: format!("id={},copy={}", copy.id, copy.path.display()),
                    source,
                    cure: "name a new file in a folder in which this user may make files"
                        .to_owned(),
                };
                let file = new.file().try_clone().map_err(refused)?;
                self.disks.push(twice(file));
                // It has its name before it has its content: a fork that runs has disks with names.
                new.publish().map_err(refused)?;
                let name = new.told.name.clone();
                self.copies.push(new);
                ForkedDisk::new(&copy.id, name, DiskContent::Copy)
            }
        };
        self.wish.blk.push(told);
        Ok(())
    }

    fn console(&mut self, field: &'static str, path: &Path) -> Result<String, Error> {
        let opened = OutputFile::new(path).and_then(|output| Ok((output.file.metadata()?, output)));
        let (found, output) = opened.map_err(|source| Error::Refused {
            field: field.into(),
            value: format!("file={}", path.display()),
            source,
            cure: "name a file that can be written, or null".to_owned(),
        })?;
        if found.is_file() {
            let no = |cause: &str, cure: &str| {
                Err(Error::Config {
                    field: field.into(),
                    value: format!("file={}", path.display()),
                    cause: cause.to_owned(),
                    cure: cure.to_owned(),
                })
            };
            for other in &self.consoles {
                if new_file::is_same(&other.file, &output.file).unwrap_or(false) {
                    return no("the other console writes it as well", "name two files");
                }
            }
            // The fork has the lock with the file, and every VM looks for it. Where there are none, the VM knows its own.
            if flock(&output.file, FlockOperation::NonBlockingLockExclusive)
                == Err(Errno::WOULDBLOCK)
            {
                return no(
                    "a VM writes it, this one or another, or has it as a disk",
                    "name another file",
                );
            }
            // Nobody knows here what else the VM has open: a disk, or its own log. Whoever had the lock until now has written.
            if output.file.metadata().is_ok_and(|found| found.len() > 0) {
                return no(
                    "there is such a file, and it is not empty",
                    "name a new file",
                );
            }
        }
        self.consoles.push(output);
        absolute(field, path)
    }

    /// In the order of what is wished for.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut all: Vec<_> = self.control.iter().map(AsFd::as_fd).collect();
        let disks = self.disks.iter();
        let disks = disks.flat_map(|(file, again)| [Some(file), again.as_ref()]);
        all.extend(disks.flatten().chain(&self.taps).map(AsFd::as_fd));
        #[cfg(feature = "virtio-vsock")]
        all.extend(self.vsock.iter().map(AsFd::as_fd));
        all.extend(self.consoles.iter().map(|output| output.file.as_fd()));
        all
    }

    /// It is all the fork's.
    fn keep(self) {
        self.copies.into_iter().for_each(CopyFile::keep);
        self.consoles.into_iter().for_each(OutputFile::keep);
        if let Some(control) = self.control {
            control.leave();
        }
        #[cfg(feature = "virtio-vsock")]
        if let Some(vsock) = self.vsock {
            vsock.leave();
        }
    }

    /// The VM is gone, or cannot be heard any more: finds out whether there is a fork, which keeps what is its own.
    fn look_for_fork(
        mut self,
        wanted: &ForkOptions,
        json: bool,
        error: Error,
    ) -> Result<ExitCode, Error> {
        let own = fate::pin(&wanted.control).ok();
        // Whoever connects there finds the fork, or nobody.
        if let Some(control) = self.control.take() {
            control.leave();
        }
        let control = wanted.control.display();
        let said = match fate::find(&wanted.control, own.as_ref()) {
            Fate::Runs => {
                self.keep();
                print(&match json {
                    true => json!({ "control": wanted.control }).to_string(),
                    false => format!(
                        "forked: commands at {control}; the VM did not say any more how long it took"
                    ),
                })?;
                return Ok(ExitCode::SUCCESS);
            }
            Fate::Ended => {
                // Nobody listens there any more, and nobody will.
                if let Some(own) = &own {
                    new_file::remove(own, &wanted.control);
                }
                self.keep();
                "there is no fork any more; what was made for it stays, since its guest may have run"
                    .to_owned()
            }
            Fate::Replaced => {
                self.keep();
                format!(
                    "whether there is a fork is not known, since {control} is another one's by now; what was made for \
                     it stays"
                )
            }
            Fate::Unknown => {
                self.keep();
                format!(
                    "whether there is a fork is not known: what was made for it stays, and `ctl {control} status` tells"
                )
            }
        };
        Err(match error {
            Error::Host { what, source } => Error::Host {
                what,
                source: std::io::Error::new(source.kind(), format!("{source}: {said}")),
            },
            error => error,
        })
    }
}

/// Forks the VM.
pub(super) fn fork(
    vm: &mut Connection<'_>,
    wanted: &ForkOptions,
    json: bool,
) -> Result<ExitCode, Error> {
    let made = Made::new(wanted)?;
    let files = made.descriptors();
    if files.len() > MAX_DESCRIPTORS {
        return Err(Error::Config {
            field: "blk".into(),
            value: String::new(),
            cause: format!(
                "a fork takes {MAX_DESCRIPTORS} open descriptors at most, and these are {}",
                files.len()
            ),
            cure: "let disks that are only read be shared".to_owned(),
        });
    }
    // It takes as long as disks are copied.
    vm.wait_for_ever()?;
    // Without all of that there is no fork, and what was made for it goes.
    vm.tell(&json!(Command::Fork(made.wish.clone())), &files)?;
    let answer = match vm.answer() {
        Ok(answer) => answer,
        Err(error) => {
            drop(files);
            return made.look_for_fork(wanted, json, error);
        }
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(refusal) if json => {
            print_error(&refusal);
            return Ok(FAILED.into());
        }
        Err(refusal) => return Err(vm.refused(&refusal)),
    };
    drop(files);
    made.keep();
    match serde_json::from_value::<Forked>(answer.clone()) {
        Ok(forked) if !json => {
            let copies = forked.copies.iter().map(|copied| copy_text(copied) + "\n");
            let ms = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
            print(&format!(
                "{}forked: process {}, commands at {}; the guest stood still for {}, the fork's went on after {}",
                copies.collect::<String>(),
                forked.pid,
                wanted.control.display(),
                ms(forked.still_us),
                ms(forked.ready_us),
            ))?;
        }
        _ => print(&answer.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}
