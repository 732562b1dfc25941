//! Opening /dev/kvm, and what of KVM every machine needs.

use std::io;

use arch::{KvmError, KvmPlatform};
use kvm_ioctls::{Cap, Kvm};

use super::access;
use crate::Error;

/// The only KVM API version there is (KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

/// What the core uses on every architecture, as the KVM API documentation names it.
pub(super) const NEEDED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens /dev/kvm and checks what the core cannot do without.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = open()?;
    check_version(&kvm)?;
    for needed in NEEDED {
        KvmError::check(&kvm, &[needed])?;
    }
    Ok(kvm)
}

pub(super) fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(|error| {
        let source = io::Error::from(error);
        Error::KvmUnavailable {
            cure: access::cure(&source),
            source,
        }
    })
}

pub(super) fn check_version(kvm: &Kvm) -> Result<String, Error> {
    match kvm.get_api_version() {
        API_VERSION => Ok(format!("version {API_VERSION}")),
        version => Err(Error::KvmUnavailable {
            cure: "use the KVM of a Linux kernel from 2.6.22 on".to_owned(),
            source: io::Error::other(format!("its API is version {version}, not {API_VERSION}")),
        }),
    }
}

/// Reads the facts of this host.
///
/// # Errors
/// When KVM is missing, or lacks what the platform needs.
pub fn probe<P: KvmPlatform>() -> Result<P, Error> {
    Ok(P::probe(&open_kvm()?)?)
}
