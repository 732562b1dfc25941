//! What the guest says about its memory (VIRTIO 1.3, 5.5.6.3).
//!
//! The device keeps the buffer that the driver has offered and gives it back to ask for the next one: the driver
//! fills it anew and offers it again, when it likes to.

use std::time::Instant;

use super::roles::STATS_VQ;
use crate::GuestStatistics;
use crate::virtio::{Chain, GuestRam, QueueError};

/// Tags that are known, from 0 on.
const TAGS: usize = 16;
/// Bytes of a tag and its value.
const ENTRY: usize = 10;
/// The most bytes of a buffer that are looked at.
const MOST: usize = 64 * ENTRY;

/// Values by their tags.
type Values = [Option<u64>; TAGS];

/// Statistics of the driver that is there, and its buffer; of no driver by default.
#[derive(Debug, Default)]
pub(super) struct Statistics {
    /// It has taken the feature.
    pub(super) supported: bool,
    /// The buffer that it waits for.
    held: Option<u16>,
    newest: Option<(Values, Instant)>,
}

impl Statistics {
    /// A driver is ready.
    pub(super) fn start(&mut self, features: u64) {
        *self = Self {
            supported: features & 1 << STATS_VQ != 0,
            ..Self::default()
        };
    }

    /// Takes a buffer of the driver. Gives the head of the one that goes back: a driver has one on its way at most,
    /// of more the last one counts.
    pub(super) fn receive(
        &mut self,
        chain: &mut Chain,
        ram: &GuestRam,
    ) -> Result<Option<u16>, QueueError> {
        let mut bytes = [0; MOST];
        let len = usize::try_from(chain.readable_len()).unwrap_or(MOST);
        let bytes = bytes.get_mut(..len.min(MOST)).unwrap_or_default();
        chain.read(ram, bytes)?;
        let values = parse(bytes);
        if values.iter().any(Option::is_some) {
            self.newest = Some((values, Instant::now()));
        }
        Ok(self.held.replace(chain.head()))
    }

    /// The head of the buffer to give back, which asks for newer statistics.
    pub(super) fn take_held(&mut self) -> Option<u16> {
        self.held.take()
    }

    /// The head of the buffer that it keeps.
    pub(super) fn held(&self) -> Option<u16> {
        self.held
    }

    /// It keeps this one.
    pub(super) fn hold(&mut self, head: Option<u16>) {
        self.held = head;
    }

    /// The newest ones, if there are any.
    pub(super) fn newest(&self) -> Option<GuestStatistics> {
        let (values, when) = self.newest?;
        let [
            swap_in_bytes,
            swap_out_bytes,
            major_faults,
            minor_faults,
            free_bytes,
            total_bytes,
            available_bytes,
            cache_bytes,
            hugetlb_allocations,
            hugetlb_failures,
            oom_kills,
            allocation_stalls,
            async_scanned_pages,
            direct_scanned_pages,
            async_reclaimed_pages,
            direct_reclaimed_pages,
        ] = values;
        Some(GuestStatistics {
            age_ms: u64::try_from(when.elapsed().as_millis()).unwrap_or(u64::MAX),
            swap_in_bytes,
            swap_out_bytes,
            major_faults,
            minor_faults,
            free_bytes,
            total_bytes,
            available_bytes,
            cache_bytes,
            hugetlb_allocations,
            hugetlb_failures,
            oom_kills,
            allocation_stalls,
            async_scanned_pages,
            direct_scanned_pages,
            async_reclaimed_pages,
            direct_reclaimed_pages,
        })
    }
}

/// The values of a buffer. What is unknown or cut off is none; of a tag that stands there twice the last value counts.
fn parse(bytes: &[u8]) -> Values {
    let mut values = Values::default();
    let (entries, _) = bytes.as_chunks::<ENTRY>();
    for [t0, t1, value @ ..] in entries {
        let tag = usize::from(u16::from_le_bytes([*t0, *t1]));
        if let Some(slot) = values.get_mut(tag) {
            *slot = Some(u64::from_le_bytes(*value));
        }
    }
    values
}
