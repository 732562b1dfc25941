//! The start-up line: from a configuration to a machine that runs, the same for every
//! architecture.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arch::{IrqModel, KvmError, KvmIrqChip, KvmPlatform, MachinePlan};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use crate::confinement::ThreadRole;
use crate::console::Port;
use crate::control::handle::VmHandle;
use crate::control::metrics::{Metrics, Resident};
use crate::control::requests::Requests;
use crate::devices::gsi::MsiRoutes;
use crate::devices::lines::Lines;
#[cfg(feature = "snapshot")]
use crate::devices::opened::Given;
use crate::devices::registry::Registry;
use crate::fork::forks::Forks;
#[cfg(feature = "snapshot")]
use crate::fork::report::Report;
use crate::memory::Backing;
use crate::memory::proc_files::ProcFiles;
use crate::timeline::{Milestone, Timeline};
use crate::vm::bare::Bare;
use crate::vm::begin::{Begin, Chain, Saved};
use crate::vm::empty::Empty;
use crate::vm::gate::Gate;
use crate::vm::opening::{Images, Opened};
use crate::vm::story::Story;
use crate::vm::vcpu::Shared;
use crate::{
    Attachments, Consoles, Error, OwnDevice, PlannedFor, VmConfig, devices as model, memory,
};

/// What a machine has outside of the VM; a restart keeps it.
pub(super) struct Outside<P: KvmPlatform> {
    pub(super) config: VmConfig,
    pub(super) platform: Arc<P>,
    pub(super) opened: Opened,
    pub(super) stop: Requests,
    pub(super) handle: VmHandle,
    pub(super) timeline: Timeline,
    pub(super) metrics: Metrics,
    pub(super) story: Story,
    pub(super) saved: Option<Box<Saved<P>>>,
    pub(super) forks: Forks<P>,
    /// What the host's memory is not as it was asked for, the first time.
    pub(super) remark: Option<String>,
    pub(super) makes_machines: bool,
}

/// A VM that is ready to run.
pub struct Machine<P: KvmPlatform> {
    // Fields drop in this order: vCPUs before the chip and the VM, the devices and then guest RAM
    // (in `shared`) last.
    pub(super) vcpus: Vec<VcpuFd>,
    pub(super) chip: P::Chip,
    pub(super) vm: Arc<VmFd>,
    pub(super) consoles: Consoles,
    pub(super) serial: Option<Port>,
    pub(super) virtio_console: Option<Port>,
    pub(super) registry: Registry,
    pub(super) metrics: Metrics,
    pub(super) chain: Chain,
    pub(super) stop: Requests,
    pub(super) plan: MachinePlan,
    pub(super) shared: Arc<Shared<P>>,
    pub(super) config: VmConfig,
    pub(super) kvm: Kvm,
    /// A command may ask for another machine: this one started again, or a fork of it.
    pub(super) makes_machines: bool,
    pub(super) images: Option<Images>,
    pub(super) own: Vec<OwnDevice>,
    pub(super) story: Story,
    pub(super) forks: Forks<P>,
    /// It goes on where it was, and does not begin.
    pub(super) was_saved: bool,
    /// Whom to tell that it runs.
    #[cfg(feature = "snapshot")]
    pub(super) report: Option<Report>,
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
        Self::start(config, |kvm, platform, timeline| {
            platform.show_features(&config.features)?;
            let opened = Opened::new(kvm, config, attachments.into(), hello, timeline)?;
            Ok((opened, None))
        })
    }

    /// Builds the VM that was saved, up to where its guest goes on. `memory` is where the content of its RAM comes from:
    /// the open files of [`Snapshot::memory_files`](crate::Snapshot::memory_files), or more that
    /// [`SavedMemory`](crate::SavedMemory) knows.
    ///
    /// # Errors
    /// When it cannot go on on this host, which is said with everything that differs, or when a file is not what it
    /// has to be.
    #[cfg(feature = "snapshot")]
    pub fn restore(
        snapshot: crate::Snapshot,
        memory: impl Into<crate::SavedMemory>,
        attachments: impl Into<Attachments>,
    ) -> Result<Self, Error> {
        let config = snapshot.config().clone();
        config.check()?;
        Self::start(&config, |kvm, platform, timeline| {
            let saved = Saved::new(platform, snapshot, memory.into())?;
            let given = Given::default();
            let opened = Opened::without_images(kvm, &config, attachments.into(), given, timeline)?;
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
        let remark = memory::check_host(config)?;
        let (resident, proc_files) = (Resident::open(), ProcFiles::open());
        let kvm = crate::host::open_kvm()?;
        let mut platform = P::probe(&kvm)?;
        timeline.reach(Milestone::Probed);
        let mut story = Story::default();
        story.begin();
        story.host(&kvm);
        let (opened, saved) = open(kvm, &mut platform, &timeline)?;
        let handle = VmHandle::confined_by(opened.confined.clone(), resident, proc_files)?;
        // From here on nothing is opened by a path.
        handle.confined().enter()?;
        Self::build(Outside {
            config: config.clone(),
            platform: Arc::new(platform),
            opened,
            stop: Requests::default(),
            handle,
            timeline,
            metrics: Metrics::default(),
            story,
            saved,
            forks: Forks::default(),
            remark,
            makes_machines: true,
        })
    }

    /// The start-up line.
    pub(super) fn build(outside: Outside<P>) -> Result<Self, Error> {
        let Outside {
            config,
            platform,
            opened,
            timeline,
            story,
            saved,
            remark,
            ..
        } = outside;
        let Opened {
            kvm,
            images,
            consoles,
            devices,
            confined: _,
        } = opened;
        let was_saved = saved.is_some();
        let (mut plan, begin) = Begin::new(&*platform, &config, saved, images.as_ref(), &story)?;
        let backing = Backing::of(&config);
        if !begin.has_ram() {
            memory::check(&plan, backing, PlannedFor::ThisHost)?;
            plan.remarks.extend(remark);
        }
        let (own, vcpu_threads) = (devices.own.clone(), devices.vcpu_threads.clone());
        model::own::check(&own, &plan)?;
        story.plan(&plan, &config);
        timeline.reach(Milestone::Planned);

        let Bare {
            vm,
            ram,
            irq_chip,
            chip,
            vcpus,
        } = Bare::new(
            &kvm,
            &*platform,
            &plan,
            || begin.map(&plan, backing),
            &timeline,
        )?;
        // Before anything looks at RAM.
        #[cfg(feature = "snapshot")]
        let handled = begin.hand_over(&ram, &outside.handle)?;

        let confined = outside.handle.confined();
        if let Some(begin) = confined.beginning(ThreadRole::Lines) {
            chip.begin_threads_with(begin);
        }
        let lines = Lines {
            threads: confined.device_threads(),
            range: irq_chip.lines(),
            routes: MsiRoutes::new(Arc::clone(&vm), &irq_chip),
            connect: &|event, gsi| chip.connect(&vm, event, gsi),
        };
        let devices = model::create(&plan, &lines, devices, &vm, &ram)?;
        devices.registry.publish_to(&outside.handle);
        story.opened(&config);
        timeline.reach(Milestone::Devices);

        let chain = begin.load(
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
            keyboard: devices.keyboard,
            button: devices.power_button,
            gate: Gate::default(),
            vcpu_threads,
            timeline,
            run_size,
            #[cfg(feature = "snapshot")]
            handled,
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
            chain,
            stop: outside.stop,
            plan,
            shared: Arc::new(shared),
            config,
            kvm,
            makes_machines: outside.makes_machines,
            images,
            own,
            story,
            forks: outside.forks,
            was_saved,
            #[cfg(feature = "snapshot")]
            report: None,
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

    /// No command makes another machine of this one: [`Command::Reset`](crate::Command::Reset) and
    /// `Command::Fork` are refused from now on. So `/dev/kvm` is closed before the guest runs,
    /// unless the guest's own reset starts it again ([`OnReboot::Restart`](crate::OnReboot::Restart)), which takes a new VM.
    pub fn without_new_machines(&mut self) {
        self.makes_machines = false;
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
