//! Finds out how this host runs the code of a guest's kernel, with a guest of a few instructions.
//!
//! There are KVMs that interpret what a guest does in its kernel: every capability is there, and stock
//! kernels are slow or fail. Only running such code tells.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use arch::{
    AddressRange, BootRequest, KernelPlacement, KvmError, KvmPlatform, MachinePlan, ProbeProgram,
    ProbeStep, SEED,
};
use kvm_ioctls::{Kvm, VcpuFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::{Killable, unblock_signal};

use crate::memory::{self, Backing};
use crate::timeline::Timeline;
use crate::vm::bare::Bare;
use crate::vm::dispatch::{Flow, IoSpaces, dispatch};
use crate::vm::exit::{Exit, decode};
use crate::vm::kick::{Kicker, install_handler, kick_signal};
use crate::{Error, VmConfig};

/// RAM of the guest, in MiB.
const RAM: u32 = 32;
/// No program may take longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Code that runs so much slower than the host's own is interpreted. (A native guest is as fast; where this
/// host is emulated itself, both are slow.)
const INTERPRETED: u64 = 20;
/// KVM_RUN may be refused so often.
const MAX_REFUSED: u32 = 1000;

/// A VM that can be created on this host, with all that a machine has but devices.
pub(super) struct Tried<P: KvmPlatform> {
    made: Bare<P>,
    plan: MachinePlan,
}

impl<P: KvmPlatform> Tried<P> {
    /// Makes what no capability tells of: a VM, its interrupt chip and a vCPU.
    pub(super) fn new(kvm: &Kvm, platform: &P) -> Result<Self, Error> {
        let config = VmConfig::default().with_memory_mib(RAM);
        let plan = crate::plan(platform, &config)?;
        let map = || memory::map_ram(&plan, Backing::default());
        let made = Bare::new(kvm, platform, &plan, map, &Timeline::default())?;
        Ok(Self { made, plan })
    }
}

/// What a program did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The shortest time that its loop took, without the exits around it.
    looped: Option<Duration>,
    /// The time that the host itself takes for such a loop.
    own: Duration,
    /// It came to its end.
    pub(super) finished: bool,
    /// What ended it before.
    pub(super) end: Option<String>,
    /// The number of KVM_RUN's error, if that ended it.
    pub(super) refused: Option<i32>,
}

impl Seen {
    /// How many times slower than the host's own code it ran, when that is more than any native
    /// execution costs; one digit is exact.
    pub(super) fn slower(&self) -> Option<u64> {
        let factor = self.looped?.as_nanos() / self.own.as_nanos().max(1);
        let factor = u64::try_from(factor).unwrap_or(u64::MAX);
        let unit = 10u64.checked_pow(factor.checked_ilog10().unwrap_or_default())?;
        (factor >= INTERPRETED).then_some(factor / unit * unit)
    }
}

/// Runs a program where a kernel would.
pub(super) fn run<P: KvmPlatform>(
    kvm: &Kvm,
    platform: &P,
    machine: Tried<P>,
    program: &ProbeProgram,
) -> Result<Seen, Error> {
    let Tried { mut made, plan } = machine;
    boot(platform, program, &made, &plan)?;
    // The default machine has one vCPU.
    let Some(vcpu) = made.vcpus.pop() else {
        return Ok(Seen::default());
    };
    let run_size = kvm
        .get_vcpu_mmap_size()
        .map_err(KvmError::of("KVM_GET_VCPU_MMAP_SIZE"))?;
    install_handler().map_err(Error::host("cannot install a signal handler"))?;
    let kicker =
        Kicker::new(&vcpu, run_size).map_err(Error::host("cannot map the state of a vCPU"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || {
            // The mask is inherited; an error cannot happen for a valid signal number.
            let _ = unblock_signal(kick_signal());
            // Nobody waits any more: too late.
            let _ = tell.send(watch::<P>(vcpu, run_size, &stopped));
        })
        .map_err(Error::host("cannot start a thread"))?;
    let seen = told.recv_timeout(PATIENCE).or_else(|_| {
        stop.store(true, Ordering::Release);
        kicker.request_exit();
        // It fails only when the thread has ended, which is what we want.
        let _ = thread.kill(kick_signal());
        told.recv()
    });
    // A panic in it shows as a program that was not seen.
    let _ = thread.join();
    drop((kicker, made));
    let mut seen = seen.unwrap_or_default();
    seen.own = own_loop(program.iterations);
    Ok(seen)
}

/// Puts the program into the place of a kernel.
fn boot<P: KvmPlatform>(
    platform: &P,
    program: &ProbeProgram,
    made: &Bare<P>,
    plan: &MachinePlan,
) -> Result<(), Error> {
    let refused = |source| Error::Boot {
        field: "kernel".into(),
        value: "(a probe)".to_owned(),
        source,
    };
    let base = plan.kernel_window.base;
    made.ram
        .write_slice(program.code, GuestAddress(base))
        .map_err(|source| {
            refused(arch::BootError::Memory {
                what: "a program",
                source,
            })
        })?;
    let kernel = KernelPlacement {
        entry: base,
        range: AddressRange::new(base, program.code.len() as u64),
        initrd_limit: None,
        protocol: program.protocol,
        setup_header: Vec::new(),
    };
    let request = BootRequest {
        plan,
        irq_chip: &made.irq_chip,
        kernel: &kernel,
        initrd: None,
        seed: &[0; SEED],
    };
    let info = platform
        .build_boot_info(&request, &made.ram)
        .map_err(refused)?;
    let setup = platform.configure_vcpu(0, plan, Some(&info))?;
    for vcpu in &made.vcpus {
        platform.apply_vcpu(&made.vm, vcpu, &setup)?;
    }
    Ok(())
}

/// Serves the program's steps until its end.
fn watch<P: KvmPlatform>(mut vcpu: VcpuFd, run_size: usize, stop: &AtomicBool) -> Seen {
    let nothing = IoSpaces::default();
    let mut seen = Seen::default();
    let mut steps = Steps::default();
    let mut refused = 0;
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = vcpu.run() {
            let error = io::Error::from(error);
            refused += 1;
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock if refused < MAX_REFUSED => thread::yield_now(),
                _ => {
                    seen.end = Some(format!("KVM_RUN: {error}"));
                    seen.refused = error.raw_os_error();
                    break;
                }
            }
            continue;
        }
        let now = Instant::now();
        let exit = decode(&mut vcpu, run_size, P::QUIET_EXITS);
        let step = match &exit {
            Exit::PortOut { data, .. } | Exit::MmioWrite { data, .. } => data.first().copied(),
            _ => None,
        };
        if let Some(step) = step {
            if steps.reach(step, now) {
                seen.finished = true;
                break;
            }
            continue;
        }
        match dispatch(exit, &nothing) {
            Flow::Continue => {}
            Flow::Fail(failure) => seen.end = Some(failure.cause),
            Flow::Crash(cause) => seen.end = Some(cause.to_string()),
            Flow::End(reason) => seen.end = Some(reason.to_string()),
        }
        if seen.end.is_some() {
            break;
        }
    }
    seen.looped = steps.looped();
    seen
}

/// When the program's steps came.
#[derive(Debug, Default)]
struct Steps {
    last: Option<Instant>,
    /// The shortest time from one exit to the next.
    exit: Option<Duration>,
    /// The shortest time with a loop in between.
    looped: Option<Duration>,
}

impl Steps {
    /// Whether it is the last one.
    fn reach(&mut self, step: u8, now: Instant) -> bool {
        let since = self.last.replace(now).map(|last| now.duration_since(last));
        let shortest = |before: Option<Duration>| before.into_iter().chain(since).min();
        match step {
            ProbeStep::IDLE => self.exit = shortest(self.exit),
            ProbeStep::LOOPED => self.looped = shortest(self.looped),
            _ => {}
        }
        step == ProbeStep::DONE
    }

    fn looped(&self) -> Option<Duration> {
        Some(self.looped?.saturating_sub(self.exit?))
    }
}

/// The shortest of several times that this host takes to count as far as the program's loop does.
fn own_loop(iterations: u32) -> Duration {
    let one = || {
        let start = Instant::now();
        for number in 0..iterations {
            black_box(number);
        }
        start.elapsed()
    };
    (0..5).map(|_| one()).min().unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_what_no_native_execution_costs_counts_as_interpreted() {
        let seen = |looped: Option<u64>| Seen {
            looped: looped.map(Duration::from_micros),
            own: Duration::from_micros(10),
            ..Seen::default()
        };
        assert_eq!(seen(None).slower(), None);
        for native in [0, 1, 10, 190] {
            assert_eq!(seen(Some(native)).slower(), None, "{native}");
        }
        assert_eq!(seen(Some(4_567)).slower(), Some(400));
        assert_eq!(seen(Some(200)).slower(), Some(20));
    }

    #[test]
    #[cfg(feature = "host")]
    fn a_program_that_never_ends_is_ended() {
        // Builds for other hosts are tested under an emulator, without KVM.
        let Ok(kvm) = crate::host::open_kvm() else {
            eprintln!("SKIPPED: no KVM here");
            return;
        };
        let platform = <crate::HostPlatform as KvmPlatform>::probe(&kvm).unwrap();
        let Some(program) = platform.probe_program() else {
            return;
        };
        // A jump to itself, where there is a program so far.
        let spin = ProbeProgram {
            code: &[0xeb, 0xfe],
            ..program
        };
        let machine = Tried::new(&kvm, &platform).unwrap();
        let seen = run(&kvm, &platform, machine, &spin).unwrap();
        assert_eq!((seen.finished, seen.end, seen.looped), (false, None, None));
    }

    #[test]
    fn the_shortest_times_count_and_exits_do_not() {
        let start = Instant::now();
        let at = |micros| start + Duration::from_micros(micros);
        let mut steps = Steps::default();
        assert_eq!(steps.looped(), None);
        for (step, micros) in [
            (ProbeStep::START, 0),
            (ProbeStep::IDLE, 5),
            (ProbeStep::LOOPED, 100),
            (ProbeStep::START, 103),
            (ProbeStep::IDLE, 106),
            (ProbeStep::LOOPED, 149),
        ] {
            assert!(!steps.reach(step, at(micros)));
        }
        assert_eq!(steps.looped(), Some(Duration::from_micros(40)));
        assert!(steps.reach(ProbeStep::DONE, at(150)));
    }
}
