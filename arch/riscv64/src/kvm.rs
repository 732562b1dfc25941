//! The host half: reads the host's facts and applies plans through KVM.

use std::fmt::Write;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use arch::kernel::{KernelHeader, KernelImage};
use arch::{
    AddressRange, BootError, Gsi, GuestRam, KernelPlacement, KvmError, KvmIrqChip, KvmPlatform,
};
use kvm_bindings::{
    KVM_DEV_RISCV_AIA_ADDR_APLIC, KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS, KVM_DEV_RISCV_AIA_CONFIG_HART_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_IDS, KVM_DEV_RISCV_AIA_CONFIG_SRCS, KVM_DEV_RISCV_AIA_CTRL_INIT,
    KVM_DEV_RISCV_AIA_GRP_ADDR, KVM_DEV_RISCV_AIA_GRP_CONFIG, KVM_DEV_RISCV_AIA_GRP_CTRL,
    KVM_EXIT_RISCV_CSR, KVM_EXIT_RISCV_SBI, KVM_REG_RISCV, KVM_REG_RISCV_CONFIG,
    KVM_REG_RISCV_CORE, KVM_REG_RISCV_CSR, KVM_REG_RISCV_ISA_EXT, KVM_REG_RISCV_SBI_EXT,
    KVM_REG_RISCV_TIMER, KVM_REG_SIZE_U64, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_RISCV_AIA, kvm_riscv_config, kvm_riscv_core, kvm_riscv_csr,
    user_regs_struct,
};
use kvm_ioctls::{DeviceFd, Error as Errno, Kvm, VcpuFd, VmFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::aia::{Aia, IMSIC};
use crate::facts::Riscv64;
use crate::isa;
use crate::registers::{self, VcpuSetup};

/// KVM_CAP_VM_GPA_BITS (`include/uapi/linux/kvm.h`), which kvm-ioctls does not name.
const VM_GPA_BITS: u64 = 207;
/// Guest address bits of every host with the hypervisor extension (Sv39x4).
const LEAST_GPA_BITS: u8 = 41;
/// The most interrupt identities that a machine is given.
const MOST_IDENTITIES: u32 = 255;

/// The offset of `zicbop_block_size` in `struct kvm_riscv_config`, a field that kvm-bindings 0.14 does not
/// have yet.
const ZICBOP_BLOCK_SIZE: usize = 7 * 8;
/// The place of a field of a structure of `c_ulong`s.
const fn place(offset: usize) -> u64 {
    (offset / 8) as u64
}

// The pure half's names are KVM's.
const _: () = {
    const fn register(group: u32, offset: usize) -> u64 {
        KVM_REG_RISCV.cast_unsigned() | KVM_REG_SIZE_U64 | group as u64 | place(offset)
    }
    let regs = std::mem::offset_of!(kvm_riscv_core, regs);
    assert!(
        registers::PC
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, pc)
            )
    );
    assert!(
        registers::A0
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, a0)
            )
    );
    assert!(
        registers::A1
            == register(
                KVM_REG_RISCV_CORE,
                regs + std::mem::offset_of!(user_regs_struct, a1)
            )
    );
    assert!(registers::config(0) == register(KVM_REG_RISCV_CONFIG, 0));
    assert!(registers::csr(0) == register(KVM_REG_RISCV_CSR, 0));
    assert!(registers::extension(0) == register(KVM_REG_RISCV_ISA_EXT, 0));
    assert!(registers::firmware(0) == register(KVM_REG_RISCV_SBI_EXT, 0));
    assert!(registers::TIMER_FREQUENCY == register(KVM_REG_RISCV_TIMER, 0));
};

/// KVM's interrupt controllers, and what makes edges on their lines.
///
/// KVM_IRQFD would do that, but on this architecture it raises a line and never lowers it (Linux
/// 6.12, kvm_arch_set_irq_inatomic): of all edges only the first would arrive. So one thread waits
/// for the devices' events and calls KVM_IRQ_LINE. Messages, which are what PCI devices send, go
/// through irqfds like everywhere.
#[derive(Debug)]
pub struct KvmChip {
    device: DeviceFd,
    model: Aia,
    events: Arc<Epoll>,
    stop: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The event by which the thread ends; the others are GSIs.
const STOP: u64 = u64::MAX;
/// Events of one look.
const EVENTS: usize = 16;

impl KvmChip {
    fn new(device: DeviceFd, model: Aia) -> io::Result<Self> {
        let (events, stop) = (Epoll::new()?, EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        let event = EpollEvent::new(EventSet::IN, STOP);
        events.ctl(ControlOperation::Add, stop.as_raw_fd(), event)?;
        Ok(Self {
            device,
            model,
            events: Arc::new(events),
            stop,
            thread: Mutex::default(),
        })
    }

    fn watch(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> io::Result<()> {
        // Edge-triggered: each write is told, and the counter need not be read.
        let edge = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, gsi.into());
        self.events
            .ctl(ControlOperation::Add, event.as_raw_fd(), edge)?;
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (vm, events) = (Arc::clone(vm), Arc::clone(&self.events));
            let name = thread::Builder::new().name("lines".to_owned());
            *thread = Some(name.spawn(move || make_edges(&vm, &events))?);
        }
        Ok(())
    }
}

impl Drop for KvmChip {
    fn drop(&mut self) {
        // The counter cannot overflow: this is its only write.
        let _ = self.stop.write(1);
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

fn make_edges(vm: &VmFd, events: &Epoll) {
    let mut told = [EpollEvent::default(); EVENTS];
    loop {
        // Only a signal of the embedding program interrupts it.
        let count = events.wait(-1, &mut told).unwrap_or(0);
        for event in told.iter().take(count) {
            if event.data() == STOP {
                return;
            }
            let gsi = u32::try_from(event.data()).unwrap_or(0);
            for level in [true, false] {
                // It fails for lines that are not there, and all were planned.
                let _ = vm.set_irq_line(gsi, level);
            }
        }
    }
}

/// KVM's errors have a number, and so have those of the host.
fn host(operation: &'static str) -> impl Fn(io::Error) -> KvmError {
    move |error| KvmError::of(operation)(Errno::new(error.raw_os_error().unwrap_or_default()))
}

impl KvmIrqChip for KvmChip {
    fn connect(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
        self.watch(vm, event, gsi)
            .map_err(host("the thread for interrupt lines"))
    }

    fn activate(&self, _vm: &VmFd) -> Result<(), KvmError> {
        let AddressRange { base, len } = self.model.imsics;
        let pages = (0..len / IMSIC).map(|number| base + number * IMSIC);
        // Attribute 0 is the APLIC's place, those from 1 on are the message controllers'.
        for (number, page) in (KVM_DEV_RISCV_AIA_ADDR_APLIC + 1..).zip(pages) {
            set(
                &self.device,
                KVM_DEV_RISCV_AIA_GRP_ADDR,
                number,
                Some(&page),
                "KVM_DEV_RISCV_AIA_ADDR_IMSIC",
            )?;
        }
        set::<u32>(
            &self.device,
            KVM_DEV_RISCV_AIA_GRP_CTRL,
            KVM_DEV_RISCV_AIA_CTRL_INIT,
            None,
            "KVM_DEV_RISCV_AIA_CTRL_INIT",
        )
    }
}

fn set<T>(
    device: &DeviceFd,
    group: u32,
    number: u32,
    value: Option<&T>,
    operation: &'static str,
) -> Result<(), KvmError> {
    let attribute = kvm_device_attr {
        group,
        attr: number.into(),
        addr: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
        flags: 0,
    };
    device
        .set_device_attr(&attribute)
        .map_err(KvmError::of(operation))
}

fn create_aia(vm: &VmFd) -> Result<DeviceFd, KvmError> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_RISCV_AIA,
        ..Default::default()
    };
    vm.create_device(&mut device).map_err(KvmError::of_device(
        "the interrupt architecture AIA",
        "use a host with the extensions Smaia and Ssaia, and Linux 6.5 or newer",
    ))
}

/// The most interrupt identities that KVM gives a message controller.
fn most_identities(aia: &DeviceFd) -> Result<u32, KvmError> {
    let mut identities = 0_u32;
    let mut attribute = kvm_device_attr {
        group: KVM_DEV_RISCV_AIA_GRP_CONFIG,
        attr: KVM_DEV_RISCV_AIA_CONFIG_IDS.into(),
        addr: std::ptr::from_mut(&mut identities) as u64,
        flags: 0,
    };
    // SAFETY: KVM writes this attribute, of four bytes, to where it is told.
    unsafe { aia.get_device_attr(&mut attribute) }
        .map_err(KvmError::of("KVM_DEV_RISCV_AIA_CONFIG_IDS"))?;
    Ok(identities)
}

/// Reads a register; 0 where this KVM does not know it.
fn read(vcpu: &VcpuFd, id: u64) -> u64 {
    let mut bytes = [0; 8];
    match vcpu.get_one_reg(id, &mut bytes) {
        Ok(_) => u64::from_le_bytes(bytes),
        Err(_) => 0,
    }
}

/// A configuration register that has fewer bits than its place.
fn small<T: TryFrom<u64> + Default>(vcpu: &VcpuFd, offset: usize) -> T {
    T::try_from(read(vcpu, registers::config(place(offset)))).unwrap_or_default()
}

impl KvmPlatform for Riscv64 {
    type Chip = KvmChip;

    /// A control register that KVM leaves to the VMM (`seed`, of all) reads as 0, which is no entropy; a
    /// firmware call that it leaves to the VMM is not supported.
    const QUIET_EXITS: &'static [u32] = &[KVM_EXIT_RISCV_CSR, KVM_EXIT_RISCV_SBI];

    /// What a vCPU may have is told by vCPUs alone, so there is one, in a VM of its own.
    fn probe(kvm: &Kvm) -> Result<Self, KvmError> {
        let vm = kvm.create_vm().map_err(KvmError::of("KVM_CREATE_VM"))?;
        let aia = create_aia(&vm)?;
        let vcpu = vm.create_vcpu(0).map_err(KvmError::of("KVM_CREATE_VCPU"))?;
        let timebase = u32::try_from(read(&vcpu, registers::TIMER_FREQUENCY)).unwrap_or(0);
        if timebase == 0 {
            return Err(KvmError::Lacks {
                what: "a register for the timer's frequency",
                cure: "use a newer kernel",
            });
        }
        let gpa_bits = u8::try_from(kvm.check_extension_raw(VM_GPA_BITS)).unwrap_or(0);
        let all: Vec<_> = isa::ALL
            .iter()
            .filter(|(number, _)| read(&vcpu, registers::extension(*number)) == 1)
            .map(|&(_, name)| name)
            .collect();
        let extensions = isa::consistent(&all);
        let block = |offset, name| {
            if extensions.contains(&name) {
                small(&vcpu, offset)
            } else {
                0
            }
        };
        Ok(Self {
            gpa_bits: gpa_bits.max(LEAST_GPA_BITS),
            max_vcpus: u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX),
            timebase,
            extensions: extensions.iter().map(|&name| name.to_owned()).collect(),
            satp_mode: small(&vcpu, std::mem::offset_of!(kvm_riscv_config, satp_mode)),
            cache_blocks: [
                block(
                    std::mem::offset_of!(kvm_riscv_config, zicbom_block_size),
                    "zicbom",
                ),
                block(
                    std::mem::offset_of!(kvm_riscv_config, zicboz_block_size),
                    "zicboz",
                ),
                block(ZICBOP_BLOCK_SIZE, "zicbop"),
            ],
            identities: most_identities(&aia)?.min(MOST_IDENTITIES),
        })
    }

    fn load_kernel(
        &self,
        image: &mut KernelImage,
        header: &KernelHeader,
        kernel: &KernelPlacement,
        ram: &GuestRam,
    ) -> Result<(), BootError> {
        match header {
            KernelHeader::Image(flat) if cfg!(feature = "image") => flat.copy(image, kernel, ram),
            other => Err(BootError::not_built_in(other, "image")),
        }
    }

    fn prepare_vm(&self, _vm: &VmFd) -> Result<(), KvmError> {
        Ok(())
    }

    /// Emulated or with the help of the hardware: KVM takes the best there is.
    fn create_irq_chip(&self, vm: &VmFd, model: &Aia) -> Result<KvmChip, KvmError> {
        let device = create_aia(vm)?;
        for (number, value, operation) in [
            (
                KVM_DEV_RISCV_AIA_CONFIG_IDS,
                model.identities,
                "KVM_DEV_RISCV_AIA_CONFIG_IDS",
            ),
            (
                KVM_DEV_RISCV_AIA_CONFIG_SRCS,
                model.sources,
                "KVM_DEV_RISCV_AIA_CONFIG_SRCS",
            ),
            (
                KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS,
                0,
                "KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS",
            ),
            (
                KVM_DEV_RISCV_AIA_CONFIG_HART_BITS,
                model.hart_bits,
                "KVM_DEV_RISCV_AIA_CONFIG_HART_BITS",
            ),
            (
                KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS,
                0,
                "KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS",
            ),
        ] {
            let group = KVM_DEV_RISCV_AIA_GRP_CONFIG;
            set(&device, group, number, Some(&value), operation)?;
        }
        set(
            &device,
            KVM_DEV_RISCV_AIA_GRP_ADDR,
            KVM_DEV_RISCV_AIA_ADDR_APLIC,
            Some(&model.aplic.base),
            "KVM_DEV_RISCV_AIA_ADDR_APLIC",
        )?;
        KvmChip::new(device, model.clone()).map_err(host("an epoll instance or an eventfd"))
    }

    fn apply_vcpu(&self, _vm: &VmFd, vcpu: &VcpuFd, setup: &VcpuSetup) -> Result<(), KvmError> {
        for register in &setup.registers {
            vcpu.set_one_reg(register.id, &register.value.to_le_bytes())
                .map_err(KvmError::of("KVM_SET_ONE_REG"))?;
        }
        Ok(())
    }

    fn describe_vcpu(&self, vcpu: &VcpuFd, _ram: &GuestRam) -> String {
        describe(vcpu)
    }
}

/// The general registers' names, from x1 on.
const NAMES: [&str; 31] = [
    "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0", "a1", "a2", "a3", "a4", "a5", "a6",
    "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6",
];

fn describe(vcpu: &VcpuFd) -> String {
    let control = [
        ("sstatus", std::mem::offset_of!(kvm_riscv_csr, sstatus)),
        ("stvec", std::mem::offset_of!(kvm_riscv_csr, stvec)),
        ("sepc", std::mem::offset_of!(kvm_riscv_csr, sepc)),
        ("scause", std::mem::offset_of!(kvm_riscv_csr, scause)),
        ("stval", std::mem::offset_of!(kvm_riscv_csr, stval)),
        ("satp", std::mem::offset_of!(kvm_riscv_csr, satp)),
    ];
    let general = (1..)
        .zip(NAMES)
        .map(|(number, name)| (name, registers::core(number)));
    let control = control.map(|(name, offset)| (name, registers::csr(place(offset))));
    let all = [("pc", registers::PC)]
        .into_iter()
        .chain(general)
        .chain(control);
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (number, (name, id)) in all.enumerate() {
        let separator = match number % 4 {
            _ if number == 0 => "",
            0 => "\n",
            _ => "  ",
        };
        let _ = write!(text, "{separator}{name:<7} {:016x}", read(vcpu, id));
    }
    text
}
