//! The files for shells and man that a release hands out.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::common::{finish, read_until, vmm};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Writes the files into a new folder below `folder`.
fn generate(folder: &Path) -> PathBuf {
    let path = folder.join("made/new");
    let ended = finish(
        vmm(&["generate-files", path.to_str().unwrap()])
            .spawn()
            .unwrap(),
    );
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let mut said: Vec<_> = ended.stdout.lines().map(PathBuf::from).collect();
    let mut there: Vec<_> = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    said.sort_unstable();
    there.sort_unstable();
    assert_eq!(said, there);
    path
}

#[test]
fn shells_and_man_know_the_options() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path());
    for (name, texts) in [
        ("vmm-reference.bash", ["--guest-memory", "--dump-dtb"]),
        ("_vmm-reference", ["--guest-memory", "--dump-dtb"]),
        ("vmm-reference.fish", ["guest-memory", "dump-dtb"]),
        (
            "vmm-reference.1",
            ["guest\\-memory", "vmm\\-reference\\-plan(1)"],
        ),
        ("vmm-reference-plan.1", ["dump\\-dtb", "guest\\-memory"]),
        ("vmm-reference-inspect.1", ["FILE", "json"]),
        ("vmm-reference-doctor.1", ["WARN", "json"]),
        (
            "vmm-reference-ctl.1",
            ["\\fBdevice ID limits LIMIT ...\\fR", "\\fBpause\\fR"],
        ),
    ] {
        let text = std::fs::read_to_string(path.join(name)).unwrap();
        for expected in texts {
            assert!(text.contains(expected), "{name}: {expected}");
        }
        assert!(!text.contains("generate-files"), "{name}");
    }
}

#[test]
fn man_pages_have_values_references_and_no_empty_section() {
    let folder = tempfile::tempdir().unwrap();
    let path = generate(folder.path());
    let pages = ["", "-plan", "-inspect", "-doctor", "-ctl"];
    for page in pages {
        let name = format!("vmm-reference{page}.1");
        let text = std::fs::read_to_string(path.join(&name)).unwrap();
        let mut heading = "";
        let mut body = 1;
        for line in text.lines().chain([".SH END"]) {
            if line.starts_with(".SH ") {
                assert_ne!(body, 0, "{name}: {heading} is empty");
                (heading, body) = (line, 0);
            } else if !line.trim().is_empty() && !line.starts_with(".nf") {
                body += 1;
            }
        }
        assert!(!text.contains(".SH EXTRA"), "{name}");
        let references = text.split(".SH \"SEE ALSO\"").nth(1).unwrap();
        for other in pages.iter().filter(|other| **other != page) {
            let other = format!("\\fBvmm\\-reference{}\\fR(1)", other.replace('-', "\\-"));
            assert!(references.contains(&other), "{name}: {other}");
        }
    }
    let main = std::fs::read_to_string(path.join("vmm-reference.1")).unwrap();
    for text in [
        "restart",
        "mmio",
        "trace",
        ".SH \"EXIT STATUS\"",
        ".SH \"KEYS\"",
    ] {
        assert!(main.contains(text), "{text}: {main}");
    }
    // All that a VM can be asked for, with options and values.
    let ctl = std::fs::read_to_string(path.join("vmm-reference-ctl.1")).unwrap();
    for text in [
        "pause",
        "resume",
        "status",
        "stop",
        "shutdown",
        "reset",
        "metrics",
        "events",
        "device ID link STATE",
        "device ID target SIZE",
        "device ID size SIZE",
        "\\-\\-timeout SECONDS",
        "\\-\\-prometheus",
        "STATE",
    ] {
        assert!(ctl.contains(&format!("\\fB{text}\\fR")), "{text}: {ctl}");
    }
    assert!(ctl.contains("up or down"), "{ctl}");
    // The values of --lean and --rng stand beside their names.
    assert!(main.contains("auto|on|off") && main.contains("on|off"));
}

#[test]
fn what_names_no_folder_is_refused_and_writes_nothing() {
    let empty = tempfile::tempdir().unwrap();
    for (arguments, text) in [
        (&[][..], "it takes a folder"),
        (&[""], "names no folder"),
        (&["--help"], "--help names no folder"),
        (&["out", "more"], "more is one too many"),
    ] {
        let mut command = vmm(&[&["generate-files"], arguments].concat());
        let ended = finish(command.current_dir(empty.path()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains(text), "{text}: {ended:?}");
        assert!(ended.stderr.contains("cure: generate-files FOLDER"));
        assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);
    }
    let ended = finish(vmm(&["generate-files", "/dev/null/x"]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("/dev/null/x: ") && ended.stderr.contains("cure:"));
}

#[test]
fn files_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<_> = std::fs::read_dir(generate(folder.path()))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.len() > 5);
    for name in names {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::os::unix::fs::symlink("/dev/full", &path).unwrap();
        let arguments = ["generate-files", folder.path().to_str().unwrap()];
        let ended = finish(vmm(&arguments).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let expected = format!("error: {}: No space left", path.display());
        assert!(ended.stderr.starts_with(&expected), "{ended:?}");
    }
}

/// A shell on a terminal, whose program `vmm-reference` prints its arguments.
struct Typist {
    terminal: File,
    shell: Child,
}

impl Typist {
    /// In `folder`, with the shell's commands `setup`.
    fn new(shell: &str, options: &[&str], folder: &Path, setup: &str) -> Self {
        let terminal: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap();
        let path = PathBuf::from(path.into_string().unwrap());
        let screen = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let side = || Stdio::from(screen.try_clone().unwrap());
        let shell = Command::new(shell)
            .args(options)
            .current_dir(folder)
            .env_clear()
            .envs([("PATH", std::env::var("PATH").unwrap().as_str())])
            .envs([
                ("TERM", "dumb"),
                ("INPUTRC", "/dev/null"),
                ("PS1", "READY> "),
            ])
            .env("HOME", folder)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let mut typist = Self {
            terminal: terminal.into(),
            shell,
        };
        // What is typed is shown, so the sign of the end is put together by the shell.
        typist.enter(&format!(
            "{setup}; vmm-reference() {{ printf 'SAID'; printf '<%s>' \"$@\"; printf 'END\\n'; }}"
        ));
        typist.enter("echo set''up");
        read_until(&mut typist.terminal, "setup\r\n");
        typist
    }

    fn enter(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
        self.terminal.write_all(b"\r").unwrap();
    }

    /// Types a line and expects these arguments of the program. `\t` completes.
    #[track_caller]
    fn types(&mut self, line: &str, arguments: &[&str]) {
        self.enter(&format!("vmm-reference {line}"));
        let arguments: String = arguments.iter().map(|one| format!("<{one}>")).collect();
        // Fails with all that was shown, at the end of the shell or with other arguments.
        self.enter("echo EN''OUGH");
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.contains("ENOUGH\r\n") {
            assert_eq!(
                std::io::Read::read(&mut self.terminal, &mut byte).unwrap(),
                1
            );
            seen.push(byte[0].into());
        }
        let expected = format!("SAID{arguments}END");
        assert!(
            seen.contains(&expected),
            "{line:?}: {expected} not in {seen}"
        );
    }
}

impl Drop for Typist {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// A folder with files to complete.
fn files(folder: &Path) {
    for name in ["vmlinuz-x", "disk one.img", "disk.img"] {
        std::fs::write(folder.join(name), "").unwrap();
    }
}

#[test]
fn bash_completes_options_values_and_files_after_subcommands_too() {
    let folder = tempfile::tempdir().unwrap();
    let made = generate(folder.path());
    let script = made.join("vmm-reference.bash");
    let bash = Command::new("bash").arg("-n").arg(&script).status();
    assert!(bash.unwrap().success());
    files(folder.path());
    let setup = format!("source {}", script.display());
    let options = ["--norc", "--noprofile", "-i"];
    let mut bash = Typist::new("bash", &options, folder.path(), &setup);
    bash.types("plan --ker\t", &["plan", "--kernel"]);
    bash.types("--ker\t", &["--kernel"]);
    bash.types("ins\tvml\t", &["inspect", "vmlinuz-x"]);
    bash.types("--kernel vml\t", &["--kernel", "vmlinuz-x"]);
    bash.types("--kernel=vml\t", &["--kernel=vmlinuz-x"]);
    bash.types(
        "plan --kernel=vml\t--transp\tpc\t",
        &["plan", "--kernel=vmlinuz-x", "--transport", "pci"],
    );
    // ESC * inserts all.
    let all = "\x1b*";
    for (option, values) in [
        ("--lean", &["auto", "off", "on"][..]),
        ("--rng", &["off", "on"]),
        ("--vmgenid", &["off", "on"]),
        ("--keyboard", &["off", "on"]),
        ("--announce-virtio", &["off", "on"]),
        ("--transport", &["mmio", "pci"]),
        ("--on-reboot", &["exit", "restart"]),
        (
            "--log-level",
            &["debug", "error", "info", "off", "trace", "warn"],
        ),
        ("--serial", &["file=", "null", "stdio"]),
    ] {
        let [first, rest @ ..] = values else { panic!() };
        let with_equals = format!("{option}={first}");
        for command in [&[][..], &["plan"]] {
            let expected = [command, &[with_equals.as_str()], rest].concat();
            bash.types(&format!("{} {option}={all}", command.concat()), &expected);
            let expected = [command, &[option], values].concat();
            bash.types(&format!("{} {option} {all}", command.concat()), &expected);
        }
    }
    bash.types("--log-level=debug pl\t", &["--log-level=debug", "plan"]);
    bash.types("doctor --j\t", &["doctor", "--json"]);
    bash.types("plan --arch=aar\t", &["plan", "--arch=aarch64"]);
    bash.types("--serial=file=vml\t", &["--serial=file=vmlinuz-x"]);
    bash.types("--console=st\t", &["--console=stdio"]);
    // What takes no value as a word of its own.
    bash.types("--console pl\t", &["--console", "plan"]);
    bash.types(
        "--blk disk.\t,eng\tio\t,r\t",
        &["--blk", "disk.img,engine=io_uring,ro"],
    );
    bash.types(
        "--blk=path=disk.\t,disc\to\t",
        &["--blk=path=disk.img,discard=off"],
    );
    bash.types("--balloon=def\t", &["--balloon=deflate-on-oom"]);
    bash.types(
        "--vsock ci\t3,pa\tvml\t",
        &["--vsock", "cid=3,path=vmlinuz-x"],
    );
    // A command's own commands stand behind its arguments.
    bash.types("ctl vml\tpau\t", &["ctl", "vmlinuz-x", "pause"]);
    bash.types("ctl pause sta\t", &["ctl", "pause", "status"]);
    bash.types("ctl --js\tx ev\t", &["ctl", "--json", "x", "events"]);
    bash.types(
        "ctl x shu\t--tim\t5",
        &["ctl", "x", "shutdown", "--timeout", "5"],
    );
    bash.types(
        "ctl x metr\t--prom\t",
        &["ctl", "x", "metrics", "--prometheus"],
    );
    bash.types(
        "ctl x dev\tnet0 lin\tdo\t",
        &["ctl", "x", "device", "net0", "link", "down"],
    );
    bash.types(
        "ctl x dev\tblk0 lim\tbw=1M iops-b\t5",
        &[
            "ctl",
            "x",
            "device",
            "blk0",
            "limits",
            "bw=1M",
            "iops-burst=5",
        ],
    );
    bash.types("help ctl dev\tta\t", &["help", "ctl", "device", "target"]);
}

#[test]
fn zsh_completes_options_values_and_files_after_subcommands_too() {
    if Command::new("zsh").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no zsh: apt-get install zsh"
        );
        eprintln!("SKIPPED: no zsh");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = generate(folder.path());
    files(folder.path());
    let setup = format!(
        "fpath=({} $fpath); autoload -Uz compinit; compinit -u -D; unsetopt zle_bracketed_paste prompt_cr",
        made.display()
    );
    let mut zsh = Typist::new("zsh", &["-f", "-i"], folder.path(), &setup);
    zsh.types("plan --ker\t", &["plan", "--kernel"]);
    zsh.types("ins\tvml\t", &["inspect", "vmlinuz-x"]);
    zsh.types("--kernel=vml\t", &["--kernel=vmlinuz-x"]);
    for command in ["", "plan"] {
        for (typed, given) in [
            ("--lean=au\t", "--lean=auto"),
            ("--transport=p\t", "--transport=pci"),
            ("--on-reboot=re\t", "--on-reboot=restart"),
            ("--log-level=de\t", "--log-level=debug"),
            ("--rng=of\t", "--rng=off"),
        ] {
            let expected = if command.is_empty() {
                vec![given]
            } else {
                vec![command, given]
            };
            zsh.types(&format!("{command} {typed}"), &expected);
        }
    }
    zsh.types("doctor --j\t", &["doctor", "--json"]);
    for front in ["--blk=", "--blk "] {
        let value = |text: &str| -> Vec<String> {
            let words = format!("{front}{text}");
            words.split(' ').map(str::to_owned).collect()
        };
        for (typed, given) in [
            ("disk.\t,eng\tio\t,r\t", "disk.img,engine=io_uring,ro"),
            ("path=disk.\t,disc\to\t", "path=disk.img,discard=off"),
            ("x,queue-\t8,iops-b\t9", "x,queue-size=8,iops-burst=9"),
        ] {
            let given = value(given);
            let given: Vec<&str> = given.iter().map(String::as_str).collect();
            zsh.types(&format!("{front}{typed}"), &given);
        }
    }
    zsh.types("--net=ta\tvm0,mt\t9", &["--net=tap=vm0,mtu=9"]);
    zsh.types(
        "--vsock ci\t3,pa\tvml\t",
        &["--vsock", "cid=3,path=vmlinuz-x"],
    );
    zsh.types(
        "--balloon=def\t,tar\t5",
        &["--balloon=deflate-on-oom,target=5"],
    );
    zsh.types("--serial=fi\tvml\t", &["--serial=file=vmlinuz-x"]);
    zsh.types("--serial=nu\t", &["--serial=null"]);
    zsh.types("ctl vml\tpau\t", &["ctl", "vmlinuz-x", "pause"]);
    zsh.types(
        "ctl x dev\tnet0 lin\tdo\t",
        &["ctl", "x", "device", "net0", "link", "down"],
    );
    zsh.types(
        "ctl x dev\tblk0 lim\tbw=1M iops-b\t5",
        &[
            "ctl",
            "x",
            "device",
            "blk0",
            "limits",
            "bw=1M",
            "iops-burst=5",
        ],
    );
}
