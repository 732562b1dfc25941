//! Disks that are copied while their machine stands still, for the saved one.

use std::fs::{File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

#[cfg(feature = "virtio")]
use devices::state::{BlockState, VirtioDeviceState};
use devices::{descriptor, micros};
use rustix::fs::ioctl_ficlone;

use super::progress::Progress;
use super::saved::Parts;
use super::sparse::{Data, Writer};
use crate::control::saving::{CopiedDisk, CopyMethod, DiskCopy};

/// Bytes of a logical block of a disk that is a file.
#[cfg(feature = "virtio")]
const SECTOR: u32 = 512;

/// A disk that is to be copied.
#[derive(Debug)]
pub(crate) struct Copying {
    copy: DiskCopy,
    from: File,
    /// Empty.
    to: File,
    /// Bytes of the disk.
    pub(crate) len: u64,
    /// What the copy is, once it is whole.
    copied: Option<Metadata>,
    /// It is on its disk then.
    is_durable: bool,
}

impl Copying {
    pub(crate) fn new(copy: DiskCopy, from: File, to: File) -> io::Result<Self> {
        // That of a block device is not in its metadata.
        let len = (&from).seek(SeekFrom::End(0))?;
        Ok(Self {
            copy,
            from,
            to,
            len,
            copied: None,
            is_durable: true,
        })
    }

    /// Nobody needs the copy once this host has failed.
    pub(crate) fn for_now(mut self) -> Self {
        self.is_durable = false;
        self
    }

    /// The copy is the disk of a saved machine.
    #[cfg(feature = "virtio")]
    pub(crate) fn take_over(&self, parts: &mut Parts) -> Result<(), String> {
        let DiskCopy { device, name } = &self.copy;
        let saved = parts.move_disk(device, Path::new(name));
        let saved = saved.ok_or_else(|| format!("the device {device} is no disk"))?;
        let VirtioDeviceState::Block(disk) = &mut saved.state.device else {
            return Ok(());
        };
        if saved.state.runs && disk.block != SECTOR {
            return Err(format!(
                "the disk {device} has blocks of {} bytes, and a file has {SECTOR}: its driver knows them, so that no \
                 copy can take its place",
                disk.block
            ));
        }
        if self.len.div_ceil(SECTOR.into()) != disk.sectors {
            return Err(format!(
                "the disk {device} has another size by now than its guest knows"
            ));
        }
        if let Some(found) = &self.copied {
            disk.written = BlockState::last_written(found);
        }
        Ok(())
    }

    /// Without virtio there is none.
    #[cfg(not(feature = "virtio"))]
    pub(crate) fn take_over(&self, _: &mut Parts) -> Result<(), String> {
        Err(format!("the device {} is no disk", self.copy.device))
    }

    /// Copies it, and tells of it; `place` is where that begins in what the progress counts.
    pub(crate) fn run(&mut self, place: u64, progress: &Progress) -> io::Result<CopiedDisk> {
        let Self {
            copy,
            from,
            to,
            len,
            copied,
            is_durable,
        } = self;
        let failed = |error: io::Error| {
            let text = format!("the disk {} cannot be copied: {error}", copy.device);
            io::Error::new(error.kind(), text)
        };
        let begin = Instant::now();
        progress.reach(place)?;
        // Whatever keeps the file system from it.
        let (method, written_bytes) = match ioctl_ficlone(&*to, &*from) {
            Ok(()) => (CopyMethod::Reflink, 0),
            Err(_) => {
                let written = sparse(from, to, *len, place, progress).map_err(failed)?;
                (CopyMethod::Sparse, written)
            }
        };
        if *is_durable {
            to.sync_all().map_err(failed)?;
        }
        let found = to.metadata().map_err(failed)?;
        if found.len() != *len {
            return Err(failed(io::Error::other("its file has another size by now")));
        }
        *copied = Some(found);
        Ok(CopiedDisk {
            device: copy.device.clone(),
            name: copy.name.clone(),
            method,
            written_bytes,
            time_us: micros(begin.elapsed()),
        })
    }
}

/// Copies the data of a file to an empty one; gives how many bytes.
fn sparse(from: &File, to: &File, len: u64, place: u64, progress: &Progress) -> io::Result<u64> {
    to.set_len(len)?;
    let mut writer = Writer::new(to, progress, place);
    for run in Data::of(from, 0..len) {
        let run = run?;
        let start = run.start;
        writer.copy(run, start, |at, bytes| from.read_exact_at(bytes, at))?;
    }
    Ok(writer.written)
}

/// Whether a saved machine can have its disks at these names.
pub(crate) fn check(copies: &[DiskCopy]) -> Result<(), String> {
    for (number, DiskCopy { device, name }) in copies.iter().enumerate() {
        let path = Path::new(name);
        if !path.is_absolute() || descriptor::of_path(path).is_some() {
            return Err(format!(
                "the copy of the disk {device} has no absolute path: {name:?}"
            ));
        }
        let before = copies.get(..number).unwrap_or_default();
        if before.iter().any(|other| other.device == *device) {
            return Err(format!("the disk {device} is to be copied twice"));
        }
        if let Some(other) = before.iter().find(|other| other.name == *name) {
            return Err(format!(
                "the disks {} and {device} are to be copied to the same file {name:?}",
                other.device
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const PAGE: usize = 4096;

    fn copy(device: &str, name: &str) -> DiskCopy {
        DiskCopy {
            device: device.to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn holes_and_zeros_are_holes_in_the_copy() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let len = (64 << 20) + 512;
        from.set_len(len).unwrap();
        from.write_all_at(&[3; 2 * PAGE], 1 << 20).unwrap();
        from.write_all_at(&[0; 4 << 20], 2 << 20).unwrap();
        from.write_all_at(&[5; 512], len - 512).unwrap();
        let mut copying = Copying::new(copy("blk0", "/copy"), from, to).unwrap();
        let progress = Progress::default();
        let written = sparse(&copying.from, &copying.to, len, 1 << 30, &progress).unwrap();
        assert!(written <= 3 * PAGE as u64, "{written}");
        assert!(copying.to.metadata().unwrap().blocks() * 512 <= 16 * PAGE as u64);
        let [all, again] = [&copying.from, &copying.to].map(|file| {
            let mut bytes = vec![0; usize::try_from(len).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        });
        assert!(all == again);
        assert!(progress.done() > 1 << 30);
        progress.cancel();
        assert!(copying.run(0, &progress).is_err());
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        for (copies, said) in [
            (vec![copy("a", "relative")], "no absolute path"),
            (vec![copy("a", "/dev/fd/3")], "no absolute path"),
            (vec![copy("a", "/1"), copy("a", "/2")], "copied twice"),
            (vec![copy("a", "/1"), copy("b", "/1")], "the same file"),
        ] {
            let refused = check(&copies).unwrap_err();
            assert!(refused.contains(said), "{refused}");
        }
        assert_eq!(check(&[copy("a", "/1"), copy("b", "/2")]), Ok(()));
    }
}
