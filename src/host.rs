//! What the host offers: opening KVM, reading a platform's facts, and naming what is missing.

use std::io;

use arch::{KvmError, KvmPlatform};
use kvm_ioctls::{Cap, Kvm};

use crate::{Error, VmConfig};

/// The only KVM API version there is (KVM_GET_API_VERSION).
const API_VERSION: i32 = 12;

/// What the core uses on every architecture, as the KVM API documentation names it.
const NEEDED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// One line of a diagnosis.
#[derive(Debug)]
pub struct Check {
    /// What was looked at.
    pub what: &'static str,
    /// What was found, or what is wrong.
    pub result: Result<String, Error>,
}

/// Opens /dev/kvm and checks what the core cannot do without.
pub(crate) fn open_kvm() -> Result<Kvm, Error> {
    let kvm = open()?;
    for check in check_needed(&kvm) {
        check.result?;
    }
    Ok(kvm)
}

fn open() -> Result<Kvm, Error> {
    Kvm::new().map_err(|error| Error::KvmUnavailable(error.into()))
}

fn check_needed(kvm: &Kvm) -> Vec<Check> {
    let version = kvm.get_api_version();
    let mut checks = vec![Check {
        what: "KVM API",
        result: if version == API_VERSION {
            Ok(format!("version {version}"))
        } else {
            let cause = format!("its API is version {version}, not {API_VERSION}");
            Err(Error::KvmUnavailable(io::Error::other(cause)))
        },
    }];
    checks.extend(NEEDED.map(|(cap, what)| {
        Check {
            what,
            result: KvmError::check(kvm, &[(cap, what)])
                .map(|()| "present".to_owned())
                .map_err(Error::Kvm),
        }
    }));
    checks
}

/// Reads the facts of this host.
///
/// # Errors
/// When KVM is missing, or lacks what the platform needs.
pub fn probe<P: KvmPlatform>() -> Result<P, Error> {
    Ok(P::probe(&open_kvm()?)?)
}

/// Checks everything a VM needs of this host; stops where nothing further can be checked.
#[must_use]
pub fn diagnose<P: KvmPlatform>() -> Vec<Check> {
    let kvm = match open() {
        Ok(kvm) => kvm,
        Err(error) => {
            return vec![Check {
                what: "/dev/kvm",
                result: Err(error),
            }];
        }
    };
    let mut checks = vec![Check {
        what: "/dev/kvm",
        result: Ok("opens for writing".to_owned()),
    }];
    checks.extend(check_needed(&kvm));
    let platform = P::probe(&kvm).map_err(Error::Kvm);
    let machine = platform
        .as_ref()
        .ok()
        .map(|platform| try_machine(&kvm, platform));
    checks.push(Check {
        what: "platform",
        result: platform.map(|_| "has what the backend needs".to_owned()),
    });
    checks.extend(machine.map(|result| Check {
        what: "VM and interrupt chip",
        result: result.map(|()| "can be created".to_owned()),
    }));
    checks
}

/// Makes what no capability tells of: a VM and its interrupt chip.
fn try_machine<P: KvmPlatform>(kvm: &Kvm, platform: &P) -> Result<(), Error> {
    let plan = crate::plan(platform, &VmConfig::default())?;
    let vm = kvm
        .create_vm_with_type(platform.vm_type(&plan))
        .map_err(KvmError::of("KVM_CREATE_VM"))?;
    platform.create_irq_chip(&vm, &platform.irq_chip(&plan)?)?;
    Ok(())
}
