//! KVM's interrupt controllers.

use std::io;
use std::sync::{Arc, OnceLock};

use arch::{AddressRange, Gsi, KvmError, KvmIrqChip, ThreadBegin, set_attribute};
use kvm_bindings::{
    KVM_DEV_RISCV_AIA_ADDR_APLIC, KVM_DEV_RISCV_AIA_CONFIG_GROUP_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_GUEST_BITS, KVM_DEV_RISCV_AIA_CONFIG_HART_BITS,
    KVM_DEV_RISCV_AIA_CONFIG_IDS, KVM_DEV_RISCV_AIA_CONFIG_SRCS, KVM_DEV_RISCV_AIA_CTRL_INIT,
    KVM_DEV_RISCV_AIA_GRP_ADDR, KVM_DEV_RISCV_AIA_GRP_CONFIG, KVM_DEV_RISCV_AIA_GRP_CTRL,
    kvm_create_device, kvm_device_type_KVM_DEV_TYPE_RISCV_AIA,
};
use kvm_ioctls::{DeviceFd, Error as Errno, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::aia;
use super::lines::Lines;
use crate::aia::{Aia, IMSIC};
use crate::state::ChipState;

/// KVM's APLIC and message controllers.
#[derive(Debug)]
pub struct KvmChip {
    device: DeviceFd,
    model: Aia,
    lines: Lines,
    /// Whether all interrupt identities can be loaded, once it is active.
    all_identities: OnceLock<bool>,
}

/// KVM's errors have a number, and so have those of the host.
fn host(operation: &'static str) -> impl Fn(io::Error) -> KvmError {
    move |error| KvmError::of(operation)(Errno::new(error.raw_os_error().unwrap_or_default()))
}

impl KvmChip {
    /// Emulated or with the help of the hardware: KVM takes the best there is.
    pub(super) fn new(vm: &VmFd, model: &Aia) -> Result<Self, KvmError> {
        let device = create_device(vm)?;
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
            set_attribute(&device, group, number.into(), Some(&value), operation)?;
        }
        set_attribute(
            &device,
            KVM_DEV_RISCV_AIA_GRP_ADDR,
            KVM_DEV_RISCV_AIA_ADDR_APLIC.into(),
            Some(&model.aplic.base),
            "KVM_DEV_RISCV_AIA_ADDR_APLIC",
        )?;
        Ok(Self {
            device,
            model: model.clone(),
            lines: Lines::new().map_err(host("an epoll instance or an eventfd"))?,
            all_identities: OnceLock::new(),
        })
    }

    /// No vCPU runs, and no device begins anything.
    pub(super) fn save(&self, vm: &VmFd) -> Result<ChipState, KvmError> {
        self.lines.make_edges(vm);
        let state = aia::save(&self.device, &self.model)?;
        self.check(&state)?;
        Ok(state)
    }

    pub(super) fn load(&self, state: &ChipState) -> Result<(), KvmError> {
        self.check(state)?;
        aia::load(&self.device, &self.model, state)
    }

    /// What cannot be loaded is not saved either.
    fn check(&self, state: &ChipState) -> Result<(), KvmError> {
        let mut messages = state.messages.iter();
        if self.all_identities.get() == Some(&true)
            || !messages.any(|messages| messages.has_upper_identities())
        {
            return Ok(());
        }
        Err(KvmError::Lacks {
            what: "a way to load interrupts beyond a vCPU's first 31",
            cure: "give the machine more vCPUs, or its devices fewer queues",
        })
    }
}

impl KvmIrqChip for KvmChip {
    fn begin_threads_with(&self, begin: ThreadBegin) {
        self.lines.begin_with(begin);
    }

    fn connect(&self, vm: &Arc<VmFd>, event: &EventFd, gsi: Gsi) -> Result<(), KvmError> {
        self.lines
            .watch(vm, event, gsi)
            .map_err(host("the thread for interrupt lines"))
    }

    fn park(&self) {
        self.lines.park();
    }

    fn unpark(&self, vm: &Arc<VmFd>) -> io::Result<()> {
        self.lines.unpark(vm)
    }

    fn activate(&self, _vm: &VmFd) -> Result<(), KvmError> {
        let AddressRange { base, len } = self.model.imsics;
        let pages = (0..len / IMSIC).map(|number| base + number * IMSIC);
        // Attribute 0 is the APLIC's place, those from 1 on are the message controllers'.
        for (number, page) in (KVM_DEV_RISCV_AIA_ADDR_APLIC + 1..).zip(pages) {
            set_attribute(
                &self.device,
                KVM_DEV_RISCV_AIA_GRP_ADDR,
                number.into(),
                Some(&page),
                "KVM_DEV_RISCV_AIA_ADDR_IMSIC",
            )?;
        }
        set_attribute::<u32>(
            &self.device,
            KVM_DEV_RISCV_AIA_GRP_CTRL,
            KVM_DEV_RISCV_AIA_CTRL_INIT.into(),
            None,
            "KVM_DEV_RISCV_AIA_CTRL_INIT",
        )?;
        let all = aia::takes_all_bits(&self.device)?;
        self.all_identities.get_or_init(|| all);
        Ok(())
    }
}

pub(super) fn create_device(vm: &VmFd) -> Result<DeviceFd, KvmError> {
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
pub(super) fn most_identities(device: &DeviceFd) -> Result<u32, KvmError> {
    let number = KVM_DEV_RISCV_AIA_CONFIG_IDS;
    let group = KVM_DEV_RISCV_AIA_GRP_CONFIG;
    let identities = aia::get(device, group, number.into(), "KVM_DEV_RISCV_AIA_CONFIG_IDS")?;
    Ok(u32::try_from(identities).unwrap_or(u32::MAX))
}
