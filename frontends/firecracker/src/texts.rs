//! What a request is refused with. Clients look for these texts, so they are Firecracker's as far as one is known to
//! be looked for; what our library says comes behind.

pub(crate) mod mmds;
mod snapshots;

use std::io;

use vmm_reference::{CommandError, Error};

use crate::api::bodies::StaticCpuTemplate;
use crate::metrics::ConfigureError;
use crate::texts::mmds::{NOT_INITIALIZED, TOO_LARGE};

pub(crate) use self::snapshots::{CreateFault, ForkFault, LoadFault, MemoryFault, StateFault};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("The requested operation is not supported before starting the microVM.")]
    BeforeStart,
    #[error("The requested operation is not supported after starting the microVM.")]
    AfterStart,
    #[error("The requested operation is not supported: {0}")]
    NotSupported(String),
    #[error("PCI is not enabled")]
    NoPci,

    #[error("Boot source error: The kernel file cannot be opened: {0}")]
    Kernel(io::Error),
    #[error(
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {0}"
    )]
    Initrd(io::Error),
    #[error("Boot source error: The kernel command line is invalid: {0}")]
    CommandLine(String),

    #[error(
        "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
    )]
    LessThanBalloon,
    #[error(
        "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size."
    )]
    MemorySize,
    #[error(
        "Machine config error: The number of vCPUs must be greater than 0, less than {most} and must be 1 or an even number if SMT is enabled."
    )]
    Vcpus { most: u8 },
    #[error(
        "Machine config error: Enabling simultaneous multithreading is not supported on aarch64."
    )]
    #[cfg_attr(target_arch = "x86_64", allow(dead_code))]
    Smt,
    #[error("Configure CPU error: {0}")]
    Cpu(String),

    #[error(
        "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file: {error} {path}"
    )]
    Drive { error: io::Error, path: String },
    #[error("Drive config error: Unable to create the virtio block device: Invalid block config.")]
    DriveConfig,
    #[error("Drive config error: A root block device already exists!")]
    SecondRoot,
    #[error(
        "Drive config error: Unable to patch the block device: {0} Please verify the request arguments."
    )]
    DriveUpdate(DriveUpdate),

    #[error("Network config error: The MAC address is already in use: {0}")]
    MacInUse(String),
    #[error(
        "Network config error: Could not create the network device: Open tap device failed: \
         Error while creating ifreq structure: {error}. Invalid TUN/TAP Backend provided by {name}. \
         Check our documentation on setting up the network devices."
    )]
    Tap { error: String, name: String },
    #[error(
        "Network config error: Could not create the network device: Open tap device failed: Invalid interface name"
    )]
    TapName,
    #[error(
        "Network config error: Could not create the network device: MTU {0} is out of range [68, 65535]"
    )]
    Mtu(u16),
    #[error("Network config error: Unable to update the net device: {0}")]
    NetUpdate(String),

    #[error(
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket: {0}"
    )]
    Vsock(io::Error),

    #[error("Balloon config error: No balloon device found.")]
    NoBalloon,
    #[error("Balloon config error: Amount of pages requested is too large.")]
    TooLargeBalloon,
    #[error("Balloon update error: {0}")]
    BalloonUpdate(String),
    #[error("Internal VMM error: {0}")]
    Internal(String),

    #[error("Logger error: Failed to open target file: {0}")]
    Logger(io::Error),
    #[error("Metrics error: Cannot initialize the metrics system due to bad user input: {0}")]
    Metrics(#[from] ConfigureError),
    #[error("Start microvm error: The output of the serial console cannot be opened: {0}")]
    Serial(io::Error),

    #[error("Start microvm error: {0}")]
    Start(String),

    #[error("MMDS error: {NOT_INITIALIZED}")]
    NoMetadata,
    #[error("MMDS limit exceeded error: {TOO_LARGE}")]
    TooMuchMetadata,
    #[error("MMDS config error: {0}")]
    Mmds(&'static str),
    #[error("MMDS config error: The service cannot be made: {0}")]
    MmdsHost(io::Error),

    #[error("Create snapshot error: {0}")]
    Create(#[from] CreateFault),
    #[error("Load snapshot error: {0}")]
    Load(#[from] LoadFault),
    #[error("Fork error: {0}")]
    Fork(#[from] ForkFault),
}

/// Why a disk was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveUpdate {
    #[error("Block: Virtio backend error: Error manipulating the backing file: {error} {path}")]
    File { error: io::Error, path: String },
    #[error("{NO_DEVICE}")]
    NoDevice,
    /// Of a vhost-user disk that is what one can say, which there are none of.
    #[error("Block: Running method expected different backend.")]
    Nothing,
    #[error("Block: {0}")]
    Refused(String),
}

/// What has no id that a request names.
pub(crate) const NO_DEVICE: &str = "Failed perform action on device: Device not found";
/// No kernel was named.
pub(crate) const NO_KERNEL: &str = "Cannot start microvm without kernel configuration.";
/// A balloon without statistics is asked for them.
pub(crate) const NO_STATISTICS: &str = "Balloon: Received stats query when stats are disabled.";
/// Statistics are switched on or off while the machine runs.
pub(crate) const STATISTICS_SWITCHED: &str =
    "Balloon: Statistics cannot be enabled/disabled after activation.";
/// A balloon without hinting is asked for it.
pub(crate) const NO_HINTING: &str = "Balloon: Attempting to use hinting when not enabled";

const NO_MEMORY: &str =
    "Invalid Memory Configuration: Cannot create mmap region: Out of memory (os error 12)";
const NO_LINE: &str =
    "Could not attach device: Could not allocate GSI: The requested resource is not available.";
const NO_SLOT: &str =
    "Could not attach device: Could not find an available device slot on the PCI bus.";

/// What comes of a command that the machine has not carried out.
pub(crate) fn refused(error: &CommandError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Why a machine was not built, as the part behind "Start microvm error: ".
pub(crate) fn start(error: &Error) -> String {
    let said = error.chain();
    let value = error.value();
    let named = value.map(|(field, value)| (field.first(), value));
    let out_of_memory = error
        .io()
        .is_some_and(|error| error.kind() == io::ErrorKind::OutOfMemory);
    let known = match named {
        Some(("guest-memory", _)) => Some(NO_MEMORY),
        Some(("transport", "mmio")) => Some(NO_LINE),
        Some(("transport", "pci")) => Some(NO_SLOT),
        _ => out_of_memory.then_some(NO_MEMORY),
    };
    match known {
        Some(known) => format!("{known} ({said})"),
        None => said,
    }
}

/// What is said in the log of a template of processor features.
pub(crate) fn template_is_not_applied(template: StaticCpuTemplate) -> String {
    format!(
        "The CPU template {template} masks no features here: the guest sees the CPUID that KVM offers on this \
         host, so that it may not go on on a host with another processor."
    )
}
