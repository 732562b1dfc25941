//! The memory balloon (VIRTIO 1.3, 5.5): memory that the guest does without goes back to the host.
//!
//! The guest is asked to give up so many pages, and names them; pages that it has freed it may
//! report at any time, and pages that are free it names when it is asked. In all cases the host may take them at
//! once. Of the rest of its memory the guest tells statistics.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::GuestAddress;

use self::hinting::Hints;
use self::roles::{Role, Roles};
use self::statistics::Statistics;
use super::release::release;
use super::timer::Timer;
use super::{Chain, ConfigSpace, Event, GuestRam, Monitor, QueueError, Queues, Ring, VirtioDevice};
use crate::config::{BalloonConfig, OptionError, size_with_unit};
use crate::metrics::Operation;
use crate::state::{StateError, VirtioDeviceState};
use crate::{BalloonStatistics, Change, ChangeError, Query, Rare, Report};

mod hinting;
mod roles;
mod saved;
mod statistics;

/// A feature bit (5.5.3); `roles` has those of queues.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// Where the configuration has the number of pages that the driver has given (5.5.4).
const ACTUAL_AT: usize = 4;
const QUEUE_SIZE: u16 = 128;
/// The unit of every number in this device, whatever the guest's own pages are.
const PAGE_SHIFT: u32 = 12;
/// The most bytes of page numbers of one request; Linux sends 1 KiB.
const MOST: usize = 4 << 10;
/// Bytes of a word of the driver among its hints (5.5.6.5).
const WORD: usize = 4;
/// For a timer, which takes zero for never.
const AT_ONCE: Duration = Duration::from_nanos(1);
/// Requests before other events have their turn: each page may be a system call.
const TURN: usize = 8;

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    /// Bytes of the guest's RAM.
    ram: u64,
    deflate_on_oom: bool,
    reporting: bool,
    /// Between two times that the guest is asked for its statistics.
    interval: Option<Duration>,
    config: Arc<ConfigSpace>,
    /// Of the driver that is there.
    features: u64,
    /// Once its queues were seen.
    roles: Option<Roles>,
    statistics: Statistics,
    hints: Hints,
    timer: Timer,
    chain: Chain,
    numbers: Vec<u8>,
    errors: Rare,
    /// What memory was cut into, see [`release`].
    pieces: AtomicU32,
    monitor: Arc<Monitor>,
    /// By role.
    counts: [Arc<Operation>; roles::NAMES.len()],
}

impl Balloon {
    /// A balloon in a machine with `ram` bytes of RAM, of which the guest is left with the target.
    ///
    /// # Errors
    /// When the host has no timer for it.
    pub fn new(config: &BalloonConfig, ram: u64) -> io::Result<Self> {
        let pages = wanted(ram, config.target.unwrap_or(ram));
        // How many pages it shall have; how many it has, which the driver tells; the word about hints.
        let mut space = pages.to_le_bytes().to_vec();
        space.extend([0; 8]);
        let mut monitor = Monitor::default();
        let counts = roles::NAMES.map(|name| monitor.operation(name));
        Ok(Self {
            ram,
            deflate_on_oom: config.deflate_on_oom,
            reporting: config.free_page_reporting,
            interval: interval(config.stats_interval),
            config: Arc::new(ConfigSpace::new(space, 4..8)),
            features: 0,
            roles: None,
            statistics: Statistics::default(),
            hints: Hints::new(config.free_page_hinting),
            timer: Timer::new()?,
            chain: Chain::default(),
            numbers: Vec::new(),
            errors: Rare::default(),
            pieces: AtomicU32::new(0),
            monitor: Arc::new(monitor),
            counts,
        })
    }

    /// What the driver's queues are for.
    fn roles(&mut self, queues: &mut Queues) -> &Roles {
        let is_set_up = |queue| queues.ring(queue).is_some();
        self.roles
            .get_or_insert_with(|| Roles::of(self.features, is_set_up))
    }

    /// Other bytes of RAM that the guest is left with.
    fn leave(&self, target: u64, queues: Option<&Queues>) -> Result<(), ChangeError> {
        if target > self.ram {
            let cause = format!("the guest has {} of memory", size_with_unit(self.ram));
            let target = size_with_unit(target);
            return Err(OptionError::Value("target", target, cause).into());
        }
        self.config
            .update(0, &wanted(self.ram, target).to_le_bytes());
        if let Some(queues) = queues {
            queues.config_changed();
        }
        Ok(())
    }

    /// Gives the pages of a chain of page numbers back, runs of them at once.
    fn inflate(&mut self, ring: &Ring) -> Result<(), QueueError> {
        let ram = ring.ram();
        let len = self.chain.readable_len().min(MOST as u64);
        self.numbers.resize(usize::try_from(len).unwrap_or(MOST), 0);
        self.chain.read(ram, &mut self.numbers)?;
        let mut run = 0..0u64;
        let (numbers, _) = self.numbers.as_chunks::<4>();
        for number in numbers
            .iter()
            .map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
        {
            if number == run.end {
                run.end += 1;
            } else if ring.is_stopping() {
                return Ok(());
            } else {
                self.release(ram, run.start << PAGE_SHIFT, run.end - run.start);
                run = number..number + 1;
            }
        }
        self.release(ram, run.start << PAGE_SHIFT, run.end - run.start);
        Ok(())
    }

    /// Gives back the pages that a driver may let the device write to; says how many bytes that are.
    fn release_buffers(&self, ring: &Ring) -> u64 {
        let mut pages = 0u64;
        for buffer in self.chain.writable() {
            if ring.is_stopping() {
                break;
            }
            let whole = u64::from(buffer.len) >> PAGE_SHIFT;
            self.release(ring.ram(), buffer.address.0, whole);
            pages += whole;
        }
        pages << PAGE_SHIFT
    }

    /// Hears the driver's word, or gives back what it names. Says whether a run is over.
    fn hint(&mut self, ring: &Ring) -> Result<bool, QueueError> {
        let mut is_over = false;
        if self.chain.readable_len() == WORD as u64 {
            let mut word = [0; WORD];
            self.chain.read(ring.ram(), &mut word)?;
            is_over = self.hints.hear(u32::from_le_bytes(word));
        }
        if self.hints.is_running() {
            let bytes = self.release_buffers(ring);
            self.hints.released(bytes);
        }
        Ok(is_over)
    }

    /// Asks the guest for newer statistics, unless it was asked and has not answered. Says whether it has a queue
    /// for them.
    fn refresh(&mut self, queues: &mut Queues) -> Result<bool, QueueError> {
        let queue = self.roles(queues).queue(Role::Statistics);
        let Some(ring) = queue.and_then(|queue| queues.ring(queue)) else {
            return Ok(false);
        };
        if let Some(head) = self.statistics.take_held() {
            ring.complete(head, 0)?;
            queues.publish()?;
        }
        Ok(true)
    }

    /// The timer has fired, or the device goes on after a pause.
    fn tick(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        if self.hints.take_untold() {
            queues.config_changed();
        }
        if let Some(interval) = self.interval {
            self.refresh(queues)?;
            self.timer.set(interval);
        }
        Ok(())
    }

    fn statistics(&self, refreshing: bool) -> BalloonStatistics {
        let mut numbers = [0; ACTUAL_AT + 4];
        self.config.read(0, &mut numbers);
        let (pages, _) = numbers.as_chunks::<4>();
        let bytes = |place: usize| {
            let pages = pages.get(place).copied().unwrap_or_default();
            u64::from(u32::from_le_bytes(pages)) << PAGE_SHIFT
        };
        BalloonStatistics {
            asked_bytes: bytes(0),
            given_bytes: bytes(1),
            supported: self.statistics.supported,
            refreshing,
            guest: self.statistics.newest(),
        }
    }

    fn release(&self, ram: &GuestRam, address: u64, pages: u64) {
        let len = usize::try_from(pages << PAGE_SHIFT).unwrap_or(0);
        if let Err(error) = release(ram, GuestAddress(address), len, &self.pieces) {
            let cause = format_args!("memory could not be given back: {error}");
            self.monitor.notices.host_error(&cause);
            if let Some(times) = self.errors.again() {
                log::warn!("memory could not be given back, {times} times so far: {error}");
            }
        }
    }
}

/// Seconds between two questions, if there are to be any.
fn interval(seconds: u32) -> Option<Duration> {
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Pages in the balloon of a guest that is left with `target` bytes.
fn wanted(ram: u64, target: u64) -> u32 {
    u32::try_from(ram.saturating_sub(target) >> PAGE_SHIFT).unwrap_or(u32::MAX)
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "virtio-balloon"
    }

    fn features(&self) -> u64 {
        let mut features = 1 << roles::STATS_VQ;
        for (bit, offered) in [
            (VIRTIO_BALLOON_F_DEFLATE_ON_OOM, self.deflate_on_oom),
            (roles::FREE_PAGE_HINT, self.hints.offered()),
            (roles::REPORTING, self.reporting),
        ] {
            features |= u64::from(offered) << bit;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; roles::count(self.features())]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.timer.as_raw_fd()]
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        self.roles = None;
        self.statistics.start(features);
        let untold = self.hints.start(features);
        let at_once = untold.then_some(AT_ONCE);
        if let Some(wait) = at_once.or(self.interval) {
            self.timer.set(wait);
        }
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let Event::Queue(queue) = event else {
            self.tick(queues)?;
            return Ok(false);
        };
        let role = self.roles(queues).of_queue(queue);
        let Some(ring) = queues.ring(queue) else {
            return Ok(false);
        };
        let (mut more, mut is_over) = (true, false);
        for _ in 0..TURN {
            more = ring.pop(&mut self.chain)?;
            if !more {
                break;
            }
            let mut done = Some(self.chain.head());
            match role {
                Some(Role::Inflate) => self.inflate(ring)?,
                Some(Role::Statistics) => {
                    done = self.statistics.receive(&mut self.chain, ring.ram())?;
                }
                Some(Role::Hints) => is_over |= self.hint(ring)?,
                Some(Role::Reports) => {
                    self.release_buffers(ring);
                }
                // Whatever is touched again is there again.
                Some(Role::Deflate) | None => {}
            }
            if let Some(head) = done {
                ring.complete(head, 0)?;
            }
            if let Some(operation) = role.and_then(|role| self.counts.get(role as usize)) {
                operation.succeed(0);
            }
        }
        queues.publish()?;
        if is_over {
            self.hints.end(&self.config, queues);
        }
        Ok(more)
    }

    /// The driver waits for the buffer that is held, if it is of this queue.
    fn close(&mut self, queue: usize, queues: &mut Queues) -> Result<(), QueueError> {
        if self.roles(queues).of_queue(queue) == Some(Role::Statistics) {
            self.refresh(queues)?;
        }
        Ok(())
    }

    fn change(&mut self, change: &Change, queues: Option<&Queues>) -> Result<(), ChangeError> {
        match change {
            Change::Target(target) => self.leave(*target, queues),
            Change::Hinting(order) => self.hints.change(*order, &self.config, queues),
            Change::StatsInterval(seconds) => {
                self.interval = interval(*seconds);
                if queues.is_some() {
                    self.timer.set(AT_ONCE);
                }
                Ok(())
            }
            _ => Err(ChangeError::Foreign),
        }
    }

    fn query(&mut self, query: Query, queues: Option<&mut Queues>) -> Result<Report, ChangeError> {
        match query {
            Query::Statistics => {
                let refreshing = queues.map_or(Ok(false), |queues| self.refresh(queues));
                let refreshing =
                    refreshing.map_err(|error| ChangeError::Refused(error.to_string()))?;
                Ok(Report::Statistics(Box::new(self.statistics(refreshing))))
            }
            Query::Hinting => Ok(Report::Hinting(self.hints.status())),
        }
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Ok(self.state())
    }

    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        self.set_state(state, runs)
    }

    /// The next driver begins with no page, and with nothing of this one.
    fn stop(&mut self) {
        self.config.update(ACTUAL_AT, &[0; 4]);
        (self.features, self.roles) = (0, None);
        self.statistics = Statistics::default();
        self.hints.stop(&self.config);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
