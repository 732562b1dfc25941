//! The start-up line: from a configuration to a machine that runs, the same for every
//! architecture.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::{IrqModel, KvmError, KvmIrqChip, KvmPlatform, MachinePlan};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::config::OnReboot;
use crate::console::{Console, Port};
use crate::control::handle::{ExitReason, VmHandle};
use crate::control::metrics::Metrics;
use crate::control::requests::Requests;
use crate::devices::gsi::MsiRoutes;
use crate::devices::lines::Lines;
use crate::devices::opened::HostDevices;
use crate::devices::registry::Registry;
use crate::memory::Backing;
use crate::timeline::{Milestone, Timeline};
use crate::vm::bare::Bare;
use crate::vm::begin::{Begin, Saved};
use crate::vm::empty::Empty;
use crate::vm::engine::Running;
use crate::vm::gate::Gate;
use crate::vm::main_loop::main_loop;
use crate::vm::opening::{Images, Opened};
use crate::vm::story::Story;
use crate::vm::vcpu::{Shared, VcpuThreads};
use crate::{
    Attachments, Consoles, Error, OwnDevice, PlannedFor, VmConfig, devices as model, memory,
};

/// What a machine has outside of the VM; a restart keeps it.
struct Outside<P: KvmPlatform> {
    config: VmConfig,
    platform: Arc<P>,
    opened: Opened,
    stop: Requests,
    handle: VmHandle,
    timeline: Timeline,
    metrics: Metrics,
    story: Story,
    saved: Option<Box<Saved<P>>>,
}

/// A VM that is ready to run.
pub struct Machine<P: KvmPlatform> {
    // Fields drop in this order: vCPUs before the chip and the VM, the devices and then guest RAM
    // (in `shared`) last.
    vcpus: Vec<VcpuFd>,
    chip: P::Chip,
    vm: Arc<VmFd>,
    consoles: Consoles,
    serial: Option<Port>,
    virtio_console: Option<Port>,
    registry: Registry,
    metrics: Metrics,
    stop: Requests,
    plan: MachinePlan,
    shared: Arc<Shared<P>>,
    config: VmConfig,
    kvm: Kvm,
    images: Option<Images>,
    own: Vec<OwnDevice>,
    story: Story,
}

impl<P: KvmPlatform> fmt::Debug for Machine<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<P: KvmPlatform> Machine<P> {
    /// Builds the VM that `config` describes, up to the first instruction. `attachments` are where its consoles go
    /// (one [`Console`](crate::Console): the serial one) and devices of the embedder's own; without a kernel in
    /// `config`, `hello` boots.
    ///
    /// # Errors
    /// Every error names the field, the value and the cause; [`Error::cure`] says what to do.
    pub fn with_hello(
        config: &VmConfig,
        attachments: impl Into<Attachments>,
        hello: Option<&'static [u8]>,
    ) -> Result<Self, Error> {
        config.check_descriptors()?;
        Self::start(config, |kvm, _, timeline| {
            let opened = Opened::new(kvm, config, attachments.into(), hello, timeline)?;
            Ok((opened, None))
        })
    }

    /// Builds the VM that was saved, up to where its guest goes on. `memory` is the content of its RAM
    /// ([`Snapshot::memory_file`](crate::Snapshot::memory_file)).
    ///
    /// # Errors
    /// When it cannot go on on this host, which is said with everything that differs, or when a file is not what it
    /// has to be.
    #[cfg(feature = "snapshot")]
    pub fn restore(
        snapshot: crate::Snapshot,
        memory: File,
        attachments: impl Into<Attachments>,
    ) -> Result<Self, Error> {
        let config = snapshot.config().clone();
        config.check()?;
        Self::start(&config, |kvm, platform, timeline| {
            let saved = Saved::new(platform, snapshot, memory)?;
            let opened = Opened::without_images(kvm, &config, attachments.into(), timeline)?;
            Ok((opened, Some(Box::new(saved))))
        })
    }

    /// The first start: the host, what `open` opens, and then what every start does.
    fn start(
        config: &VmConfig,
        open: impl FnOnce(Kvm, &mut P, &Timeline) -> Result<(Opened, Option<Box<Saved<P>>>), Error>,
    ) -> Result<Self, Error> {
        let timeline = Timeline::default();
        timeline.reach(Milestone::Begun);
        crate::memory::host::check(config)?;
        let kvm = crate::host::open_kvm()?;
        let mut platform = P::probe(&kvm)?;
        timeline.reach(Milestone::Probed);
        let mut story = Story::default();
        story.begin();
        story.host(&kvm);
        let (opened, saved) = open(kvm, &mut platform, &timeline)?;
        Self::build(Outside {
            config: config.clone(),
            platform: Arc::new(platform),
            opened,
            stop: Requests::default(),
            handle: VmHandle::new()?,
            timeline,
            metrics: Metrics::default(),
            story,
            saved,
        })
    }

    /// The start-up line.
    fn build(outside: Outside<P>) -> Result<Self, Error> {
        let Outside {
            config,
            platform,
            opened,
            timeline,
            story,
            saved,
            ..
        } = outside;
        let Opened {
            kvm,
            images,
            consoles,
            devices,
        } = opened;
        let (mut plan, begin) = Begin::new(&*platform, &config, saved, images.as_ref(), &story)?;
        let backing = Backing::of(&config);
        let remark = memory::check(&plan, backing, PlannedFor::ThisHost)?;
        plan.remarks.extend(remark);
        let own = devices.own.clone();
        model::own::check(&own, &plan)?;
        story.plan(&plan, &config);
        timeline.reach(Milestone::Planned);

        let Bare {
            vm,
            ram,
            irq_chip,
            chip,
            vcpus,
        } = Bare::new(&kvm, &*platform, &plan, backing, begin.content(), &timeline)?;

        let lines = Lines {
            range: irq_chip.lines(),
            routes: MsiRoutes::new(Arc::clone(&vm), &irq_chip),
            connect: &|event, gsi| chip.connect(&vm, event, gsi),
        };
        let devices = model::create(&plan, &lines, devices, &vm, &ram)?;
        devices.registry.publish_to(&outside.handle);
        story.opened(&config);
        timeline.reach(Milestone::Devices);

        begin.load(
            &Empty {
                platform: &*platform,
                plan: &plan,
                irq_chip: &irq_chip,
                chip: &chip,
                vm: &vm,
                vcpus: &vcpus,
                spaces: &devices.spaces,
                generation: devices.generation.as_ref(),
                registry: &devices.registry,
                ram: &ram,
            },
            &config,
            &story,
            &timeline,
        )?;

        let run_size = kvm
            .get_vcpu_mmap_size()
            .map_err(KvmError::of("KVM_GET_VCPU_MMAP_SIZE"))?;
        let output = devices.output();
        timeline.reach(Milestone::Built);
        outside.handle.set_button(devices.power_button.clone());
        let shared = Shared {
            platform,
            spaces: devices.spaces,
            output,
            handle: outside.handle,
            gate: Gate::default(),
            timeline,
            run_size,
            ram,
        };
        Ok(Self {
            vcpus,
            chip,
            vm,
            consoles,
            serial: devices.serial,
            virtio_console: devices.virtio_console,
            registry: devices.registry,
            metrics: outside.metrics,
            stop: outside.stop,
            plan,
            shared: Arc::new(shared),
            config,
            kvm,
            images,
            own,
            story,
        })
    }

    /// The machine as planned.
    #[must_use]
    pub fn plan(&self) -> &MachinePlan {
        &self.plan
    }

    /// A handle by which other threads ask this VM for something.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.shared.handle.clone()
    }

    /// When the start of this VM reached its milestones.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.shared.timeline.clone()
    }

    /// Ends the VM, as [`VmHandle::request_stop`] does, when `fd` becomes readable: one end of a
    /// pipe that a signal handler writes to, a timerfd, a pidfd. A regular file cannot be watched.
    pub fn stop_on(&mut self, fd: OwnedFd) {
        self.stop.end = Some(fd);
    }

    /// Asks the guest to power off, as [`VmHandle::request_shutdown`] does with the configured
    /// patience, for each time that `fd` has bytes to read. They are read; one end of a socket pair
    /// or pipe that a signal handler writes to is fine.
    pub fn shutdown_on(&mut self, fd: OwnedFd) {
        let patience = Duration::from_secs(self.config.shutdown_timeout.into());
        self.stop.shutdown = Some((File::from(fd), patience));
    }

    /// Runs the VM to its end on this thread, plus one thread per vCPU and one per virtio device, which are
    /// all joined on return. With [`OnReboot::Restart`] a reset is not the end: the machine is
    /// built again, from the kernel's file on, with fresh memory, and keeps all that is open: that file and
    /// the initrd, disks, network devices, sockets and consoles.
    ///
    /// # Errors
    /// [`Error::Vcpu`] when a vCPU could not go on, with a report; [`Error::Host`] when the host
    /// refused a thread or an event; after a reset, those of [`Machine::with_hello`] too.
    pub fn run(self) -> Result<ExitReason, Error> {
        let finish = Finish(Some(self.handle()));
        let outcome = self.run_to_the_end();
        finish.with(&outcome);
        outcome
    }

    fn run_to_the_end(mut self) -> Result<ExitReason, Error> {
        loop {
            let may_restart = self.images.is_some() && self.config.on_reboot == OnReboot::Restart;
            let mut outside = self.run_once()?;
            let handle = &outside.handle;
            if !handle.restart(may_restart) {
                let end = handle.take().unwrap_or(Ok(ExitReason::Stopped));
                match &end {
                    // Its line stands there already.
                    Ok(ExitReason::Crashed(crash)) => log::debug!("end: {crash}"),
                    Ok(reason) => log::debug!("end: {reason}"),
                    Err(error) => log::debug!("end: {error}"),
                }
                return end;
            }
            outside.story.begin();
            self = Self::build(outside)?;
        }
    }

    /// Runs the VM until its guest ends; gives what is left of it.
    fn run_once(self) -> Result<Outside<P>, Error> {
        let Self {
            vcpus,
            chip,
            vm,
            consoles,
            serial,
            virtio_console,
            registry,
            metrics,
            stop,
            shared,
            config,
            kvm,
            images,
            own,
            plan,
            story,
        } = self;
        let handle = shared.handle.clone();
        // Guest memory outlives the devices and the VM.
        let ram = shared.ram.clone();
        let timeline = shared.timeline.clone();
        let paused = handle.begin();
        // The vCPUs of a machine that was saved wait for its devices.
        let is_still = paused || images.is_none();
        if is_still {
            shared.gate.close();
        }
        let threads = VcpuThreads::start(vcpus, &shared)?;
        let platform = Arc::clone(&shared.platform);
        let mut engine = Running {
            counters: threads.counters(),
            threads: Some(threads),
            chip,
            vm,
            config: config.clone(),
            can_restart: images.is_some(),
            registry,
            plan,
            shared,
            metrics,
            paused_since: paused.then(Instant::now),
            is_still,
            patience: Duration::from_secs(config.shutdown_timeout.into()),
        };
        if is_still && !paused && !handle.has_ended() {
            engine.go_on();
        }
        let has_serial = serial.is_some();
        let lines = [(consoles.serial, serial), (consoles.virtio, virtio_console)]
            .into_iter()
            .filter_map(|(console, port)| Some((console, port?)))
            .collect();
        let ended = main_loop(lines, stop, handle.clone(), &timeline, engine)?;
        drop(ram);
        let mut lines = ended.lines.into_iter();
        // The serial device is made anew, the virtio console lasts.
        let serial = if has_serial { lines.next() } else { None };
        let (virtio, virtio_console) = lines.next().unzip();
        let opened = Opened {
            kvm,
            images,
            consoles: Consoles {
                serial: serial.map_or_else(Console::null, |(console, _)| console),
                virtio: virtio.unwrap_or_else(Console::null),
            },
            devices: HostDevices {
                devices: ended.rest.devices,
                console: virtio_console,
                own,
            },
        };
        Ok(Outside {
            config,
            platform,
            opened,
            stop: ended.stop,
            handle,
            timeline,
            metrics: ended.rest.metrics,
            story,
            saved: None,
        })
    }
}

/// Says at the end of a run, however it ends, that nobody runs the machine any more.
struct Finish(Option<VmHandle>);

impl Finish {
    fn with(mut self, outcome: &Result<ExitReason, Error>) {
        if let Some(handle) = self.0.take() {
            handle.finish(Some(outcome));
        }
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.finish(None);
        }
    }
}

#[cfg(feature = "host")]
impl Machine<crate::HostPlatform> {
    /// Builds the VM that `config` describes on this host's own architecture, up to the first
    /// instruction; without a kernel in `config`, the built-in guest boots.
    ///
    /// # Errors
    /// As [`Machine::with_hello`].
    pub fn new(config: &VmConfig, attachments: impl Into<Attachments>) -> Result<Self, Error> {
        Self::with_hello(config, attachments, crate::hello_guest())
    }
}
