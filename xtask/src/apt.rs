//! Debian's packages: installed where they are missing, downloaded where only the content counts.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use fs_err as fs;

use crate::step::{Result, step, text};

const SOURCES: &str = "/etc/apt/sources.list.d";
const ADDED: &str = "/etc/apt/sources.list.d/vmm-reference-lab.sources";
/// The release whose own QEMU and kernel are too old for the lab.
const OLD_RELEASE: &str = "bookworm";

/// Whether apt does not know yet what its sources have.
static STALE: AtomicBool = AtomicBool::new(true);

/// Whether there is an emulator that is new enough for the lab.
pub(crate) fn is_new_qemu(program: &str) -> bool {
    qemu_version(program).is_some_and(|version| version >= 10)
}

/// Installs a QEMU of version 10 or newer, from the backports where the release's is older.
pub(crate) fn install_qemu(program: &str, package: &str) -> Result<()> {
    let backports = add_backports()?;
    update()?;
    let target = backports.map(|suite| format!("--target-release={suite}"));
    let mut arguments = vec![package];
    arguments.extend(target.as_deref());
    install(&arguments)?;
    if is_new_qemu(program) {
        return Ok(());
    }
    let found = qemu_version(program);
    Err(format!("{program} is {found:?}, the lab needs version 10 or newer").into())
}

/// A mirror does not have what is needed now.
#[derive(Debug)]
pub(crate) struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Where the packages of one architecture are downloaded from.
#[derive(Debug)]
pub(crate) struct Archive {
    /// Debian's name of the architecture.
    arch: String,
    /// The suite with the newest packages, where it is not the release itself.
    suite: Option<String>,
    /// An apt of its own: its configuration; the system's when there is none.
    config: Option<PathBuf>,
}

impl Archive {
    /// The machine's own release and its backports, by the system's apt.
    pub(crate) fn of_release(arch: &str) -> Result<Self> {
        let suite = add_backports()?;
        add_architecture(arch)?;
        update()?;
        Ok(Self {
            arch: arch.to_owned(),
            suite,
            config: None,
        })
    }

    /// The machine's own release, by the system's apt as it is.
    pub(crate) fn of_machine() -> Result<Self> {
        // Others than root have what the last update has left.
        if is_root()? {
            update()?;
        }
        Ok(Self {
            arch: text(Command::new("dpkg").arg("--print-architecture"))?,
            suite: None,
            config: None,
        })
    }

    /// The first of these suites that can be had, for an architecture that the release may lack; by
    /// an apt of its own with its state in `folder`: the system's knows nothing of it.
    pub(crate) fn of_suites(arch: &str, suites: &[&str], folder: &Path) -> Result<Self> {
        let (release, sources) = (release()?, all_sources()?);
        let mut failures = String::new();
        for suite in suites {
            let source = with_suite(&sources, &release, suite)
                .ok_or_else(|| format!("no apt source has {release}"))?;
            let archive = Self {
                arch: arch.to_owned(),
                suite: None,
                config: Some(own_apt(arch, &source, &folder.join(suite))?),
            };
            match step(
                &format!("apt-get update ({suite}, {arch})"),
                &mut archive.apt(&["update", "-q", "--error-on=any"]),
            ) {
                Ok(()) => return Ok(archive),
                // A mirror that is half-way through an update takes hours at times.
                Err(error) => failures = format!("{failures}\n  {suite}: {error}"),
            }
        }
        Err(Unavailable(format!("no suite of {arch} can be had:{failures}")).into())
    }

    /// Whether the release has backports beside it.
    pub(crate) fn has_backports(&self) -> bool {
        self.suite.is_some()
    }

    /// Downloads the current kernel's packages: image and modules come apart in newer releases.
    pub(crate) fn download_kernel(&self, metapackage: &str, folder: &Path) -> Result<Vec<PathBuf>> {
        let package = self.kernel_package(metapackage, folder)?;
        let image = self.fetch(&self.newest(&package), folder)?;
        let mut files = Vec::new();
        for part in dependencies(&image)? {
            if part.starts_with("linux-binary-") || part.starts_with("linux-modules-") {
                files.push(self.fetch(&self.newest(&part), folder)?);
            }
        }
        files.push(image);
        Ok(files)
    }

    /// The name of the current kernel's package: what the metapackage depends on.
    pub(crate) fn kernel_package(&self, metapackage: &str, folder: &Path) -> Result<String> {
        let file = self.fetch(&self.newest(metapackage), folder)?;
        let names = dependencies(&file)?;
        let image = names.iter().find(|name| name.starts_with("linux-image-"));
        Ok(image
            .ok_or_else(|| format!("{metapackage} depends on {names:?}, on no kernel"))?
            .clone())
    }

    /// A package's newest version, as apt takes it.
    fn newest(&self, package: &str) -> String {
        match &self.suite {
            Some(suite) => format!("{package}:{}/{suite}", self.arch),
            None => format!("{package}:{}", self.arch),
        }
    }

    /// Downloads a package into a folder: the release's version.
    pub(crate) fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        self.fetch(&format!("{package}:{}", self.arch), folder)
    }

    fn fetch(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        // An empty folder of its own, so that the file's name is known.
        let folder = folder.join("download");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        step(
            &format!("apt-get download {name}"),
            self.apt(&["download", "-q", name]).current_dir(&folder),
        )?;
        let file = fs::read_dir(&folder)?
            .next()
            .ok_or("apt-get download left no file")??
            .path();
        let kept = folder.with_file_name(file.file_name().ok_or("a file without a name")?);
        fs::rename(file, &kept)?;
        Ok(kept)
    }

    fn apt(&self, arguments: &[&str]) -> Command {
        let mut command = apt(arguments);
        if let Some(config) = &self.config {
            command.env("APT_CONFIG", config);
        }
        command
    }
}

/// The names of what a package depends on.
fn dependencies(file: &Path) -> Result<Vec<String>> {
    let depends = text(
        Command::new("dpkg-deb")
            .arg("--field")
            .arg(file)
            .arg("Depends"),
    )?;
    let names = depends
        .split(',')
        .filter_map(|name| name.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Sets up an apt with its state in `folder`; gives its configuration.
fn own_apt(arch: &str, source: &str, folder: &Path) -> Result<PathBuf> {
    let folder = std::path::absolute(folder)?;
    for name in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(name))?;
    }
    let (sources, config) = (folder.join("own.sources"), folder.join("apt.conf"));
    fs::write(&sources, source)?;
    let folder = folder.display();
    let text = format!(
        "Dir::State::Lists \"{folder}/lists\";\nDir::Cache \"{folder}/cache\";\n\
         Dir::Etc::SourceList \"{}\";\nDir::Etc::SourceParts \"-\";\n\
         APT::Architecture \"{arch}\";\nAPT::Architectures {{ \"{arch}\"; }};\n",
        sources.display()
    );
    fs::write(&config, text)?;
    Ok(config)
}

/// Lets apt know the packages of another architecture.
fn add_architecture(arch: &str) -> Result<()> {
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
    STALE.store(true, Ordering::Relaxed);
    step(
        &format!("dpkg --add-architecture {arch}"),
        Command::new("dpkg").args(["--add-architecture", arch]),
    )
}

/// Adds the backports of an old release, from the mirror that the machine itself uses. Gives the
/// suite's name, if it takes one.
fn add_backports() -> Result<Option<String>> {
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
    fs::write(ADDED, source)
        .map_err(|error| format!("{error}; cure: run as root, or install QEMU 10 by hand"))?;
    STALE.store(true, Ordering::Relaxed);
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

/// Lets apt know what is there; once is enough, unless its sources have changed since.
pub(crate) fn update() -> Result<()> {
    if STALE.swap(false, Ordering::Relaxed) {
        step("apt-get update", &mut apt(&["update", "-q"]))?;
    }
    Ok(())
}

/// Whether this process may install packages.
pub(crate) fn is_root() -> Result<bool> {
    Ok(text(Command::new("id").arg("-u"))? == "0")
}

/// Installs packages; arguments of apt-get are taken too.
pub(crate) fn install(arguments: &[&str]) -> Result<()> {
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
