//! What a device can be asked while its machine runs, and what it tells: plain data, with or without the devices
//! themselves.

use serde::{Deserialize, Serialize};

/// Something to ask a device for, whether a driver uses it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Query {
    /// A balloon: what it holds, and how the guest is off for memory. Asks the guest for newer statistics, too.
    Statistics,
    /// A balloon: how far the guest is with naming its free pages.
    Hinting,
}

impl Query {
    /// What it is about, as commands call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Statistics => "statistics",
            Self::Hinting => "hinting",
        }
    }
}

/// What a device tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Report {
    /// To [`Query::Statistics`].
    Statistics(Box<BalloonStatistics>),
    /// To [`Query::Hinting`].
    Hinting(HintingStatus),
}

/// A balloon and its guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct BalloonStatistics {
    /// Bytes that the guest is asked to give to the balloon.
    pub asked_bytes: u64,
    /// Bytes that it has given, as its driver says.
    pub given_bytes: u64,
    /// A driver uses the balloon, and gives statistics.
    pub supported: bool,
    /// The guest was asked for newer statistics: they are in a later answer.
    pub refreshing: bool,
    /// The newest statistics of the driver that is there, if it has given any.
    pub guest: Option<GuestStatistics>,
}

/// What a guest says about its memory. All of it is what its driver chooses to say: a hint, and no fact.
///
/// The first ten are those of VIRTIO 1.3, 5.5.6.4; Linux 6.12 has the others too (uapi `linux/virtio_balloon.h`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
#[non_exhaustive]
pub struct GuestStatistics {
    /// How old they are, in milliseconds. Time goes on while the machine is paused.
    pub age_ms: u64,
    /// Bytes read back from swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Bytes written to swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Page faults that needed I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Bytes that are used for nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Bytes that the guest has in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Bytes that programs could have without swapping.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Bytes of caches, most of which can be had back without I/O.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Huge pages that were allocated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_allocations: Option<u64>,
    /// Huge pages that could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugetlb_failures: Option<u64>,
    /// Processes killed for lack of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Allocations that had to wait for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation_stalls: Option<u64>,
    /// Pages looked at by the kernel's own reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_scanned_pages: Option<u64>,
    /// Pages looked at by those who waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scanned_pages: Option<u64>,
    /// Pages reclaimed by the kernel's own reclaim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub async_reclaimed_pages: Option<u64>,
    /// Pages reclaimed by those who waited for memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaimed_pages: Option<u64>,
}

/// How far the guest is with naming its free pages (VIRTIO 1.3, 5.5.6.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct HintingStatus {
    /// What of it goes on.
    pub state: HintingState,
    /// A driver uses the balloon, and takes part.
    pub supported: bool,
    /// The last command to the guest: 0 to stop, 1 when it may use its pages again, else the number of a run.
    pub host_command: u32,
    /// The guest's last word: the number of the run that it is at, or 0 at its end. `None` before its first.
    pub guest_command: Option<u32>,
    /// Bytes of the last run that went back to the host: whole pages that the guest named, whether they were in use
    /// before or not.
    pub released_bytes: u64,
}

/// A run of free page hinting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HintingState {
    /// There is none.
    Idle,
    /// The guest was asked for one, or will be when it has a driver, and has not begun.
    Waiting,
    /// The guest names pages.
    Running,
    /// The guest has named all, and leaves them alone until it is told to stop.
    Held,
}
