//! What a fork of a machine takes besides the command, and what is told of it: plain data.

use serde::{Deserialize, Serialize};

#[cfg(feature = "control")]
use crate::control::fields;
use crate::control::saving::CopiedDisk;

/// The disk of a fork, whose open file comes beside the command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ForkedDisk {
    /// The disk's id.
    pub device: String,
    /// The absolute path of the file, which nobody opens by this name.
    pub name: String,
    /// What the file is.
    pub content: DiskContent,
    /// It comes twice, as two descriptors, one behind the other, that were opened each by itself: inside a sandbox a disk
    /// with direct I/O needs both. A disk without drops the second one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub twice: bool,
}

impl ForkedDisk {
    /// The disk with this id, and its file's name.
    pub fn new(device: impl Into<String>, name: impl Into<String>, content: DiskContent) -> Self {
        Self {
            device: device.into(),
            name: name.into(),
            content,
            twice: false,
        }
    }
}

/// What the file of a fork's disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DiskContent {
    /// It has what the guest knows of its disk.
    File,
    /// It is empty, and becomes a copy of the disk while the machine stands still.
    Copy,
}

/// The tap device of a fork, whose open descriptors come beside the command: one for each pair of queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ForkedTap {
    /// The id of the network device.
    pub device: String,
    /// The tap device's name, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// How many descriptors come, as many as the network device has pairs of queues; 1 if nothing is said.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde has it so.
fn is_one(queues: &u16) -> bool {
    *queues == one()
}

impl ForkedTap {
    /// The network device with this id, with one pair of queues, on a tap device of this name, if it is known.
    pub fn new(device: impl Into<String>, tap: Option<String>) -> Self {
        Self {
            device: device.into(),
            tap,
            queues: one(),
        }
    }

    /// Sets the number of pairs of queues.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }
}

/// What a fork has of its own, instead of what it would share with the machine that it is a fork of. An open descriptor
/// for each (of a tap device for each pair of queues) comes beside the command, in the order of these fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ForkWish {
    /// The absolute path of a control socket, which listens already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<String>,
    /// Disks. Every disk that its guest may write to is among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "control", serde(deserialize_with = "fields::disks"))]
    pub blk: Vec<ForkedDisk>,
    /// The ids of disks that it is to share, for which no descriptor comes. Disks that are only read are shared in any case;
    /// one that its guest may write to is refused here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<String>,
    /// Tap devices, one for each network device.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "control", serde(deserialize_with = "fields::taps"))]
    pub net: Vec<ForkedTap>,
    /// The absolute path of the socket of the vsock device, which listens already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<String>,
    /// The name of the file to which the serial console writes. Without it, what is printed there is dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Likewise of the virtio console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<String>,
    /// The fork begins paused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

impl ForkWish {
    /// How many open descriptors come beside it.
    pub(crate) fn descriptors(&self) -> usize {
        let single = [&self.control, &self.vsock, &self.serial, &self.console];
        let taps = self.net.iter().map(|tap| usize::from(tap.queues));
        let twice = self.blk.iter().filter(|disk| disk.twice).count();
        single.into_iter().flatten().count() + self.blk.len() + twice + taps.sum::<usize>()
    }
}

/// A fork whose guest runs, or stands still if it was to begin so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Forked {
    /// Its process.
    pub pid: u32,
    /// How long the guest of the machine that it is a fork of stood still, in microseconds; of a guest that was paused, how
    /// long it took.
    pub still_us: u64,
    /// How long it took until the fork's vCPUs were let into their guest, in microseconds, from the same moment on.
    pub ready_us: u64,
    /// The disks that were copied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<CopiedDisk>,
}
