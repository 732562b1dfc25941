//! The public API: several VMs in one process, stop handles, set-up order, planning without KVM.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kvm_bindings::kvm_userspace_memory_region;
use vmm_reference::arch::kernel::{KernelHeader, KernelImage};
use vmm_reference::arch::{
    BootError, BootInfo, BootRequest, GuestRam, KernelPlacement, Kvm, KvmError, KvmIrqChip,
    KvmPlatform, MachineConfig, MachinePlan, PlanError, Platform, ThreadBegin, Unsaved, VcpuFd,
    VcpuId, VmFd,
};
use vmm_reference::{
    Attachments, Confinement, ConfinementReport, Console, Error, ExitReason, Happening,
    HostPlatform, Machine, ThreadRole, Vm, VmConfig,
};

type HostChip = <HostPlatform as KvmPlatform>::Chip;

#[test]
fn several_vms_run_and_stop_in_one_process() {
    let spin = common::kernel(&[0xeb, 0xfe]);
    let reset = common::kernel(&common::RESET);
    let spinning = VmConfig::default().with_kernel(spin.path()).with_vcpus(2);
    let resetting = VmConfig::default().with_kernel(reset.path());
    let vms: Vec<_> = (0..3)
        .map(|_| Vm::new(&spinning, Console::null()).unwrap())
        .collect();
    let handles: Vec<_> = vms.iter().map(Machine::handle).collect();
    let threads: Vec<_> = vms
        .into_iter()
        .map(|vm| thread::spawn(|| vm.run().unwrap()))
        .collect();
    let ended = Vm::new(&resetting, Console::null()).unwrap().run().unwrap();
    assert_eq!(ended, ExitReason::Reset);
    for handle in handles {
        handle.request_stop();
    }
    for thread in threads {
        assert_eq!(thread.join().unwrap(), ExitReason::Stopped);
    }
}

#[test]
fn the_threads_of_vcpus_have_the_names_that_an_embedder_gives() {
    let spin = common::kernel(&[0xeb, 0xfe]);
    let config = VmConfig::default().with_kernel(spin.path()).with_vcpus(2);
    let attachments = |prefix| Attachments::default().with_vcpu_threads(prefix);
    let vm = Vm::new(&config, attachments("my_vcpu ")).unwrap();
    let handle = vm.handle();
    let thread = thread::spawn(|| vm.run().unwrap());
    for expected in ["my_vcpu 0\n", "my_vcpu 1\n"] {
        let is_there = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap();
            // Threads of other tests end meanwhile.
            let mut names = tasks
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
            names.any(|name| name == expected)
        };
        while !is_there() {
            thread::yield_now();
        }
    }
    handle.request_stop();
    assert_eq!(thread.join().unwrap(), ExitReason::Stopped);
    let refused = Vm::new(&config, attachments("a\0b")).unwrap_err();
    assert!(refused.to_string().contains("NUL"), "{refused}");
}

#[test]
fn a_stop_before_the_run_is_not_lost() {
    let spin = common::kernel(&[0xeb, 0xfe]);
    let config = VmConfig::default().with_kernel(spin.path());
    let vm = Vm::new(&config, Console::null()).unwrap();
    vm.handle().request_stop();
    assert_eq!(vm.run().unwrap(), ExitReason::Stopped);
}

/// A guest without a table of handlers, whose first instruction is none: `ud2`.
#[test]
fn a_crash_of_the_guest_is_an_event_before_the_end() {
    if std::env::consts::ARCH != "x86_64" {
        // Elsewhere an exception without a handler is taken again and again.
        return;
    }
    let crash = common::kernel(&[0x0f, 0x0b]);
    let config = VmConfig::default().with_kernel(crash.path());
    let vm = Vm::new(&config, Console::null()).unwrap();
    let events = vm.handle().subscribe().unwrap();
    assert!(matches!(vm.run().unwrap(), ExitReason::Crashed(_)));
    let events: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    let last = events
        .last_chunk::<2>()
        .map(|events| events.each_ref().map(|event| &event.what));
    let Some(
        [
            Happening::GuestCrashed { vcpu: 0, cause },
            Happening::Ended { failed: true, .. },
        ],
    ) = last
    else {
        panic!("{events:?}")
    };
    assert_eq!(cause, "triple-fault");
    assert!(events.is_sorted_by_key(|event| event.monotonic_us));
}

/// The host's platform; writes down when the core calls it.
#[derive(Debug)]
struct Recorder(HostPlatform);

static CALLS: Mutex<Vec<&str>> = Mutex::new(Vec::new());

fn call(name: &'static str) {
    let mut calls = CALLS.lock().unwrap();
    if calls.last() != Some(&name) {
        calls.push(name);
    }
}

struct Chip(HostChip);

impl KvmIrqChip for Chip {
    fn activate(&self, vm: &VmFd) -> Result<(), KvmError> {
        call("activate");
        assert!(vm.create_vcpu(0).is_err(), "the vCPUs exist already");
        self.0.activate(vm)
    }

    fn begin_threads_with(&self, begin: ThreadBegin) {
        call("begin_threads_with");
        begin();
    }
}

/// Takes nothing, and knows what threads there are.
#[derive(Debug, Default)]
struct Roles(Mutex<Vec<ThreadRole>>);

impl Confinement for Roles {
    fn enter(&self) -> Result<(), Error> {
        call("enter");
        Ok(())
    }

    fn report(&self) -> ConfinementReport {
        ConfinementReport::new("none")
    }

    fn begin(&self, role: ThreadRole) {
        self.0.lock().unwrap().push(role);
    }
}

impl Platform for Recorder {
    type IrqChip = <HostPlatform as Platform>::IrqChip;
    type VcpuSetup = <HostPlatform as Platform>::VcpuSetup;
    type Promise = Unsaved;
    type VcpuState = Unsaved;
    type ChipState = Unsaved;
    type ClockState = Unsaved;

    fn setup_memory_layout(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        call("setup_memory_layout");
        self.0.setup_memory_layout(config)
    }

    fn place_kernel(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError> {
        call("place_kernel");
        self.0.place_kernel(header, plan)
    }

    fn irq_chip(&self, plan: &MachinePlan) -> Result<Self::IrqChip, PlanError> {
        call("irq_chip");
        self.0.irq_chip(plan)
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        call("build_boot_info");
        let BootRequest {
            plan,
            irq_chip,
            kernel,
            initrd,
            seed,
        } = *request;
        self.0.build_boot_info(
            &BootRequest {
                plan,
                irq_chip,
                kernel,
                initrd,
                seed,
            },
            ram,
        )
    }

    fn pass_time(&self, _: Duration, clock: &mut Unsaved, _: &mut [Unsaved]) {
        match *clock {}
    }

    fn configure_vcpu(
        &self,
        id: VcpuId,
        plan: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Self::VcpuSetup, PlanError> {
        assert_eq!(boot.is_some(), id == 0);
        self.0.configure_vcpu(id, plan, boot)
    }
}

impl KvmPlatform for Recorder {
    type Chip = Chip;

    fn probe(kvm: &Kvm) -> Result<Self, KvmError> {
        call("probe");
        HostPlatform::probe(kvm).map(Self)
    }

    fn load_kernel(
        &self,
        image: &mut KernelImage,
        header: &KernelHeader,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        call("load_kernel");
        self.0.load_kernel(image, header, kernel, ram)
    }

    fn prepare_vm(&self, vm: &VmFd) -> Result<(), KvmError> {
        call("prepare_vm");
        let overlapping = kvm_userspace_memory_region {
            slot: 500,
            memory_size: 4096,
            ..Default::default()
        };
        // SAFETY: KVM refuses it, since slot 0 has that address already; nothing is mapped.
        let error = unsafe { vm.set_user_memory_region(overlapping) }.unwrap_err();
        assert_eq!(error.errno(), 17, "EEXIST: the memslots come first");
        self.0.prepare_vm(vm)
    }

    fn create_irq_chip(&self, vm: &VmFd, model: &Self::IrqChip) -> Result<Self::Chip, KvmError> {
        call("create_irq_chip");
        self.0.create_irq_chip(vm, model).map(Chip)
    }

    fn apply_vcpu(
        &self,
        vm: &VmFd,
        vcpu: &VcpuFd,
        setup: &Self::VcpuSetup,
    ) -> Result<(), KvmError> {
        call("apply_vcpu");
        self.0.apply_vcpu(vm, vcpu, setup)
    }

    fn describe_vcpu(&self, vcpu: &VcpuFd, ram: &GuestRam) -> String {
        self.0.describe_vcpu(vcpu, ram)
    }
}

#[test]
fn the_set_up_order_is_the_one_that_is_fast_and_right() {
    let kernel = common::kernel(&common::RESET);
    let config = VmConfig::default().with_kernel(kernel.path()).with_vcpus(2);
    let roles = Arc::new(Roles::default());
    let attachments = Attachments::from(Console::null()).with_confinement(roles.clone());
    Machine::<Recorder>::with_hello(&config, attachments, None).unwrap();
    assert!(roles.0.lock().unwrap().contains(&ThreadRole::Lines));
    assert_eq!(
        *CALLS.lock().unwrap(),
        [
            "probe",
            "enter",
            "setup_memory_layout",
            "prepare_vm",
            "irq_chip",
            "create_irq_chip",
            "activate",
            "begin_threads_with",
            "place_kernel",
            "load_kernel",
            "build_boot_info",
            "apply_vcpu",
        ]
    );
}
