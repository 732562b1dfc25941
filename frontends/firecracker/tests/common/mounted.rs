//! A process in a mount namespace of its own.

use std::fs;
use std::process::{Command, Stdio};

use super::letters::PAUSED;
use super::{Process, folder, letters, wait_for};

/// The program after a script in a mount namespace of its own, with a machine that stands still; none where there can be no
/// such namespace.
pub(crate) fn mounted(script: &str, files: &[&str]) -> Option<Process> {
    let folder = folder(&letters());
    for name in files {
        fs::write(folder.path().join(name), "before").unwrap();
    }
    fs::create_dir(folder.path().join("small")).unwrap();
    let unshare = || {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.arg("--map-root-user");
        }
        command.arg("--mount");
        command
    };
    if !unshare()
        .arg("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("SKIPPED: no mount namespace");
        return None;
    }
    let script = format!("{script} && exec \"$0\" \"$@\"");
    let mut command = unshare();
    command
        .args(["sh", "-c", &script, env!("CARGO_BIN_EXE_firecracker")])
        .args(["--api-sock", "api"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let process = Process::of(folder, command);
    wait_for("the socket", || process.path("api").exists().then_some(()));
    process.boot();
    process.patch("/vm", PAUSED);
    Some(process)
}
