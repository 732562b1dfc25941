//! Runs a machine: from its threads to its end, over restarts, and with stops in between for its forks.

use std::fmt;
#[cfg(feature = "snapshot")]
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::{GuestRam, KvmPlatform};
use kvm_ioctls::Kvm;

use crate::config::OnReboot;
#[cfg(feature = "snapshot")]
use crate::confinement::Confined;
use crate::console::Console;
use crate::control::ending::ExitReason;
use crate::control::handle::VmHandle;
use crate::devices::opened::HostDevices;
use crate::timeline::Timeline;
use crate::vm::engine::{Rest, Running};
use crate::vm::machine::{Machine, Outside};
use crate::vm::main_loop::{Ended, Left, MainLoop, main_loop};
use crate::vm::opening::{Images, Opened};
use crate::vm::story::Story;
use crate::vm::vcpu::VcpuThreads;
use crate::{Consoles, Error, OwnDevice, VmConfig};

impl<P: KvmPlatform> Machine<P> {
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
        let outcome = self.begin().and_then(Stood::run_to_the_end);
        finish.with(&outcome);
        outcome
    }

    /// Starts the threads, and lets the guest in, of which whoever waits for it is told before: a fork that nobody hears of
    /// any more does not run.
    pub(super) fn begin(self) -> Result<Stood<P>, Error> {
        #[cfg(feature = "snapshot")]
        let (machine, report) = {
            let mut machine = self;
            let report = machine.report.take();
            (machine, report)
        };
        #[cfg(not(feature = "snapshot"))]
        let machine = self;
        let begun = machine.start_threads();
        #[cfg(feature = "snapshot")]
        if let Some(report) = report
            && !report.tell_of(begun.as_ref())
            && let Ok((stood, _)) = &begun
        {
            log::warn!(
                "the VM that this is a fork of has ended, and knows of no fork: it ends too"
            );
            stood.beside.handle.request_stop();
        }
        let (mut stood, goes_on) = begun?;
        if goes_on && !stood.beside.handle.has_ended() {
            stood.main_loop.engine.go_on();
        }
        Ok(stood)
    }

    /// Says too whether the guest is still to be let in.
    fn start_threads(self) -> Result<(Stood<P>, bool), Error> {
        let Self {
            vcpus,
            chip,
            vm,
            consoles,
            serial,
            virtio_console,
            registry,
            metrics,
            chain,
            stop,
            shared,
            config,
            kvm,
            makes_machines,
            images,
            own,
            plan,
            story,
            forks,
            was_saved,
            #[cfg(feature = "snapshot")]
                report: _,
        } = self;
        let handle = shared.handle.clone();
        #[cfg(feature = "snapshot")]
        if let Some(handled) = &shared.handled {
            handled.listen(&stop)?;
        }
        // Guest memory outlives the devices and the VM.
        let ram = shared.ram.clone();
        let timeline = shared.timeline.clone();
        let vcpu_threads = shared.vcpu_threads.clone();
        let paused = handle.begin();
        // The vCPUs of a machine that was saved wait for its devices.
        let is_still = paused || was_saved;
        if is_still {
            shared.gate.close();
        }
        let restarts = restarts(&config, images.as_ref());
        // Whoever has taken over the process later makes no VM of their own.
        let kvm = (makes_machines || restarts).then_some(kvm);
        handle.confined().seal();
        let threads = VcpuThreads::start(vcpus, &shared)?;
        handle.confined().run();
        let platform = Arc::clone(&shared.platform);
        let engine = Running {
            counters: threads.counters(),
            threads: Some(threads),
            chip,
            vm,
            config: config.clone(),
            can_restart: images.is_some(),
            #[cfg(feature = "snapshot")]
            images: images.as_ref().map_or(Ok(Vec::new()), Images::identities)?,
            #[cfg(feature = "snapshot")]
            outputs: consoles.files(),
            makes_machines,
            registry,
            plan,
            shared,
            metrics,
            chain,
            #[cfg(feature = "snapshot")]
            saving: None,
            forks,
            paused_since: paused.then(Instant::now),
            is_still,
            patience: Duration::from_secs(config.shutdown_timeout.into()),
        };
        let has_serial = serial.is_some();
        let lines = [(consoles.serial, serial), (consoles.virtio, virtio_console)]
            .into_iter()
            .filter_map(|(console, port)| Some((console, port?)))
            .collect();
        let main_loop = MainLoop::with_consoles(lines, stop, handle.clone(), &timeline, engine)?;
        let stood = Stood {
            main_loop,
            beside: Beside {
                platform,
                config,
                kvm,
                makes_machines,
                images,
                own,
                vcpu_threads,
                handle,
                timeline,
                story,
                has_serial,
                ram,
            },
        };
        Ok((stood, is_still && !paused))
    }
}

/// Whether the guest's own reset starts the machine again.
fn restarts(config: &VmConfig, images: Option<&Images>) -> bool {
    images.is_some() && config.on_reboot == OnReboot::Restart
}

/// What a machine that runs has beside its main loop.
pub(super) struct Beside<P> {
    pub(super) platform: Arc<P>,
    config: VmConfig,
    /// Unless there will be no other machine.
    pub(super) kvm: Option<Kvm>,
    makes_machines: bool,
    pub(super) images: Option<Images>,
    pub(super) own: Vec<OwnDevice>,
    vcpu_threads: Option<String>,
    handle: VmHandle,
    timeline: Timeline,
    story: Story,
    has_serial: bool,
    pub(super) ram: GuestRam,
}

/// A machine whose main loop may begin, or go on.
pub(super) struct Stood<P: KvmPlatform> {
    pub(super) main_loop: MainLoop<Running<P>>,
    pub(super) beside: Beside<P>,
}

impl<P: KvmPlatform> fmt::Debug for Stood<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stood").finish_non_exhaustive()
    }
}

/// Why a machine does not run any more.
pub(super) enum Stop<P: KvmPlatform> {
    /// Somebody wants a fork.
    Fork(Box<Stood<P>>),
    Ended(ExitReason),
}

impl<P: KvmPlatform> Stood<P> {
    /// Runs the machine until it ends: whoever does so takes no forks.
    fn run_to_the_end(mut self) -> Result<ExitReason, Error> {
        loop {
            match self.run()? {
                Stop::Fork(stood) => self = *stood,
                Stop::Ended(reason) => return Ok(reason),
            }
        }
    }

    /// Runs the machine until it ends, or somebody wants a fork.
    pub(super) fn run(mut self) -> Result<Stop<P>, Error> {
        loop {
            let beside = self.beside;
            let ended = match main_loop(self.main_loop)? {
                Left::Left(main_loop) => {
                    return Ok(Stop::Fork(Box::new(Self { main_loop, beside })));
                }
                Left::Ended(ended) => ended,
            };
            let may_restart = restarts(&beside.config, beside.images.as_ref());
            let handle = beside.handle.clone();
            let left = beside.end(ended);
            let (again, over) = match left {
                Some(outside) if handle.restart(may_restart) => (Some(outside), None),
                left => (None, left),
            };
            if let Some(outside) = over {
                outside.end();
            }
            let Some(mut outside) = again else {
                let end = handle.take().unwrap_or(Ok(ExitReason::Stopped));
                match &end {
                    // Its line stands there already.
                    Ok(ExitReason::Crashed(crash)) => log::debug!("end: {crash}"),
                    Ok(reason) => log::debug!("end: {reason}"),
                    Err(error) => log::debug!("end: {error}"),
                }
                return end.map(Stop::Ended);
            };
            outside.story.begin();
            self = Machine::build(outside)?.begin()?;
        }
    }
}

/// What a process has of the machine that it has inherited.
#[cfg(feature = "snapshot")]
pub(super) struct Kept<P> {
    /// What its guest begins with when it starts again, and what the configuration calls that.
    pub(super) images: Option<Images>,
    pub(super) kernel: Option<PathBuf>,
    pub(super) initrd: Option<PathBuf>,
    pub(super) kvm: Option<Kvm>,
    pub(super) platform: Arc<P>,
    pub(super) own: Vec<OwnDevice>,
    pub(super) confined: Confined,
}

#[cfg(feature = "snapshot")]
impl<P> Beside<P> {
    pub(super) fn handle(&self) -> &VmHandle {
        &self.handle
    }

    /// What a process keeps that has inherited it; nothing else is dropped.
    pub(super) fn keep(self) -> Kept<P> {
        let Self {
            kvm,
            platform,
            own,
            config,
            makes_machines: _,
            images,
            vcpu_threads,
            handle,
            timeline,
            story,
            has_serial: _,
            ram,
        } = self;
        let confined = handle.confined().clone();
        let (kernel, initrd) = (config.kernel.clone(), config.initrd.clone());
        std::mem::forget((handle, ram, (config, vcpu_threads, timeline, story)));
        Kept {
            images,
            kernel,
            initrd,
            kvm,
            platform,
            own,
            confined,
        }
    }
}

impl<P: KvmPlatform> Outside<P> {
    /// There is no other machine: closes what is open, then waits for forks that are not ready yet.
    fn end(self) {
        #[cfg(feature = "snapshot")]
        {
            let Self {
                opened,
                stop,
                mut forks,
                ..
            } = self;
            drop(opened);
            forks.children.answer_all(Some(&stop));
        }
    }
}

impl<P: KvmPlatform> Beside<P> {
    /// What is left of the machine, if there may be another one.
    fn end(self, ended: Ended<Rest<P>>) -> Option<Outside<P>> {
        drop(self.ram);
        let mut lines = ended.lines.into_iter();
        // The serial device is made anew, the virtio console lasts.
        let serial = if self.has_serial { lines.next() } else { None };
        let (virtio, virtio_console) = lines.next().unzip();
        let opened = Opened {
            confined: self.handle.confined().clone(),
            kvm: self.kvm?,
            images: self.images,
            consoles: Consoles {
                serial: serial.map_or_else(Console::null, |(console, _)| console),
                virtio: virtio.unwrap_or_else(Console::null),
            },
            devices: HostDevices {
                devices: ended.rest.devices,
                console: virtio_console,
                own: self.own,
                vcpu_threads: self.vcpu_threads,
            },
        };
        Some(Outside {
            config: self.config,
            platform: self.platform,
            opened,
            stop: ended.stop,
            handle: self.handle,
            timeline: self.timeline,
            metrics: ended.rest.metrics,
            story: self.story,
            saved: None,
            forks: ended.rest.forks,
            remark: None,
            makes_machines: self.makes_machines,
        })
    }
}

/// Says at the end of a run, however it ends, that nobody runs the machine any more.
#[derive(Debug)]
pub(super) struct Finish(pub(super) Option<VmHandle>);

impl Finish {
    pub(super) fn with(mut self, outcome: &Result<ExitReason, Error>) {
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
