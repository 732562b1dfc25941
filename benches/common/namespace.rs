//! A network namespace of the bench's own, and taps in it.

use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Set in the process that has a namespace of its own.
const INSIDE: &str = "VMM_BENCH_NAMESPACE";

/// Where a bench runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// In a network namespace of its own.
    Own,
    /// This program ran again in one, and that was all of it.
    Done,
    /// It may not have one.
    Refused,
}

/// Starts this program again in a network namespace of its own, unless it is that already.
pub(crate) fn enter() -> Result<Namespace> {
    if std::env::var_os(INSIDE).is_some() {
        return Ok(Namespace::Own);
    }
    let allowed = Command::new("unshare").args(["-n", "true"]).output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        return Ok(Namespace::Refused);
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe()?)
        .env(INSIDE, "1")
        .status()?;
    if status.success() {
        Ok(Namespace::Done)
    } else {
        Err("it failed in its namespace".into())
    }
}

/// Runs the tool `ip`.
pub(crate) fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    let error = String::from_utf8_lossy(&output.stderr);
    Err(format!("ip {arguments}: {error}").into())
}
