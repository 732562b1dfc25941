//! vCPU threads: run the guest, serve its exits, end the VM when one of them says so.
//!
//! A thread has its vCPU while it runs the guest, and lets go of it at the gate of a pause and at its end: whoever has
//! paused the machine may then look at it ([`VcpuThreads::each`]).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arch::{GuestRam, KvmPlatform};
use devices::{CtrlAltDel, OutputRing, PowerButton};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, unblock_signal};

use crate::confinement::ThreadRole;
use crate::control::ending::{Crash, ExitReason};
use crate::control::event::Happening;
use crate::control::handle::VmHandle;
use crate::control::metrics::VcpuCounters;
#[cfg(feature = "snapshot")]
use crate::snapshot::handler::Handled;
#[cfg(feature = "snapshot")]
use crate::threads::patiently;
use crate::timeline::{Milestone, Timeline};
use crate::vm::dispatch::{Failure, Flow, IoSpaces, dispatch};
use crate::vm::exit::decode;
use crate::vm::gate::Gate;
use crate::vm::kick::{Kicker, kick_signal};
use crate::{Error, cures};

/// KVM_RUN may be refused this often in a row, with a pause in between.
const MAX_REFUSED: u32 = 100;
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// What every vCPU thread of a VM shares.
#[derive(Debug)]
pub(crate) struct Shared<P> {
    pub(crate) platform: Arc<P>,
    pub(crate) spaces: IoSpaces,
    /// What the guest printed, on each of its consoles.
    pub(crate) output: Vec<OutputRing>,
    pub(crate) handle: VmHandle,
    pub(crate) keyboard: Option<Arc<dyn CtrlAltDel>>,
    pub(crate) button: Option<Arc<dyn PowerButton>>,
    pub(crate) gate: Gate,
    /// What the names of the vCPUs' threads begin with, unless it is `vcpu`.
    pub(crate) vcpu_threads: Option<String>,
    pub(crate) timeline: Timeline,
    /// KVM_GET_VCPU_MMAP_SIZE.
    pub(crate) run_size: usize,
    /// Who brings the pages of RAM, if it is another process. Watched until vCPUs and devices have ended.
    #[cfg(feature = "snapshot")]
    pub(crate) handled: Option<Handled>,
    // Last: the devices in `spaces` keep the VM, whose memslots refer to it.
    pub(crate) ram: GuestRam,
}

/// A vCPU, as its thread and whoever pauses the machine share it.
#[derive(Debug)]
struct Vcpu {
    /// Its thread's, except at the gate and after its end.
    fd: Mutex<VcpuFd>,
    kicker: Kicker,
    counters: Arc<VcpuCounters>,
}

impl Vcpu {
    /// Waits for as long as its thread runs the guest.
    fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The vCPU threads of a machine. Dropping it ends the VM and joins them all.
#[derive(Debug)]
pub(crate) struct VcpuThreads<P: KvmPlatform> {
    /// In the order of the vCPUs.
    threads: Vec<VcpuThread>,
    shared: Arc<Shared<P>>,
}

/// A vCPU and its thread, unless that is parked.
#[derive(Debug)]
struct VcpuThread {
    vcpu: Arc<Vcpu>,
    thread: Option<JoinHandle<()>>,
}

impl<P: KvmPlatform> VcpuThreads<P> {
    /// Starts one thread per vCPU. When one cannot start, those before it are stopped.
    pub(crate) fn start(vcpus: Vec<VcpuFd>, shared: &Arc<Shared<P>>) -> Result<Self, Error> {
        crate::vm::kick::install_handler()
            .map_err(Error::host("cannot install a signal handler"))?;
        let mut threads = Self {
            threads: Vec::with_capacity(vcpus.len()),
            shared: Arc::clone(shared),
        };
        for (id, fd) in (0..).zip(vcpus) {
            let kicker = Kicker::new(&fd, shared.run_size)
                .map_err(Error::host(format!("cannot map the state of vCPU {id}")))?;
            let vcpu = Arc::new(Vcpu {
                fd: Mutex::new(fd),
                kicker,
                counters: Arc::default(),
            });
            let thread = spawn(id, &vcpu, shared);
            let thread = thread.map_err(cannot_start(id))?;
            threads.threads.push(VcpuThread {
                vcpu,
                thread: Some(thread),
            });
        }
        Ok(threads)
    }

    /// Ends the threads of vCPUs that stand still, until [`Self::unpark`]. What is mapped of the vCPUs is not inherited by
    /// processes that this one makes.
    ///
    /// # Errors
    /// When the host refuses that; the threads are there then.
    #[cfg(feature = "snapshot")]
    pub(crate) fn park(&mut self) -> io::Result<()> {
        for VcpuThread { vcpu, .. } in &self.threads {
            vcpu.kicker
                .keep_from_children(&mut vcpu.fd(), self.shared.run_size)?;
        }
        self.shared.gate.dismiss();
        for VcpuThread { thread, .. } in &mut self.threads {
            if let Some(thread) = thread.take() {
                // A panic in the thread has already ended the VM with an error, see `EndOnPanic`.
                let _ = thread.join();
            }
        }
        self.shared.gate.admit();
        Ok(())
    }

    /// Each vCPU has its thread again, and waits at the gate.
    ///
    /// # Errors
    /// When the host refuses one. It may be tried again.
    #[cfg(feature = "snapshot")]
    pub(crate) fn unpark(&mut self) -> Result<(), Error> {
        for (id, VcpuThread { vcpu, thread }) in (0..).zip(&mut self.threads) {
            if thread.is_none() {
                let started = patiently(|| spawn(id, vcpu, &self.shared));
                *thread = Some(started.map_err(cannot_start(id))?);
            }
        }
        Ok(())
    }

    /// Has every vCPU leave the guest; returns when none is in it, and none has an access of its own pending.
    pub(crate) fn pause(&self) {
        self.shared.gate.close();
        self.kick();
        self.shared.gate.wait_for_all();
    }

    /// What the vCPUs count, in their order; it stays when the threads are gone.
    pub(crate) fn counters(&self) -> Vec<Arc<VcpuCounters>> {
        let counters = |thread: &VcpuThread| Arc::clone(&thread.vcpu.counters);
        self.threads.iter().map(counters).collect()
    }

    /// Looks at each vCPU, in their order, between [`Self::pause`] and [`Self::resume`].
    pub(crate) fn each<T>(&self, look: impl Fn(&P, &VcpuFd, &GuestRam) -> T) -> Vec<T> {
        let Shared { platform, ram, .. } = &*self.shared;
        let look = |thread: &VcpuThread| look(platform, &thread.vcpu.fd(), ram);
        self.threads.iter().map(look).collect()
    }

    /// Lets the vCPUs go on.
    pub(crate) fn resume(&self) {
        self.shared.gate.open();
    }

    fn kick(&self) {
        for VcpuThread { vcpu, thread } in &self.threads {
            vcpu.kicker.request_exit();
            if let Some(thread) = thread {
                // It fails only when the thread has ended, which is what we want.
                let _ = thread.kill(kick_signal());
            }
        }
    }
}

fn spawn<P: KvmPlatform>(
    id: u32,
    vcpu: &Arc<Vcpu>,
    shared: &Arc<Shared<P>>,
) -> io::Result<JoinHandle<()>> {
    let prefix = shared.vcpu_threads.as_deref().unwrap_or("vcpu");
    let (vcpu, for_thread) = (Arc::clone(vcpu), Arc::clone(shared));
    shared.gate.expect_one();
    let made_by = shared.handle.confined().threads(ThreadRole::Vcpu);
    let work = move || run(id, &vcpu, &for_thread);
    let thread = made_by.spawn("vcpu", format!("{prefix}{id}"), work);
    thread.inspect_err(|_| drop(shared.gate.passer()))
}

fn cannot_start(id: u32) -> impl FnOnce(io::Error) -> Error {
    Error::host(format!("cannot start the thread of vCPU {id}"))
}

impl<P: KvmPlatform> Drop for VcpuThreads<P> {
    fn drop(&mut self) {
        // A thread that is kicked without an end goes back to the guest. An end that came before
        // stands.
        self.shared.handle.end(Ok(ExitReason::Stopped));
        self.shared.gate.open();
        self.kick();
        for VcpuThread { vcpu, thread } in self.threads.drain(..) {
            if let Some(thread) = thread {
                // A panic in the thread has already ended the VM with an error, see `EndOnPanic`.
                let _ = thread.join();
            }
            drop(vcpu);
        }
    }
}

/// Ends the VM when its vCPU thread unwinds, so that the main loop does not wait for ever.
struct EndOnPanic<'a>(u32, &'a VmHandle);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.1.end(Err(Error::Vcpu {
                id: self.0,
                cause: "its thread panicked; this is a bug in the VMM".to_owned(),
                cure: None,
                report: String::new(),
            }));
        }
    }
}

fn run<P: KvmPlatform>(id: u32, vcpu: &Vcpu, shared: &Shared<P>) {
    let gate = shared.gate.passer();
    let _guard = EndOnPanic(id, &shared.handle);
    let _time = vcpu.counters.time.begin();
    // The mask is inherited from whoever built the VM. Without the signal, a kick would wait for
    // the next exit; an error cannot happen for a valid signal number.
    let _ = unblock_signal(kick_signal());
    log::trace!("vCPU {id} enters the guest");
    shared.timeline.reach(Milestone::Entered);
    let mut goes_on = gate.pass(|| ());
    while goes_on && let Left::Kicked = run_guest(id, vcpu, shared) {
        goes_on = gate.pass(|| shared.platform.vcpu_paused(&vcpu.fd()));
    }
}

/// Why a thread has let go of its vCPU.
enum Left {
    /// It was kicked, and passes the gate.
    Kicked,
    /// The VM has ended.
    Ended,
}

/// Runs the guest until a kick, or its end.
fn run_guest<P: KvmPlatform>(id: u32, vcpu: &Vcpu, shared: &Shared<P>) -> Left {
    let mut fd = vcpu.fd();
    let mut refused = 0;
    // A handle that ended before this thread ran is seen here or by KVM_RUN's immediate_exit.
    while !shared.handle.has_ended() {
        let flow = match fd.run() {
            Ok(_) => {
                refused = 0;
                let exit = decode(&mut fd, shared.run_size, P::QUIET_EXITS);
                vcpu.counters.count(&exit);
                dispatch(exit, &shared.spaces)
            }
            Err(error) => match io::Error::from(error).kind() {
                // A kick or any other signal.
                io::ErrorKind::Interrupted => {
                    vcpu.counters.count_kick();
                    vcpu.kicker.clear();
                    return Left::Kicked;
                }
                io::ErrorKind::WouldBlock => {
                    refused += 1;
                    try_again(refused)
                }
                _ if error.errno() == libc::EFAULT => Flow::Fail(Failure {
                    cause: "KVM_RUN failed: a page of guest memory cannot be had".to_owned(),
                    cure: Some(cures::LOST_MEMORY),
                }),
                _ => Flow::Fail(format!("KVM_RUN failed: {error}").into()),
            },
        };
        let end = match flow {
            Flow::Continue => continue,
            Flow::End(reason) => Ok(reason),
            Flow::Crash(cause) => {
                shared.handle.publish(Happening::GuestCrashed {
                    vcpu: id,
                    cause: cause.name().to_owned(),
                });
                let crash = Crash {
                    vcpu: id,
                    cause,
                    report: report(&fd, shared),
                };
                log::warn!("the guest crashed: {crash}\n{}", crash.report);
                Ok(ExitReason::Crashed(crash))
            }
            Flow::Fail(Failure { cause, cure }) => Err(Error::Vcpu {
                id,
                cause,
                cure,
                report: report(&fd, shared),
            }),
        };
        shared.handle.end(end);
    }
    Left::Ended
}

/// KVM_RUN says EAGAIN once when a waiting vCPU is started. It also does when the kernel cannot
/// start a thread of its own, and then goes on doing so.
fn try_again(refused: u32) -> Flow {
    if refused > MAX_REFUSED {
        return Flow::Fail(Failure {
            cause: "KVM_RUN is refused again and again (EAGAIN)".to_owned(),
            cure: Some(cures::PROCESSES),
        });
    }
    if refused > 1 {
        thread::sleep(REFUSED_PAUSE);
    }
    Flow::Continue
}

fn report<P: KvmPlatform>(vcpu: &VcpuFd, shared: &Shared<P>) -> String {
    let mut text = shared.platform.describe_vcpu(vcpu, &shared.ram);
    for output in &shared.output {
        let output = output.tail();
        if output.is_empty() {
            continue;
        }
        text.push_str("\nlast console output:\n");
        // The guest's text is not to be trusted with an operator's terminal.
        let shown = |c: char| match c {
            '\n' | '\t' => c,
            _ if c.is_control() => char::REPLACEMENT_CHARACTER,
            _ => c,
        };
        text.extend(output.trim_end().replace("\r\n", "\n").chars().map(shown));
    }
    text
}
