//! A thousand jailed machines of our `firecracker`, which leave nothing behind.

use std::path::Path;

use fs_err as fs;

use crate::build::cargo_command;
use crate::dist;
use crate::fctools;
use crate::step::{Result, step};

const WHAT: &str = "jailed machines that come and go";
/// How many; a minute's worth.
const CYCLES: &str = "1000";

/// Runs them. Says why it did not.
pub(crate) fn run() -> Result<Option<String>> {
    if let Some(reason) = fctools::refusal(WHAT)? {
        return Ok(Some(reason));
    }
    let folder = dist::build_front_end(fctools::TARGET)?;
    let program = fs::canonicalize(Path::new(&folder).join("firecracker"))?;
    let mut test = cargo_command();
    test.args(["test", "--package=vmm-jailer", "--test=cycles"])
        .args(["--", "--ignored"])
        .env("VMM_TEST_FIRECRACKER", program)
        .env("VMM_TEST_CYCLES", CYCLES);
    step(&format!("{CYCLES} {WHAT}"), &mut test)?;
    Ok(None)
}
