//! Stock Debian systems: a root file system of packages, with systemd and the kernels and initrds as
//! Debian has them. Built once per architecture and kept under `target/system`.

use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

use crate::apt::{self, Archive};
use crate::build::target;
use crate::needs::Needs;
use crate::step::{Result, output, step, text};

/// What a system has besides Debian's essential packages and its kernels.
const PACKAGES: &str = "dbus,initramfs-tools,iproute2,iputils-ping,systemd-sysv,udev,zstd";
const SETUP: &str = "cross/lab/system-setup";
/// Most of it is a hole in the file.
const SIZE: &str = "1G";

/// A system that is ready to boot.
#[derive(Debug)]
pub(crate) struct System {
    /// The root file system, ext4 without partitions.
    pub(crate) disk: PathBuf,
    /// Its folder /boot.
    pub(crate) boot: PathBuf,
    /// The kernels' versions, oldest first: `vmlinuz-VERSION` and `initrd.img-VERSION` are in `boot`.
    pub(crate) kernels: Vec<String>,
}

/// Gives the system of an architecture (Debian's name); quick when it is there and its recipe has not
/// changed.
pub(crate) fn prepare(arch: &str, metapackage: &str) -> Result<System> {
    let folder = target().join("system").join(arch);
    let recipe = format!(
        "{PACKAGES} {metapackage} {SIZE}\n{}",
        fs::read_to_string(SETUP)?
    );
    if fs::read_to_string(folder.join("recipe")).is_ok_and(|built| built == recipe) {
        return System::at(&folder);
    }
    // A name of its own until it is whole: what is cut off is never taken for complete.
    let partial = folder.with_extension("partial");
    for old in [&folder, &partial] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(&partial)?;
    build(arch, metapackage, &partial)?;
    fs::write(partial.join("recipe"), recipe)?;
    fs::rename(&partial, &folder)?;
    System::at(&folder)
}

impl System {
    fn at(folder: &Path) -> Result<Self> {
        let boot = folder.join("boot");
        let mut kernels: Vec<_> = fs::read_dir(&boot)?
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(name.strip_prefix("vmlinuz-")?.to_owned())
            })
            .collect();
        kernels.sort_by_key(|version| numbers(version));
        Ok(Self {
            disk: folder.join("disk"),
            boot,
            kernels,
        })
    }
}

/// The numbers in a version, which sort as it is meant: 6.1 before 6.12.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// Lets the kernel run programs of another architecture, with QEMU's user-mode emulation.
fn run_foreign(arch: &str) -> Result<()> {
    if text(Command::new("dpkg").arg("--print-architecture"))? == arch {
        return Ok(());
    }
    Needs::default()
        .tools(&[
            ("arch-test", "arch-test"),
            ("qemu-aarch64-static", "qemu-user-static"),
        ])
        .provide()?;
    if output(Command::new("arch-test").arg(arch)).is_ok() {
        return Ok(());
    }
    // The package does it when it is installed, unless the file system was not mounted then.
    const MOUNT: &str = "/proc/sys/fs/binfmt_misc";
    println!("==> registering QEMU for programs of {arch} ({MOUNT})");
    if !Path::new(MOUNT).join("register").exists() {
        output(Command::new("mount").args(["-t", "binfmt_misc", "none", MOUNT]))?;
    }
    let name = match arch {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    let file = format!("/usr/lib/binfmt.d/qemu-{name}.conf");
    let entry = fs::read_to_string(&file)?;
    fs::write(Path::new(MOUNT).join("register"), entry.trim())
        .map_err(|error| format!("{error}; cure: run as root"))?;
    output(Command::new("arch-test").arg(arch)).map(drop)
}

fn build(arch: &str, metapackage: &str, folder: &Path) -> Result<()> {
    Needs::default()
        .tools(&[("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs")])
        .provide()?;
    let archive = Archive::of_release(arch)?;
    run_foreign(arch)?;
    // The release's own kernel, and the newer one of the backports. The metapackage has a version in
    // each, of which only one can be installed: the second kernel goes by its own name.
    let mut packages = format!("{PACKAGES},{metapackage}");
    if archive.has_backports() {
        packages = format!(
            "{packages},{}",
            archive.kernel_package(metapackage, folder)?
        );
    }
    let sources = folder.join("sources");
    fs::write(&sources, apt::sources()?)?;
    let root = folder.join("root");
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap
        .args([
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
        ])
        .arg(format!("--architectures={arch}"))
        .arg(format!("--include={packages}"))
        .arg(format!("--customize-hook={SETUP}"))
        .arg(apt::release()?)
        .arg(&root)
        .arg(&sources);
    step(
        &format!("mmdebstrap of a system for {arch}"),
        &mut bootstrap,
    )
    .map_err(|error| format!("{error}; cure: run as root, and see what mmdebstrap says"))?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(folder.join("disk"))
        .arg(SIZE);
    step("mke2fs of the system's disk", &mut mke2fs)?;
    fs::rename(root.join("boot"), folder.join("boot"))?;
    Ok(fs::remove_dir_all(root)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_by_their_numbers() {
        let mut versions = ["6.12.95+deb12-cloud-amd64", "6.1.0-56-cloud-amd64"];
        versions.sort_by_key(|version| numbers(version));
        assert!(versions[0].starts_with("6.1.0"));
    }
}
