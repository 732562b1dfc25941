//! KVM's interrupt controller.

use arch::{KvmError, KvmIrqChip, set_attribute};
use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use crate::gic::{GicV3, REDISTRIBUTOR};

/// KVM's GICv3 and its ITS.
#[derive(Debug)]
pub struct KvmChip {
    pub(super) gic: DeviceFd,
    pub(super) its: DeviceFd,
    pub(super) vcpus: u32,
    intids: u32,
}

impl KvmChip {
    pub(super) fn new(vm: &VmFd, model: &GicV3) -> Result<Self, KvmError> {
        let gic = create_device(
            vm,
            kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
            "an interrupt controller GICv3",
        )?;
        let its = create_device(
            vm,
            kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
            "an interrupt translation service (GICv3 ITS)",
        )?;
        for (device, kind, base, operation) in [
            (
                &gic,
                KVM_VGIC_V3_ADDR_TYPE_DIST,
                model.distributor.base,
                "KVM_VGIC_V3_ADDR_TYPE_DIST",
            ),
            (
                &gic,
                KVM_VGIC_V3_ADDR_TYPE_REDIST,
                model.redistributors.base,
                "KVM_VGIC_V3_ADDR_TYPE_REDIST",
            ),
            (
                &its,
                KVM_VGIC_ITS_ADDR_TYPE,
                model.its.base,
                "KVM_VGIC_ITS_ADDR_TYPE",
            ),
        ] {
            set_attribute(
                device,
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                kind.into(),
                Some(&base),
                operation,
            )?;
        }
        Ok(Self {
            gic,
            its,
            intids: model.intids,
            vcpus: u32::try_from(model.redistributors.len / REDISTRIBUTOR).unwrap_or(u32::MAX),
        })
    }
}

impl KvmIrqChip for KvmChip {
    fn activate(&self, _vm: &VmFd) -> Result<(), KvmError> {
        set_attribute(
            &self.gic,
            KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
            0,
            Some(&self.intids),
            "KVM_DEV_ARM_VGIC_GRP_NR_IRQS",
        )?;
        for (device, operation) in [
            (&self.gic, "KVM_DEV_ARM_VGIC_CTRL_INIT (GICv3)"),
            (&self.its, "KVM_DEV_ARM_VGIC_CTRL_INIT (ITS)"),
        ] {
            let attribute = KVM_DEV_ARM_VGIC_CTRL_INIT.into();
            set_attribute::<u32>(
                device,
                KVM_DEV_ARM_VGIC_GRP_CTRL,
                attribute,
                None,
                operation,
            )?;
        }
        Ok(())
    }
}

fn create_device(vm: &VmFd, kind: u32, what: &'static str) -> Result<DeviceFd, KvmError> {
    let mut device = kvm_create_device {
        type_: kind,
        ..Default::default()
    };
    vm.create_device(&mut device).map_err(KvmError::of_device(
        what,
        "use a host with a GICv3: one with a GICv2 cannot offer it to guests",
    ))
}
