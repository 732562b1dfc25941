//! A running machine: its vCPUs and devices, and what commands do to them.
//!
//! It belongs to the main loop's thread, which serves the commands of all others one after the other.

use std::os::fd::OwnedFd;
#[cfg(feature = "snapshot")]
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::{KvmPlatform, MachinePlan};
use devices::micros;
use kvm_ioctls::VmFd;

use crate::VmConfig;
use crate::control::answer::Answer;
use crate::control::command::{Command, CommandError, Reply, State, Status, VcpuRegisters};
use crate::control::event::Happening;
use crate::control::metrics::{Metrics, VcpuCounters};
use crate::devices::opened::Lasting;
use crate::devices::registry::Registry;
use crate::fork::forks::Forks;
#[cfg(feature = "snapshot")]
use crate::snapshot::{
    save::{Machine, Wanted},
    saving::Saving,
};
use crate::vm::begin::Chain;
use crate::vm::main_loop::Engine;
use crate::vm::vcpu::{Shared, VcpuThreads};

pub(crate) struct Running<P: KvmPlatform> {
    // Fields drop in this order: the threads, the chip and the VM, devices last.
    /// Until the guest has ended.
    pub(crate) threads: Option<VcpuThreads<P>>,
    pub(crate) chip: P::Chip,
    pub(crate) vm: Arc<VmFd>,
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
    pub(crate) config: VmConfig,
    /// Whether the guest can begin anew.
    pub(crate) can_restart: bool,
    /// The devices and inodes of the files with which it does.
    #[cfg(feature = "snapshot")]
    pub(crate) images: Vec<(u64, u64)>,
    /// Those of the files that its consoles write to, with what each console is called.
    #[cfg(feature = "snapshot")]
    pub(crate) outputs: Vec<(&'static str, (u64, u64))>,
    /// A command may start it again, or make a fork of it.
    pub(crate) makes_machines: bool,
    pub(crate) registry: Registry,
    pub(crate) plan: MachinePlan,
    pub(crate) shared: Arc<Shared<P>>,
    /// Of the vCPUs of this run.
    pub(crate) counters: Vec<Arc<VcpuCounters>>,
    /// But for these.
    pub(crate) metrics: Metrics,
    /// It is written just now.
    #[cfg(feature = "snapshot")]
    pub(crate) saving: Option<Saving>,
    pub(crate) forks: Forks<P>,
    /// What is known of those that were saved.
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
    pub(crate) chain: Chain,
    pub(crate) paused_since: Option<Instant>,
    /// The guest stands still, and its devices are quiet: whoever looks at the machine finds it whole.
    pub(crate) is_still: bool,
    /// How long a guest may take that is asked to power itself off, unless whoever asks says so.
    pub(crate) patience: Duration,
}

/// What is left of a machine that ran.
pub(crate) struct Rest<P: KvmPlatform> {
    /// Its devices, but for those that are lost.
    pub(crate) devices: Vec<(String, Lasting)>,
    pub(crate) metrics: Metrics,
    pub(crate) forks: Forks<P>,
}

impl<P: KvmPlatform> Running<P> {
    /// Without a reply that comes later.
    fn carry_out(
        &mut self,
        command: &Command,
        files: Vec<OwnedFd>,
        state: State,
    ) -> Result<Option<Reply>, CommandError> {
        if !command.is_legal(state) {
            return Err(CommandError::State {
                command: command.name(),
                state,
            });
        }
        #[cfg(feature = "snapshot")]
        if (self.saving.is_some() || self.forks.is_on_its_way()) && !command.is_legal_while_saving()
        {
            return Err(CommandError::Saving(command.name()));
        }
        let handle = self.shared.handle.clone();
        let state = match command {
            Command::Pause {} => {
                self.quiesce();
                if self.paused_since.is_none() {
                    self.paused_since = Some(Instant::now());
                    self.metrics.pauses += 1;
                }
                handle.set_paused(true);
                State::Paused
            }
            Command::Resume {} => {
                self.resume();
                State::Running
            }
            // The handle has done it.
            Command::Stop {} => State::Ended,
            Command::Shutdown { timeout_s } => {
                let patience =
                    timeout_s.map_or(self.patience, |seconds| Duration::from_secs(seconds.into()));
                handle.request_shutdown(patience);
                state
            }
            Command::CtrlAltDel {} => {
                let (keyboard, button) = (&self.shared.keyboard, &self.shared.button);
                let is_heard = keyboard.as_ref().is_some_and(|it| it.ctrl_alt_del());
                match button {
                    _ if is_heard => {}
                    Some(button) => button.press(),
                    None => return Err(CommandError::NoKeyboard(command.name())),
                }
                state
            }
            // Who is asked to power off would not hear of it any more.
            Command::Reset {} if handle.is_shutdown_asked() => {
                return Err(CommandError::ShuttingDown(command.name()));
            }
            Command::Reset {} if !self.makes_machines => {
                return Err(CommandError::NoNewMachine(command.name()));
            }
            Command::Reset {} if !self.can_restart => {
                return Err(CommandError::NoKernel(command.name()));
            }
            Command::Reset {} => {
                handle.request_reset();
                state
            }
            Command::Device { device, change } => {
                self.registry.change(device, change, files)?;
                log::info!("{device}: changed by a command: {change}");
                handle.publish(Happening::DeviceChanged {
                    device: device.clone(),
                    change: change.to_string(),
                });
                state
            }
            Command::Query { device, query } => {
                return Ok(Some(Reply::Device(self.registry.query(device, *query)?)));
            }
            Command::Metrics {} => return Ok(Some(Reply::Metrics(self.metrics()))),
            #[cfg(feature = "snapshot")]
            Command::Snapshot {
                memory,
                since,
                copies,
                form,
                note,
            } => {
                let wanted = Wanted {
                    memory,
                    since: since.as_deref(),
                    form: *form,
                    note: note.as_deref(),
                    copies,
                    files,
                };
                self.snapshot(wanted, state)?;
                return Ok(None);
            }
            #[cfg(feature = "snapshot")]
            Command::Fork(wish) => {
                self.fork(wish, files, state)?;
                return Ok(None);
            }
            Command::Registers {} => {
                let vcpus = self.registers();
                return Ok(Some(Reply::Registers { vcpus }));
            }
            Command::Status {} => return Ok(Some(Reply::Status(self.status(state)))),
        };
        Ok(Some(Reply::Done { state }))
    }

    /// The guest stands still, and its devices are quiet.
    pub(super) fn quiesce(&mut self) {
        self.is_still = true;
        // Without vCPUs, nothing can stop a device or start one meanwhile.
        self.threads.iter().for_each(VcpuThreads::pause);
        self.registry.pause();
    }

    /// The reverse.
    pub(crate) fn go_on(&mut self) {
        self.is_still = false;
        self.registry.resume();
        self.threads.iter().for_each(VcpuThreads::resume);
    }

    /// Lets the guest stand still and begins to write the machine to files.
    #[cfg(feature = "snapshot")]
    fn snapshot(&mut self, wanted: Wanted<'_>, state: State) -> Result<(), CommandError> {
        let begin = Instant::now();
        let runs = state == State::Running;
        if runs {
            self.quiesce();
        }
        // A vCPU that has ended the guest has an access that is not completed.
        let threads = self.threads.as_ref();
        let threads = threads.filter(|_| !self.shared.handle.has_ended());
        let prepared = threads.map(|threads| {
            let machine = Machine {
                threads,
                shared: &self.shared,
                chip: &self.chip,
                vm: &self.vm,
                registry: &self.registry,
                plan: &self.plan,
                config: &self.config,
                images: &self.images,
            };
            machine.prepare(wanted, &mut self.chain)
        });
        let prepared = prepared.unwrap_or(Err(CommandError::Ended("snapshot")));
        let saving = prepared.and_then(|(writing, next)| {
            Saving::new(writing, next, begin, runs, self.shared.handle.clone())
        });
        if saving.is_err() && runs {
            self.go_on();
        }
        self.saving = Some(saving?);
        Ok(())
    }

    /// Lets the guest go on that was saved, and answers, once that is done.
    #[cfg(feature = "snapshot")]
    fn finish_saving(&mut self) {
        let Some(mut saving) = self.saving.take_if(|saving| saving.is_over()) else {
            return;
        };
        let (goes_on, answer) = (saving.goes_on, saving.answer.take());
        let written = saving.finish(&self.shared.ram, &mut self.chain);
        if goes_on {
            self.go_on();
        }
        if let Some(answer) = answer {
            answer.send(written.map(Reply::Snapshot));
        }
    }

    /// Answers once the machine is saved.
    fn answer_later(&mut self, answer: Answer) {
        #[cfg(feature = "snapshot")]
        match (&mut self.saving, self.forks.told()) {
            (Some(saving), _) => saving.answer = Some(answer),
            (None, Some(told)) => told.answer = Some(answer),
            (None, None) => {}
        }
        // Nothing else takes its time.
        #[cfg(not(feature = "snapshot"))]
        drop(answer);
    }

    /// Whether the machine is written just now; then its guest goes on afterwards.
    fn goes_on_later(&mut self) -> bool {
        #[cfg(feature = "snapshot")]
        if let Some(saving) = &mut self.saving {
            saving.goes_on = true;
            return true;
        }
        #[cfg(feature = "snapshot")]
        if let Some(told) = self.forks.told() {
            told.goes_on = true;
            return true;
        }
        false
    }

    fn end_pause(&mut self) {
        let paused = self.paused_since.take().map(|since| since.elapsed());
        self.metrics.paused_us += paused.map_or(0, micros);
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = self.metrics.clone();
        metrics.add_vcpus(&self.counters);
        metrics.add_accesses(self.registry.accesses());
        metrics.resident_bytes = self.shared.handle.resident_bytes();
        metrics.devices = self.registry.metrics();
        metrics
    }

    fn registers(&self) -> Vec<VcpuRegisters> {
        let threads = self.threads.iter();
        let reports = threads.flat_map(|threads| threads.each(P::describe_vcpu));
        let numbered = (0..).zip(reports);
        numbered
            .map(|(id, report)| VcpuRegisters { id, report })
            .collect()
    }

    fn status(&self, state: State) -> Status {
        Status {
            state,
            vcpus: self.plan.vcpus,
            memory_bytes: self.plan.ram.iter().map(|range| range.len).sum(),
            restarts: self.shared.handle.restarts(),
            devices: self.registry.status(),
            sandbox: self.shared.handle.confined().report(),
            #[cfg(feature = "snapshot")]
            saving: match &self.saving {
                Some(saving) => Some(saving.status()),
                None => self.forks.copying(),
            },
        }
    }
}

impl<P: KvmPlatform> Engine for Running<P> {
    type Rest = Rest<P>;

    fn serve(&mut self) {
        #[cfg(feature = "snapshot")]
        self.finish_saving();
        #[cfg(feature = "snapshot")]
        self.finish_copies();
        let handle = self.shared.handle.clone();
        // After the end, whoever runs the machine next answers.
        while !handle.has_ended()
            && !self.leaves()
            && let Some((request, state)) = handle.next_request()
        {
            log::debug!("command: {}", request.command.name());
            match self.carry_out(&request.command, request.files, state) {
                Ok(Some(reply)) => request.answer.send(Ok(reply)),
                Ok(None) => self.answer_later(request.answer),
                Err(error) => request.answer.send(Err(error)),
            }
        }
    }

    fn resume(&mut self) {
        if !self.goes_on_later() {
            self.go_on();
        }
        self.end_pause();
        self.shared.handle.set_paused(false);
    }

    fn end_guest(&mut self) {
        #[cfg(feature = "snapshot")]
        if let Some(saving) = self.saving.take() {
            saving.cancel();
        }
        #[cfg(feature = "snapshot")]
        self.forks.cancel();
        // Whoever stops a VM that stands still wants nothing more of it: it may have been saved, and goes on elsewhere
        // with the same disks.
        let is_over = self.is_still && self.shared.handle.was_stopped();
        self.end_pause();
        if !is_over {
            // What devices had to wait for while the guest stood still, they do now.
            self.registry.resume();
        }
        self.threads = None;
    }

    fn end(mut self) -> Rest<P> {
        self.shared.handle.keep_metrics(self.metrics());
        let metrics = {
            self.metrics.add_vcpus(&self.counters);
            self.metrics.add_accesses(self.registry.accesses());
            self.metrics
        };
        let devices = self.registry.take();
        drop(self.shared);
        drop((self.chip, self.vm));
        Rest {
            devices,
            metrics,
            forks: self.forks,
        }
    }

    #[cfg(feature = "snapshot")]
    fn leaves(&self) -> bool {
        self.forks.is_next()
    }

    #[cfg(feature = "snapshot")]
    fn watched(&self) -> Vec<RawFd> {
        self.forks.children.watched()
    }

    #[cfg(feature = "snapshot")]
    fn news(&mut self) -> Vec<OwnedFd> {
        self.forks.children.look(&self.shared.handle)
    }
}
