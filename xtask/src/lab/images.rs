//! What a lab machine is made of: stock Debian kernels, initramfs archives, our static build.
//! Packages are downloaded and unpacked once per architecture and kept under `target/lab`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fs_err as fs;

use super::architecture::Architecture;
use super::own_kernel;
use crate::apt::Archive;
use crate::build::{cargo, cargo_command, guests_command, guests_target, target};
use crate::step::{Result, output, output_of, step, text};

/// What a stock kernel's guests load for our devices.
const GUEST_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
];

/// The script that makes a golden snapshot and prints its files.
pub(super) const SAVE_GOLDEN: &str = "tests/golden/save";

/// The files of one architecture's lab.
#[derive(Debug)]
pub(super) struct Images {
    /// The kernel of the first-level machine, as the package has it.
    pub(super) kernel: PathBuf,
    /// Its root file system: our binary, the guests' kernels and root, the modules of KVM.
    pub(super) initramfs: PathBuf,
}

/// Gets the packages; quick when they are there. Gives where they are unpacked.
pub(super) fn fetch(arch: &Architecture) -> Result<PathBuf> {
    let shared = target().join("lab").join(arch.name);
    // Another list of packages has another folder.
    let other = arch.other_kernel.map(|(package, _)| package);
    let packages = [Some(arch.kernel_package), other];
    let packages: Vec<_> = packages.into_iter().flatten().collect();
    let unpacked = shared.join(format!("unpacked-{}", packages.join("-")));
    if !unpacked.exists() {
        // A name of its own until it is whole: what is cut off is never taken for complete.
        let partial = shared.join("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        fs::create_dir_all(&partial)?;
        unpack_packages(arch, &partial)?;
        fs::rename(&partial, &unpacked)?;
    }
    Ok(unpacked)
}

/// Prepares everything; quick when the packages are there and nothing has changed.
/// `folder` is for what is made of them.
pub(super) fn prepare(
    arch: &Architecture,
    folder: &Path,
    uses: impl Fn(&str) -> bool,
) -> Result<Images> {
    let unpacked = fetch(arch)?;
    let (binary, agent) = build(arch)?;
    let guests = folder.join("guests");
    recreate(&guests)?;
    let kernel = unpacked.join("kernel");
    for (name, convert) in arch.guest_kernels {
        fs::write(guests.join(name), convert(&fs::read(&kernel)?)?)?;
    }
    let busybox = unpacked.join("bin/busybox");

    let root = folder.join("guest-root");
    recreate(&root)?;
    install(&busybox, &root.join("bin/busybox"))?;
    install(Path::new("cross/lab/guest-init"), &root.join("init"))?;
    install(&agent, &root.join("bin/agent"))?;
    let modules = [GUEST_MODULES, arch.guest_modules].concat();
    install_modules(&unpacked, &modules, &root)?;
    archive(&root, &guests.join("initrd"))?;

    let root = folder.join("l1-root");
    recreate(&root)?;
    install(&busybox, &root.join("bin/busybox"))?;
    install(Path::new("cross/lab/l1-init"), &root.join("init"))?;
    install(Path::new("cross/lab/l1-watch"), &root.join("watch"))?;
    install(&binary, &root.join("vmm-reference"))?;
    install(&agent, &root.join("bin/agent"))?;
    install(&unpacked.join("e2fsck"), &root.join("bin/e2fsck"))?;
    make_ext4(&root.join("disk.ext4"))?;
    if arch.other_kernel.is_some() {
        install(&unpacked.join("other-kernel"), &root.join("other-kernel"))?;
    }
    if uses("/micro_guests") {
        install(&build_tests(arch)?, &root.join("micro_guests"))?;
    }
    if uses("/micro-guest") {
        install(&build_guest(arch)?, &root.join("micro-guest"))?;
    }
    if uses("/own-kernel") {
        install(&own_kernel::build()?, &root.join("own-kernel"))?;
        own_kernel::root(&busybox, &root.join("own-root"))?;
    }
    if uses("/firecracker") {
        install(&build_front_end(arch)?, &root.join("firecracker"))?;
    }
    if uses("/save-golden") {
        install(Path::new(SAVE_GOLDEN), &root.join("save-golden"))?;
    }
    for entry in fs::read_dir(&guests)? {
        let entry = entry?;
        install(&entry.path(), &root.join(entry.file_name()))?;
    }
    install_modules(&unpacked, arch.modules, &root)?;
    let initramfs = folder.join("l1.cpio");
    archive(&root, &initramfs)?;
    Ok(Images { kernel, initramfs })
}

/// Unpacks modules of the kernel with those that they need, named so that they are loaded in this
/// order. What is built into the kernel is left out.
fn install_modules(packages: &Path, modules: &[&str], root: &Path) -> Result<()> {
    let folder = root.join("modules");
    fs::create_dir_all(&folder)?;
    let version = version(packages)?;
    let said = text(
        Command::new("modprobe")
            .args(["--show-depends", "--all", "--dirname"])
            .arg(std::path::absolute(packages)?)
            .arg(format!("--set-version={version}"))
            .args(modules),
    )?;
    let mut installed: Vec<PathBuf> = Vec::new();
    for file in said.lines().filter_map(|line| line.strip_prefix("insmod ")) {
        let file = PathBuf::from(file.trim());
        if installed.contains(&file) {
            continue;
        }
        let name = file.file_name().ok_or("a module without a name")?;
        let name = format!("{:02}-{}", installed.len(), name.to_string_lossy());
        let name = name.split_inclusive(".ko").next().unwrap_or_default();
        fs::write(folder.join(name), decompress(&fs::read(&file)?)?)?;
        installed.push(file);
    }
    Ok(())
}

/// The version of the only kernel there is.
fn version(packages: &Path) -> Result<String> {
    let entry = fs::read_dir(packages.join("lib/modules"))?.next();
    let name = entry.ok_or("the kernel's package has no modules")??;
    Ok(name.file_name().to_string_lossy().into_owned())
}

fn unpack_packages(arch: &Architecture, folder: &Path) -> Result<()> {
    let archive = match arch.suites {
        [] => Archive::of_release(arch.debian)?,
        suites => Archive::of_suites(arch.debian, suites, &folder.join("apt"))?,
    };
    let all = folder.join("all");
    let mut packages = archive.download_kernel(arch.kernel_package, folder)?;
    let other = arch.other_kernel.map(|(package, _)| package);
    for package in ["busybox-static", "e2fsck-static"].into_iter().chain(other) {
        packages.push(archive.download(package, folder)?);
    }
    for package in packages {
        output(Command::new("dpkg-deb").arg("-x").arg(package).arg(&all))?;
    }
    // Newer releases have everything below /usr.
    for name in ["bin", "lib/modules"] {
        let place = [all.join(name), all.join("usr").join(name)]
            .into_iter()
            .find(|place| place.exists())
            .ok_or_else(|| format!("the packages have no {name}"))?;
        let kept = folder.join(name);
        fs::create_dir_all(kept.parent().unwrap_or(folder))?;
        fs::rename(place, kept)?;
    }
    fs::rename(find(&all, "e2fsck.static")?, folder.join("e2fsck"))?;
    if let Some((_, file)) = arch.other_kernel {
        fs::rename(all.join(file), folder.join("other-kernel"))?;
    }
    // And the kernel beside its modules.
    let kernel = find(&all, "vmlinu").or_else(|_| find(&folder.join("lib"), "vmlinu"))?;
    fs::rename(kernel, folder.join("kernel"))?;
    fs::remove_dir_all(all)?;
    step(
        "depmod",
        Command::new("depmod")
            .arg("--basedir")
            .arg(std::path::absolute(folder)?)
            .arg(version(folder)?),
    )
}

/// Our binary and the lab's own tool, static.
pub(super) fn build(arch: &Architecture) -> Result<(PathBuf, PathBuf)> {
    let packages = "--package=vmm-reference --package=lab-agent";
    cargo(&format!(
        "build --quiet --release --target={} {packages}",
        arch.target
    ))?;
    let folder = target().join(arch.target).join("release");
    Ok((folder.join("vmm-reference"), folder.join("lab-agent")))
}

/// A file system with a journal, which busybox cannot make.
fn make_ext4(file: &Path) -> Result<()> {
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-t", "ext4"]).arg(file).arg("32M");
    step("mke2fs", &mut command)
}

/// The integration tests that need no cargo, static.
fn build_tests(arch: &Architecture) -> Result<PathBuf> {
    let said = text(cargo_command().args([
        "test",
        "--quiet",
        "--release",
        "--no-run",
        "--test=micro_guests",
        "--message-format=json",
        &format!("--target={}", arch.target),
    ]))?;
    let executable = said
        .lines()
        .filter(|line| line.contains("\"name\":\"micro_guests\""))
        .find_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next())
        .ok_or("cargo named no test program")?;
    Ok(PathBuf::from(executable))
}

/// The program with Firecracker's interface, static.
fn build_front_end(arch: &Architecture) -> Result<PathBuf> {
    cargo(&format!(
        "build --quiet --release --target={} --package=vmm-firecracker --bin=firecracker",
        arch.target
    ))?;
    let folder = target().join(arch.target).join("release");
    Ok(folder.join("firecracker"))
}

/// The micro-guests.
pub(super) fn build_guest(arch: &Architecture) -> Result<PathBuf> {
    let (guest_target, package) = arch.guests;
    step(
        &format!("cargo build of {package}"),
        guests_command()
            .args([
                "build",
                "--quiet",
                "--release",
                "--locked",
                "--package",
                package,
            ])
            .args(["--target", guest_target]),
    )?;
    let folder = guests_target().join(guest_target).join("release");
    Ok(folder.join(package))
}

fn recreate(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    Ok(fs::create_dir_all(folder)?)
}

/// Copies an executable, with the folders above it.
fn install(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to)?;
    Ok(fs::set_permissions(
        to,
        std::fs::Permissions::from_mode(0o755),
    )?)
}

/// The first file below a folder whose name begins so.
fn find(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(prefix))
            {
                return Ok(path);
            }
        }
    }
    Err(format!("no file {prefix}* below {}", folder.display()).into())
}

/// Makes an initramfs of a folder.
fn archive(folder: &Path, file: &Path) -> Result<()> {
    let file = std::path::absolute(file)?;
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "find . | cpio --create --format=newc --owner=0:0 --quiet > \"$0\"",
        ])
        .arg(&file)
        .current_dir(folder);
    step(&format!("cpio of {}", folder.display()), &mut command)
}

/// Unpacks by content; what is not compressed stays as it is.
fn decompress(data: &[u8]) -> Result<Vec<u8>> {
    let (tool, arguments): (_, &[&str]) = match data {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", &["-dc", "--single-stream"]),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dcq"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        _ => return Ok(data.to_vec()),
    };
    output_of(Command::new(tool).args(arguments).arg("--stdout"), data)
}

/// A kernel as the package has it.
pub(super) fn packaged(kernel: &[u8]) -> Result<Vec<u8>> {
    Ok(kernel.to_vec())
}

/// The ELF file in a bzImage. Source: Documentation/arch/x86/boot.rst of Linux (setup_sects at
/// 0x1f1, payload_offset at 0x248, payload_length at 0x24c, relative to the protected-mode code).
pub(super) fn vmlinux(kernel: &[u8]) -> Result<Vec<u8>> {
    let word = |offset: usize| -> Result<usize> {
        let bytes = kernel
            .get(offset..offset + 4)
            .ok_or("the bzImage is cut off")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    let setup_sectors = usize::from(*kernel.get(0x1f1).ok_or("the bzImage is cut off")?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the size, not the stream.
    let payload = kernel
        .get(start..start + word(0x24c)? - 4)
        .ok_or("the bzImage's payload lies outside the file")?;
    let elf = decompress(payload)?;
    if elf.starts_with(b"\x7fELF") {
        Ok(elf)
    } else {
        Err("the bzImage's payload is no ELF file".into())
    }
}

/// The kernel in a gzip file.
pub(super) fn gzip(kernel: &[u8]) -> Result<Vec<u8>> {
    output_of(Command::new("gzip").args(["-1", "--stdout"]), kernel)
}

/// The kernel in an EFI zboot image, as `make vmlinuz.efi` of Linux packs it; the header alone, the
/// EFI program that unpacks it elsewhere is left out (drivers/firmware/efi/libstub/zboot-header.S).
pub(super) fn zboot(kernel: &[u8]) -> Result<Vec<u8>> {
    const HEADER: usize = 64;
    let payload = gzip(kernel)?;
    let mut image = b"MZ\0\0zimg".to_vec();
    image.extend(u32::try_from(HEADER)?.to_le_bytes());
    image.extend(u32::try_from(payload.len())?.to_le_bytes());
    image.resize(24, 0);
    image.extend(b"gzip");
    image.resize(HEADER, 0);
    image.extend(payload);
    Ok(image)
}
