//! The contract between the generic VMM core and the architecture backends.
//!
//! A backend has two halves. The *pure half* ([`Platform`]) turns host facts and the user's
//! configuration into plain data: a [`MachinePlan`], tables in guest memory, register values.
//! It compiles and is tested on every host. The *host half* ([`KvmPlatform`]) applies that data
//! through KVM and is the only code that depends on the architecture it runs on.
//!
//! This crate contains no `cfg`: adding an architecture does not change it.

mod attribute;
mod config_path;
pub mod contract;
pub mod device_tree;
mod error;
mod features;
mod generation;
pub mod kernel;
mod kvm;
mod lean;
mod pci;
mod plan;
mod platform;
mod resources;
mod state;

pub use attribute::{attribute, get_attribute, set_attribute};
pub use config_path::ConfigPath;
pub use error::{BootError, KvmError, PlanError};
pub use features::FeatureBits;
pub use kvm::{KvmIrqChip, KvmPlatform, ProbeProgram, ProbeStep, ThreadBegin};
pub use lean::{GuestKernel, Lean, LeanChoice};
pub use plan::{
    AddressRange, Cmdline, DeviceKind, DevicePlan, GenerationId, Gsi, LEAST_MEMORY, Limits,
    MachineConfig, MachinePlan, Messages, PciPlan, Reserved, Space, Transport, VIRTIO_PCI_BAR,
    VirtioKind, add_parameters, check_amounts, has_word, kernel_parameters, size_text,
};
pub use platform::{
    ARGUMENTS, BootInfo, BootRequest, GuestRam, IrqModel, KernelPlacement, Placed, Planner,
    Platform, SEED, VcpuId, WiredRoute, refused_features,
};
pub use resources::{Resources, virtio_mmio, window_above};
pub use state::{Bytes, Difference, Unsaved, ticks};

// What backends use of crates that have no version 1.0 yet, by names of our own: who writes a backend gets the
// versions that the core has. `GuestRam` is vm-memory's.
pub use kvm_ioctls::{Cap, DeviceFd, Error as Errno, Kvm, VcpuFd, VmFd};
pub use vm_memory::GuestMemoryError as MemoryError;
pub use vmm_sys_util::eventfd::EventFd;
