//! Devices' configurations, put together by a program.

use std::path::PathBuf;

use super::{BalloonConfig, BlkConfig, BlkEngine, Limits, Mac, NetConfig, VsockConfig};

impl BlkConfig {
    /// A disk in this file or on this block device.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            ..Self::default()
        }
    }

    /// Says what commands call it.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Lets the guest only read.
    #[must_use]
    pub fn with_read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Sets what the guest is told as serial number.
    #[must_use]
    pub fn with_serial(mut self, serial: impl Into<String>) -> Self {
        self.serial = serial.into();
        self
    }

    /// Says how requests reach the host's kernel.
    #[must_use]
    pub fn with_engine(mut self, engine: BlkEngine) -> Self {
        self.engine = engine;
        self
    }

    /// Goes past the host's page cache.
    #[must_use]
    pub fn with_direct(mut self) -> Self {
        self.direct = true;
        self
    }

    /// Sets the number of queues.
    #[must_use]
    pub fn with_queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Sets the entries of a queue, a power of two.
    #[must_use]
    pub fn with_queue_size(mut self, entries: u16) -> Self {
        self.queue_size = entries;
        self
    }

    /// Keeps what the guest would give back of the file.
    #[must_use]
    pub fn without_discard(mut self) -> Self {
        self.discard = false;
        self
    }

    /// Lets others write to the file meanwhile, and be warned of.
    #[must_use]
    pub fn without_lock(mut self) -> Self {
        self.lock = false;
        self
    }

    /// Sets how much the guest may read and write.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
}

impl NetConfig {
    /// Says what commands call it.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Uses the host's tap device of this name.
    #[must_use]
    pub fn with_tap(mut self, name: impl Into<String>) -> Self {
        self.tap = Some(name.into());
        self
    }

    /// Uses an open descriptor of a tap device.
    #[must_use]
    pub fn with_fd(mut self, fd: i32) -> Self {
        self.fd = Some(fd);
        self
    }

    /// Sets the guest's address.
    #[must_use]
    pub fn with_mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Sets the largest packet, without the Ethernet header, in bytes.
    #[must_use]
    pub fn with_mtu(mut self, bytes: u16) -> Self {
        self.mtu = Some(bytes);
        self
    }

    /// Sets the number of pairs of queues.
    #[must_use]
    pub fn with_queues(mut self, pairs: u16) -> Self {
        self.queues = pairs;
        self
    }

    /// Sets the entries of a queue, a power of two.
    #[must_use]
    pub fn with_queue_size(mut self, entries: u16) -> Self {
        self.queue_size = entries;
        self
    }

    /// Sets how much may pass in each direction.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets how much may pass to the guest.
    #[must_use]
    pub fn with_rx_limits(mut self, limits: Limits) -> Self {
        self.rx_limits = Some(limits);
        self
    }

    /// Sets how much may pass from the guest.
    #[must_use]
    pub fn with_tx_limits(mut self, limits: Limits) -> Self {
        self.tx_limits = Some(limits);
        self
    }
}

impl VsockConfig {
    /// Sockets of a guest with this context identifier, 3 or more; `path` is the Unix socket that programs of the
    /// host connect to.
    pub fn new(cid: u32, path: impl Into<PathBuf>) -> Self {
        Self {
            id: None,
            cid,
            path: path.into(),
        }
    }

    /// Says what commands call it.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }
}

impl BalloonConfig {
    /// Says what commands call it.
    #[must_use]
    pub fn with_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the bytes of RAM that the guest is left with.
    #[must_use]
    pub fn with_target(mut self, bytes: u64) -> Self {
        self.target = Some(bytes);
        self
    }

    /// Lets the guest take memory back before it runs out.
    #[must_use]
    pub fn with_deflate_on_oom(mut self) -> Self {
        self.deflate_on_oom = true;
        self
    }

    /// Lets the guest tell of pages that it has freed.
    #[must_use]
    pub fn with_free_page_reporting(mut self) -> Self {
        self.free_page_reporting = true;
        self
    }

    /// Lets the guest be asked for all pages that it has free.
    #[must_use]
    pub fn with_free_page_hinting(mut self) -> Self {
        self.free_page_hinting = true;
        self
    }

    /// Sets how often the guest is asked for its statistics, in seconds; 0: only when a command asks for them.
    #[must_use]
    pub fn with_stats_interval(mut self, seconds: u32) -> Self {
        self.stats_interval = seconds;
        self
    }
}

impl Limits {
    /// Sets the bytes per second.
    #[must_use]
    pub fn with_bw(mut self, bytes: u64) -> Self {
        self.bw = Some(bytes);
        self
    }

    /// Sets the bytes that may go at once after a pause.
    #[must_use]
    pub fn with_bw_burst(mut self, bytes: u64) -> Self {
        self.bw_burst = Some(bytes);
        self
    }

    /// Sets the time in which the bytes come, in milliseconds.
    #[must_use]
    pub fn with_bw_refill(mut self, millis: u64) -> Self {
        self.bw_refill = Some(millis);
        self
    }

    /// Sets the bytes that may go before any of those, once.
    #[must_use]
    pub fn with_bw_once(mut self, bytes: u64) -> Self {
        self.bw_once = Some(bytes);
        self
    }

    /// Sets the time in which the requests come, in milliseconds.
    #[must_use]
    pub fn with_iops_refill(mut self, millis: u64) -> Self {
        self.iops_refill = Some(millis);
        self
    }

    /// Sets the requests that may go before any of those, once.
    #[must_use]
    pub fn with_iops_once(mut self, requests: u64) -> Self {
        self.iops_once = Some(requests);
        self
    }

    /// Sets the requests (or packets) per second.
    #[must_use]
    pub fn with_iops(mut self, requests: u64) -> Self {
        self.iops = Some(requests);
        self
    }

    /// Sets the requests that may go at once after a pause.
    #[must_use]
    pub fn with_iops_burst(mut self, requests: u64) -> Self {
        self.iops_burst = Some(requests);
        self
    }
}
