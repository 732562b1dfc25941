//! What is saved of a machine goes on in another one. On a real KVM.

#![allow(clippy::unwrap_used)]

use arch::{Bytes, Cmdline, GuestKernel, Lean, MachineConfig, MachinePlan, Platform, Transport};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VcpuExit;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::registers::Msr;
use crate::state::{ChipState, ClockState, VcpuState};

const RAM: usize = 1 << 20;
const CODE: u64 = 0x1000;
const COUNTER: u64 = 0x2000;
/// Registers that go on by themselves: the time stamp counter, and the deadline that is compared with it.
const TIME: [u32; 2] = [0x10, 0x6e0];

struct Saved {
    vcpus: Vec<VcpuState>,
    chip: ChipState,
    clock: ClockState,
    ram: Vec<u8>,
}

/// A machine with two vCPUs, of which the second waits to be started.
struct Machine {
    vcpus: Vec<VcpuFd>,
    chip: KvmChip,
    vm: VmFd,
    facts: X86_64,
    ram: GuestRam,
}

impl Machine {
    fn plan(facts: &X86_64, lean: Lean) -> MachinePlan {
        let config = MachineConfig {
            lean,
            kernel: GuestKernel::Unknown,
            vmgenid: true,
            own_window: 0,
            keyboard: false,
            announce_virtio: false,
            memory: 32 << 20,
            vcpus: 2,
            cmdline: Cmdline::default(),
            serial: true,
            virtio: Vec::new(),
            transport: Transport::Mmio,
        };
        facts.setup_memory_layout(&config).unwrap()
    }

    /// Without KVM there is none.
    fn new(lean: Lean) -> Option<Self> {
        let kvm = Kvm::new().ok().or_else(|| {
            eprintln!("SKIPPED: no /dev/kvm");
            None
        })?;
        let facts = X86_64::probe(&kvm).unwrap();
        let plan = Self::plan(&facts, lean);
        let vm = kvm.create_vm_with_type(facts.vm_type(&plan)).unwrap();
        let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).unwrap();
        let slot = kvm_userspace_memory_region {
            memory_size: RAM as u64,
            userspace_addr: ram.get_host_address(GuestAddress(0)).unwrap() as u64,
            ..kvm_userspace_memory_region::default()
        };
        // SAFETY: the memory lives longer than the VM, see the order of the fields.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        facts.prepare_vm(&vm).unwrap();
        let model = facts.irq_chip(&plan).unwrap();
        let chip = facts.create_irq_chip(&vm, &model).unwrap();
        let vcpus: Vec<_> = (0..2).map(|id| vm.create_vcpu(id).unwrap()).collect();
        for (id, vcpu) in (0..).zip(&vcpus) {
            let setup = facts.configure_vcpu(id, &plan, None).unwrap();
            facts.apply_vcpu(&vm, vcpu, &setup).unwrap();
        }
        chip.activate(&vm).unwrap();
        Some(Self {
            vcpus,
            chip,
            vm,
            facts,
            ram,
        })
    }

    /// The first vCPU starts in real mode at `CODE`.
    fn begin(&self, code: &[u8]) {
        self.ram.write_slice(code, GuestAddress(CODE)).unwrap();
        let vcpu = &self.vcpus[0];
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        (regs.rip, regs.rflags) = (CODE, 2);
        vcpu.set_regs(&regs).unwrap();
    }

    /// Runs to the next write to a port, which is completed.
    fn step(&mut self) -> Vec<u8> {
        let vcpu = &mut self.vcpus[0];
        let written = match vcpu.run().unwrap() {
            VcpuExit::IoOut(_, data) => data.to_vec(),
            other => panic!("{other:?}"),
        };
        vcpu.set_kvm_immediate_exit(1);
        assert_eq!(vcpu.run().unwrap_err().errno(), 4); // EINTR
        vcpu.set_kvm_immediate_exit(0);
        written
    }

    fn counter(&self) -> u16 {
        self.ram.read_obj(GuestAddress(COUNTER)).unwrap()
    }

    fn save(&self) -> Saved {
        let vcpu = |vcpu| self.facts.save_vcpu(&self.vm, vcpu).unwrap();
        let mut ram = vec![0; RAM];
        self.ram.read_slice(&mut ram, GuestAddress(0)).unwrap();
        Saved {
            vcpus: self.vcpus.iter().map(vcpu).collect(),
            chip: self.facts.save_chip(&self.vm, &self.chip).unwrap(),
            clock: self.facts.save_clock(&self.vm).unwrap(),
            ram,
        }
    }

    fn load(&self, saved: &Saved) {
        let Self {
            facts, vm, chip, ..
        } = self;
        self.ram.write_slice(&saved.ram, GuestAddress(0)).unwrap();
        facts.load_clock(vm, &saved.clock).unwrap();
        facts.load_chip(vm, chip, &saved.chip).unwrap();
        for (vcpu, state) in self.vcpus.iter().zip(&saved.vcpus) {
            facts.load_vcpu(vm, vcpu, state).unwrap();
        }
    }
}

/// Whether two states are of the same vCPU, whatever time it is.
fn same(one: &VcpuState, other: &VcpuState) {
    let timeless = |state: &VcpuState| {
        let mut state = state.clone();
        state.msrs.retain(|msr| !TIME.contains(&msr.index));
        // The timer's current count.
        state.lapic.0.get_mut(0x390..0x394).unwrap().fill(0);
        state
    };
    let (one, other) = (timeless(one), timeless(other));
    let differ: Vec<_> = one
        .msrs
        .iter()
        .zip(&other.msrs)
        .filter(|(one, other)| one != other)
        .collect();
    assert!(differ.is_empty(), "{differ:#x?}");
    assert!(one.xsave == other.xsave && one.lapic == other.lapic);
    assert_eq!(one, other);
}

#[test]
fn everything_of_a_vcpu_and_its_chip_is_as_it_was() {
    for lean in [Lean::Off, Lean::On] {
        let Some(machine) = Machine::new(lean) else {
            return;
        };
        machine.begin(&[0xf4]);
        let mut saved = machine.save();
        assert_eq!(saved.chip.full.is_some(), lean == Lean::Off);
        {
            let state = &mut saved.vcpus[0];
            state.registers.rax = 0x1234_5678_9abc_def0;
            state.registers.r15 = 15;
            state.system.cr2 = 0xdead_0000;
            state.debug.db[0] = 0x4000;
            // XMM0, and that the SSE state is not the initial one (Intel SDM volume 1, 13.4).
            state.xsave.0[160..176].copy_from_slice(&[0x5a; 16]);
            state.xsave.0[512] |= 3;
            let lstar = state.msrs.iter_mut().find(|msr| msr.index == 0xc000_0082);
            lstar.unwrap().data = 0xffff_8000_0000_1000;
            // The task's priority, and the processor's, which KVM derives from it.
            state.lapic.0[0x80] = 0x20;
            state.lapic.0[0xa0] = 0x20;
            state.system.cr8 = 2;
            state.events.nmi.masked = 1;
            state.mp_state = kvm_bindings::KVM_MP_STATE_HALTED;
        }
        if let Some(full) = &mut saved.chip.full {
            full.pics[0].irq_base = 0x20;
            full.pics[1].imr = 0xfe;
            full.ioapic.redirtbl[4] = 0x1_0031;
            full.pit.channels[2].count = 1000;
        }
        let other = Machine::new(lean).unwrap();
        other.load(&saved);
        let again = other.save();
        for (one, other) in saved.vcpus.iter().zip(&again.vcpus) {
            same(one, other);
            assert!(!one.msrs.is_empty());
        }
        let without_time = |chip: &ChipState| {
            let mut chip = chip.clone();
            for channel in chip.full.iter_mut().flat_map(|full| &mut full.pit.channels) {
                channel.count_load_time = 0;
            }
            chip
        };
        assert_eq!(without_time(&saved.chip), without_time(&again.chip));
        assert!(again.clock.nanoseconds >= saved.clock.nanoseconds);
        // Time goes on from where it was, and not from the host's.
        let tsc = |saved: &Saved| {
            let found = saved.vcpus[0].msrs.iter().find(|msr| msr.index == 0x10);
            found.unwrap().data
        };
        assert!(tsc(&again) >= tsc(&saved));
    }
}

#[test]
fn a_guest_counts_on_over_many_generations() {
    // inc word [COUNTER]; mov ax, [COUNTER]; out 0x80, ax; jmp
    let code = [
        0xff, 0x06, 0x00, 0x20, 0xa1, 0x00, 0x20, 0xe7, 0x80, 0xeb, 0xf5,
    ];
    let Some(mut machine) = Machine::new(Lean::On) else {
        return;
    };
    machine.begin(&code);
    let mut expected = 0_u16;
    for _ in 0..20 {
        for _ in 0..5 {
            expected += 1;
            assert_eq!(machine.step(), expected.to_le_bytes());
            assert_eq!(machine.counter(), expected);
        }
        let saved = machine.save();
        machine = Machine::new(Lean::On).unwrap();
        machine.load(&saved);
    }
}

#[test]
fn what_is_not_a_state_is_refused() {
    let Some(machine) = Machine::new(Lean::On) else {
        return;
    };
    let saved = machine.save();
    let wrong: [fn(&mut VcpuState); 5] = [
        |state| state.lapic = Bytes(vec![0; 5]),
        |state| state.xsave = Bytes(vec![0; 4095]),
        |state| state.xsave = Bytes(Vec::new()),
        |state| state.xcrs = vec![(0, 1); 17],
        |state| {
            state.msrs.push(Msr {
                index: 0xdead_beef,
                data: 1,
            });
        },
    ];
    for (number, change) in wrong.iter().enumerate() {
        let mut state = saved.vcpus[0].clone();
        change(&mut state);
        let loaded = machine
            .facts
            .load_vcpu(&machine.vm, &machine.vcpus[0], &state);
        assert!(loaded.is_err(), "{number}");
    }
}
