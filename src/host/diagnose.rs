//! `diagnose`: everything that a VM needs of the host, or may need.

use arch::{KvmError, KvmPlatform};
use kvm_ioctls::Kvm;

use super::check::Check;
use super::kernel_mode::{self, Tried};
use super::kvm::{NEEDED, check_version, open};
use super::optional;
use crate::Error;

/// Checks everything that a VM needs of this host, as far as it can be checked, and what some VMs need.
/// Makes a VM and runs a few instructions in it, for at most a few seconds. No VM runs here when one of the
/// checks has [`Level::Fail`](crate::Level::Fail).
#[must_use]
pub fn diagnose<P: KvmPlatform>() -> Vec<Check> {
    let mut checks = kvm_checks::<P>();
    checks.extend(optional::checks());
    checks
}

/// Stops where nothing further can be checked.
fn kvm_checks<P: KvmPlatform>() -> Vec<Check> {
    let mut checks = Vec::new();
    let mut check = |name, what, result: Result<String, &Error>| {
        checks.push(Check::needed(name, what, result));
    };
    let kvm = open();
    check("dev_kvm", "/dev/kvm", found(&kvm, "opens for writing"));
    let Ok(kvm) = kvm else {
        return checks;
    };
    check(
        "kvm_api",
        "KVM API",
        check_version(&kvm).as_ref().map(String::clone),
    );
    let missing: Vec<_> = NEEDED
        .iter()
        .filter_map(|needed| KvmError::check(&kvm, &[*needed]).err())
        .map(Error::Kvm)
        .collect();
    let capabilities = "KVM capabilities";
    if missing.is_empty() {
        let names = NEEDED.map(|(_, name)| name).join(", ");
        check("kvm_capabilities", capabilities, Ok(names));
    }
    for error in &missing {
        check("kvm_capabilities", capabilities, Err(error));
    }
    let platform = P::probe(&kvm).map_err(Error::Kvm);
    check(
        "platform",
        "platform",
        found(&platform, "has what the backend needs"),
    );
    if let Ok(platform) = &platform {
        let machine = Tried::new(&kvm, platform);
        check(
            "machine",
            "VM and interrupt chip",
            found(&machine, "can be created"),
        );
        if let Ok(machine) = machine {
            checks.extend(kernel_mode_check(&kvm, platform, machine));
        }
    }
    checks
}

fn found<'a, T>(result: &'a Result<T, Error>, text: &str) -> Result<String, &'a Error> {
    result.as_ref().map(|_| text.to_owned())
}

/// Whether the kernel of a guest runs natively; nothing where the backend has no program to find out.
fn kernel_mode_check<P: KvmPlatform>(kvm: &Kvm, platform: &P, machine: Tried<P>) -> Option<Check> {
    const NAME: &str = "kernel_mode";
    const WHAT: &str = "guest kernel code";
    let program = platform.probe_program()?;
    let seen = match kernel_mode::run(kvm, platform, machine, &program) {
        Ok(seen) => seen,
        Err(error) => return Some(Check::needed(NAME, WHAT, Err(&error))),
    };
    // Short of threads or memory, and none of the program's doing.
    if let Some(errno @ (libc::EAGAIN | libc::ENOMEM)) = seen.refused {
        let error = KvmError::of("KVM_RUN")(kvm_ioctls::Error::new(errno));
        return Some(Check::needed(NAME, WHAT, Err(&error.into())));
    }
    let cure = "stock kernels need a host with hardware virtualization; if this host is a VM, enable nested \
                virtualization for it";
    Some(match (seen.slower(), seen.finished) {
        (None, true) => Check::ok(NAME, WHAT, "runs natively"),
        (slower, finished) => {
            let speed = match slower {
                Some(factor) => {
                    format!("this host interprets it: about {factor} times slower than its own")
                }
                None => "this host does not run all of it".to_owned(),
            };
            let unknown = if finished {
                String::new()
            } else {
                format!(
                    "; kernels that use {} fail with {}",
                    program.last_part,
                    seen.end.as_deref().unwrap_or("no answer in time")
                )
            };
            Check::warn(NAME, WHAT, format!("{speed}{unknown}"), cure)
        }
    })
}
