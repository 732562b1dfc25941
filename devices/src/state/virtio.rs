//! What of a virtio device goes on: what its driver has set up at the transport, how far its queues are, and what the
//! device itself keeps. Its metrics begin anew.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Limits;

/// A virtio device behind its transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioState {
    /// The device status field, without NEEDS_RESET.
    pub status: u32,
    /// The features that the driver took.
    pub features: u64,
    /// A driver uses the device.
    pub runs: bool,
    /// The driver broke a rule, and has not reset the device since.
    pub needs_reset: bool,
    /// The reasons of interrupts that the driver has not acknowledged.
    pub interrupt_status: u32,
    /// How often the configuration space has changed.
    pub config_generation: u32,
    /// In their order.
    pub queues: Vec<QueueState>,
    /// Registers that only this transport has.
    pub registers: TransportRegisters,
    /// The device's own.
    pub device: VirtioDeviceState,
}

/// A queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Its number of entries.
    pub size: u16,
    /// Whether it is enabled.
    pub ready: bool,
    /// Where its descriptors are.
    pub descriptors: u64,
    /// Where the driver's ring is.
    pub driver: u64,
    /// Where the device's ring is.
    pub device: u64,
    /// How far it is, while the device runs and has it.
    pub progress: Option<QueueProgress>,
}

/// How far a queue is: numbers of buffers, which wrap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueProgress {
    /// The device has fetched.
    pub available: u16,
    /// It has given back.
    pub used: u16,
    /// The driver was told of.
    pub told: u16,
}

/// Registers of a transport that no other one has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TransportRegisters {
    /// Of the MMIO transport.
    Mmio(MmioRegisters),
    /// Of a PCI function.
    Pci(PciRegisters),
}

/// What the driver looks at through the registers of the MMIO transport.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // The names are the specification's.
pub struct MmioRegisters {
    pub device_features_sel: u32,
    pub driver_features_sel: u32,
    pub queue_sel: u32,
}

/// A function's configuration space, its messages, and what the driver looks at through its common configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PciRegisters {
    /// See the specification's `device_feature_select`.
    pub device_feature_select: u32,
    /// See the specification's `driver_feature_select`.
    pub driver_feature_select: u32,
    /// See the specification's `queue_select`.
    pub queue_select: u16,
    /// All 256 bytes; only what the guest may write is loaded.
    pub config_space: Vec<u8>,
    /// MSI-X: address (two words), data and control of each message.
    pub messages: Vec<[u32; 4]>,
    /// Numbers of messages that wait to be unmasked.
    pub pending: Vec<u16>,
    /// The message for changes of the configuration, or 0xffff.
    pub config_vector: u16,
    /// That of each queue.
    pub queue_vectors: Vec<u16>,
}

/// What a device keeps besides its queues. What it offers, and what is behind it on the host, are its configuration's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum VirtioDeviceState {
    /// Nothing.
    Stateless {},
    /// A disk.
    Block(BlockState),
    /// A network device.
    Net(NetState),
    /// A console.
    Console(ConsoleState),
    /// A balloon.
    Balloon(BalloonState),
    /// A source of random bytes.
    Rng(RngState),
    /// Sockets. Streams end: those who hold the other ends have a machine of before.
    Vsock {},
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockState {
    /// How many of 512 bytes its driver knows.
    pub sectors: u64,
    /// Bytes of a logical block, which its driver knows.
    pub block: u32,
    /// The path of the file behind it.
    pub name: PathBuf,
    /// When the file was last written, with all that the guest had written: seconds since 1970, and nanoseconds.
    /// Without it nothing tells whether it has changed: block devices have no such time.
    pub written: Option<(i64, u32)>,
    /// Of everything.
    pub limits: LimiterState,
}

impl BlockState {
    /// When a file was last written, if that is known.
    #[must_use]
    pub fn last_written(found: &Metadata) -> Option<(i64, u32)> {
        let nanos = u32::try_from(found.mtime_nsec()).unwrap_or(0);
        let has_time = !found.file_type().is_block_device();
        has_time.then_some((found.mtime(), nanos))
    }
}

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetState {
    /// Its address.
    pub mac: [u8; 6],
    /// Somebody has pulled the cable.
    pub unplugged: bool,
    /// How many pairs of queues the driver uses.
    pub pairs: u16,
    /// Of what comes to the guest.
    pub receive: LimiterState,
    /// Of what the guest sends.
    pub transmit: LimiterState,
}

/// A console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleState {
    /// Columns and rows of the terminal.
    pub size: [u16; 2],
    /// What was typed and the driver has not got, at most 4 KiB.
    pub input: Vec<u8>,
    /// A buffer that the output had no room for: its number, and what of it was not printed, at most 64 KiB.
    pub unprinted: Option<(u16, Vec<u8>)>,
}

/// A balloon. What the guest tells of its memory is asked anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonState {
    /// Pages of 4 KiB that it shall have.
    pub asked: u32,
    /// Those that the driver says that it has.
    pub given: u32,
    /// Seconds between two times that the guest is asked for statistics, or 0.
    pub stats_interval: u32,
    /// Whether the driver has the specification's numbers for its queues, or counts through those that it has; once
    /// the device has seen it.
    pub by_specification: Option<bool>,
    /// The buffer for statistics that the device keeps.
    pub statistics_buffer: Option<u16>,
    /// Free page hinting.
    pub hints: HintsState,
}

/// Free page hinting of a balloon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HintsState {
    /// The device's word.
    pub host: u32,
    /// The driver's.
    pub guest: Option<u32>,
    /// The driver was not told of the device's.
    pub untold: bool,
    /// The number of the last run.
    pub last: u32,
    /// The driver leaves its pages alone until a command says stop.
    pub hold: bool,
    /// It has named all.
    pub finished: bool,
    /// Bytes of the last run.
    pub released: u64,
}

/// What a source of random bytes keeps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngState {
    /// Of what the guest gets.
    pub limits: LimiterState,
}

/// Limits, as they were set last, and what was left of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimiterState {
    /// The limits.
    pub limits: Limits,
    /// Bytes that may go at once; below zero, what has gone before its time.
    pub bytes: Option<i64>,
    /// The same of requests.
    pub requests: Option<i64>,
}
