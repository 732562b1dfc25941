//! A kernel of our own, of Debian's source: one that clients of Firecracker start with `acpi=off pci=off`, and stock
//! kernels cannot stand for. Built once, which takes some minutes, and kept under `target/lab`.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

use crate::apt::Archive;
use crate::build::target;
use crate::needs::Needs;
use crate::step::{Result, output, step};

/// Debian's package with the source.
const PACKAGE: &str = "linux-source-6.12";
/// What it has besides `make tinyconfig`.
const CONFIG: &str = "cross/lab/own-kernel.config";
/// Make itself, nicely: other things run beside it.
const MAKE: [&str; 4] = ["-n", "10", "make", "--silent"];

/// What the root file system runs: it shows what the guest has found.
const LOOK: &str = "/bin/busybox mount -t proc none /proc; echo root on $(/bin/busybox grep ' / ' /proc/mounts); \
    echo $(/bin/busybox nproc) processors; /bin/busybox grep virtio /proc/interrupts; /bin/busybox reboot -f\n";

/// What building it needs.
pub(super) fn needs() -> Needs {
    Needs::default().tools(&[
        ("bc", "bc"),
        ("bison", "bison"),
        ("cc", "gcc"),
        ("flex", "flex"),
        ("make", "make"),
        ("/usr/include/libelf.h", "libelf-dev"),
    ])
}

fn folder() -> PathBuf {
    target().join("lab/own-kernel")
}

/// Gets the source; quick when it is there.
pub(super) fn fetch() -> Result<PathBuf> {
    let source = folder().join(PACKAGE);
    if source.exists() {
        return Ok(source);
    }
    // A name of its own until it is whole.
    let partial = folder().join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    let package = Archive::of_machine()?.download(PACKAGE, &partial)?;
    output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(package)
            .arg(&partial),
    )?;
    let packed = partial.join(format!("usr/src/{PACKAGE}.tar.xz"));
    let unpacked = partial.join("source");
    fs::create_dir(&unpacked)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--strip-components=1", "--file"])
        .arg(packed)
        .arg("--directory")
        .arg(&unpacked);
    step(&format!("unpacking {PACKAGE}"), &mut tar)?;
    fs::rename(unpacked, &source)?;
    fs::remove_dir_all(partial)?;
    Ok(source)
}

/// Builds it; quick when that was done with the same configuration.
pub(super) fn build() -> Result<PathBuf> {
    let source = fetch()?;
    let config = fs::read_to_string(CONFIG)?;
    let (kernel, built) = (folder().join("vmlinux"), folder().join("built"));
    if kernel.exists() && fs::read_to_string(&built).is_ok_and(|built| built == config) {
        return Ok(kernel);
    }
    let out = std::path::absolute(folder().join("out"))?;
    fs::create_dir_all(&out)?;
    let make = |what: &[&str]| {
        let mut make = Command::new("nice");
        make.args(MAKE)
            .arg(format!("O={}", out.display()))
            .args(what)
            .current_dir(&source);
        make
    };
    output(&mut make(&["tinyconfig"]))?;
    let tiny = fs::read_to_string(out.join(".config"))?;
    fs::write(out.join(".config"), format!("{tiny}{config}"))?;
    output(&mut make(&["olddefconfig"]))?;
    let has = fs::read_to_string(out.join(".config"))?;
    let wanted = config.lines().filter(|line| line.ends_with("=y"));
    for line in wanted {
        if !has.lines().any(|option| option == line) {
            return Err(format!("{PACKAGE} has no {line}").into());
        }
    }
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    step(
        "building a kernel of our own",
        &mut make(&[&format!("--jobs={jobs}"), "vmlinux"]),
    )?;
    output(
        Command::new("objcopy")
            .arg("--strip-debug")
            .arg(out.join("vmlinux"))
            .arg(&kernel),
    )?;
    fs::write(built, config)?;
    Ok(kernel)
}

/// Makes its root file system.
pub(super) fn root(busybox: &Path, file: &Path) -> Result<()> {
    let root = folder().join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for name in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(busybox, root.join("bin/busybox"))?;
    fs::write(root.join("look"), LOOK)?;
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(&root)
        .arg(file)
        .arg("8M");
    output(&mut make).map(drop)
}
