//! Saves and loads the interrupt controllers.

use arch::{KvmError, get_attribute, set_attribute};
use kvm_bindings::{
    KVM_DEV_RISCV_AIA_GRP_APLIC, KVM_DEV_RISCV_AIA_GRP_IMSIC, KVM_DEV_RISCV_AIA_IMSIC_ISEL_BITS,
};
use kvm_ioctls::DeviceFd;

use super::state::refused;
use crate::aia::Aia;
use crate::aia_registers::{DOMAINCFG, EIDELIVERY, EITHRESHOLD, FIRST_EIE, UPPER};
use crate::state::{ChipState, MessageState};

/// For errors.
const APLIC: &str = "KVM_DEV_RISCV_AIA_GRP_APLIC";
const IMSIC: &str = "KVM_DEV_RISCV_AIA_GRP_IMSIC";

pub(super) fn get(
    device: &DeviceFd,
    group: u32,
    number: u64,
    operation: &'static str,
) -> Result<u64, KvmError> {
    // SAFETY: no attribute of this device has more than 64 bits.
    unsafe { get_attribute(device, group, number, operation) }
}

/// The attribute of a register of a vCPU's message controller (KVM_DEV_RISCV_AIA_IMSIC_MKATTR).
fn message_register(vcpu: u32, place: u32) -> u64 {
    u64::from(vcpu) << KVM_DEV_RISCV_AIA_IMSIC_ISEL_BITS | u64::from(place)
}

fn get_message(device: &DeviceFd, vcpu: u32, place: u32) -> Result<u64, KvmError> {
    let register = message_register(vcpu, place);
    get(device, KVM_DEV_RISCV_AIA_GRP_IMSIC, register, IMSIC)
}

fn set_message(device: &DeviceFd, vcpu: u32, place: u32, value: u64) -> Result<(), KvmError> {
    let register = message_register(vcpu, place);
    let group = KVM_DEV_RISCV_AIA_GRP_IMSIC;
    set_attribute(device, group, register, Some(&value), IMSIC)
}

/// Whether a message controller that is emulated, as all are at first, takes all bits of its registers: see
/// [`MessageState::has_upper_identities`].
pub(super) fn takes_all_bits(device: &DeviceFd) -> Result<bool, KvmError> {
    set_message(device, 0, FIRST_EIE, UPPER)?;
    let found = get_message(device, 0, FIRST_EIE)?;
    set_message(device, 0, FIRST_EIE, 0)?;
    Ok(found == UPPER)
}

/// Once all edges were made.
pub(super) fn save(device: &DeviceFd, model: &Aia) -> Result<ChipState, KvmError> {
    let get = |place: u32| {
        let value = get(device, KVM_DEV_RISCV_AIA_GRP_APLIC, place.into(), APLIC)?;
        u32::try_from(value).map_err(|_| refused(APLIC))
    };
    Ok(ChipState {
        domain: get(DOMAINCFG)?,
        modes: model.modes().map(get).collect::<Result<_, _>>()?,
        targets: model.targets().map(get).collect::<Result<_, _>>()?,
        pending: model.pending().map(get).collect::<Result<_, _>>()?,
        enabled: model.enabled().map(get).collect::<Result<_, _>>()?,
        messages: (0..model.vcpus())
            .map(|vcpu| save_messages(device, model, vcpu))
            .collect::<Result<_, _>>()?,
    })
}

fn save_messages(device: &DeviceFd, model: &Aia, vcpu: u32) -> Result<MessageState, KvmError> {
    let get = |place| get_message(device, vcpu, place);
    Ok(MessageState {
        delivery: get(EIDELIVERY)?,
        threshold: get(EITHRESHOLD)?,
        pending: model
            .pending_messages()
            .map(get)
            .collect::<Result<_, _>>()?,
        enabled: model
            .enabled_messages()
            .map(get)
            .collect::<Result<_, _>>()?,
    })
}

/// The message controllers come first: they have what the other one has sent.
pub(super) fn load(device: &DeviceFd, model: &Aia, state: &ChipState) -> Result<(), KvmError> {
    if u32::try_from(state.messages.len()) != Ok(model.vcpus()) {
        return Err(refused(IMSIC));
    }
    for (vcpu, messages) in (0..).zip(&state.messages) {
        let writes = messages.writes(model).ok_or_else(|| refused(IMSIC))?;
        for (place, value) in writes {
            set_message(device, vcpu, place, value)?;
        }
    }
    let writes = state.writes(model).ok_or_else(|| refused(APLIC))?;
    for (place, value) in writes {
        let group = KVM_DEV_RISCV_AIA_GRP_APLIC;
        set_attribute(device, group, place.into(), Some(&value), APLIC)?;
    }
    Ok(())
}
