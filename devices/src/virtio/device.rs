//! What a virtio device is to transport and worker. It knows no transport: it gets its queues when it is called, and
//! has no other way to guest memory.

use std::fmt::Debug;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::{ConfigSpace, Event, FrameHook, Monitor, QueueError, Queues};
use crate::descriptor::DiskFile;
use crate::state::{StateError, VirtioDeviceState};
use crate::{Change, ChangeError, Query, Report};

/// A virtio device.
///
/// Queues and sources are 32 each at most.
pub trait VirtioDevice: Debug + Send {
    /// Its type (section 5).
    fn id(&self) -> u32;

    /// Its name, for threads and messages.
    fn name(&self) -> &'static str;

    /// The feature bits that it offers besides those of queues and transport.
    fn features(&self) -> u64;

    /// The largest size of each of its queues.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Its configuration space, which device and transport share.
    fn config(&self) -> Arc<ConfigSpace>;

    /// What the VMM sees of it without asking; the same for its whole life.
    fn monitor(&self) -> Arc<Monitor> {
        Arc::default()
    }

    /// Descriptors that wake it besides its queues. They are watched edge-triggered: whoever is
    /// woken reads until there is nothing more, or remembers that there is. They stay open and the
    /// same while the device runs.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// Has a hook see the frames that pass, in place of one that was there. It comes before the first driver.
    ///
    /// # Errors
    /// When it is no network device.
    fn hook(&mut self, hook: Box<dyn FrameHook>) -> Result<(), ChangeError> {
        let _ = hook;
        Err(ChangeError::Foreign)
    }

    /// The driver is ready; these features were negotiated.
    fn start(&mut self, features: u64) {
        let _ = features;
    }

    /// Features that make sense only with one of others, by their bits (VIRTIO 1.3, "feature bit
    /// requirements" of each device): a driver that takes one without is refused.
    fn dependencies(&self) -> &'static [(u32, &'static [u32])] {
        &[]
    }

    /// Serves an event, in a bounded time, at most as many chains of a queue as it has entries. Says
    /// whether there is more to do now: then the same event comes again.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError>;

    /// Ends and answers whatever is in flight, and begins nothing: the machine is paused. What the driver has
    /// queued and the device has not begun stays queued, and what waits for something outside the guest goes on
    /// waiting.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = queues;
        Ok(())
    }

    /// The driver takes a queue back: whatever the device holds of it is answered before this returns. The
    /// queue is gone afterwards.
    ///
    /// # Errors
    /// When the driver broke a rule of a queue.
    fn close(&mut self, queue: usize, queues: &mut Queues) -> Result<(), QueueError> {
        let _ = queue;
        self.quiesce(queues)
    }

    /// Changes a part of the device, whose values were checked, at once. `queues` are there while a driver uses the
    /// device, to tell it of a new configuration; also while the machine is paused.
    ///
    /// # Errors
    /// When it has no such part, or this cannot be now.
    fn change(&mut self, change: &Change, queues: Option<&Queues>) -> Result<(), ChangeError> {
        let _ = (change, queues);
        Err(ChangeError::Foreign)
    }

    /// Puts another open file behind the device, which `name` stands for in messages: what has begun ends in the old
    /// one. `queues` as for [`Self::change`].
    ///
    /// # Errors
    /// When it has no file, or cannot have this one, and goes on as it was.
    fn replace_file(
        &mut self,
        file: DiskFile,
        name: &str,
        queues: Option<&mut Queues>,
    ) -> Result<(), ChangeError> {
        let _ = (file, name, queues);
        Err(ChangeError::Foreign)
    }

    /// The open file behind the device, to be read while it does nothing.
    ///
    /// # Errors
    /// When it has no file, or the host no further descriptor.
    fn file(&self) -> Result<DiskFile, ChangeError> {
        Err(ChangeError::Foreign)
    }

    /// Tells something of the device, at once: nobody waits for the guest. `queues` are there while a driver uses the
    /// device and the guest runs; without them nothing touches guest memory.
    ///
    /// # Errors
    /// When it has no such thing to tell.
    fn query(&mut self, query: Query, queues: Option<&mut Queues>) -> Result<Report, ChangeError> {
        let _ = (query, queues);
        Err(ChangeError::Foreign)
    }

    /// What it has written is where it stays, whatever happens to the host; it was quiesced, if a driver uses it.
    ///
    /// # Errors
    /// When the host cannot do that.
    fn sync(&self) -> Result<(), StateError> {
        Ok(())
    }

    /// What of it goes on in another machine; it was quiesced, if a driver uses it.
    ///
    /// # Errors
    /// When it cannot be saved, and so no machine that has it can.
    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Err(StateError::Unknown)
    }

    /// Makes a new device what the saved one was: what the driver reads of it, and what it keeps. If a driver `runs`
    /// it, [`Self::start`] was called before.
    ///
    /// # Errors
    /// When it is not the state of such a device.
    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        let _ = (state, runs);
        Err(StateError::Foreign)
    }

    /// The driver resets the device: whatever is in flight ends before this returns, and nothing
    /// touches guest memory afterwards.
    fn stop(&mut self) {}
}
