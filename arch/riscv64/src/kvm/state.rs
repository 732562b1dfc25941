//! Saves and loads vCPUs.

use arch::{Bytes, Difference, KvmError};
use kvm_bindings::{KVMIO, kvm_mp_state, kvm_reg_list};
use kvm_ioctls::{Error as Errno, VcpuFd};
use vmm_sys_util::ioctl::ioctl_with_mut_ptr;
use vmm_sys_util::ioctl_iowr_nr;

use crate::registers::{SIP, SSTC, TIMER_STATE, extension, is_extension, name, size};
use crate::state::{MOST_REGISTERS, Register, VcpuState, pending};

ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, kvm_reg_list);

/// EINVAL.
const EINVAL: i32 = 22;
/// KVM's own timer runs (KVM_RISCV_TIMER_STATE_ON).
const TIMER_ON: u64 = 1;

/// What KVM would say to something that cannot be handed to it.
pub(super) fn refused(operation: &'static str) -> KvmError {
    KvmError::of(operation)(Errno::new(EINVAL))
}

/// The registers of a vCPU. kvm-bindings 0.14 has room for 200 of them, and there are more.
fn list(vcpu: &VcpuFd) -> Result<Vec<u64>, KvmError> {
    let mut list = vec![0_u64; 1 + MOST_REGISTERS];
    if let Some(most) = list.first_mut() {
        *most = MOST_REGISTERS as u64;
    }
    // SAFETY: KVM writes at most as many registers as the first value says, which there is room for, and the list
    // outlives the call.
    let result = unsafe {
        ioctl_with_mut_ptr(
            vcpu,
            KVM_GET_REG_LIST(),
            list.as_mut_ptr().cast::<kvm_reg_list>(),
        )
    };
    if result < 0 {
        return match Errno::last().errno() {
            EINVAL => Err(KvmError::Lacks {
                what: "a list of a vCPU's registers (KVM_GET_REG_LIST)",
                cure: "use Linux 6.6 or newer",
            }),
            errno => Err(KvmError::of("KVM_GET_REG_LIST")(Errno::new(errno))),
        };
    }
    let mut values = list.into_iter();
    let count = values.next().and_then(|count| usize::try_from(count).ok());
    Ok(values.take(count.unwrap_or(0)).collect())
}

/// Everything of a vCPU that has no access of its own pending.
pub(super) fn save_vcpu(vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
    let register = |id| {
        let value = get_register(vcpu, id).map_err(KvmError::of("KVM_GET_ONE_REG"))?;
        Ok((id, value))
    };
    let registers = list(vcpu)?.into_iter().map(register);
    let registers = registers.collect::<Result<_, KvmError>>()?;
    let mp_state = vcpu
        .get_mp_state()
        .map_err(KvmError::of("KVM_GET_MP_STATE"))?;
    let state = VcpuState {
        registers,
        mp_state: mp_state.mp_state,
    };
    if !state.has_its_vectors() {
        return Err(KvmError::Lacks {
            what: "vectors in the list of a vCPU's registers",
            cure: "use Linux 6.8 or newer",
        });
    }
    if state.is_starting() {
        return Err(KvmError::NotSaved(
            "a vCPU that is being started: let the guest go on and try again",
        ));
    }
    Ok(state)
}

/// Makes a new vCPU what another one was.
pub(super) fn load_vcpu(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let own = list(vcpu)?;
    let parts = state.in_order();
    for part in parts.ok_or_else(|| refused("KVM_SET_ONE_REG"))? {
        load(vcpu, &part)?;
    }
    // With Sstc the vCPU has a timer, which needs nothing but the time at which it rings. KVM's own one rings once
    // at its start, whenever it is to ring (Linux 6.12 and 7.1, kvm_riscv_vcpu_set_reg_timer).
    if state.has_timer() && !own.contains(&extension(SSTC)) {
        set_register(vcpu, TIMER_STATE, &Bytes(TIMER_ON.to_le_bytes().to_vec()))?;
    }
    vcpu.set_mp_state(kvm_mp_state {
        mp_state: state.mp_state,
    })
    .map_err(KvmError::of("KVM_SET_MP_STATE"))
}

/// All that KVM does not take is said in one message.
fn load(vcpu: &VcpuFd, registers: &[&Register]) -> Result<(), KvmError> {
    let mut differences = Vec::new();
    for (id, value) in registers {
        let loaded = if *id == SIP {
            set_pending(vcpu, value)
        } else {
            set_register(vcpu, *id, value)
        };
        match loaded {
            Err(KvmError::Differs(more)) => differences.extend(more),
            result => result?,
        }
    }
    if differences.is_empty() {
        Ok(())
    } else {
        Err(KvmError::Differs(differences))
    }
}

fn get_register(vcpu: &VcpuFd, id: u64) -> Result<Bytes, Errno> {
    let mut bytes = vec![0; size(id)];
    vcpu.get_one_reg(id, &mut bytes)?;
    Ok(Bytes(bytes))
}

/// Writes a register unless it has the value already: what the host decides cannot be written, on some kernels not even
/// with the same value. The value has the register's size, or the answer is an error.
fn set_register(vcpu: &VcpuFd, id: u64, wanted: &Bytes) -> Result<(), KvmError> {
    let own = get_register(vcpu, id);
    if own.as_ref() == Ok(wanted) || vcpu.set_one_reg(id, &wanted.0).is_ok() {
        return Ok(());
    }
    // Of an extension that cannot be switched off the guest does not hear.
    if is_extension(id) && wanted.0.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let here = own.map_or_else(|_| "not".to_owned(), |own| own.number());
    Err(KvmError::Differs(vec![Difference::new(
        name(id),
        wanted.number(),
        here,
    )]))
}

fn set_pending(vcpu: &VcpuFd, saved: &Bytes) -> Result<(), KvmError> {
    let number = |bytes: &Bytes| bytes.0.as_slice().try_into().map(u64::from_le_bytes);
    let own = get_register(vcpu, SIP).map_err(KvmError::of("KVM_GET_ONE_REG"))?;
    let (Ok(saved), Ok(own)) = (number(saved), number(&own)) else {
        return Err(refused("KVM_SET_ONE_REG"));
    };
    set_register(
        vcpu,
        SIP,
        &Bytes(pending(saved, own).to_le_bytes().to_vec()),
    )
}
