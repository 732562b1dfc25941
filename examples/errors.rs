//! What can be wrong, and what a program gets to know of it: which value of the configuration it is, the host's own
//! error, and what would help.
//!
//! `errors [KERNEL]`; without a kernel, the built-in guest is the one that would boot.

use std::error::Error as _;
use std::io::ErrorKind;

use vmm_reference::{BlkConfig, Console, Error, Vm, VmConfig};

/// What a program might do about an error.
fn decide(error: &Error) -> String {
    match error {
        // A value is wrong whatever the host: ask for another one.
        Error::Config { field, value, .. } => format!("change {field}, which is {value:?}"),
        // The host refuses what a value names.
        Error::Refused { field, source, .. } if source.kind() == ErrorKind::NotFound => {
            format!("{field} names nothing")
        }
        Error::Refused { field, source, .. } => {
            format!("{field} cannot be used: {:?}", source.kind())
        }
        Error::Boot { field, .. } => format!("{field} is no file that boots here"),
        Error::KvmUnavailable { source, .. } => format!("no KVM: {:?}", source.kind()),
        Error::Vcpu { id, report, .. } => format!("vCPU {id} gave up:\n{report}"),
        // Others may come: what helps everywhere is the host's error behind it.
        other => match other.io() {
            Some(error) => format!("the host said {:?}", error.kind()),
            None => "nothing in particular".to_owned(),
        },
    }
}

fn main() {
    let mut config = VmConfig::default();
    if let Some(kernel) = std::env::args_os().nth(1) {
        config = config.with_kernel(kernel);
    }
    for (what, config) in [
        ("no vCPUs", config.clone().with_vcpus(0)),
        (
            "no kernel there",
            config.clone().with_kernel("/nowhere/vmlinuz"),
        ),
        (
            "a program as a kernel",
            config.clone().with_kernel("/proc/self/exe"),
        ),
        (
            "no disk there",
            config.clone().with_disk(BlkConfig::new("/nowhere/disk")),
        ),
        ("a folder as a disk", config.with_disk(BlkConfig::new("/"))),
    ] {
        let Err(error) = Vm::new(&config, Console::null()) else {
            println!("{what}: nothing is wrong");
            continue;
        };
        // One line: the error and all that is behind it.
        println!("{what}: {}", error.chain());
        println!("  decision: {}", decide(&error));
        if let Some(cure) = error.cure() {
            println!("  cure: {cure}");
        }
        // The same, by the standard library's means alone.
        let mut source = error.source();
        while let Some(cause) = source {
            println!("  source: {cause}");
            source = cause.source();
        }
    }
}
