//! What a number may be, for a text, a file and a program.

use std::ops::RangeInclusive;

pub(super) const BLK_QUEUES: RangeInclusive<u16> = 1..=16;
pub(super) const NET_QUEUES: RangeInclusive<u16> = 1..=8;
/// Entries of a queue, a power of two.
pub(super) const QUEUE_SIZE: RangeInclusive<u16> = 2..=1024;
/// The numbers below are those of the hypervisor and the host, the last one of anybody.
pub(super) const CID: RangeInclusive<u32> = 3..=u32::MAX - 1;
pub(super) const FD: RangeInclusive<i32> = 0..=i32::MAX;
/// From what IPv4 asks for at least (RFC 791).
pub(super) const MTU: RangeInclusive<u16> = 68..=u16::MAX;
/// Seconds; 0 is never, a day is the most.
pub(super) const STATS_INTERVAL: RangeInclusive<u32> = 0..=24 * 60 * 60;
