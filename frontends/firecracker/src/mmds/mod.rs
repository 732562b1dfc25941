//! The metadata service (MMDS): data that the API sets, and that a guest reads over HTTP from a host which is not
//! there. Frames to its address are taken off a network device by the library's hook and answered here: `wire` reads and
//! writes them, `connection` and `stack` are the host, `answer` speaks HTTP, `store` has the data, `tokens` the tokens.
//! `service` puts it into a device.
//!
//! It is a small answer machine and not a whole stack: it opens no connection, keeps no table of neighbours (what comes
//! from a station is answered there), and holds 30 connections with one request and one answer each.

mod answer;
pub(crate) mod config;
mod connection;
mod service;
mod stack;
mod store;
mod tokens;
mod wire;

pub use self::config::{MmdsConfig, Version};
pub(crate) use self::service::Service;
pub use self::stack::Stack;
pub use self::store::{Mmds, WriteError};
