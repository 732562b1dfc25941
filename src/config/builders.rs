//! A VM's configuration, put together by a program.

use std::path::PathBuf;

use arch::{FeatureBits, Lean, Transport};
use devices::Overflow;
use devices::config::{BalloonConfig, BlkConfig, Limits, NetConfig, VsockConfig};

use super::{HugePages, MemoryBacking, MemorySize, OnReboot, VmConfig};

impl VmConfig {
    /// Boots this kernel.
    #[must_use]
    pub fn with_kernel(mut self, path: impl Into<PathBuf>) -> Self {
        self.kernel = Some(path.into());
        self
    }

    /// Gives the kernel this initial RAM disk.
    #[must_use]
    pub fn with_initrd(mut self, path: impl Into<PathBuf>) -> Self {
        self.initrd = Some(path.into());
        self
    }

    /// Replaces the default kernel command line.
    #[must_use]
    pub fn with_cmdline(mut self, text: impl Into<String>) -> Self {
        self.cmdline = Some(text.into());
        self
    }

    /// Adds to the kernel command line.
    #[must_use]
    pub fn with_append(mut self, text: impl Into<String>) -> Self {
        self.append = Some(text.into());
        self
    }

    /// Sets guest RAM.
    #[must_use]
    pub fn with_guest_memory(mut self, size: MemorySize) -> Self {
        self.guest_memory = size;
        self
    }

    /// Sets guest RAM in MiB.
    #[must_use]
    pub fn with_memory_mib(mut self, mib: u32) -> Self {
        self.guest_memory = MemorySize::mib(mib);
        self
    }

    /// Says where the pages of guest RAM come from.
    #[must_use]
    pub fn with_memory_backing(mut self, backing: MemoryBacking) -> Self {
        self.memory_backing = backing;
        self
    }

    /// Says which large pages guest RAM has.
    #[must_use]
    pub fn with_huge_pages(mut self, pages: HugePages) -> Self {
        self.huge_pages = pages;
        self
    }

    /// Lets the guest have more memory than the host has.
    #[must_use]
    pub fn with_overcommit(mut self) -> Self {
        self.overcommit = true;
        self
    }

    /// Sets the number of vCPUs.
    #[must_use]
    pub fn with_vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// Adds a disk.
    #[must_use]
    pub fn with_disk(mut self, disk: BlkConfig) -> Self {
        self.blk.push(disk);
        self
    }

    /// Adds a network device.
    #[must_use]
    pub fn with_net(mut self, net: NetConfig) -> Self {
        self.net.push(net);
        self
    }

    /// Adds sockets between host and guest.
    #[must_use]
    pub fn with_vsock(mut self, vsock: VsockConfig) -> Self {
        self.vsock = Some(vsock);
        self
    }

    /// Adds a virtio console; where it goes is what the machine is given.
    #[must_use]
    pub fn with_console(mut self) -> Self {
        self.console = true;
        self
    }

    /// Says what becomes of the virtio console's output when its reader is too slow.
    #[must_use]
    pub fn with_console_overflow(mut self, overflow: Overflow) -> Self {
        self.console_overflow = overflow;
        self
    }

    /// Adds a memory balloon.
    #[must_use]
    pub fn with_balloon(mut self, balloon: BalloonConfig) -> Self {
        self.balloon = Some(balloon);
        self
    }

    /// Gives the guest no random bytes of the host.
    #[must_use]
    pub fn without_rng(mut self) -> Self {
        self.rng = false;
        self
    }

    /// Sets how many random bytes of the host the guest gets.
    #[must_use]
    pub fn with_rng_limits(mut self, limits: Limits) -> Self {
        self.rng_limits = limits;
        self
    }

    /// Gives the machine no generation ID.
    #[must_use]
    pub fn without_vmgenid(mut self) -> Self {
        self.vmgenid = false;
        self
    }

    /// Leaves bytes at the beginning of the window for devices to the embedder's own, a multiple of 4096.
    #[must_use]
    pub fn with_own_window(mut self, bytes: u64) -> Self {
        self.own_window = bytes;
        self
    }

    /// Shows the guest other bits of a register by which it knows its processor.
    #[must_use]
    pub fn with_features(mut self, bits: FeatureBits) -> Self {
        self.features.push(bits);
        self
    }

    /// Tells the guest of a keyboard, for Ctrl-Alt-Del.
    #[must_use]
    pub fn with_keyboard(mut self) -> Self {
        self.keyboard = true;
        self
    }

    /// Names virtio devices on the kernel command line in any case.
    #[must_use]
    pub fn with_announce_virtio(mut self) -> Self {
        self.announce_virtio = true;
        self
    }

    /// Says how virtio devices reach the guest.
    #[must_use]
    pub fn with_transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Says whether the machine lacks what current kernels can do without.
    #[must_use]
    pub fn with_lean(mut self, lean: Lean) -> Self {
        self.lean = lean;
        self
    }

    /// Says what a guest's reset does.
    #[must_use]
    pub fn with_on_reboot(mut self, action: OnReboot) -> Self {
        self.on_reboot = action;
        self
    }

    /// Sets how long a guest that was asked to power off may take, in seconds; 0: it is not asked.
    #[must_use]
    pub fn with_shutdown_timeout(mut self, seconds: u32) -> Self {
        self.shutdown_timeout = seconds;
        self
    }
}
