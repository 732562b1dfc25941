//! Saves and loads vCPUs.

use arch::{Bytes, Difference, KvmError};
use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1};
use kvm_ioctls::{Error as Errno, VcpuFd};

use crate::registers::{name, size};
use crate::state::{Events, VcpuState};

/// EINVAL.
const EINVAL: i32 = 22;
/// The most registers that the list has room for.
const MOST: usize = 500;

/// What KVM would say to something that cannot be handed to it.
pub(super) fn refused(operation: &'static str) -> KvmError {
    KvmError::of(operation)(Errno::new(EINVAL))
}

/// Everything of a vCPU that has no access of its own pending.
pub(super) fn save_vcpu(vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
    let mut list = RegList::new(MOST).map_err(|_| refused("KVM_GET_REG_LIST"))?;
    vcpu.get_reg_list(&mut list)
        .map_err(KvmError::of("KVM_GET_REG_LIST"))?;
    let register = |id: &u64| {
        let value = get_register(vcpu, *id).map_err(KvmError::of("KVM_GET_ONE_REG"))?;
        Ok((*id, value))
    };
    let registers = list.as_slice().iter().map(register);
    let events = vcpu
        .get_vcpu_events()
        .map_err(KvmError::of("KVM_GET_VCPU_EVENTS"))?;
    let mp_state = vcpu
        .get_mp_state()
        .map_err(KvmError::of("KVM_GET_MP_STATE"))?;
    Ok(VcpuState {
        registers: registers.collect::<Result<_, KvmError>>()?,
        events: events.exception.into(),
        mp_state: mp_state.mp_state,
    })
}

/// Makes a new vCPU what another one was.
pub(super) fn load_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let registers = state.in_order();
    let registers = registers.ok_or_else(|| refused("KVM_SET_ONE_REG"))?;
    let mut differences = Vec::new();
    for (id, value) in registers {
        match set_register(vcpu, *id, value) {
            Err(KvmError::Differs(more)) => differences.extend(more),
            result => result?,
        }
    }
    if !differences.is_empty() {
        return Err(KvmError::Differs(differences));
    }
    vcpu.set_vcpu_events(&kvm_vcpu_events {
        exception: state.events.into(),
        ..kvm_vcpu_events::default()
    })
    .map_err(KvmError::of("KVM_SET_VCPU_EVENTS"))?;
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(KvmError::of("KVM_SET_MP_STATE"))
}

fn get_register(vcpu: &VcpuFd, id: u64) -> Result<Bytes, Errno> {
    let mut bytes = vec![0; size(id).ok_or(Errno::new(EINVAL))?];
    vcpu.get_one_reg(id, &mut bytes)?;
    Ok(Bytes(bytes))
}

/// Writes a register unless it has the value already: what the host decides cannot be written, not even with the same
/// value. The value has the register's size, or the answer is an error.
pub(super) fn set_register(vcpu: &VcpuFd, id: u64, wanted: &Bytes) -> Result<(), KvmError> {
    let own = get_register(vcpu, id);
    if own.as_ref() == Ok(wanted) || vcpu.set_one_reg(id, &wanted.0).is_ok() {
        return Ok(());
    }
    let here = own.map_or_else(|_| "not".to_owned(), |own| own.number());
    Err(KvmError::Differs(vec![Difference::new(
        name(id),
        wanted.number(),
        here,
    )]))
}

impl From<kvm_vcpu_events__bindgen_ty_1> for Events {
    fn from(events: kvm_vcpu_events__bindgen_ty_1) -> Self {
        Self {
            serror_pending: events.serror_pending,
            serror_has_esr: events.serror_has_esr,
            ext_dabt_pending: events.ext_dabt_pending,
            serror_esr: events.serror_esr,
        }
    }
}

impl From<Events> for kvm_vcpu_events__bindgen_ty_1 {
    fn from(events: Events) -> Self {
        Self {
            serror_pending: events.serror_pending,
            serror_has_esr: events.serror_has_esr,
            ext_dabt_pending: events.ext_dabt_pending,
            serror_esr: events.serror_esr,
            ..Self::default()
        }
    }
}
