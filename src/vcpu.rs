//! vCPU threads: run the guest, serve its exits, end the VM when one of them says so.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arch::{GuestRam, KvmPlatform};
use devices::OutputRing;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, unblock_signal};

use crate::Error;
use crate::control::{ExitReason, VmHandle};
use crate::dispatch::{Flow, IoSpaces, dispatch};
use crate::exit::decode;
use crate::kick::{Kicker, kick_signal};
use crate::timeline::{Milestone, Timeline};

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
    pub(crate) timeline: Timeline,
    /// KVM_GET_VCPU_MMAP_SIZE.
    pub(crate) run_size: usize,
    // Last: the devices in `spaces` keep the VM, whose memslots refer to it.
    pub(crate) ram: GuestRam,
}

/// The running vCPU threads. Dropping it ends the VM and joins them all.
#[derive(Debug)]
pub(crate) struct VcpuThreads {
    threads: Vec<(Kicker, JoinHandle<()>)>,
    handle: VmHandle,
}

impl VcpuThreads {
    /// Starts one thread per vCPU. When one cannot start, those before it are stopped.
    pub(crate) fn start<P: KvmPlatform>(
        vcpus: Vec<VcpuFd>,
        shared: &Arc<Shared<P>>,
    ) -> Result<Self, Error> {
        crate::kick::install_handler().map_err(Error::host("cannot install a signal handler"))?;
        let mut threads = Self {
            threads: Vec::with_capacity(vcpus.len()),
            handle: shared.handle.clone(),
        };
        for (id, vcpu) in (0..).zip(vcpus) {
            let kicker = Kicker::new(&vcpu, shared.run_size)
                .map_err(Error::host(format!("cannot map the state of vCPU {id}")))?;
            let shared = Arc::clone(shared);
            let thread = thread::Builder::new()
                .name(format!("vcpu{id}"))
                .spawn(move || run(id, vcpu, &shared))
                .map_err(Error::host(format!("cannot start the thread of vCPU {id}")))?;
            threads.threads.push((kicker, thread));
        }
        Ok(threads)
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        // A thread that is kicked without an end goes back to the guest. An end that came before
        // stands.
        self.handle.end(Ok(ExitReason::Stopped));
        for (kicker, thread) in &self.threads {
            kicker.request_exit();
            // It fails only when the thread has ended, which is what we want.
            let _ = thread.kill(kick_signal());
        }
        for (kicker, thread) in self.threads.drain(..) {
            // A panic in the thread has already ended the VM with an error, see `EndOnPanic`.
            let _ = thread.join();
            drop(kicker);
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
                report: String::new(),
            }));
        }
    }
}

fn run<P: KvmPlatform>(id: u32, mut vcpu: VcpuFd, shared: &Shared<P>) {
    let _guard = EndOnPanic(id, &shared.handle);
    // The mask is inherited from whoever built the VM. Without the signal, a kick would wait for
    // the next exit; an error cannot happen for a valid signal number.
    let _ = unblock_signal(kick_signal());
    log::trace!("vCPU {id} enters the guest");
    shared.timeline.reach(Milestone::Entered);
    let mut refused = 0;
    // A handle that ended before this thread ran is seen here or by KVM_RUN's immediate_exit.
    while !shared.handle.has_ended() {
        let flow = match vcpu.run() {
            Ok(_) => {
                refused = 0;
                dispatch(
                    decode(&mut vcpu, shared.run_size, P::QUIET_EXITS),
                    &shared.spaces,
                )
            }
            Err(error) => match io::Error::from(error).kind() {
                // A kick or any other signal.
                io::ErrorKind::Interrupted => Flow::Continue,
                io::ErrorKind::WouldBlock => {
                    refused += 1;
                    try_again(refused)
                }
                _ => Flow::Fail(format!("KVM_RUN failed: {error}")),
            },
        };
        match flow {
            Flow::Continue => {}
            Flow::End(reason) => {
                if reason == ExitReason::Crashed {
                    log::warn!("the guest crashed\n{}", report(&vcpu, shared));
                }
                return shared.handle.end(Ok(reason));
            }
            Flow::Fail(cause) => {
                let report = report(&vcpu, shared);
                return shared.handle.end(Err(Error::Vcpu { id, cause, report }));
            }
        }
    }
}

/// KVM_RUN says EAGAIN once when a waiting vCPU is started. It also does when the kernel cannot
/// start a thread of its own, and then goes on doing so.
fn try_again(refused: u32) -> Flow {
    if refused > MAX_REFUSED {
        return Flow::Fail(
            "KVM_RUN is refused again and again (EAGAIN); the limit of processes may be reached \
             (ulimit -u, the pids controller)"
                .to_owned(),
        );
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
