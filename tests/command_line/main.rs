//! The whole VMM as a process: what its command line does and says. One program, because each takes its time to build.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "completions")]
mod completions;
#[cfg(all(
    feature = "config-file",
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-net",
    feature = "virtio-vsock"
))]
mod config_file;
#[cfg(all(
    feature = "config-file",
    feature = "pci",
    feature = "virtio-balloon",
    feature = "virtio-blk",
    feature = "virtio-console",
    feature = "virtio-net",
    feature = "virtio-vsock"
))]
mod config_messages;
mod facts;
mod guest;
mod host;
mod log;
mod messages;
mod plan;
mod terminal;
mod timeline;
mod usage;
