//! A KVM virtual machine monitor as a library.
//!
//! The command line in `src/main.rs` uses nothing but this API; any other front end can take its
//! place. A VM is described by a plain [`VmConfig`], built into a [`Machine`], and run on the
//! thread that calls [`Machine::run`] while a [`VmHandle`] on any other thread may stop it.
//!
//! ```no_run
//! # #[cfg(feature = "host")] {
//! use vmm_reference::{Console, Vm, VmConfig};
//!
//! let config = VmConfig::default().with_vcpus(2).with_memory_mib(512);
//! let vm = Vm::new(&config, Console::stdio()?)?;
//! let reason = vm.run()?;
//! println!("the guest ended: {reason:?}");
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Start-up reads as one straight line in [`Machine::new`]. Nothing here depends on an
//! architecture: the core is written against [`arch::Platform`] and [`arch::KvmPlatform`].

mod attachments;
mod backend;
mod config;
mod confinement;
mod console;
mod control;
mod cures;
mod devices;
mod error;
#[cfg_attr(not(feature = "snapshot"), path = "no_fork.rs")]
mod fork;
mod handed;
mod host;
mod kernel;
mod memory;
mod outputs;
mod process_ids;
mod random;
#[cfg(feature = "snapshot")]
mod snapshot;
#[cfg(any(feature = "control", feature = "snapshot"))]
mod threads;
mod timeline;
mod vm;
mod wake;

pub use crate::devices::own::{Interrupt, OwnDevice};
#[cfg(feature = "virtio-net")]
pub use crate::devices::virtio::{open_tap, open_tap_queues};
pub use ::devices::config::{
    BalloonConfig, BlkConfig, BlkCopy, BlkEngine, BlkReplacement, Direction, Limits, LimitsChange,
    Mac, NetConfig, NetReplacement, OptionError, Rate, VsockConfig, VsockReplacement, with_text,
    words_of,
};
pub use ::devices::config::{First as FirstOption, options as split_options};
#[cfg(feature = "virtio")]
pub use ::devices::virtio::{FRAME_START, FrameHook};
pub use ::devices::{
    BalloonStatistics, Bucket, Change, ChangeError, DeviceMetrics, GuestStatistics, Hinting,
    HintingState, HintingStatus, LATENCY_BOUNDS_US, Latencies, Link, NewFile, OperationMetrics,
    Overflow, Query, Report, TerminalSize,
};
pub use ::devices::{BusDevice, Outcome};
pub use arch;
pub use arch::{ConfigPath, FeatureBits, Lean, Transport};
pub use attachments::Attachments;
pub use backend::hello_guest;
#[cfg(feature = "host")]
pub use backend::{ARCHITECTURES, HostPlatform, planner, planner_with_facts};
pub use config::{HugePages, MemoryBacking, MemorySize, OnReboot, VmConfig, in_plain_words};
#[cfg(any(feature = "config-file", feature = "control", feature = "snapshot"))]
pub use config::{ReadError, Step, ValuePath, read_unique, read_value};
pub use confinement::{Confinement, ConfinementReport, MissingPart, ThreadRole};
pub use console::{Console, Consoles, EscapeKeys, MainConsole, in_background};
pub use control::answer::Pending;
#[cfg(feature = "control")]
pub use control::answer::Watched;
pub use control::command::{
    Command, CommandError, DeviceStatus, Reply, State, Status, VcpuRegisters,
};
pub use control::ending::{Crash, CrashCause, ExitReason};
pub use control::event::{Event, Happening, Subscription};
#[cfg(feature = "snapshot")]
pub use control::forking::{DiskContent, ForkWish, Forked, ForkedDisk, ForkedTap};
pub use control::handle::VmHandle;
pub use control::metrics::{DeviceReport, Exits, Metrics, RegisterMetrics, VcpuMetrics};
#[cfg(feature = "snapshot")]
pub use control::saving::{CopiedDisk, CopyMethod, DiskCopy, SavedForm, SavingStatus, Written};
#[cfg(feature = "schema")]
pub use control::server::schema::control_schema;
#[cfg(feature = "control")]
pub use control::server::{
    ClientLimits, ControlServer, ControlSocket, Input, MAX_DESCRIPTORS, Next, PROTOCOL,
    ParkedControl, ParkedServer, Place, Service, SocketServer,
};
pub use error::Error;
#[cfg(feature = "virtio-vsock")]
pub use handed::MadeSocket;
pub use handed::own_descriptor;
pub use host::{Check, Level, diagnose, probe};
pub use kernel::inspect::{KernelReport, inspect};
pub use memory::huge::transparent_size as transparent_page_bytes;
pub use outputs::{NamedFile, NamedFiles, busy_output, check_descriptor_path, refused_output};
#[cfg(feature = "snapshot")]
pub use snapshot::{RestoredClock, SavedMemory, Snapshot};
pub use timeline::{Milestone, Timeline};
pub use vm::machine::Machine;
#[cfg(feature = "snapshot")]
pub use vm::parked::{Fork, Forking, Parked, Ran};
pub use vm::planned_for::PlannedFor;
pub use vm::planning::{device_tree, plan};
pub use vm::rehearsal::rehearse;

/// A VM on the host's own architecture.
#[cfg(feature = "host")]
pub type Vm = Machine<HostPlatform>;
