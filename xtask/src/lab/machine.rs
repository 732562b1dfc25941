//! The first-level machine: an emulator with a hypervisor extension, and a shell on its console, which is
//! the emulator's own input and output.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::architecture::Architecture;
use super::images::Images;
use crate::step::Result;

/// An emulated machine is slow, and a hanging one must end all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// How much of the console a failure shows.
const SHOWN: usize = 6000;

/// A running machine; killed when dropped.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    console: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that came, without carriage returns.
    log: String,
    /// What [`Machine::expect`] has passed.
    seen: usize,
    /// How long it may be silent about what is expected.
    patience: Duration,
    /// What its lines begin with.
    name: String,
}

impl Machine {
    /// Starts an emulator and waits for the machine's shell. `lab` names it in what is printed.
    pub(super) fn start(lab: &str, mut emulator: Command, patience: Duration) -> Result<Self> {
        let begin = Instant::now();
        let mut child = emulator
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", emulator.get_program().display()))?;
        let console = child.stdin.take().ok_or("the emulator has no stdin")?;
        let mut stdout = child.stdout.take().ok_or("the emulator has no stdout")?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut machine = Self {
            child,
            console,
            output,
            log: String::new(),
            seen: 0,
            patience,
            name: format!("lab {lab}"),
        };
        let start = machine.expect("@@ready\n")?;
        if start.contains("@@failed") || !start.contains("/dev/kvm") {
            return Err(machine.failure("the machine has no /dev/kvm"));
        }
        let took = begin.elapsed().as_secs_f64();
        println!("    {}: machine up, {took:.1} s", machine.name);
        Ok(machine)
    }

    /// What its lines begin with.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a command line in the machine; of each pair, waits for the first text, then types the
    /// second. Gives the exit status and all output.
    pub(crate) fn run(
        &mut self,
        command: &str,
        dialogue: &[(String, String)],
    ) -> Result<(u8, String)> {
        let start = self.seen;
        self.type_text(&format!("{command}\n"))?;
        for (wait_for, text) in dialogue {
            self.expect(wait_for)?;
            self.type_text(text)?;
        }
        self.expect("@@exit ")?;
        let status = self.expect("\n")?;
        let output = self.log.get(start..self.seen).unwrap_or_default();
        Ok((status.trim().parse()?, output.to_owned()))
    }

    fn type_text(&mut self, text: &str) -> Result<()> {
        self.console.write_all(text.as_bytes())?;
        Ok(self.console.flush()?)
    }

    /// Waits until `text` has come and gives what came before it.
    fn expect(&mut self, text: &str) -> Result<String> {
        let end = Instant::now() + self.patience;
        loop {
            let new = self.log.get(self.seen..).unwrap_or_default();
            if let Some(at) = new.find(text) {
                let before = new.get(..at).unwrap_or_default().to_owned();
                self.seen += at + text.len();
                return Ok(before);
            }
            match self
                .output
                .recv_timeout(end.saturating_duration_since(Instant::now()))
            {
                Ok(bytes) => {
                    let text = String::from_utf8_lossy(&bytes).replace('\r', "");
                    self.log.push_str(&text);
                }
                Err(reason) => {
                    let what = match reason {
                        RecvTimeoutError::Timeout => format!("in {} s", self.patience.as_secs()),
                        RecvTimeoutError::Disconnected => "before the machine ended".into(),
                    };
                    return Err(self.failure(&format!("{text:?} did not come {what}")));
                }
            }
        }
    }

    /// An error with the console's last output.
    pub(crate) fn failure(&self, what: &str) -> Box<dyn std::error::Error + Send + Sync> {
        let mut start = self.log.len().saturating_sub(SHOWN);
        while !self.log.is_char_boundary(start) {
            start += 1;
        }
        let mut message = format!("{}: {what}", self.name);
        for line in self.log.get(start..).unwrap_or_default().lines() {
            let _ = write!(message, "\n    | {line}");
        }
        message.into()
    }
}

/// A program that does not outlive the thread that starts it, however that ends.
pub(super) fn ending_with_this(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// QEMU, with a disk or without.
pub(super) fn qemu(
    arch: &Architecture,
    arguments: &str,
    images: &Images,
    disk: Option<&Path>,
) -> Command {
    // What is written to the disk is gone with the machine.
    let drive = disk.map(|disk| {
        let file = disk.display();
        format!("-device virtio-blk-pci,drive=disk -drive file={file},format=raw,if=none,id=disk,snapshot=on")
    });
    let mut command = ending_with_this(arch.qemu);
    command
        .args(arguments.split_whitespace())
        .args(drive.iter().flat_map(|drive| drive.split(' ')))
        .args("-nodefaults -nographic -no-reboot -serial stdio".split(' '))
        .arg("-kernel")
        .arg(&images.kernel)
        .arg("-initrd")
        .arg(&images.initramfs)
        .args(["-append", arch.qemu_cmdline]);
    command
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
