//! A request: what it asks of the host's kernel, and how it can fail.

use std::io;

use super::counts::Answer;
use crate::virtio::QueueError;
use crate::virtio::iovec::Direction;

/// The unit of every size and place in a request.
pub(super) const SECTOR_BYTES: u32 = 512;
pub(super) const SECTOR: u64 = SECTOR_BYTES as u64;

/// What the host's kernel has to do for a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Job {
    Transfer {
        direction: Direction,
        /// Byte in the file.
        offset: u64,
        /// It is not aligned as the disk's file asks.
        unaligned: bool,
        /// On the disk when it ends.
        durable: bool,
    },
    Flush,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request {
    pub(super) queue: usize,
    pub(super) answer: Answer,
    /// Bytes of data.
    pub(super) len: u32,
    pub(super) job: Job,
}

impl Request {
    /// The bytes that a success writes to guest memory, besides the status.
    pub(super) fn written(&self) -> u32 {
        match self.job {
            Job::Transfer {
                direction: Direction::Read,
                ..
            } => self.len,
            _ => 0,
        }
    }
}

/// A request that was looked at.
pub(super) enum Parsed {
    /// It is done, and wrote so many bytes.
    Done(u32),
    /// It needs I/O of so many bytes.
    Job(Job, u32),
}

/// Why a request fails.
pub(super) enum Refusal {
    Unsupported,
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<QueueError> for Refusal {
    fn from(error: QueueError) -> Self {
        Self::Io(io::Error::other(error))
    }
}

pub(super) fn failed(cause: &str) -> Refusal {
    Refusal::Io(io::Error::other(cause.to_owned()))
}

pub(super) fn words(bytes: [u8; 16]) -> [u32; 4] {
    let (words, _) = bytes.as_chunks::<4>();
    let mut all = words.iter().map(|word| u32::from_le_bytes(*word));
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

/// How ranges lose their content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Erase {
    Discard,
    Zero,
}

impl Erase {
    /// The most sectors of a range, and the most ranges of a request: zeroes may have to be written.
    pub(super) fn limits(self) -> (u32, u32) {
        match self {
            Self::Discard => (1 << 22, 32),
            Self::Zero => (1 << 15, 1),
        }
    }
}
