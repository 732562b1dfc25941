//! Debian's packages: installed where they are missing, downloaded where only the content counts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::{Result, output, step, text};

const SOURCES: &str = "/etc/apt/sources.list.d";
const ADDED: &str = "/etc/apt/sources.list.d/vmm-reference-lab.sources";
/// The release whose own QEMU and kernel are too old for the lab.
const OLD_RELEASE: &str = "bookworm";

/// Installs the packages of those tools that are not there. Pairs of tool and package.
pub(crate) fn install(tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools
        .iter()
        .filter(|(tool, _)| !is_tool(tool))
        .map(|&(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    update()?;
    install_packages(&missing)
}

/// Installs a QEMU of version 10 or newer, from the backports where the release's is older.
pub(crate) fn install_qemu(program: &str, package: &str) -> Result<()> {
    if qemu_version(program).is_some_and(|version| version >= 10) {
        return Ok(());
    }
    let backports = add_backports()?;
    update()?;
    let target = backports.map(|suite| format!("--target-release={suite}"));
    let mut arguments = vec![package];
    arguments.extend(target.as_deref());
    install_packages(&arguments)?;
    match qemu_version(program) {
        Some(version) if version >= 10 => Ok(()),
        found => Err(format!("{program} is {found:?}, the lab needs version 10 or newer").into()),
    }
}

/// Downloads the current kernel's package.
pub(crate) fn download_kernel(metapackage: &str, arch: &str, folder: &Path) -> Result<PathBuf> {
    let package = kernel_package(metapackage, arch, folder)?;
    download(&format!("{package}:{arch}{}", newest_suite()?), folder)
}

/// The name of the current kernel's package: what the metapackage depends on, in the backports where
/// the release has them.
pub(crate) fn kernel_package(metapackage: &str, arch: &str, folder: &Path) -> Result<String> {
    let file = download(&format!("{metapackage}:{arch}{}", newest_suite()?), folder)?;
    let depends = text(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(&file)
            .arg("Depends"),
    )?;
    Ok(depends
        .split([' ', ','])
        .next()
        .unwrap_or_default()
        .to_owned())
}

/// What a package's name ends in so that the newest version is taken.
fn newest_suite() -> Result<String> {
    let backports = add_backports()?;
    Ok(backports
        .map(|suite| format!("/{suite}"))
        .unwrap_or_default())
}

/// Downloads `package:arch` into a folder.
pub(crate) fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    // An empty folder of its own, so that the file's name is known.
    let folder = folder.join("download");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    step(
        &format!("apt-get download {package}"),
        apt(&["download", "-q", package]).current_dir(&folder),
    )?;
    let file = fs::read_dir(&folder)?
        .next()
        .ok_or("apt-get download left no file")??
        .path();
    let kept = folder.with_file_name(file.file_name().ok_or("a file without a name")?);
    fs::rename(file, &kept)?;
    Ok(kept)
}

/// Lets apt know the packages of another architecture.
pub(crate) fn add_architecture(arch: &str) -> Result<()> {
    let dpkg = |argument: &str| text(Command::new("dpkg").arg(argument));
    let known = [
        dpkg("--print-architecture")?,
        dpkg("--print-foreign-architectures")?,
    ];
    if known
        .iter()
        .any(|names| names.lines().any(|name| name == arch))
    {
        return Ok(());
    }
    step(
        &format!("dpkg --add-architecture {arch}"),
        Command::new("dpkg").args(["--add-architecture", arch]),
    )
}

/// Lets the kernel run programs of another architecture, with QEMU's user-mode emulation.
pub(crate) fn run_foreign(arch: &str) -> Result<()> {
    if text(Command::new("dpkg").arg("--print-architecture"))? == arch {
        return Ok(());
    }
    install(&[
        ("arch-test", "arch-test"),
        ("qemu-aarch64-static", "qemu-user-static"),
    ])?;
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
    let entry = fs::read_to_string(&file).map_err(|error| format!("{file}: {error}"))?;
    fs::write(Path::new(MOUNT).join("register"), entry.trim())
        .map_err(|error| format!("{MOUNT}/register: {error}; cure: run as root"))?;
    output(Command::new("arch-test").arg(arch)).map(drop)
}

/// Adds the backports of an old release, from the mirror that the machine itself uses. Gives the
/// suite's name, if it takes one.
pub(crate) fn add_backports() -> Result<Option<String>> {
    let release = release()?;
    if release != OLD_RELEASE {
        return Ok(None);
    }
    let suite = format!("{release}-backports");
    let sources = all_sources()?;
    if sources.split_whitespace().any(|word| word == suite) {
        return Ok(Some(suite));
    }
    let source = with_suite(&sources, &release, &suite)
        .ok_or_else(|| format!("no apt source has {release}; cure: add {suite} by hand"))?;
    println!("==> adding {suite} to apt's sources ({ADDED})");
    fs::write(ADDED, source).map_err(|error| {
        format!("{ADDED}: {error}; cure: run as root, or install QEMU 10 by hand")
    })?;
    Ok(Some(suite))
}

/// Apt sources of this release and, where it has them, its backports: nothing else, for systems that
/// are built here.
pub(crate) fn sources() -> Result<String> {
    let (release, sources) = (release()?, all_sources()?);
    let mut suites = vec![release.clone()];
    suites.extend(add_backports()?);
    suites
        .iter()
        .map(|suite| {
            with_suite(&sources, &release, suite)
                .ok_or_else(|| format!("no apt source has {release}").into())
        })
        .collect::<Result<Vec<_>>>()
        .map(|stanzas| stanzas.join("\n"))
}

/// The text of all of apt's sources.
fn all_sources() -> Result<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    files.extend(fs::read_dir(SOURCES)?.flatten().map(|entry| entry.path()));
    let texts: Vec<_> = files
        .iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|end| end == "list" || end == "sources")
        })
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    Ok(texts.join("\n\n"))
}

/// The stanza for another suite of the mirror that has `release`; from either of apt's formats.
fn with_suite(sources: &str, release: &str, suite: &str) -> Option<String> {
    let stanza = |uri: &str, key: Option<&str>| {
        let key = key
            .map(|key| format!("Signed-By: {key}\n"))
            .unwrap_or_default();
        format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{key}")
    };
    let deb822 = sources.split("\n\n").find_map(|text| {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        field("Suites")?.split(' ').find(|&word| word == release)?;
        Some(stanza(
            field("URIs")?.split(' ').next()?,
            field("Signed-By"),
        ))
    });
    deb822.or_else(|| {
        sources.lines().find_map(|line| {
            let rest = line.strip_prefix("deb ")?.trim_start();
            let (options, rest) = match rest.strip_prefix('[') {
                Some(rest) => rest.split_once(']')?,
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let uri = words.next()?;
            words.next().filter(|&word| word == release)?;
            let key = options
                .split(' ')
                .find_map(|option| option.strip_prefix("signed-by="));
            Some(stanza(uri, key))
        })
    })
}

pub(crate) fn update() -> Result<()> {
    step("apt-get update", &mut apt(&["update", "-q"]))
}

fn install_packages(arguments: &[&str]) -> Result<()> {
    let mut command = apt(&["install", "-qy", "--no-install-recommends"]);
    let names = arguments.join(" ");
    step(&format!("apt-get install {names}"), command.args(arguments))
        .map_err(|error| format!("{error}\n  cure: install {names} as root and run again").into())
}

fn apt(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn is_tool(name: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(name).is_file()))
}

fn qemu_version(program: &str) -> Option<u32> {
    let said = text(Command::new(program).arg("--version")).ok()?;
    let version = said.split(' ').nth(3)?;
    version.split('.').next()?.parse().ok()
}

/// The release's code name, such as `bookworm`.
pub(crate) fn release() -> Result<String> {
    let file = fs::read_to_string("/etc/os-release")?;
    let name = file
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or("/etc/os-release names no VERSION_CODENAME; the lab needs Debian")?;
    Ok(name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: &str = "Types: deb\nURIs: http://mirror.example/debian\nSuites: old-backports\n\
        Components: main\nSigned-By: /keys/debian.gpg\n";

    #[test]
    fn the_added_suite_comes_from_the_machine_s_own_mirror() {
        let deb822 = "Types: deb\nURIs: http://other.example/x\nSuites: new\n\n\
            # comment\nTypes: deb\nURIs: http://mirror.example/debian\nSuites: old old-updates\n\
            Components: main\nSigned-By: /keys/debian.gpg\n";
        let list = "# deb http://no.example old main\n\
            deb http://other.example/x new main\n\
            deb [arch=amd64 signed-by=/keys/debian.gpg] http://mirror.example/debian old main\n";
        for sources in [deb822, list] {
            assert_eq!(
                with_suite(sources, "old", "old-backports").as_deref(),
                Some(WANTED)
            );
        }
        assert_eq!(with_suite(list, "older", "x"), None);
    }
}
