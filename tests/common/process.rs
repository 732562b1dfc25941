//! The VMM as a process with a watchdog, and the micro-guests.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::kernel;

/// No test takes longer; a VMM that does is killed and the test fails.
const WATCHDOG: Duration = Duration::from_secs(300);

/// The VMM's binary, or the one that the environment names.
pub(crate) fn binary() -> OsString {
    let named = std::env::var_os("VMM_TEST_BINARY");
    named.unwrap_or_else(|| env!("CARGO_BIN_EXE_vmm-reference").into())
}

/// The VMM with these arguments; stdin is /dev/null unless changed.
pub(crate) fn vmm(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The VMM with a guest made of `code`.
pub(crate) fn run_code(code: &[u8], arguments: &[&str]) -> Ended {
    let kernel = kernel(code);
    let path = format!("--kernel={}", kernel.path().display());
    finish(vmm(arguments).arg(path).spawn().unwrap())
}

/// How the VMM ended, and what it printed.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Reads all of a stream in the background.
fn collect(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits for the end and collects the output.
pub(crate) fn finish(mut child: Child) -> Ended {
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let status = wait_patiently(&mut child);
    let killed = status.is_none();
    let ended = Ended {
        status: status.unwrap_or_default(),
        stdout: stdout.recv().unwrap(),
        stderr: stderr.recv().unwrap(),
    };
    assert!(!killed, "the VMM did not end in {WATCHDOG:?}: {ended:?}");
    ended
}

/// Waits for the end, no longer than the watchdog allows.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let status = wait_patiently(child);
    status.unwrap_or_else(|| panic!("the VMM did not end in {WATCHDOG:?}"))
}

/// Waits for the end; kills the VMM where the watchdog has enough, and gives nothing.
fn wait_patiently(child: &mut Child) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal.
pub(crate) fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill")
        .args([&format!("-{signal}"), &pid])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// Those of these signals that this process was not started to ignore, and with it the VMM: as the
/// background jobs of a shell are.
pub(crate) fn not_ignored<const N: usize>(names: [&'static str; N]) -> Vec<&'static str> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
    let number = |name| match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "TERM" => 15,
        _ => panic!("no signal {name}"),
    };
    let (ignored, other): (Vec<_>, Vec<_>) = names
        .into_iter()
        .partition(|name| mask >> (number(*name) - 1) & 1 == 1);
    if !ignored.is_empty() {
        eprintln!("skipped: this process was started to ignore {ignored:?}");
    }
    other
}

/// Reads from a stream until `text` has come.
pub(crate) fn read_until(stream: &mut impl Read, text: &str) {
    let mut seen = Vec::new();
    let mut byte = [0];
    loop {
        let said = String::from_utf8_lossy(&seen);
        if said.contains(text) {
            return;
        }
        let len = stream.read(&mut byte).unwrap();
        assert_eq!(len, 1, "{text:?} did not come before the end of: {said}");
        seen.push(byte[0]);
    }
}

/// A path as an option's value.
pub(crate) fn option(name: &str, path: impl Into<PathBuf>) -> String {
    format!("--{name}={}", path.into().display())
}

/// Runs the VMM and expects it to refuse with status 2 and all of these texts.
pub(crate) fn refused(arguments: &[&str], texts: &[&str]) {
    let ended = finish(vmm(arguments).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(2), "{arguments:?}: {ended:?}");
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    for text in texts {
        assert!(
            ended.stderr.contains(text),
            "{arguments:?}: `{text}` not in {}",
            ended.stderr
        );
    }
}

/// A file with this content.
pub(crate) fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

/// That a program which a process might start would get none of its descriptors but those that it got from
/// this one.
pub(crate) fn all_close_on_exec(child: &Child) {
    let folder = format!("/proc/{}", child.id());
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{folder}/fdinfo")).unwrap() {
        let name = entry.unwrap().file_name();
        let number: u32 = name.to_str().unwrap().parse().unwrap();
        let name = name.to_str().unwrap();
        // Those that were closed meanwhile are of no interest.
        let Ok(info) = std::fs::read_to_string(format!("{folder}/fdinfo/{name}")) else {
            continue;
        };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
        let close = u32::try_from(libc::O_CLOEXEC).unwrap();
        let target = std::fs::read_link(format!("{folder}/fd/{name}")).unwrap_or_default();
        let ours = std::fs::read_link(format!("/proc/self/fd/{name}"));
        let inherited = number <= 2 || ours.is_ok_and(|ours| ours == target);
        assert!(inherited || flags & close != 0, "{number}: {target:?}");
        count += 1;
    }
    assert!(count > 3);
}
