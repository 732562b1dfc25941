//! What of a function goes on in another machine.

use std::sync::atomic::Ordering;

use super::State;
use super::layout::MSIX_CONTROL;
use crate::pci::CONFIG_SPACE;
use crate::state::{PciRegisters, StateError, TransportRegisters, VirtioState};

impl State {
    pub(super) fn save(&self) -> Result<VirtioState, StateError> {
        let choice = &self.choice;
        let queue_vectors = choice.queues.iter();
        let (messages, pending) = self.msix.save();
        self.transport.save(TransportRegisters::Pci(PciRegisters {
            device_feature_select: self.device_feature_select,
            driver_feature_select: self.driver_feature_select,
            queue_select: self.queue_select,
            config_space: self.config.get::<CONFIG_SPACE>(0).to_vec(),
            messages,
            pending,
            config_vector: choice.config.load(Ordering::SeqCst),
            queue_vectors: queue_vectors
                .map(|vector| vector.load(Ordering::SeqCst))
                .collect(),
        }))
    }

    /// Doorbells are connected where the BAR is, and messages leave as the driver has filled them in.
    pub(super) fn load(&mut self, saved: &VirtioState) -> Result<(), StateError> {
        let TransportRegisters::Pci(registers) = &saved.registers else {
            return Err(StateError::Foreign);
        };
        if registers.config_space.len() != CONFIG_SPACE {
            return Err(StateError::Range("config_space"));
        }
        if registers.queue_vectors.len() != self.choice.queues.len() {
            return Err(StateError::Range("queue_vectors"));
        }
        self.config.write(0, &registers.config_space);
        let place = self.config.bar().map_or(0, u64::from);
        self.place.store(place, Ordering::SeqCst);
        let control = self.config.get(self.msix_capability + MSIX_CONTROL);
        self.msix.set_control(u16::from_le_bytes(control));
        self.msix.load(&registers.messages, &registers.pending)?;
        let choice = &self.choice;
        choice.choose(Some(&choice.config), registers.config_vector);
        for (place, vector) in choice.queues.iter().zip(&registers.queue_vectors) {
            choice.choose(Some(place), *vector);
        }
        self.device_feature_select = registers.device_feature_select;
        self.driver_feature_select = registers.driver_feature_select;
        self.queue_select = registers.queue_select;
        self.transport.load(saved)?;
        if saved.runs {
            self.msix.commit();
        }
        Ok(())
    }
}
