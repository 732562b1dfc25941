//! Texts about saved machines.

use std::io;
use std::path::PathBuf;

/// Why a machine was not saved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateFault {
    #[error(
        "Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"
    )]
    Running,
    #[error("Cannot perform open on the snapshot backing file: {0}")]
    State(io::Error),
    #[error("Cannot perform open on the memory backing file: {0}")]
    Memory(io::Error),
    #[error("the state and the memory are to be the same file")]
    SameFile,
    #[error(
        "a Diff snapshot cannot be added to the memory file {}: it is as long as the memory, but not what the machine had \
         when it was saved last, or loaded, or somebody has written to it since. Name the memory file of that snapshot or \
         a new file, or create a Full snapshot", .0.display()
    )]
    NotBase(PathBuf),
    #[error("Cannot save the microVM state: {0}")]
    Refused(String),
    #[error("Cannot write the files: {0}")]
    Publish(io::Error),
}

/// Why a machine that was saved does not go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadFault {
    #[error("Loading a microVM snapshot not allowed after configuring boot-specific resources.")]
    Configured,
    #[error("Failed to restore from snapshot: Failed to get snapshot state from file: {0}")]
    State(StateFault),
    #[error("Failed to restore from snapshot: Failed to load guest memory: {0}")]
    Memory(MemoryFault),
    #[error("Failed to restore from snapshot: Unknown Network Device: {0}")]
    NoNetwork(String),
    #[error("Failed to restore from snapshot: Unknown Vsock Device")]
    NoVsock,
    #[error("Failed to restore from snapshot: Unknown block device: {0}")]
    NoDrive(String),
    /// A device's host side cannot be had.
    #[error("Failed to restore from snapshot: Failed to build microVM from snapshot: {0}")]
    Device(String),
    #[error("Failed to restore from snapshot: Failed to build microVM from snapshot: {0}")]
    Build(String),
}

/// Why there is no state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateFault {
    #[error("Failed to open snapshot file: {0}")]
    Open(io::Error),
    #[error("Failed to load snapshot state from file: IO Error: File too short to contain CRC")]
    Short,
    #[error("Failed to load snapshot state from file: {0}")]
    Wrong(String),
}

/// Why there is no memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryFault {
    #[error("Error creating guest memory from file: Failed to load guest memory: {0}")]
    File(io::Error),
    #[error(
        "Error creating guest memory from file: {} has what changed since another snapshot, and nothing else; put it \
         together with that one's memory first (snapshot-editor edit-memory rebase)",
        .0.display()
    )]
    Diff(PathBuf),
    #[error(
        "Error creating guest memory from file: {} is the memory of another state, as it was written with it",
        .0.display()
    )]
    OtherState(PathBuf),
    #[error("Error creating guest memory from uffd: Failed to connect to UDS Unix stream: {0}")]
    Socket(io::Error),
}

/// Why there is no fork.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForkFault {
    #[error("id: {0}")]
    Id(String),
    #[error("{}: {error}", .path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{field}: {} is there and not empty: name a new file", .path.display())]
    NotEmpty { field: &'static str, path: PathBuf },
    #[error(
        "threads that start again for a fork would have the filters of the main thread too, where those are a user's: \
         start the process without --seccomp-filter to fork it"
    )]
    Filters,
    #[error("the drive {0} is named twice in drive_overrides and drive_copies")]
    Twice(String),
    #[error("Unknown block device: {0}")]
    NoDrive(String),
    #[error(
        "the guest may write to the drive {0}, and two guests would destroy what is on it: name a new file in drive_copies, or another file with the same content in drive_overrides"
    )]
    SharedDrive(String),
    #[error("Unknown Network Device: {0}")]
    NoNetwork(String),
    #[error(
        "the network device {0} needs a tap device of the fork's own: name one in network_overrides"
    )]
    SharedNetwork(String),
    #[error("network_overrides: the tap device {name} cannot be had: {error}")]
    Tap { name: String, error: String },
    #[error("Unknown Vsock Device")]
    NoVsock,
    #[error("the vsock device needs a socket of the fork's own: name one in vsock_override")]
    SharedVsock,
    #[error("vsock_override: {0}")]
    Socket(io::Error),
    #[error("{0}")]
    Refused(String),
}
