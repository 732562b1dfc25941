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
mod console;
mod control;
mod cures;
mod devices;
mod error;
mod host;
mod kernel;
mod memory;
mod outputs;
mod random;
#[cfg(feature = "snapshot")]
mod snapshot;
mod timeline;
mod vm;
mod wake;

pub use crate::devices::own::{Interrupt, OwnDevice};
pub use ::devices::config::{
    BalloonConfig, BlkConfig, BlkEngine, BlkReplacement, Limits, Mac, NetConfig, NetReplacement,
    OptionError, VsockConfig, VsockReplacement, with_text, words_of,
};
pub use ::devices::{
    BalloonStatistics, Bucket, Change, ChangeError, DeviceMetrics, GuestStatistics, Hinting,
    HintingState, HintingStatus, LATENCY_BOUNDS_US, Latencies, Link, NewFile, OperationMetrics,
    Overflow, Query, Report, TerminalSize,
};
pub use ::devices::{BusDevice, Outcome};
pub use arch;
pub use arch::{ConfigPath, Lean, Transport};
pub use attachments::Attachments;
pub use backend::hello_guest;
#[cfg(feature = "host")]
pub use backend::{ARCHITECTURES, HostPlatform, planner, planner_with_facts};
pub use config::{HugePages, MemoryBacking, MemorySize, OnReboot, VmConfig, in_plain_words};
#[cfg(any(feature = "config-file", feature = "control", feature = "snapshot"))]
pub use config::{ReadError, Step, ValuePath, read_unique, read_value};
pub use console::{Console, Consoles, EscapeKeys, MainConsole, in_background};
#[cfg(feature = "snapshot")]
pub use control::command::Written;
pub use control::command::{
    Command, CommandError, DeviceStatus, Reply, State, Status, VcpuRegisters,
};
pub use control::event::{Event, Happening, Subscription};
pub use control::handle::{Crash, CrashCause, ExitReason, VmHandle};
pub use control::metrics::{DeviceReport, Exits, Metrics, VcpuMetrics};
#[cfg(feature = "schema")]
pub use control::server::schema::control_schema;
#[cfg(feature = "control")]
pub use control::server::{ControlServer, ControlSocket, PROTOCOL, Place};
pub use error::Error;
pub use host::{Check, Level, diagnose, probe};
pub use kernel::inspect::{KernelReport, inspect};
pub use memory::huge::transparent_size as transparent_page_bytes;
pub use outputs::{NamedFile, NamedFiles, busy_output, check_descriptor_path, refused_output};
#[cfg(feature = "snapshot")]
pub use snapshot::Snapshot;
pub use timeline::{Milestone, Timeline};
pub use vm::machine::Machine;
pub use vm::planned_for::PlannedFor;
pub use vm::planning::{device_tree, plan};
pub use vm::rehearsal::rehearse;

/// A VM on the host's own architecture.
#[cfg(feature = "host")]
pub type Vm = Machine<HostPlatform>;
