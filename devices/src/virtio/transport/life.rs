//! The way of a device to its worker and back: from DRIVER_OK to a reset, with pauses between, and what is asked of it
//! on the way, wherever it is then.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::EventFd;

use super::{Stage, Transport};
use crate::descriptor::DiskFile;
use crate::virtio::worker::Activated;
use crate::virtio::{DeviceState, Queues, Ring, VirtioDevice};
use crate::{Change, ChangeError, Query, Rare, Report};

/// Types of devices that there may be: a number below.
const TYPES: usize = 64;
/// So many drivers of a type are worth a line each: more devices of it a machine does not have.
const FEW: u64 = 32;

impl Transport {
    /// The driver is ready: the device and the queues that are set up go to a worker.
    pub(super) fn activate(&mut self) {
        let rings = match self.rings() {
            Ok(rings) => rings,
            Err(error) => return self.fail(&error),
        };
        let Stage::Idle(device) = std::mem::replace(&mut self.stage, Stage::Lost) else {
            return self.fail("its thread is gone");
        };
        let activated = self.activated(device, rings);
        if self.run(activated) {
            self.connect_doorbells(true);
            self.interrupt.monitor.notices.driver_ready();
            self.tell_of_driver();
        }
    }

    /// The queues that are set up, each with its doorbell.
    pub(super) fn rings(&mut self) -> Result<Vec<Option<(Ring, EventFd)>>, String> {
        let event_idx = self.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let queues = self.queues.iter_mut().zip(&self.doorbells);
        let rings = queues.map(|(queue, doorbell)| {
            queue.set_event_idx(event_idx);
            if !queue.ready() {
                return Ok(None);
            }
            let ring = Ring::new(queue, self.ram.clone()).map_err(|error| error.to_string())?;
            let doorbell = doorbell.try_clone().map_err(|error| error.to_string())?;
            Ok(Some((ring, doorbell)))
        });
        rings.collect()
    }

    /// A device that has heard of its driver, with its queues.
    pub(super) fn activated(
        &self,
        mut device: Box<dyn VirtioDevice>,
        queues: Vec<Option<(Ring, EventFd)>>,
    ) -> Activated {
        device.start(self.accepted);
        let (rings, doorbells) = queues.into_iter().map(Option::unzip).unzip();
        Activated::new(
            device,
            Queues::new(rings, Arc::clone(&self.interrupt)),
            doorbells,
        )
    }

    /// Has the worker serve the device; says whether there still is one.
    fn run(&mut self, activated: Activated) -> bool {
        let is_there = self.worker.start(activated);
        if is_there {
            self.stage = Stage::Running;
        } else {
            self.fail("its thread is gone");
        }
        is_there
    }

    /// Stops the worker, and ends and answers what is in flight. No vCPU runs meanwhile, and until
    /// [`Self::resume`].
    pub(crate) fn pause(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Running => {
                if let Some(mut activated) = self.worker.stop() {
                    let Activated { device, queues, .. } = &mut activated;
                    if let Err(error) = device.quiesce(queues) {
                        self.fail(&error.to_string());
                    }
                    self.stage = Stage::Paused(activated);
                }
            }
            stage => self.stage = stage,
        }
    }

    /// Changes a part of the device.
    pub(crate) fn change(&mut self, change: &Change) -> Result<(), ChangeError> {
        change.check()?;
        let change = change.clone();
        self.ask(move |device, queues| device.change(&change, queues.map(|queues| &*queues)))
    }

    /// Puts another file behind the device.
    pub(crate) fn replace_file(&mut self, file: DiskFile, name: &str) -> Result<(), ChangeError> {
        let name = name.to_owned();
        self.ask(move |device, queues| device.replace_file(file, &name, queues))
    }

    /// The open file behind the device.
    pub(crate) fn file(&mut self) -> Result<DiskFile, ChangeError> {
        self.ask(|device, _| device.file())
    }

    /// Has the device tell something.
    pub(crate) fn query(&mut self, query: Query) -> Result<Report, ChangeError> {
        // Nothing changes the memory of a guest that stands still.
        let runs = self.is_running();
        self.ask(move |device, queues| device.query(query, queues.filter(|_| runs)))
    }

    /// Has the device do something, on its thread if it has one. Its queues are there while a driver uses it.
    fn ask<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut dyn VirtioDevice, Option<&mut Queues>) -> Result<T, ChangeError>
        + Send
        + 'static,
    ) -> Result<T, ChangeError> {
        match &mut self.stage {
            Stage::Idle(device) => call(device.as_mut(), None),
            Stage::Paused(Activated { device, queues, .. }) => call(device.as_mut(), Some(queues)),
            Stage::Running => {
                let answer = self
                    .worker
                    .call(move |device, queues| Ok(call(device, Some(queues))));
                answer.unwrap_or(Err(ChangeError::Lost))
            }
            Stage::Lost => Err(ChangeError::Lost),
        }
    }

    /// The machine goes on.
    pub(crate) fn resume(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Paused(activated) => {
                self.run(activated);
                if std::mem::take(&mut self.restored) {
                    self.interrupt.tell_again();
                }
            }
            stage => self.stage = stage,
        }
    }

    /// Ends the worker's thread, of a device that is paused or that no driver uses, until [`Self::unpark`].
    pub(crate) fn park(&mut self) {
        self.worker.park();
    }

    /// There is a thread for the device again.
    pub(crate) fn unpark(&mut self) -> io::Result<()> {
        self.worker.unpark()
    }

    /// Drivers may come again and again, also with a guest that starts again, which makes all anew but this
    /// count.
    fn tell_of_driver(&self) {
        static DRIVERS: [Rare; TYPES] = [const { Rare::new() }; TYPES];
        if !log::log_enabled!(log::Level::Debug) {
            return;
        }
        let drivers = DRIVERS.get(self.id as usize);
        if let Some(times) = drivers.and_then(|drivers| drivers.again_after(FEW)) {
            let ready = self
                .queues
                .iter()
                .enumerate()
                .filter(|(_, queue)| queue.ready());
            let queues: Vec<_> = ready
                .map(|(number, queue)| format!("{number} of {}", queue.size()))
                .collect();
            log::debug!(
                "virtio {}: DRIVER_OK, {times} of this kind so far; features {:#x}, queues {}",
                self.name,
                self.accepted,
                queues.join(", ")
            );
        }
    }

    /// Stops the worker, if there is one; returns when the device is back.
    pub(super) fn stop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Running => {
                self.connect_doorbells(false);
                if let Some(activated) = self.worker.stop() {
                    self.stage = Stage::Idle(activated.stop());
                }
            }
            Stage::Paused(activated) => {
                self.connect_doorbells(false);
                self.stage = Stage::Idle(activated.stop());
            }
            stage => self.stage = stage,
        }
    }

    /// The device may not access the guest's memory from now on: it ends what it has begun, and goes
    /// on after a reset only. (A driver that never set the bit works without it.)
    #[cfg(feature = "pci")]
    pub(crate) fn cut_off(&mut self) {
        if self.is_running() {
            self.stop();
            // Without an interrupt: a message would be an access, too.
            self.interrupt.needs_reset.store(true, Ordering::SeqCst);
            let cause = "the driver has taken bus mastering away";
            self.interrupt.monitor.notices.needs_reset(cause);
        }
    }

    /// Where the device is in its life.
    pub(crate) fn state(&self) -> DeviceState {
        match self.stage {
            Stage::Lost => DeviceState::Lost,
            _ if self.interrupt.lost.load(Ordering::SeqCst) => DeviceState::Lost,
            _ if self.interrupt.needs_reset.load(Ordering::SeqCst) => DeviceState::NeedsReset,
            Stage::Idle(_) => DeviceState::Idle,
            Stage::Running | Stage::Paused(_) => DeviceState::Running,
        }
    }

    /// Resets the device and gives it back; `None` when it is lost.
    pub(crate) fn take_device(&mut self) -> Option<Box<dyn VirtioDevice>> {
        self.reset();
        match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Idle(device) => Some(device),
            Stage::Running | Stage::Paused(_) | Stage::Lost => None,
        }
    }
}
