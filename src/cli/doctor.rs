//! `doctor`: what the host offers, what is missing and how to cure it.

use std::error::Error as _;
use std::process::ExitCode;

use vmm_reference::{Check, Error, HostPlatform, diagnose};

use super::FAILED;

pub(super) fn check() -> Result<ExitCode, Error> {
    let print = |line: String| super::files::print(&line);
    let mut failed = false;
    for Check { what, result } in diagnose::<HostPlatform>() {
        match result {
            Ok(found) => print(format!("ok    {what}: {found}"))?,
            Err(error) => {
                failed = true;
                let cause = error
                    .source()
                    .map(|cause| format!(": {cause}"))
                    .unwrap_or_default();
                print(format!("FAIL  {what}: {error}{cause}"))?;
                if let Some(cure) = error.cure() {
                    print(format!("      cure: {cure}"))?;
                }
            }
        }
    }
    if failed {
        print("this host cannot run VMs yet".to_owned())?;
        Ok(FAILED.into())
    } else {
        print("this host can run VMs".to_owned())?;
        Ok(ExitCode::SUCCESS)
    }
}
