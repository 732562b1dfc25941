//! Attributes of KVM's devices and of vCPUs (Linux Documentation/virt/kvm/devices).

use std::ptr;

use kvm_bindings::kvm_device_attr;

use crate::{DeviceFd, KvmError};

/// An attribute, with the value that it has or is given; some are commands and have none.
pub fn attribute<T>(group: u32, number: u64, value: Option<&T>) -> kvm_device_attr {
    kvm_device_attr {
        group,
        attr: number,
        addr: value.map_or(0, |value| ptr::from_ref(value) as u64),
        flags: 0,
    }
}

/// Gives an attribute of a device its value.
///
/// # Errors
/// What KVM answers, under the name of `operation`.
pub fn set_attribute<T>(
    device: &DeviceFd,
    group: u32,
    number: u64,
    value: Option<&T>,
    operation: &'static str,
) -> Result<(), KvmError> {
    device
        .set_device_attr(&attribute(group, number, value))
        .map_err(KvmError::of(operation))
}

/// The value of an attribute of a device; of one with 32 bits KVM writes the lower half.
///
/// # Safety
/// The attribute has at most 64 bits.
///
/// # Errors
/// What KVM answers, under the name of `operation`.
pub unsafe fn get_attribute(
    device: &DeviceFd,
    group: u32,
    number: u64,
    operation: &'static str,
) -> Result<u64, KvmError> {
    let mut value = 0_u64;
    let mut attribute = kvm_device_attr {
        addr: ptr::from_mut(&mut value) as u64,
        ..attribute::<u64>(group, number, None)
    };
    // SAFETY: the value has room for what the caller promises, and outlives the call.
    unsafe { device.get_device_attr(&mut attribute) }.map_err(KvmError::of(operation))?;
    Ok(value)
}
