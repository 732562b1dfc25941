//! `cargo xtask demo`: a stock Debian system on this machine's own KVM, with disk and network.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::build::{cargo, target};
use crate::lab::ARCHITECTURES;
use crate::step::{Result, output, step};
use crate::system;

const TAP: &str = "vmm-demo";
/// A kernel greets within a second on hardware.
const PATIENCE: Duration = Duration::from_secs(20);
const GREETING: &str = "Linux version";

pub(crate) fn run() -> Result<()> {
    let arch = ARCHITECTURES
        .iter()
        .find(|arch| arch.name == std::env::consts::ARCH)
        .ok_or("no Debian system is known for this machine's architecture")?;
    let kernel = arch
        .system_kernel
        .ok_or("no Debian system is known for this architecture")?;
    let system = system::prepare(arch.debian, kernel)?;
    cargo("build --quiet --release")?;
    let version = system.kernels.last().ok_or("the system has no kernel")?;
    let file = |name: &str| system.boot.join(format!("{name}-{version}"));
    let (kernel, initrd) = (file("vmlinuz"), file("initrd.img"));
    greets(&kernel).map_err(|error| {
        format!(
            "this machine's KVM does not bring a stock kernel up: {error}\n  cure: a machine with \
             hardware virtualization; the same systems run here in an emulated one: \
             cargo xtask lab {} --only 'system: '",
            arch.name
        )
    })?;

    let disk = disk(&system.disk)?;
    let tap = Tap::new()
        .inspect_err(|error| println!("==> no network: {error}"))
        .ok();
    let mut vmm = Command::new(vmm());
    vmm.arg("--kernel")
        .arg(&kernel)
        .arg("--initrd")
        .arg(&initrd);
    vmm.arg("--blk")
        .arg(&disk)
        .args(tap.as_ref().map(Tap::option));
    vmm.args("--transport=pci --vcpus=2 --guest-memory=1024 --on-reboot=restart".split(' '))
        .arg("--append=root=/dev/vda quiet");
    println!(
        "==> {vmm:?}\n    log in as root, password lab; `systemctl poweroff` or Ctrl-a x ends it; \
         {} keeps what you write",
        disk.display()
    );
    step("Debian", &mut vmm)
}

fn vmm() -> PathBuf {
    target().join("release/vmm-reference")
}

/// Whether a kernel comes as far as its first line: a KVM that interprets what kernels do, or is
/// emulated itself, answers like a good one and brings none up.
fn greets(kernel: &Path) -> Result<()> {
    println!("==> waiting for the kernel's first line");
    let mut child = Command::new(vmm())
        .arg("--kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("the VMM has no stdout")?).lines();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let found = lines.any(|line| line.is_ok_and(|line| line.contains(GREETING)));
        // Nobody waits any more: too late.
        let _ = sender.send(found);
    });
    let found = receiver.recv_timeout(PATIENCE);
    // It may have ended by itself.
    let _ = child.kill();
    let said = child.wait_with_output()?.stderr;
    let said = String::from_utf8_lossy(&said);
    match found {
        Ok(true) => Ok(()),
        Ok(false) => Err(said.lines().next().unwrap_or("it ended in silence").into()),
        Err(_) => Err(format!("not a word in {} s", PATIENCE.as_secs()).into()),
    }
}

/// A copy of the system's disk, which stays from one demo to the next and goes with the system.
fn disk(original: &Path) -> Result<PathBuf> {
    let disk = original.with_file_name("disk-of-demo");
    if !disk.exists() {
        let partial = disk.with_extension("partial");
        let mut copy = Command::new("cp");
        copy.args(["--sparse=always", "--reflink=auto"]);
        output(copy.arg(original).arg(&partial))?;
        std::fs::rename(&partial, &disk)?;
    }
    Ok(disk)
}

/// A tap with this machine's address on the demo's network; deleted when dropped.
struct Tap;

impl Tap {
    fn new() -> Result<Self> {
        let ip = |arguments: &str| output(Command::new("ip").args(arguments.split(' ')));
        ip(&format!("tuntap add dev {TAP} mode tap vnet_hdr"))?;
        // From here on it is deleted whatever happens.
        let tap = Self;
        ip(&format!("addr add 10.9.0.1/24 dev {TAP}"))?;
        ip(&format!("link set {TAP} up"))?;
        println!("==> the guest is 10.9.0.2, this machine 10.9.0.1 ({TAP})");
        Ok(tap)
    }

    fn option(&self) -> String {
        format!("--net={TAP}")
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing more can be done here.
        let _ = Command::new("ip").args(["link", "del", TAP]).status();
    }
}
