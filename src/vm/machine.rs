//! The start-up line: from a configuration to a machine that runs, the same for every
//! architecture.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use arch::kernel::Protocol;
use arch::{
    AddressRange, BootError, BootRequest, KernelPlacement, KvmError, KvmIrqChip, KvmPlatform,
    MachinePlan, Planner, Platform, SEED,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress};

use crate::config::OnReboot;
use crate::console::{Console, Port};
use crate::control::handle::{ExitReason, VmHandle};
use crate::control::metrics::{Metrics, VcpuCounters};
use crate::control::requests::Requests;
use crate::devices::gsi::MsiRoutes;
use crate::devices::registry::Registry;
use crate::devices::{Kept, Lines};
use crate::kernel::image;
use crate::memory::Backing;
use crate::timeline::{Milestone, Timeline};
use crate::vm::engine::Running;
use crate::vm::gate::Gate;
use crate::vm::main_loop::main_loop;
use crate::vm::story::Story;
use crate::vm::vcpu::{Shared, VcpuThreads};
use crate::{Consoles, Error, PlannedFor, VmConfig, devices as model, memory};

/// Computes the machine that a configuration gives on a platform. Needs no KVM.
///
/// # Errors
/// When a value is refused; the error names it.
pub fn plan<P: Platform>(platform: &P, config: &VmConfig) -> Result<MachinePlan, Error> {
    let mut plan = platform.setup_memory_layout(&config.machine()?)?;
    config.name_devices(&mut plan);
    Ok(plan)
}

/// The device tree that a kernel would get, on a machine that need not run here. A kernel that
/// occupies nothing stands for any kernel, and zeros for the random seeds.
///
/// # Errors
/// When the machine's kernels get none, or the initrd or the command line does not fit.
pub fn device_tree(
    planner: &dyn Planner,
    plan: &MachinePlan,
    config: &VmConfig,
) -> Result<Vec<u8>, Error> {
    let ram = memory::map_ram(plan, Backing::default())?;
    let window = plan.kernel_window;
    let kernel = KernelPlacement {
        entry: window.base,
        range: AddressRange::new(window.base, 0),
        initrd_limit: None,
        protocol: Protocol::DeviceTree,
        setup_header: Vec::new(),
    };
    let initrd = image::Initrd::of(config)?
        .map(|initrd| initrd.load(&kernel, plan, &ram))
        .transpose()?;
    let boot = |source| Error::Boot {
        field: "arch".into(),
        value: plan.arch.to_owned(),
        source,
    };
    let info = planner
        .boot_info(plan, &kernel, initrd, &ram)
        .map_err(boot)?;
    let tree = info
        .placed
        .iter()
        .find(|block| info.arguments.contains(&block.range.base));
    let place = tree.map_or(AddressRange::new(0, 0), |block| block.range);
    let mut bytes = vec![0; usize::try_from(place.len).unwrap_or(0)];
    ram.read_slice(&mut bytes, GuestAddress(place.base))
        .map_err(|source| {
            boot(BootError::Memory {
                what: "the device tree",
                source,
            })
        })?;
    Ok(bytes)
}

/// What a machine is built from.
struct Source {
    config: VmConfig,
    hello: Option<&'static [u8]>,
}

/// What a machine has outside of the VM; a restart keeps it.
struct Outside {
    consoles: Consoles,
    stop: Requests,
    handle: VmHandle,
    timeline: Timeline,
    devices: Kept,
    metrics: Metrics,
    story: Story,
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
    source: Source,
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
    /// Builds the VM that `config` describes, up to the first instruction. `consoles` is where its
    /// consoles go (one [`Console`](crate::Console): the serial one); without a kernel in `config`,
    /// `hello` boots.
    ///
    /// # Errors
    /// Every error names the field, the value and the cause; [`Error::cure`] says what to do.
    pub fn with_hello(
        config: &VmConfig,
        consoles: impl Into<Consoles>,
        hello: Option<&'static [u8]>,
    ) -> Result<Self, Error> {
        let timeline = Timeline::default();
        timeline.reach(Milestone::Begun);
        crate::memory::host::check(config)?;
        let kvm = crate::host::open_kvm()?;
        let platform = P::probe(&kvm)?;
        timeline.reach(Milestone::Probed);
        let mut story = Story::default();
        story.begin();
        story.host(&kvm);
        let source = Source {
            config: config.clone(),
            hello,
        };
        let outside = Outside {
            consoles: consoles.into(),
            stop: Requests::default(),
            handle: VmHandle::new()?,
            timeline,
            devices: Kept::default(),
            metrics: Metrics::default(),
            story,
        };
        Self::build(&kvm, Arc::new(platform), source, outside)
    }

    /// The start-up line.
    fn build(kvm: &Kvm, platform: Arc<P>, source: Source, outside: Outside) -> Result<Self, Error> {
        let config = &source.config;
        let (timeline, story) = (&outside.timeline, &outside.story);
        let kernel = image::kernel(config, source.hello)?;
        let initrd = image::Initrd::of(config)?;
        story.kernel(&kernel);
        let mut plan = platform.setup_memory_layout(&config.machine_for(kernel.guest)?)?;
        config.name_devices(&mut plan);
        let remark = initrd.as_ref().and_then(image::Initrd::remark);
        plan.remarks.extend(remark);
        let backing = Backing::of(config);
        let remark = memory::check(&plan, backing, PlannedFor::ThisHost)?;
        plan.remarks.extend(remark);
        story.plan(&plan, config);
        for (field, console) in outside.consoles.each() {
            if let Some((path, file)) = console.output_file() {
                config.check_output(field, path, file)?;
            }
        }
        let image::Kernel {
            mut image,
            header,
            name,
            ..
        } = kernel;
        let boot = |source| Error::Boot {
            field: "kernel".into(),
            value: name.clone(),
            source,
        };
        timeline.reach(Milestone::Planned);

        // All memslots come straight after the VM: a later one waits for a grace period.
        let vm = Arc::new(create_vm(kvm, platform.vm_type(&plan))?);
        let ram = memory::map_ram(&plan, backing)?;
        memory::set_memslots(&vm, &ram)?;
        platform.prepare_vm(&vm)?;
        timeline.reach(Milestone::Memory);

        let irq_chip = platform.irq_chip(&plan)?;
        let chip = platform.create_irq_chip(&vm, &irq_chip)?;
        let vcpus = (0..plan.vcpus)
            .map(|id| {
                vm.create_vcpu(id.into())
                    .map_err(KvmError::of("KVM_CREATE_VCPU"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        chip.activate(&vm)?;
        timeline.reach(Milestone::Vcpus);

        let lines = Lines {
            routes: MsiRoutes::new(Arc::clone(&vm), &irq_chip),
            connect: &|event, gsi| chip.connect(&vm, event, gsi),
        };
        let kept = outside.devices;
        let devices = model::create(&plan, &lines, config, kept, timeline, &vm, &ram)?;
        devices.registry.publish_to(&outside.handle);
        story.opened(config);
        timeline.reach(Milestone::Devices);

        let kernel = platform.place_kernel(&header, &plan).map_err(boot)?;
        platform
            .load_kernel(&mut image, &header, &kernel, &ram)
            .map_err(boot)?;
        let initrd = initrd
            .map(|initrd| initrd.load(&kernel, &plan, &ram))
            .transpose()?;
        story.loaded(&kernel, config.initrd.as_deref().zip(initrd.as_ref()));
        timeline.reach(Milestone::Loaded);
        let request = BootRequest {
            plan: &plan,
            irq_chip: &irq_chip,
            kernel: &kernel,
            initrd,
            seed: &seed()?,
        };
        let boot_info = platform.build_boot_info(&request, &ram).map_err(boot)?;
        story.told(&boot_info);
        for (id, vcpu) in (0..).zip(&vcpus) {
            let boot = (id == 0).then_some(&boot_info);
            platform.apply_vcpu(&vm, vcpu, &platform.configure_vcpu(id, &plan, boot)?)?;
        }

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
            counters: vcpus.iter().map(|_| VcpuCounters::default()).collect(),
            timeline: outside.timeline,
            run_size,
            ram,
        };
        Ok(Self {
            vcpus,
            chip,
            vm,
            consoles: outside.consoles,
            serial: devices.serial,
            virtio_console: devices.virtio_console,
            registry: devices.registry,
            metrics: outside.metrics,
            stop: outside.stop,
            plan,
            shared: Arc::new(shared),
            source,
            story: outside.story,
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
        let patience = Duration::from_secs(self.source.config.shutdown_timeout.into());
        self.stop.shutdown = Some((File::from(fd), patience));
    }

    /// Runs the VM to its end on this thread (plus one thread per vCPU and per device that the guest
    /// uses, all joined on return). With [`OnReboot::Restart`] a reset is not the end: the machine is
    /// built again, from the kernel's file on, with fresh memory, and keeps its disks, network
    /// devices, sockets and consoles.
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
            let may_restart = self.source.config.on_reboot == OnReboot::Restart;
            let (platform, source, mut outside) = self.run_once()?;
            let handle = &outside.handle;
            if !handle.restart(may_restart) {
                let end = handle.take().unwrap_or(Ok(ExitReason::Stopped));
                match &end {
                    Ok(reason) => log::debug!("end: {reason:?}"),
                    Err(error) => log::debug!("end: {error}"),
                }
                return end;
            }
            outside.story.begin();
            self = Self::build(&crate::host::open_kvm()?, platform, source, outside)?;
        }
    }

    /// Runs the VM until its guest ends; gives what is left of it.
    fn run_once(self) -> Result<(Arc<P>, Source, Outside), Error> {
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
            source,
            plan,
            story,
        } = self;
        let handle = shared.handle.clone();
        // Guest memory outlives the devices and the VM.
        let ram = shared.ram.clone();
        let timeline = shared.timeline.clone();
        if handle.begin() {
            shared.gate.close();
        }
        let threads = VcpuThreads::start(vcpus, &shared)?;
        let platform = Arc::clone(&shared.platform);
        let engine = Running {
            threads: Some(threads),
            registry,
            plan,
            shared,
            metrics,
            paused_since: None,
            patience: Duration::from_secs(source.config.shutdown_timeout.into()),
        };
        let has_serial = serial.is_some();
        let lines = [(consoles.serial, serial), (consoles.virtio, virtio_console)]
            .into_iter()
            .filter_map(|(console, port)| Some((console, port?)))
            .collect();
        let ended = main_loop(lines, stop, handle.clone(), &timeline, engine)?;
        drop((chip, vm, ram));
        let mut lines = ended.lines.into_iter();
        // The serial device is made anew, the virtio console lasts.
        let serial = if has_serial { lines.next() } else { None };
        let (virtio, virtio_console) = lines.next().unzip();
        // When one is lost, all are made anew.
        let devices = ended
            .rest
            .devices
            .map_or_else(Kept::default, |lasting| Kept {
                lasting,
                virtio_console,
            });
        let outside = Outside {
            consoles: Consoles {
                serial: serial.map_or_else(Console::null, |(console, _)| console),
                virtio: virtio.unwrap_or_else(Console::null),
            },
            stop: ended.stop,
            handle,
            timeline,
            devices,
            metrics: ended.rest.metrics,
            story,
        };
        Ok((platform, source, outside))
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

/// Random bytes from the host's kernel.
fn seed() -> Result<[u8; SEED], Error> {
    let mut seed = [0; SEED];
    let filled = getrandom(&mut seed, GetRandomFlags::empty())
        .map_err(|errno| Error::host("cannot get random bytes")(errno.into()))?;
    // getrandom fills up to 256 bytes at once, or fails.
    debug_assert_eq!(filled, SEED);
    Ok(seed)
}

/// A signal of the embedding program may interrupt this ioctl, which the kernel does not restart.
fn create_vm(kvm: &Kvm, vm_type: u64) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm_with_type(vm_type) {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(KvmError::of("KVM_CREATE_VM")),
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
    pub fn new(config: &VmConfig, consoles: impl Into<Consoles>) -> Result<Self, Error> {
        Self::with_hello(config, consoles, crate::hello_guest())
    }
}
