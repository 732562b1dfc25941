//! A running machine: its vCPUs and devices, and what commands do to them.
//!
//! It belongs to the main loop's thread, which serves the commands of all others one after the other.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arch::{KvmPlatform, MachinePlan};
use devices::micros;
use kvm_ioctls::VmFd;

use crate::VmConfig;
#[cfg(feature = "snapshot")]
use crate::control::command::Written;
use crate::control::command::{Command, CommandError, Reply, State, Status, VcpuRegisters};
use crate::control::event::Happening;
use crate::control::metrics::{Metrics, VcpuCounters};
use crate::devices::opened::Lasting;
use crate::devices::registry::Registry;
#[cfg(feature = "snapshot")]
use crate::snapshot::save::Machine;
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
    pub(crate) registry: Registry,
    pub(crate) plan: MachinePlan,
    pub(crate) shared: Arc<Shared<P>>,
    /// Of the vCPUs of this run.
    pub(crate) counters: Vec<Arc<VcpuCounters>>,
    /// But for these.
    pub(crate) metrics: Metrics,
    pub(crate) paused_since: Option<Instant>,
    /// The guest stands still, and its devices are quiet: whoever looks at the machine finds it whole.
    pub(crate) is_still: bool,
    /// How long a guest may take that is asked to power itself off, unless whoever asks says so.
    pub(crate) patience: Duration,
}

/// What is left of a machine that ran.
pub(crate) struct Rest {
    /// Its devices, but for those that are lost.
    pub(crate) devices: Vec<(String, Lasting)>,
    pub(crate) metrics: Metrics,
}

impl<P: KvmPlatform> Running<P> {
    fn carry_out(
        &mut self,
        command: &Command,
        files: Vec<OwnedFd>,
        state: State,
    ) -> Result<Reply, CommandError> {
        if !command.is_legal(state) {
            return Err(CommandError::State {
                command: command.name(),
                state,
            });
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
            Command::Stop {} => {
                handle.request_stop();
                State::Ended
            }
            Command::Shutdown { timeout_s } => {
                let patience =
                    timeout_s.map_or(self.patience, |seconds| Duration::from_secs(seconds.into()));
                handle.request_shutdown(patience);
                state
            }
            // Who is asked to power off would not hear of it any more.
            Command::Reset {} if handle.is_shutdown_asked() => {
                return Err(CommandError::ShuttingDown(command.name()));
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
                return Ok(Reply::Device(self.registry.query(device, *query)?));
            }
            Command::Metrics {} => return Ok(Reply::Metrics(self.metrics())),
            #[cfg(feature = "snapshot")]
            Command::Snapshot { memory } => {
                return self.snapshot(memory, files, state).map(Reply::Snapshot);
            }
            Command::Registers {} => {
                let vcpus = self.registers();
                return Ok(Reply::Registers { vcpus });
            }
            Command::Status {} => return Ok(Reply::Status(self.status(state))),
        };
        Ok(Reply::Done { state })
    }

    /// The guest stands still, and its devices are quiet.
    fn quiesce(&mut self) {
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

    /// Lets the guest stand still and writes the machine to files.
    #[cfg(feature = "snapshot")]
    fn snapshot(
        &mut self,
        memory: &str,
        files: Vec<OwnedFd>,
        state: State,
    ) -> Result<Written, CommandError> {
        let begin = Instant::now();
        let runs = state == State::Running;
        if runs {
            self.quiesce();
        }
        // A vCPU that has ended the guest has an access that is not completed.
        let threads = self.threads.as_ref();
        let threads = threads.filter(|_| !self.shared.handle.has_ended());
        let saved = threads.map(|threads| {
            let machine = Machine {
                threads,
                shared: &self.shared,
                chip: &self.chip,
                vm: &self.vm,
                registry: &self.registry,
                plan: &self.plan,
                config: &self.config,
            };
            machine.save(memory, files)
        });
        if runs {
            self.go_on();
        }
        let memory_bytes = saved.unwrap_or(Err(CommandError::Ended("snapshot")))?;
        Ok(Written {
            still_us: micros(begin.elapsed()),
            memory_bytes,
        })
    }

    fn end_pause(&mut self) {
        let paused = self.paused_since.take().map(|since| since.elapsed());
        self.metrics.paused_us += paused.map_or(0, micros);
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = self.metrics.clone();
        metrics.add_vcpus(&self.counters);
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
        }
    }
}

impl<P: KvmPlatform> Engine for Running<P> {
    type Rest = Rest;

    fn serve(&mut self) {
        let handle = self.shared.handle.clone();
        // After the end, whoever runs the machine next answers.
        while !handle.has_ended()
            && let Some((request, state)) = handle.next_request()
        {
            log::debug!("command: {}", request.command.name());
            let answer = self.carry_out(&request.command, request.files, state);
            // Whoever asked may be gone.
            let _ = request.answer.send(answer);
        }
    }

    fn resume(&mut self) {
        self.go_on();
        self.end_pause();
        self.shared.handle.set_paused(false);
    }

    fn end_guest(&mut self) {
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

    fn end(mut self) -> Rest {
        let metrics = {
            self.metrics.add_vcpus(&self.counters);
            self.metrics
        };
        let devices = self.registry.take();
        drop(self.shared);
        drop((self.chip, self.vm));
        Rest { devices, metrics }
    }
}
