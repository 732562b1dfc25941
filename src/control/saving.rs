//! What saving a machine takes besides the command, and what is told of it: plain data.

use serde::{Deserialize, Serialize};

/// How far a machine is written that is saved. Its guest stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct SavingStatus {
    /// Bytes of its RAM, and then of the disks that are copied, that were looked at and written.
    pub done_bytes: u64,
    /// Of so many.
    pub total_bytes: u64,
}

/// What the file for a saved machine's RAM gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SavedForm {
    /// The file is empty, and gets all of RAM; or what changed, one run of pages behind the other, as a layer above the
    /// files of the machine that it changed since.
    #[default]
    Layer,
    /// The file is as long as RAM, or empty and becomes so, and what changed goes to its place in it. The state names this
    /// file alone: it is to be all of RAM, so it has what the machine had that this changed since, or is put over a
    /// file with that. What changed is data of the file, also where it is zeros now; the rest of an empty file is holes.
    /// If the VM does not know that machine, all of RAM is written so.
    InPlace,
    /// The file may have anything, which it keeps as long as the machine may still be refused: then it is emptied, and gets
    /// what an empty file gets by `InPlace`. Neither this nor `InPlace` takes a disk, the kernel or the initrd of the
    /// machine, and this no file that its memory is mapped to either. Where another process brings its pages, the file has
    /// to be empty.
    Replace,
}

impl SavedForm {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A disk that is copied when its machine is saved, to an empty file that comes open beside the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DiskCopy {
    /// The disk's id.
    pub device: String,
    /// The absolute path that the copy will have, where the saved machine finds its disk. Nobody opens it by this name
    /// before.
    pub name: String,
}

/// A disk that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct CopiedDisk {
    /// The disk's id.
    pub device: String,
    /// The path of the copy.
    pub name: String,
    /// How it was copied.
    pub method: CopyMethod,
    /// The bytes that were written: none by a reflink, and no zeros.
    pub written_bytes: u64,
    /// How long it took, in microseconds: for a saved machine until the copy was on its disk.
    pub time_us: u64,
}

/// How a file was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CopyMethod {
    /// Both files have the same blocks until one is written to (FICLONE).
    Reflink,
    /// Its data was read and written; holes and pages of zeros are holes.
    Sparse,
}

/// A machine that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Written {
    /// How long the guest stood still for it, in microseconds; of a guest that was paused, how long it took.
    pub still_us: u64,
    /// The bytes of its RAM that were written: pages that are no zeros.
    pub memory_bytes: u64,
    /// How many files its RAM is in: 1 if all of it was written, more if what changed was.
    pub layers: u32,
    /// The disks that were copied, in the order in which the command named them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopiedDisk>,
}
