//! What a VM knows of the machines that it was saved as last, so that the next one need not have all of RAM.
//!
//! Whoever has a machine saved publishes it, or does not; the VM does not hear of it. So it knows two: the last one, and the
//! one that this stands above. Whoever wants only what changed says since which one, and that one of the two is it, if this
//! VM has written what was published last.

use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::{io, slice};

use arch::GuestRam;
use rustix::mm::MapFlags;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::changes::{Tracker, untold};
use super::layout::MemoryLayout;
use super::memory::layered;
use super::present::{self, Present};
use super::ranges::{Ranges, push, union};
use crate::control::saving::SavedForm;
use crate::memory::image::MemoryImage;
use crate::memory::proc_files::ProcFiles;

/// A saved machine.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) id: String,
    pub(crate) layout: MemoryLayout,
    /// What of RAM was written for it.
    pub(crate) runs: Ranges,
}

/// What RAM is mapped to, of a machine that was restored.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) base: Base,
    pub(crate) image: Arc<MemoryImage>,
}

/// What a VM knows of saved machines.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    origin: Option<Origin>,
    /// Knows what was written since the last one.
    tracker: Option<Tracker>,
    last: Option<Base>,
    before: Option<Base>,
}

/// The next one.
#[derive(Debug)]
pub(crate) struct Next {
    pub(crate) layout: MemoryLayout,
    /// What of RAM is written for it.
    pub(crate) runs: Ranges,
    /// What it stands above.
    base: Option<Base>,
    /// With the next one a chain begins, or what is known of RAM.
    begins: Option<Tracker>,
}

impl Chain {
    pub(crate) fn new(origin: Option<Origin>) -> Self {
        Self {
            origin,
            ..Self::default()
        }
    }

    /// That of a process which inherits RAM. What is watched here is not there.
    pub(crate) fn inherited(&self) -> Self {
        Self::new(self.origin.clone())
    }

    /// The numbers of the files that RAM was mapped to at first.
    pub(crate) fn descriptors(&self) -> Vec<RawFd> {
        let images = self.origin.iter().flat_map(|origin| &origin.image.files);
        images.map(AsRawFd::as_raw_fd).collect()
    }

    /// What RAM had at first.
    ///
    /// # Errors
    /// When a file of it was cut.
    pub(crate) fn origin(&self) -> io::Result<Option<&Arc<MemoryImage>>> {
        let Some(Origin { base, image }) = &self.origin else {
            return Ok(None);
        };
        base.layout.check_files(&image.files).map_err(|error| {
            io::Error::other(format!(
                "what memory was restored from was changed: {error}"
            ))
        })?;
        Ok(Some(image))
    }

    /// Nothing is known any more, and nothing watched.
    pub(crate) fn forget(&mut self) {
        self.tracker = None;
        self.last = None;
        self.before = None;
    }

    /// What of RAM the next one has: what changed since the machine with the id `since`, if that machine is known; else all
    /// of it. `whole` is its layout if it has all in its file, which is that of the form [`SavedForm::InPlace`] too. The
    /// guest stands still until the next one is [saved].
    ///
    /// [saved]: Self::saved
    ///
    /// # Errors
    /// When this host does not tell what changes.
    pub(crate) fn next(
        &mut self,
        ram: &GuestRam,
        since: &str,
        whole: &MemoryLayout,
        form: SavedForm,
        files: &ProcFiles,
    ) -> Result<Next, String> {
        check(ram)?;
        let failed = |error| format!("the host does not tell what changed: {error}");
        if let Some((base, runs)) = self.since(ram, since).map_err(failed)?
            && let Some(next) = Next::above(base, runs, whole, form)
        {
            return Ok(next);
        }
        self.forget();
        let tracker = Tracker::new(ram, files).map_err(|error| untold(&error))?;
        let above = self.since_origin(ram, since, files).map_err(failed)?;
        let above = above.and_then(|(base, runs)| Next::above(base, runs, whole, form));
        let next = above.unwrap_or_else(|| Next {
            layout: whole.clone(),
            runs: std::iter::once(0..len(ram)).collect(),
            base: None,
            begins: None,
        });
        Ok(Next {
            begins: Some(tracker),
            ..next
        })
    }

    /// What was written since a machine that this VM was saved as.
    fn since(&self, ram: &GuestRam, since: &str) -> io::Result<Option<(Base, Ranges)>> {
        let (Some(tracker), Some(last)) = (&self.tracker, &self.last) else {
            return Ok(None);
        };
        let (base, runs) = match &self.before {
            _ if last.id == since => (last, Vec::new()),
            // The last one was not published; what it has may not have changed again.
            Some(before) if before.id == since => (before, last.runs.clone()),
            _ => return Ok(None),
        };
        tracker.register(ram)?;
        Ok(Some((base.clone(), union(runs, tracker.written(ram)?))))
    }

    /// What was written since the machine was restored, if it was that one.
    fn since_origin(
        &self,
        ram: &GuestRam,
        since: &str,
        files: &ProcFiles,
    ) -> io::Result<Option<(Base, Ranges)>> {
        let Some(Origin { base, image }) = &self.origin else {
            return Ok(None);
        };
        if base.id != since {
            return Ok(None);
        }
        let present = Present::look(files);
        let mut runs = Vec::new();
        let mut offset = 0;
        for region in ram.iter() {
            let layered = layered(Some(image), offset, region.len());
            let present::Populated::Above(above) = present.of(region, layered)? else {
                return Ok(None);
            };
            for run in above.changed()? {
                push(&mut runs, offset + run.start..offset + run.end);
            }
            offset += region.len();
        }
        Ok(Some((base.clone(), runs)))
    }

    /// The next one is on the disk. From now on its changes are watched.
    pub(crate) fn saved(&mut self, ram: &GuestRam, id: &str, next: Next) -> io::Result<()> {
        let Next {
            layout,
            runs,
            base,
            begins,
        } = next;
        let all: Range<u64> = 0..len(ram);
        let places = match begins {
            None => &*runs,
            Some(_) => slice::from_ref(&all),
        };
        // Without it nothing is known: when this fails, the next one is whole.
        if let Some(tracker) = begins.or(self.tracker.take()) {
            tracker.protect(ram, places)?;
            self.tracker = Some(tracker);
        }
        self.before = base;
        self.last = Some(Base {
            id: id.to_owned(),
            layout,
            runs,
        });
        Ok(())
    }
}

impl Next {
    /// What changed above a machine; `None` when that would be too much for a chain of layers.
    fn above(base: Base, runs: Ranges, whole: &MemoryLayout, form: SavedForm) -> Option<Self> {
        let (layout, runs) = match form {
            SavedForm::InPlace | SavedForm::Replace => (whole.clone(), runs),
            SavedForm::Layer => {
                let layout = base.layout.above(&whole.last()?.file, runs)?;
                let runs = layout.last()?.runs.clone();
                (layout, runs)
            }
        };
        Some(Self {
            layout,
            runs,
            base: Some(base),
            begins: None,
        })
    }
}

/// Bytes of RAM.
fn len(ram: &GuestRam) -> u64 {
    ram.iter().map(GuestMemoryRegion::len).sum()
}

/// Whether only this process writes to RAM, and by its own mapping.
fn check(ram: &GuestRam) -> Result<(), String> {
    let is_shared =
        |flags: i32| MapFlags::from_bits_retain(flags.cast_unsigned()).contains(MapFlags::SHARED);
    if ram.iter().any(|region| is_shared(region.flags())) {
        return Err(
            "its memory is a file (memory-backing=shared, or reserved huge pages), and what changes in it is not told"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
