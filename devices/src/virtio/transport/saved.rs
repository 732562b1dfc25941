//! What of a transport goes on in another machine.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::{Stage, Transport};
use crate::state::{QueueState, StateError, TransportRegisters, VirtioState};

/// All bits of the device status field that a driver sets.
const STATUS: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FAILED;

impl Transport {
    /// The device is paused, or no driver uses it.
    pub(crate) fn save(&self, registers: TransportRegisters) -> Result<VirtioState, StateError> {
        let (device, running) = match &self.stage {
            Stage::Idle(device) => (device, None),
            Stage::Paused(activated) => (&activated.device, Some(&activated.queues)),
            // Nobody saves one that runs.
            Stage::Running | Stage::Lost => return Err(StateError::Lost),
        };
        let queues = self
            .queues
            .iter()
            .enumerate()
            .map(|(number, queue)| QueueState {
                size: queue.size(),
                ready: queue.ready(),
                descriptors: queue.desc_table(),
                driver: queue.avail_ring(),
                device: queue.used_ring(),
                progress: running.and_then(|queues| queues.progress(number)),
            });
        Ok(VirtioState {
            status: self.status,
            features: self.accepted,
            runs: running.is_some(),
            needs_reset: self.interrupt.needs_reset.load(Ordering::SeqCst),
            interrupt_status: self.interrupt.reasons.load(Ordering::SeqCst),
            config_generation: self.config.generation(),
            queues: queues.collect(),
            registers,
            device: device.save()?,
        })
    }

    /// What the device has written is where it stays. It is paused, or no driver uses it.
    pub(crate) fn sync(&self) -> Result<(), StateError> {
        match &self.stage {
            Stage::Idle(device) => device.sync(),
            Stage::Paused(activated) => activated.device.sync(),
            Stage::Running | Stage::Lost => Err(StateError::Lost),
        }
    }

    /// Makes a new transport what the saved one was, but for the registers that only some have. A device that a driver
    /// uses is paused then.
    pub(crate) fn load(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let range = StateError::Range;
        self.accepted = state.features;
        let negotiated = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if negotiated && !self.features_are_fine() {
            return Err(match state.features & !self.offered {
                0 => range("features"),
                missing => StateError::Features(missing),
            });
        }
        let is_ready = state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        if state.status & !STATUS != 0 || state.runs && !(is_ready && negotiated) {
            return Err(range("status"));
        }
        if state.queues.len() != self.queues.len() {
            return Err(range("queues"));
        }
        for (queue, saved) in self.queues.iter_mut().zip(&state.queues) {
            load_queue(queue, saved)?;
        }
        self.status = state.status;
        let interrupt = &self.interrupt;
        interrupt
            .reasons
            .store(state.interrupt_status, Ordering::SeqCst);
        interrupt
            .needs_reset
            .store(state.needs_reset, Ordering::SeqCst);
        if state.runs {
            self.load_running(state)?;
        } else if let Stage::Idle(device) = &mut self.stage {
            device.load(&state.device, false)?;
        }
        self.config.set_generation(state.config_generation);
        Ok(())
    }

    fn load_running(&mut self, state: &VirtioState) -> Result<(), StateError> {
        let mut rings = self.rings().map_err(|_| StateError::Range("queues"))?;
        for (ring, saved) in rings.iter_mut().zip(&state.queues) {
            match (ring, saved.progress) {
                (Some((ring, _)), Some(progress)) => ring.go_on_at(progress),
                (None, None) => {}
                _ => return Err(StateError::Range("queues")),
            }
        }
        let Stage::Idle(device) = std::mem::replace(&mut self.stage, Stage::Lost) else {
            return Err(StateError::Lost);
        };
        let mut activated = self.activated(device, rings);
        activated.device.load(&state.device, true)?;
        self.stage = Stage::Paused(activated.restored());
        self.restored = true;
        self.connect_doorbells(true);
        Ok(())
    }
}

/// What virtio-queue does not take of a queue, no driver can have set up.
fn load_queue(queue: &mut Queue, saved: &QueueState) -> Result<(), StateError> {
    let refused = |_| StateError::Range("queues");
    queue.try_set_size(saved.size).map_err(refused)?;
    queue
        .try_set_desc_table_address(GuestAddress(saved.descriptors))
        .map_err(refused)?;
    queue
        .try_set_avail_ring_address(GuestAddress(saved.driver))
        .map_err(refused)?;
    queue
        .try_set_used_ring_address(GuestAddress(saved.device))
        .map_err(refused)?;
    queue.set_ready(saved.ready);
    Ok(())
}
