//! The machine as the API sees it: configured part by part, started, and then asked and changed. What is legal when
//! stands here.

mod configuration;
mod disk;
mod fork;
mod limits;
mod metadata;
mod processor;
mod running;
mod snapshots;
mod start;
mod terms;
mod timer;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_reference::{Attachments, Error, SavedMemory, Snapshot, Subscription, VmConfig, VmHandle};

use crate::api::Action;
use crate::api::answers::{InstanceInfo, Version};
use crate::api::bodies::{CustomCpuTemplateOrPath, VmmConfig};
use crate::api::snapshots::{ForkParams, LoadSnapshotParams};
use crate::mmds::Mmds;
use crate::texts::{Fault, LoadFault};
use crate::version::VERSION;
use crate::{logger, metrics};

use self::configuration::Configuration;
pub(crate) use self::fork::{OnItsWay, Place, Plan};
use self::metadata::Access;
use self::running::Running;
use self::snapshots::{Restored, Saved};
pub(crate) use self::terms::{Options, Outcome};

/// What the thread is to do that will run the machine.
#[derive(Debug)]
pub(crate) enum Order {
    /// To build it.
    Build(Box<Build>),
    /// To end the process: the machine that it was started for cannot be had.
    GiveUp(String),
}

/// With what a machine begins.
#[derive(Debug)]
pub(crate) enum Begin {
    Kernel(Box<VmConfig>),
    Saved(Box<Snapshot>, SavedMemory),
}

/// A machine that is to be built.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) begin: Begin,
    pub(crate) attachments: Attachments,
    /// The guest stands still at first.
    pub(crate) paused: bool,
    /// Where it goes, and what happens to it.
    pub(crate) answer: Sender<Result<(VmHandle, Subscription), Error>>,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
    options: Options,
    configuration: Configuration,
    running: Option<Running>,
    /// Something was configured that a saved machine has already.
    is_configured: bool,
    builder: Sender<Order>,
    /// Where a fork's process finds what it is to know.
    forks: Place,
}

impl Machine {
    /// A machine of which nothing is configured. `mmds` is its metadata, and `builder` who builds and runs it.
    pub(crate) fn new(options: Options, mmds: Mmds, builder: Sender<Order>) -> Self {
        Self {
            options,
            configuration: Configuration::new(Arc::new(Mutex::new(mmds))),
            running: None,
            is_configured: false,
            builder,
            forks: Place::default(),
        }
    }

    /// A fork, which runs already or stands still as it was asked to. `builder` builds no other.
    pub(crate) fn forked(
        plan: Plan,
        handle: VmHandle,
        events: Subscription,
        builder: Sender<Order>,
    ) -> Self {
        let mut running = Running::new(handle, events);
        running.is_paused = plan.is_paused;
        Self {
            options: plan.options,
            configuration: plan.configuration,
            running: Some(running),
            is_configured: true,
            builder,
            forks: Place::default(),
        }
    }

    /// Where the process of a fork finds what it is to know.
    pub(crate) fn forks(&self) -> Place {
        self.forks.clone()
    }

    /// Has the machine forked, which is known later.
    pub(crate) fn fork(&mut self, params: &ForkParams) -> Result<OnItsWay, Fault> {
        let running = self.running.as_mut().ok_or(Fault::BeforeStart)?;
        let handle = running.handle();
        let forked = fork::begin(
            handle,
            params,
            &self.configuration,
            &self.options,
            &self.forks,
        );
        Ok(forked?)
    }

    /// Does what a request asks for.
    pub(crate) fn handle(&mut self, action: Action) -> Result<Outcome, Fault> {
        match action {
            Action::GetInfo => Ok(Outcome::json(&InstanceInfo {
                id: &self.options.id,
                state: self.state(),
                vmm_version: VERSION,
                app_name: "Firecracker",
            })),
            Action::GetVersion => Ok(Outcome::json(&Version {
                firecracker_version: VERSION,
            })),
            Action::GetFullConfig => Ok(Outcome::json(&self.configuration.full())),
            Action::GetMachineConfig => Ok(Outcome::json(&self.configuration.machine)),
            Action::GetBalloon => self.balloon(),
            Action::GetMmds => self.metadata(Access::Read),
            Action::PutMmds(data) => self.metadata(Access::Put(data)),
            Action::PatchMmds(patch) => self.metadata(Access::Patch(patch)),
            Action::Missing(what) => Err(Fault::NotSupported(what.to_owned())),
            Action::Start => match self.running {
                Some(_) => Err(Fault::AfterStart),
                None => self.start(),
            },
            Action::LoadSnapshot(params) => match self.running {
                Some(_) => Err(Fault::AfterStart),
                None => self.load(&params),
            },
            action => match &mut self.running {
                None => {
                    self.is_configured |= is_of_boot(&action);
                    self.configuration.handle(action, &self.options)
                }
                Some(running) => running.carry_out(action, &mut self.configuration, &self.options),
            },
        }
    }

    fn state(&self) -> &'static str {
        match &self.running {
            None => "Not started",
            Some(running) if running.is_paused => "Paused",
            Some(_) => "Running",
        }
    }

    fn metadata(&self, access: Access) -> Result<Outcome, Fault> {
        metadata::access(&self.configuration.mmds, self.running.is_some(), access)
    }

    /// Puts metadata into its place before anything else is said.
    pub(crate) fn put_metadata(&self, data: serde_json::Value) -> Result<(), Fault> {
        self.metadata(Access::Put(data)).map(drop)
    }

    fn balloon(&self) -> Result<Outcome, Fault> {
        match &self.configuration.balloon {
            Some(balloon) => Ok(Outcome::json(balloon)),
            None if self.running.is_some() => {
                Err(Fault::Internal(crate::texts::NO_DEVICE.to_owned()))
            }
            None => Err(Fault::NoBalloon),
        }
    }

    /// Has the machine built, and waits until it runs.
    fn start(&mut self) -> Result<Outcome, Fault> {
        let (config, attachments) = self.prepare()?;
        let built = self.build(Begin::Kernel(Box::new(config)), attachments, false);
        let (handle, events) = built.map_err(Fault::Start)?;
        self.started(handle, events).wait();
        Ok(Outcome::Done)
    }

    /// Has a machine built; says why it was not.
    fn build(
        &self,
        begin: Begin,
        attachments: Attachments,
        paused: bool,
    ) -> Result<(VmHandle, Subscription), String> {
        const GONE: &str = "the thread that runs the machine is gone";
        let (answer, answered) = channel();
        let order = Order::Build(Box::new(Build {
            begin,
            attachments,
            paused,
            answer,
        }));
        self.builder.send(order).map_err(|_| GONE.to_owned())?;
        let built = answered.recv().map_err(|_| GONE.to_owned())?;
        built.map_err(|error| crate::texts::start(&error))
    }

    /// A saved machine goes on. What was asked for wrongly changes nothing; when it cannot be had, the process ends.
    fn load(&mut self, params: &LoadSnapshotParams) -> Result<Outcome, Fault> {
        if self.is_configured {
            return Err(LoadFault::Configured.into());
        }
        let begun = Instant::now();
        let loaded = self.restore(params);
        if let Err(fault) = &loaded {
            // Whoever waits for it there ends the process; when nobody does, it has ended.
            let _ = self.builder.send(Order::GiveUp(fault.to_string()));
        }
        loaded?;
        terms::took(
            "load snapshot",
            &["load_snapshot", "vmm_load_snapshot"],
            begun,
        );
        Ok(Outcome::Done)
    }

    fn restore(&mut self, params: &LoadSnapshotParams) -> Result<(), Fault> {
        let mut options = self.options.clone();
        let restored = Restored::open(params, &self.configuration, &mut options)?;
        let saved = Saved {
            id: restored.snapshot.id().to_owned(),
            memory: restored.last,
        };
        // It has what the machine names by its descriptors.
        self.configuration = restored.configuration;
        self.options = options;
        let begin = Begin::Saved(Box::new(restored.snapshot), restored.memory);
        let built = self.build(begin, restored.attachments, !params.resume_vm);
        let (handle, events) = built.map_err(LoadFault::Build)?;
        let running = self.started(handle, events);
        running.goes_on(saved, !params.resume_vm);
        Ok(())
    }

    /// What the machine is to be built of.
    pub(crate) fn prepare(&mut self) -> Result<(VmConfig, Attachments), Fault> {
        start::prepare(&self.configuration, &self.options)
    }

    /// The machine runs from now on.
    fn started(&mut self, handle: VmHandle, events: Subscription) -> &mut Running {
        metrics::watch(handle.clone());
        self.configuration.close();
        self.running.insert(Running::new(handle, events))
    }

    /// The machine was built by whoever will run it.
    pub(crate) fn is_built(&mut self, handle: VmHandle) -> Result<(), Error> {
        let events = handle.subscribe()?;
        self.started(handle, events);
        Ok(())
    }

    /// Configures all that a file names, in the order of Firecracker.
    pub(crate) fn configure(&mut self, config: VmmConfig) -> Result<(), Fault> {
        let missing = [
            ("pmem", !config.pmem.is_empty(), "pmem devices"),
            (
                "memory-hotplug",
                config.memory_hotplug.is_some(),
                "memory hot-plug",
            ),
        ];
        if let Some((key, _, what)) = missing.into_iter().find(|(_, is_there, _)| *is_there) {
            return Err(Fault::NotSupported(format!(
                "{key}: {what} is not in this version"
            )));
        }
        if let Some(config) = config.logger {
            logger::configure(config).map_err(Fault::Logger)?;
        }
        if let Some(config) = config.metrics {
            metrics::configure(config, &self.options.id)?;
        }
        let template = match config.cpu_config {
            Some(CustomCpuTemplateOrPath::Path(path)) => {
                let read = std::fs::read(&path).map_err(|error| error.to_string());
                let template = read.and_then(|bytes| {
                    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
                });
                Some(template.map_err(|error| Fault::Cpu(format!("{}: {error}", path.display())))?)
            }
            Some(CustomCpuTemplateOrPath::Template(template)) => Some(template),
            None => None,
        };
        let machine = config
            .machine_config
            .map(|machine| Action::SetMachineConfig(machine.into()));
        let actions = machine
            .into_iter()
            .chain(template.map(Action::SetCpuConfig))
            .chain([Action::SetBootSource(config.boot_source)])
            .chain(config.drives.into_iter().map(Action::SetDrive))
            .chain(
                config
                    .network_interfaces
                    .into_iter()
                    .map(Action::SetNetwork),
            )
            .chain(config.vsock.map(Action::SetVsock))
            .chain(config.balloon.map(Action::SetBalloon))
            .chain(config.entropy.map(Action::SetEntropy))
            .chain(config.mmds_config.map(Action::SetMmdsConfig));
        for action in actions {
            self.configuration.handle(action, &self.options)?;
        }
        Ok(())
    }
}

/// Whether a request configures what a saved machine has already.
fn is_of_boot(action: &Action) -> bool {
    matches!(
        action,
        Action::SetBootSource(_)
            | Action::SetMachineConfig(_)
            | Action::SetCpuConfig(_)
            | Action::SetDrive(_)
            | Action::SetNetwork(_)
            | Action::SetVsock(_)
            | Action::SetBalloon(_)
            | Action::SetEntropy(_)
    )
}
