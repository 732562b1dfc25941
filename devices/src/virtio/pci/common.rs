//! The registers of the common configuration.

use std::sync::atomic::{AtomicU16, Ordering};

use virtio_bindings::virtio_config::VIRTIO_CONFIG_S_DRIVER_OK;
use virtio_queue::{Queue, QueueT};

use super::State;
use super::choice::NO_VECTOR;
use super::layout::COMMON_LEN;
use crate::virtio::transport::set_up::{Part, set_address, set_size};

/// Fields of the common configuration (4.1.4.3).
pub(super) const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub(super) const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub(super) const DRIVER_FEATURE: u64 = 0x0c;
pub(super) const CONFIG_VECTOR: u64 = 0x10;
pub(super) const DEVICE_STATUS: u64 = 0x14;
pub(super) const QUEUE_SELECT: u64 = 0x16;
pub(super) const QUEUE_SIZE: u64 = 0x18;
pub(super) const QUEUE_VECTOR: u64 = 0x1a;
pub(super) const QUEUE_ENABLE: u64 = 0x1c;
pub(super) const QUEUE_DESC: u64 = 0x20;
pub(super) const QUEUE_DRIVER: u64 = 0x28;
pub(super) const QUEUE_DEVICE: u64 = 0x30;

impl State {
    /// The common configuration as it reads now.
    pub(super) fn common(&self) -> [u8; COMMON_LEN] {
        let transport = &self.transport;
        let queue = self.queue();
        let vector = |place: Option<&AtomicU16>| {
            place.map_or(NO_VECTOR, |place| place.load(Ordering::SeqCst))
        };
        let queue_vector = vector(self.choice.queues.get(usize::from(self.queue_select)));
        let queues = u16::try_from(self.choice.queues.len()).unwrap_or(0);
        let address = |of: fn(&Queue) -> u64| queue.map_or(0, of);
        // Status bits end at the eighth, a generation may wrap.
        let [status, ..] = transport.status().to_le_bytes();
        let [generation, ..] = transport.config().generation().to_le_bytes();
        let fields: [&[u8]; 16] = [
            &self.device_feature_select.to_le_bytes(),
            &transport.offered(self.device_feature_select).to_le_bytes(),
            &self.driver_feature_select.to_le_bytes(),
            &transport.accepted(self.driver_feature_select).to_le_bytes(),
            &vector(Some(&self.choice.config)).to_le_bytes(),
            &queues.to_le_bytes(),
            &[status],
            &[generation],
            &self.queue_select.to_le_bytes(),
            &queue.map_or(0, QueueT::size).to_le_bytes(),
            &queue_vector.to_le_bytes(),
            &queue
                .map_or(0, |queue| u16::from(queue.ready()))
                .to_le_bytes(),
            // Which notification is the queue's: the one of its number.
            &queue.map_or(0, |_| self.queue_select).to_le_bytes(),
            &address(QueueT::desc_table).to_le_bytes(),
            &address(QueueT::avail_ring).to_le_bytes(),
            &address(QueueT::used_ring).to_le_bytes(),
        ];
        let mut bytes = [0; COMMON_LEN];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    /// Writes a field of the common configuration, with its own width; addresses also by halves.
    pub(super) fn write_common(&mut self, offset: u64, data: &[u8]) {
        if let Ok(bytes) = <[u8; 8]>::try_from(data) {
            if offset.is_multiple_of(8) && offset >= QUEUE_DESC {
                let (halves, _) = bytes.as_chunks::<4>();
                for (place, half) in (offset..).step_by(4).zip(halves) {
                    self.write_common(place, half);
                }
            }
        } else if let Ok(bytes) = <[u8; 4]>::try_from(data) {
            self.write_word(offset, u32::from_le_bytes(bytes));
        } else if let Ok(bytes) = <[u8; 2]>::try_from(data) {
            self.write_half_word(offset, u16::from_le_bytes(bytes));
        } else if let (DEVICE_STATUS, [status]) = (offset, data) {
            self.set_status((*status).into());
        }
    }

    pub(super) fn write_word(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            DRIVER_FEATURE => self.transport.accept(self.driver_feature_select, value),
            _ => {
                let Some(queue) = self.transport.queue_to_set_up(self.queue_select.into()) else {
                    return;
                };
                let (low, high) = match offset & 4 {
                    0 => (Some(value), None),
                    _ => (None, Some(value)),
                };
                match offset & !4 {
                    QUEUE_DESC => set_address(queue, Part::Descriptors, low, high),
                    QUEUE_DRIVER => set_address(queue, Part::Driver, low, high),
                    QUEUE_DEVICE => set_address(queue, Part::Device, low, high),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn write_half_word(&mut self, offset: u64, value: u16) {
        let runs = self.transport.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let select = usize::from(self.queue_select);
        match offset {
            QUEUE_SELECT => self.queue_select = value,
            // R7: fixed while the device runs.
            CONFIG_VECTOR if !runs => self.choice.choose(Some(&self.choice.config), value),
            QUEUE_VECTOR if !runs => {
                let place = self.choice.queues.get(select);
                self.choice.choose(place, value);
            }
            QUEUE_SIZE | QUEUE_ENABLE => {
                if let Some(queue) = self.transport.queue_to_set_up(self.queue_select.into()) {
                    match offset {
                        QUEUE_SIZE => set_size(queue, value),
                        _ => queue.set_ready(value == 1),
                    }
                }
            }
            _ => {}
        }
    }
}
