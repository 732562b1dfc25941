//! `cargo xtask python`: a client on PyPI, against our `firecracker`.

use std::path::Path;
use std::process::Command;

use fs_err as fs;

use crate::build::target;
use crate::dist;
use crate::fctools;
use crate::needs::Needs;
use crate::step::{Result, run as run_command, step, timed};

/// The client, in the version that was looked at.
const CLIENT: &str = "firecracker-python==0.0.5";
const SCRIPT: &str = "frontends/firecracker/tests/python/client.py";
/// Runs in the namespaces: a tap stands for the interface that leads to the world, which the client looks for.
const APART: &str = r#"
ip link set lo up
ip tuntap add mode tap name eth0
ip addr add 192.0.2.2/24 dev eth0
ip link set eth0 up
ip route add default via 192.0.2.3
exec timeout --foreground --kill-after=5 "$@"
"#;
/// Seconds; it takes ten.
const LIMIT: &str = "120";

/// What it needs, where it can run.
pub(crate) fn needs() -> Result<Needs> {
    // A Python with the module venv.
    Ok(fctools::needs()?.tools(&[("python3", "python3-venv")]))
}

/// Runs it. Says why it did not.
pub(crate) fn run() -> Result<Option<String>> {
    if let Some(reason) = fctools::refusal("a client in Python")? {
        return Ok(Some(reason));
    }
    let folder = target().join("python");
    let venv = folder.join("venv");
    if let Err(error) = timed("a client in Python", || install(&venv)) {
        return Ok(Some(format!(
            "a client in Python: it cannot be had: {error}"
        )));
    }
    let programs = dist::build_front_end(fctools::TARGET)?;
    let kernel = fctools::guest()?;
    let data = folder.join("data");
    if data.exists() {
        fs::remove_dir_all(&data)?;
    }
    fs::create_dir_all(&data)?;
    let data = fs::canonicalize(data)?;
    let rootfs = data.join("rootfs.ext4");
    fs::File::create(&rootfs)?.set_len(1 << 20)?;
    let mut client = Command::new("unshare");
    client
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["--mount-proc", "sh", "-ec", APART, "sh", LIMIT])
        .arg(fs::canonicalize(venv)?.join("bin/python"))
        .arg(SCRIPT)
        .args([
            fs::canonicalize(programs.join("firecracker"))?,
            data,
            fs::canonicalize(kernel)?,
        ])
        .arg(rootfs);
    step("the client in Python", &mut client)?;
    Ok(None)
}

/// Installs the client with all that it needs, if it is not there.
fn install(venv: &Path) -> Result<()> {
    let has_it = venv.join("installed");
    if fs::read_to_string(&has_it).is_ok_and(|client| client == CLIENT) {
        return Ok(());
    }
    run_command(Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    let mut install = Command::new(venv.join("bin/pip"));
    run_command(install.args(["install", "--quiet", "--disable-pip-version-check", CLIENT]))?;
    Ok(fs::write(has_it, CLIENT)?)
}
