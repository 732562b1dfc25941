//! Whether a machine can have the content of its RAM from where it is to come.

use std::os::unix::net::UnixStream;

use arch::GuestRam;

use super::layout::MemoryLayout;
use super::{SavedMemory, Snapshot};
use crate::memory::image::MemoryImage;
use crate::memory::uffd::Uffd;
use crate::{Error, MemoryBacking, cures};

/// Where the content of a machine's RAM comes from.
#[derive(Debug)]
pub(super) enum MemorySource {
    Lazy(MemoryImage),
    Prefault(MemoryImage),
    Handler(UnixStream, Uffd),
    /// It is there, since this process has inherited it.
    Inherited(GuestRam),
}

impl MemorySource {
    /// # Errors
    /// When the machine cannot have its memory from there, or not on this host.
    pub(super) fn new(memory: SavedMemory, snapshot: &Snapshot) -> Result<Self, Error> {
        let layout = &snapshot.parts.memory;
        let is_layered = layout.layers.len() > 1;
        match memory {
            SavedMemory::Uffd(_) if snapshot.config().memory_backing == MemoryBacking::Shared => {
                Err(not_handled())
            }
            SavedMemory::Uffd(_) if is_layered => Err(Error::Config {
                field: "memory".into(),
                value: "uffd".to_owned(),
                cause: "the saved machine's memory is in layers, and a handler has one file"
                    .to_owned(),
                cure: "merge them first (`snapshot merge`), or restore with memory=lazy".to_owned(),
            }),
            SavedMemory::Uffd(socket) => {
                let uffd = Uffd::for_handler().map_err(|source| Error::Refused {
                    field: "memory".into(),
                    value: "uffd".to_owned(),
                    source,
                    cure: cures::USERFAULTFD.to_owned(),
                })?;
                Ok(Self::Handler(socket, uffd))
            }
            SavedMemory::Lazy(files) => {
                check_pages(layout, &snapshot.name, rustix::param::page_size() as u64)?;
                snapshot.image(files).map(Self::Lazy)
            }
            SavedMemory::Prefault(files) => {
                check_pages(layout, &snapshot.name, rustix::param::page_size() as u64)?;
                snapshot.image(files).map(Self::Prefault)
            }
        }
    }

    /// If this process has it.
    pub(super) fn image(&self) -> Option<&MemoryImage> {
        match self {
            Self::Lazy(image) | Self::Prefault(image) => Some(image),
            Self::Handler(..) | Self::Inherited(_) => None,
        }
    }
}

/// Whether a host with such pages can map the layers, in runs of the pages that the host had where they were saved.
fn check_pages(layout: &MemoryLayout, name: &str, page: u64) -> Result<(), Error> {
    if layout.layers.len() < 2 || layout.page >= page {
        return Ok(());
    }
    Err(Error::Config {
        field: "snapshot".into(),
        value: name.to_owned(),
        cause: format!(
            "its memory is in layers with pages of {} bytes, and this host has pages of {page} bytes",
            layout.page
        ),
        cure: "merge them first (`snapshot merge`), which any host can do".to_owned(),
    })
}

/// Its memory is none that another process can bring.
fn not_handled() -> Error {
    Error::Config {
        field: "memory".into(),
        value: "uffd".to_owned(),
        cause: "the saved machine has memory-backing=shared, and a handler brings private memory"
            .to_owned(),
        cure: "restore it with memory=lazy, or save it without".to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arch::AddressRange;

    use super::*;

    #[test]
    fn layers_of_small_pages_are_to_be_merged_for_a_host_with_larger_ones() {
        let regions = [AddressRange::new(0, 1 << 20)];
        let mut layout = MemoryLayout::whole(&regions, "memory-1");
        layout.page = 4096;
        assert!(check_pages(&layout, "state", 65536).is_ok());
        layout = layout
            .above("memory-2", std::iter::once(0..4096).collect())
            .unwrap();
        assert!(check_pages(&layout, "state", 4096).is_ok());
        let refused = check_pages(&layout, "state", 65536).unwrap_err();
        assert!(
            refused.to_string().contains("pages of 65536 bytes"),
            "{refused}"
        );
        assert!(refused.cure().unwrap().starts_with("merge them first"));
    }
}
