//! `cargo xtask fctools`: an independent client's own tests, against our `firecracker`.
//!
//! The crate fctools is an SDK for Firecracker by third parties. Its tests start machines, each one plain and jailed, and
//! drive them by the API. They run as they were published, with a guest of ours (`virtio/client.rs` of the
//! micro-guests) and our `jailer`, in namespaces of their own: processes, taps, rules and folders of jails are gone
//! afterwards.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fs_err as fs;
use fs_err::os::unix::fs::OpenOptionsExt;

use crate::apt;
use crate::build::{guests_command, guests_target, target};
use crate::dist;
use crate::needs::Needs;
use crate::step::{Result, run as run_command, step, text, timed};

const VERSION: &str = "0.7.0-alpha.2";
const WHAT: &str = "the tests of fctools";
/// Of Firecracker's interface, as both programs say.
const INTERFACE: &str = "1.16.0";
/// The architecture, what programs are built for, and guests.
const ARCH: &str = "x86_64";
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";
const GUEST_TARGET: &str = "x86_64-unknown-none";
const GUEST: &str = "micro-guest";

/// The programs with tests.
const PROGRAMS: [&str; 5] = ["other", "process", "vm", "vm_api", "extensions"];
/// Seconds that all tests of a program may take, and those that are left out, some of which wait for ever.
const LIMIT: &str = "600";
const LIMIT_LEFT_OUT: &str = "60";

/// Tests that need what is not here, by what their names begin with.
const LEFT_OUT: [(&str, &str); 1] = [(
    "vsock_can_",
    "needs HTTP and gRPC servers in the guest, over vsock",
)];

/// Where the tests see what is laid out for them.
const SEEN: &str = "/srv/data";
/// Runs in the namespaces, with what is laid out and the time limit's arguments: jails, files and names of networks
/// are written to memory, and a tap stands for the interface that leads to the world. The time limit ends the first
/// process of the namespace, and so all of them.
const APART: &str = r#"
mkdir -p /srv /run/netns
mount -t tmpfs none /srv
mkdir /srv/data
mount --bind "$1" /srv/data
shift
mount -t tmpfs none /tmp
mount -t tmpfs none /run/netns
ip link set lo up
ip tuntap add mode tap name eth0
ip link set eth0 up
exec timeout --foreground --kill-after=5 "$@"
"#;

/// What it needs, where it can run.
pub(crate) fn needs() -> Result<Needs> {
    if refusal(WHAT)?.is_some() {
        return Ok(Needs::default());
    }
    let needs = Needs::default().targets([TARGET, GUEST_TARGET]);
    Ok(needs.tools(&[
        ("cc", "gcc"),
        ("ip", "iproute2"),
        ("nft", "nftables"),
        ("unshare", "util-linux"),
    ]))
}

/// Why machines of clients cannot run here.
pub(crate) fn refusal(what: &str) -> Result<Option<String>> {
    let reason = if std::env::consts::ARCH != ARCH {
        format!("it needs {ARCH}")
    } else if !apt::is_root()? {
        "it needs root, for namespaces, taps and jails".to_owned()
    } else {
        let missing = ["/dev/kvm", "/dev/net/tun"]
            .into_iter()
            .find(|file| !Path::new(file).exists());
        match missing {
            Some(file) => format!("there is no {file}"),
            None => return Ok(None),
        }
    };
    Ok(Some(format!("{what}: {reason}")))
}

/// Runs the tests with one of these texts in their names, or all. Says why it did not.
pub(crate) fn run(filters: &[String]) -> Result<Option<String>> {
    if let Some(reason) = refusal(WHAT)? {
        return Ok(Some(reason));
    }
    let folder = target().join("fctools");
    if let Err(error) = timed("the source of fctools", || source(&folder)) {
        return Ok(Some(format!("{WHAT}: their source cannot be had: {error}")));
    }
    let built = timed("building the tests of fctools", || build(&folder))?;
    let data = folder.join("data");
    lay_out(&data)?;
    for (name, file) in PROGRAMS.iter().zip(built) {
        fs::copy(file, data.join("tests").join(name))?;
    }
    let mut tests = Tests {
        data,
        ..Tests::default()
    };
    for name in PROGRAMS {
        tests.of(name, filters)?;
    }
    tests.report()?;
    Ok(None)
}

/// Has the published source copied there, and everything that it is built of downloaded.
fn source(folder: &Path) -> Result<()> {
    let fetch = folder.join("fetch");
    fs::create_dir_all(fetch.join("src"))?;
    fs::write(fetch.join("src/lib.rs"), "")?;
    let manifest = fetch.join("Cargo.toml");
    fs::write(
        &manifest,
        format!(
            "[package]\nname = \"fetch\"\nedition = \"2024\"\n\n[dependencies]\nfctools = \"={VERSION}\"\n\n[workspace]\n"
        ),
    )?;
    let mut metadata = Command::new("cargo");
    metadata.args(["metadata", "--quiet", "--format-version=1"]);
    let said = text(metadata.arg("--manifest-path").arg(manifest))?;
    let place = said
        .split_once(&format!("/fctools-{VERSION}/Cargo.toml\""))
        .and_then(|(before, _)| before.rsplit('"').next())
        .ok_or("cargo metadata does not name its place")?;
    let source = folder.join("source");
    if source.exists() {
        fs::remove_dir_all(&source)?;
    }
    let from = Path::new(place).join(format!("fctools-{VERSION}"));
    run_command(Command::new("cp").arg("-aT").arg(from).arg(&source))?;
    // A workspace around it, as it lies in another one; with the lock that it came with.
    fs::copy(source.join("Cargo.lock"), folder.join("Cargo.lock"))?;
    fs::write(
        folder.join("Cargo.toml"),
        "[workspace]\nmembers = [\"source\"]\nresolver = \"3\"\n\n[profile.dev]\ndebug = false\n",
    )?;
    let mut fetch = Command::new("cargo");
    fetch.args(["fetch", "--quiet", "--locked", "--target", TARGET]);
    run_command(fetch.current_dir(folder))
}

/// Builds the tests, and gives the programs.
fn build(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut build = Command::new("nice");
    build
        .args(["-n", "10", "cargo", "test", "--quiet", "--no-run"])
        .args(["--locked", "--tests", "--target", TARGET])
        .args(["--features", "full,nix-syscall-backend"])
        .arg("--message-format=json")
        .env("CARGO_TARGET_DIR", folder.join("build"))
        .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
        .current_dir(folder)
        .stderr(Stdio::inherit());
    let said = text(&mut build)?;
    let built: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once("\"executable\":\"")?.1.split('"').next())
        .collect();
    let find = |name: &&str| {
        let prefix = format!("{name}-");
        let is_it = |path: &&&str| {
            let file = Path::new(path).file_name();
            file.is_some_and(|file| file.to_string_lossy().starts_with(&prefix))
        };
        let path = built.iter().find(is_it).map(PathBuf::from);
        path.ok_or_else(|| format!("cargo has built no tests {name}").into())
    };
    PROGRAMS.iter().map(find).collect()
}

/// Builds the guest of clients.
pub(crate) fn guest() -> Result<PathBuf> {
    let mut guest = guests_command();
    guest.args(["build", "--quiet", "--release", "--locked"]);
    guest.args(["--target", GUEST_TARGET, "--package", GUEST]);
    step("cargo build (the guest of clients)", &mut guest)?;
    let built = guests_target().join(GUEST_TARGET).join("release");
    Ok(built.join(GUEST))
}

/// Builds what the tests use, and puts it where they look for it.
fn lay_out(data: &Path) -> Result<()> {
    let programs = dist::build_front_end(TARGET)?;
    let guest = guest()?;
    if data.exists() {
        fs::remove_dir_all(data)?;
    }
    for folder in ["toolchain", "assets", "configs", "tests"] {
        fs::create_dir_all(data.join(folder))?;
    }
    let toolchain = data.join("toolchain");
    for name in dist::FRONT_END {
        fs::copy(programs.join(name), toolchain.join(name))?;
    }
    let mut options = fs::OpenOptions::new();
    let mut wrong = options
        .mode(0o755)
        .write(true)
        .create(true)
        .open(toolchain.join("firecracker-wrong-version"))?;
    std::io::Write::write_all(&mut wrong, b"#!/bin/sh\necho 'Firecracker v0.0.1'\n")?;
    let mut version = Command::new(toolchain.join("firecracker"));
    let snapshot_version = text(version.arg("--snapshot-version"))?;
    let snapshot_version = snapshot_version.trim();
    let assets = data.join("assets");
    fs::copy(guest, assets.join("kernel"))?;
    // The guest writes to it and reads nothing.
    fs::File::create(assets.join("rootfs.ext4"))?.set_len(1 << 20)?;
    for (name, folder) in [
        ("unrestricted", Path::new(SEEN).join("assets")),
        ("jailed", PathBuf::from("/")),
    ] {
        let configuration = format!(
            r#"{{"boot-source": {{"kernel_image_path": {:?}, "boot_args": "console=ttyS0 reboot=k panic=1 pci=off"}},
"drives": [{{"drive_id": "rootfs", "path_on_host": {:?}, "is_root_device": true, "is_read_only": true}}],
"machine-config": {{"vcpu_count": 1, "mem_size_mib": 128}}}}"#,
            folder.join("kernel"),
            folder.join("rootfs.ext4"),
        );
        fs::write(data.join(format!("configs/{name}.json")), configuration)?;
    }
    // Times in ms: the guest has to be up in the second one, the others are patience.
    let options = format!(
        r#"{{"toolchain": {{"version": "{INTERFACE}", "snapshot_version": {snapshot_version:?}}},
"waits": {{"shutdown_timeout_ms": 60000, "boot_wait_ms": 3000, "boot_socket_timeout_ms": 60000}},
"network_interface": "eth0", "jailer_uid": 1000, "jailer_gid": 1000}}"#
    );
    Ok(fs::write(data.join("options.json"), options)?)
}

fn is_left_out(test: &str) -> bool {
    LEFT_OUT.iter().any(|(prefix, _)| test.starts_with(prefix))
}

/// What has come out.
#[derive(Debug, Default)]
struct Tests {
    /// What is laid out for them.
    data: PathBuf,
    passed: usize,
    failed: Vec<String>,
    left_out: usize,
    /// Tests that are left out, and pass.
    pass_too: Vec<String>,
}

impl Tests {
    /// Runs the tests of a program, then those that are left out.
    fn of(&mut self, program: &str, filters: &[String]) -> Result<()> {
        let mut list = Command::new(self.data.join("tests").join(program));
        let listed = text(list.args(["--list", "--format=terse"]))?;
        let is_wanted = |name: &&str| {
            filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
        };
        let (left_out, tests): (Vec<_>, Vec<_>) = listed
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .filter(is_wanted)
            .partition(|name| is_left_out(name));
        let (passed, said) = self.pass(program, &tests, LIMIT)?;
        let failed: Vec<_> = tests
            .iter()
            .filter(|name| !passed.contains(name))
            .map(|name| (*name).to_owned())
            .collect();
        if !failed.is_empty() {
            println!("{said}");
        }
        self.passed += passed.len();
        self.failed.extend(failed);
        let (passed, _) = self.pass(program, &left_out, LIMIT_LEFT_OUT)?;
        self.pass_too
            .extend(passed.iter().map(|name| (*name).to_owned()));
        self.left_out += left_out.len();
        Ok(())
    }

    /// Gives those of a program's tests that pass, and what was said.
    fn pass<'a>(
        &self,
        program: &str,
        tests: &[&'a str],
        limit: &str,
    ) -> Result<(Vec<&'a str>, String)> {
        if tests.is_empty() {
            return Ok((Vec::new(), String::new()));
        }
        timed(&format!("fctools: {} of {program}", tests.len()), || {
            let output = Command::new("unshare")
                .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
                .args(["--mount-proc", "sh", "-ec", APART, "sh"])
                .arg(&self.data)
                .arg(limit)
                .arg(Path::new(SEEN).join("tests").join(program))
                .args(["--test-threads=2", "--exact"])
                .args(tests)
                .env("FCTOOLS_TESTDATA_PATH", SEEN)
                .stderr(Stdio::inherit())
                .output()?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok((passed(tests, &said), said))
        })
    }

    fn report(&self) -> Result<()> {
        println!(
            "{} tests of fctools {VERSION} passed, {} were left out",
            self.passed, self.left_out
        );
        for (prefix, reason) in LEFT_OUT.iter().filter(|_| self.left_out > 0) {
            println!("  {prefix}*: {reason}");
        }
        for name in &self.pass_too {
            println!("{name} passes: take it off the table of those that are left out");
        }
        if self.passed + self.failed.len() + self.left_out == 0 {
            return Err("no test of fctools has such a name".into());
        }
        if self.failed.is_empty() {
            return Ok(());
        }
        Err(format!("tests of fctools failed: {}", self.failed.join(", ")).into())
    }
}

/// Those tests of which the output says that they have passed; a test that did not end is none.
fn passed<'a>(tests: &[&'a str], said: &str) -> Vec<&'a str> {
    let has_passed = |name: &&&str| {
        let line = format!("test {name} ... ok");
        said.lines().any(|said| said == line)
    };
    tests.iter().filter(has_passed).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_says_so_has_passed() {
        let said = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest b2 ... ok\n";
        assert_eq!(passed(&["a", "b", "c"], said), ["a"]);
    }

    #[test]
    fn what_is_left_out_is_known_by_the_beginning_of_its_name() {
        assert!(is_left_out("vsock_can_connect_to_guest_over_http"));
        assert!(!is_left_out("vm_can_boot_with_vsock_device"));
    }
}
