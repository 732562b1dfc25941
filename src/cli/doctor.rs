//! `doctor`: what the host offers, what is missing and how to cure it.

use std::error::Error as _;
use std::process::ExitCode;

use vmm_reference::{Check, HostPlatform, diagnose};

use super::FAILED;

pub(super) fn check() -> ExitCode {
    let mut failed = false;
    for Check { what, result } in diagnose::<HostPlatform>() {
        match result {
            Ok(found) => println!("ok    {what}: {found}"),
            Err(error) => {
                failed = true;
                let cause = error
                    .source()
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                println!("FAIL  {what}: {error}{cause}");
                if let Some(cure) = error.cure() {
                    println!("      cure: {cure}");
                }
            }
        }
    }
    if failed {
        println!("this host cannot run VMs yet");
        FAILED.into()
    } else {
        println!("this host can run VMs");
        ExitCode::SUCCESS
    }
}
