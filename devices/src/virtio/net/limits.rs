//! Limits of both directions, or of one.

use std::io;
use std::sync::Arc;

use super::{Net, RECEIVE, TRANSMIT};
use crate::config::{Direction, Limits, LimitsChange, NetConfig};
use crate::virtio::Monitor;
use crate::virtio::limit::Limiter;

impl Net {
    /// Those of frames that are received, and that are sent.
    pub(super) fn limiters(config: &NetConfig, monitor: &Arc<Monitor>) -> io::Result<[Limiter; 2]> {
        let limiter = |own: &Option<Limits>| {
            let limits = own.as_ref().unwrap_or(&config.limits);
            Limiter::new(limits, monitor)
        };
        Ok([limiter(&config.rx_limits)?, limiter(&config.tx_limits)?])
    }

    pub(super) fn change_limits(&mut self, limits: &Limits) {
        let limiters = self.limits.iter_mut();
        limiters.for_each(|limiter| limiter.change(limits));
    }

    pub(super) fn adjust_limits(&mut self, change: &LimitsChange) {
        for (limiter, direction) in [(RECEIVE, Direction::Rx), (TRANSMIT, Direction::Tx)] {
            if change.direction.is_none_or(|only| only == direction) {
                self.limits[limiter].adjust(change);
            }
        }
    }
}
