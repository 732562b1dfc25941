//! The network device (VIRTIO 1.3, 5.1), on a tap device of the host.
//!
//! Frames move between the tap and guest memory without a copy of ours: a frame is written from the
//! driver's buffers, and read into as many of them as the largest frame may need. Those that a frame
//! leaves over are for the next one. Nothing is lost and nothing stops when the tap has frames and
//! the driver no buffers: whichever comes next goes on.

mod control;
mod counts;
mod error;
mod foresee;
mod frame;
mod given;
mod hand_over;
mod hook;
mod interface;
mod limits;
mod offloads;
mod plug;
mod saved;
mod tap;
mod transmit;
mod waiting;

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use self::counts::Counts;
pub use self::error::NetError;
use self::frame::{AROUND, BUFFER, DEFAULT_MTU, HEADER, LARGE_QUEUE, LARGEST};
use self::hook::Hooked;
use self::offloads::{DEPENDENCIES, host_offload, negotiate, uncut};
use self::tap::{Tap, offload};
use self::waiting::Waiting;
use super::iovec::{Frame, Vectors};
use super::limit::Limiter;
use super::{Chain, ConfigSpace, Event, FrameHook, Monitor, QueueError, Queues, VirtioDevice};
use crate::config::{Mac, NetConfig};
use crate::state::{StateError, VirtioDeviceState};
use crate::{Change, ChangeError, Rare};

/// Where the configuration has its parts (5.1.4).
const STATUS_AT: usize = 6;

/// Two queues and their part of the tap.
#[derive(Debug)]
struct Pair {
    tap: Tap,
    waiting: Waiting,
    /// Whether frames come to this queue of the tap.
    enabled: bool,
    /// The last look found no buffer: a frame that is there when one comes has waited.
    dry: bool,
}

/// A network device.
#[derive(Debug)]
pub struct Net {
    pairs: Vec<Pair>,
    queue_size: u16,
    has_mtu: bool,
    /// For messages.
    name: String,
    /// What the host can leave to a receiver.
    offload: u32,
    config: Arc<ConfigSpace>,
    mergeable: bool,
    /// The largest frame that may come.
    need: u64,
    /// How many pairs the driver may use: their queues come before the control queue.
    usable: usize,
    /// The number of the control queue.
    control: usize,
    limits: [Limiter; 2],
    chain: Chain,
    vectors: Vectors,
    /// The tap is gone.
    down: bool,
    /// Somebody has pulled the cable.
    unplugged: bool,
    /// The driver reads the link's state.
    has_status: bool,
    errors: Rare,
    /// What the tap did not take of a driver's wishes.
    refusals: Rare,
    /// Frames that the driver had no room for.
    too_large: Rare,
    /// Where the rest of such a frame goes.
    spare: Vec<u8>,
    mtu: u16,
    counts: Counts,
    /// An embedder's own.
    hooked: Option<Hooked>,
}

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

impl Net {
    /// Finds out whether a device can be opened, without opening it. Gives what a process that has the tap device
    /// keeps this one from, as long as that is so.
    ///
    /// # Errors
    /// When the descriptor is none of a tap device, or the MTU does not fit the queues.
    pub fn check(config: &NetConfig) -> Result<Option<NetError>, NetError> {
        Self::check_values(config)?;
        match (config.fd, &config.tap) {
            (Some(fd), _) => Tap::inherit(fd).map(|_| None),
            (None, Some(name)) => foresee::tap(name, config.queues),
            (None, None) => Ok(None),
        }
    }

    /// The same, but for a tap device of this name and for a descriptor, which another host may have.
    ///
    /// # Errors
    /// When the MTU does not fit the queues.
    pub fn check_values(config: &NetConfig) -> Result<(), NetError> {
        // A queue of two entries has room for a usual frame.
        let room = BUFFER * u64::from(config.queue_size / 2);
        let mtu = config.mtu.unwrap_or(DEFAULT_MTU);
        if config.queue_size < LARGE_QUEUE && u64::from(mtu) + AROUND > room {
            return Err(NetError::Mtu(mtu, config.queue_size));
        }
        Ok(())
    }

    /// Opens the tap device, or creates it.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn open(config: &NetConfig) -> Result<Self, NetError> {
        Self::check_values(config)?;
        let taps = match (config.fd, &config.tap) {
            (Some(fd), _) => vec![Tap::inherit(fd)?],
            (None, name) => {
                let name = name.as_deref().unwrap_or_default();
                let taps = Tap::open(name, config.queues)?;
                if let Some(mtu) = config.mtu
                    && let Err(error) = interface::set_mtu(name, mtu)
                {
                    log::warn!("the MTU of the tap device {name} cannot be set: {error}");
                }
                taps
            }
        };
        Self::on(taps, config)
    }

    /// A device on descriptors that carry frames as a tap device does, each behind the header of
    /// virtio 1: one for each pair of queues.
    ///
    /// # Errors
    /// When the host refuses random bytes or a timer.
    pub fn from_fds(fds: Vec<OwnedFd>, config: &NetConfig) -> Result<Self, NetError> {
        Self::on(fds.into_iter().map(Tap::from).collect(), config)
    }

    fn on(taps: Vec<Tap>, config: &NetConfig) -> Result<Self, NetError> {
        let mac = match config.mac {
            Some(mac) => mac,
            None => random_mac()?,
        };
        let pairs = u16::try_from(taps.len()).unwrap_or(1);
        let counts = Counts::default();
        let mtu = config.mtu.unwrap_or(DEFAULT_MTU);
        // mac, status, max_virtqueue_pairs, mtu.
        let mut space = mac.0.to_vec();
        space.extend(link(true));
        space.extend(pairs.to_le_bytes());
        space.extend(mtu.to_le_bytes());
        Ok(Self {
            offload: taps.first().map_or(0, host_offload),
            pairs: taps
                .into_iter()
                .map(|tap| Pair {
                    tap,
                    waiting: Waiting::default(),
                    enabled: true,
                    dry: false,
                })
                .collect(),
            queue_size: config.queue_size,
            has_mtu: config.mtu.is_some(),
            name: config.to_string(),
            config: Arc::new(ConfigSpace::new(space, 0..0)),
            mergeable: false,
            need: LARGEST,
            usable: 1,
            control: 2,
            limits: Self::limiters(config, &counts.monitor)?,
            chain: Chain::default(),
            vectors: Vectors::default(),
            down: false,
            unplugged: false,
            has_status: false,
            errors: Rare::default(),
            refusals: Rare::default(),
            too_large: Rare::default(),
            spare: vec![0; usize::try_from(LARGEST).unwrap_or_default()],
            mtu,
            counts,
            hooked: None,
        })
    }

    /// Moves frames from the tap to the driver. `came`: some have just come. Says whether there may be more.
    fn receive(
        &mut self,
        number: usize,
        came: bool,
        queues: &mut Queues,
    ) -> Result<bool, QueueError> {
        let (Some(ring), Some(pair)) = (
            queues.ring(2 * number + RECEIVE),
            self.pairs.get_mut(number),
        ) else {
            return Ok(false);
        };
        // What comes while the link is down is thrown away when it is up again.
        if self.down || self.unplugged || number >= self.usable {
            return Ok(false);
        }
        for _ in 0..ring.size() {
            if !self.limits[RECEIVE].allows() {
                if came {
                    self.limits[RECEIVE].hold();
                }
                return Ok(false);
            }
            let waiting = &mut pair.waiting;
            // A driver with few buffers gets the frames that fit.
            waiting.fill(ring, self.need, self.mergeable)?;
            if ring.is_stopping() || waiting.chains.is_empty() {
                pair.dry = true;
                return Ok(false);
            }
            let was_dry = std::mem::take(&mut pair.dry);
            let fd = pair.tap.as_fd();
            match waiting.vectors.read_frame(fd, &mut self.spare) {
                Ok(Frame { len: 0, .. }) => {
                    let error = io::ErrorKind::UnexpectedEof.into();
                    self.gone(&error, queues);
                    return Ok(false);
                }
                Ok(Frame { len, fits }) => {
                    let passes = fits && len >= HEADER;
                    self.counts.received(len, passes, was_dry);
                    if passes {
                        waiting.complete(ring, len)?;
                    } else if let Some(times) = self.too_large.again() {
                        let name = &self.name;
                        log::warn!(
                            "{name}: a frame of {len} bytes was dropped, {times} times so far: the \
                             driver has buffers for {} bytes",
                            waiting.len
                        );
                    }
                    self.limits[RECEIVE].charge(len as u64);
                }
                Err(error) => {
                    self.failed(&error, queues);
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// A frame did not pass.
    fn failed(&mut self, error: &io::Error, queues: &Queues) {
        match error.raw_os_error() {
            // Nothing there, or no room: a network may lose frames.
            Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM) => {}
            // The device was deleted, or the other end is.
            Some(libc::EBADFD | libc::ENODEV | libc::ENXIO | libc::EPIPE) => {
                self.gone(error, queues);
            }
            errno => {
                self.counts.monitor.notices.host_error(error);
                if let Some(times) = self.errors.again() {
                    let name = &self.name;
                    let cure = match errno {
                        Some(libc::EIO) => format!("; is {name} down? `ip link set {name} up`"),
                        _ => String::new(),
                    };
                    log::warn!("a network frame was dropped, {times} times so far: {error}{cure}");
                }
            }
        }
    }

    /// Frames will never pass again.
    fn gone(&mut self, error: &io::Error, queues: &Queues) {
        if !std::mem::replace(&mut self.down, true) {
            log::error!("the tap device is gone, the guest's link is down: {error}");
            let cause = format_args!("the tap device is gone: {error}");
            self.counts.monitor.notices.host_error(&cause);
            self.config.update(STATUS_AT, &link(false));
            queues.config_changed();
        }
    }
}

/// The status field of the configuration.
fn link(up: bool) -> [u8; 2] {
    let status = if up { VIRTIO_NET_S_LINK_UP } else { 0 };
    u16::try_from(status).unwrap_or_default().to_le_bytes()
}

/// An address of our own: locally administered, for one station.
fn random_mac() -> io::Result<Mac> {
    let mut mac = [0; 6];
    getrandom(&mut mac, GetRandomFlags::empty())?;
    mac[0] = mac[0] & !1 | 2;
    Ok(Mac(mac))
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn features(&self) -> u64 {
        let mut features = 1u64 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_CSUM;
        if self.has_mtu {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        if self.pairs.len() > 1 {
            features |= 1 << VIRTIO_NET_F_MQ;
        }
        features | uncut(self.offload, self.queue_size)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.queue_size; 2 * self.pairs.len() + 1]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.counts.monitor)
    }

    /// The taps, then the timers of the limits, and what wakes the hook.
    fn sources(&self) -> Vec<RawFd> {
        let taps = self.pairs.iter().map(|pair| pair.tap.raw());
        let timers = self.limits.iter().map(Limiter::timer);
        let hook = self.hooked.as_ref().and_then(Hooked::wakes);
        taps.chain(timers).chain(hook).collect()
    }

    fn start(&mut self, features: u64) {
        let offload = negotiate(features);
        self.has_status = features & 1 << VIRTIO_NET_F_STATUS != 0;
        self.mergeable = features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0;
        self.need = if offload & !offload::CSUM == 0 {
            u64::from(self.mtu.max(DEFAULT_MTU)) + AROUND
        } else {
            LARGEST
        };
        let many = features & 1 << VIRTIO_NET_F_MQ != 0;
        self.usable = if many { self.pairs.len() } else { 1 };
        self.control = 2 * self.usable;
        for pair in &self.pairs {
            if let Err(error) = pair.tap.set_offload(offload) {
                if let Some(times) = self.refusals.again() {
                    log::warn!(
                        "the tap device does not take the driver's features, {times} times so far: {error}"
                    );
                }
                // Frames as any driver takes them; a device that is gone fails later.
                let _ = pair.tap.set_offload(0);
            }
            // What came for the driver before may be of a kind that this one does not take.
            pair.tap.empty(&mut self.spare);
        }
        // Until the driver says otherwise it uses one pair.
        self.use_pairs(1);
    }

    /// 5.1.3.1.
    fn dependencies(&self) -> &'static [(u32, &'static [u32])] {
        DEPENDENCIES
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let hook_first = self.hooked.as_mut().is_some_and(Hooked::is_first);
        let mut more = hook_first && self.hand_over(queues)?;
        more |= match event {
            Event::Queue(queue) if queue == self.control => self.command(queues)?,
            Event::Queue(queue) if queue % 2 == RECEIVE => {
                self.receive(queue / 2, false, queues)?
            }
            Event::Queue(queue) => self.transmit(queue / 2, queues)?,
            Event::Source(source) if source < self.pairs.len() => {
                self.receive(source, true, queues)?
            }
            Event::Source(_) => {
                self.hooked.iter_mut().for_each(Hooked::wake);
                self.limits.iter_mut().for_each(Limiter::woken);
                let mut more = false;
                for number in 0..self.usable {
                    more |= self.receive(number, false, queues)?;
                    more |= self.transmit(number, queues)?;
                }
                more
            }
        };
        more |= self.hand_over(queues)?;
        queues.publish()?;
        Ok(more)
    }

    fn hook(&mut self, hook: Box<dyn FrameHook>) -> Result<(), ChangeError> {
        self.hooked = Some(Hooked::new(hook));
        Ok(())
    }

    fn change(&mut self, change: &Change, queues: Option<&Queues>) -> Result<(), ChangeError> {
        match change {
            Change::Limits(limits) => self.change_limits(limits),
            Change::AdjustLimits(change) => self.adjust_limits(change),
            Change::Link(link) => return self.plug(*link, queues),
            _ => return Err(ChangeError::Foreign),
        }
        Ok(())
    }

    /// Buffers that wait for frames wait in their queue: nothing was done with them.
    fn quiesce(&mut self, queues: &mut Queues) -> Result<(), QueueError> {
        self.give_back(queues);
        Ok(())
    }

    fn save(&self) -> Result<VirtioDeviceState, StateError> {
        Ok(self.state())
    }

    fn load(&mut self, state: &VirtioDeviceState, runs: bool) -> Result<(), StateError> {
        self.set_state(state, runs)
    }

    fn stop(&mut self) {
        for pair in &mut self.pairs {
            pair.waiting.clear();
            pair.dry = false;
        }
        self.limits.iter_mut().for_each(Limiter::stop);
        self.hooked.iter_mut().for_each(Hooked::reset);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
