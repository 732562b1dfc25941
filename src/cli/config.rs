//! What a command line and a configuration file describe: a VM, and what of the host's it is connected to.
//!
//! The file's keys are those of [`VmConfig`], and some of this program's own: `serial` and `console`, where the
//! consoles go, `control`, and those of the sandbox.

use std::fmt;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserializer;
use vmm_reference::{
    Error, NamedFile, NamedFiles, VmConfig, busy_output, check_descriptor_path, with_text,
};

use super::sandbox::SandboxArgs;

/// A VM, and this program's part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) vm: VmConfig,
    /// Where the serial console goes, if it is said.
    pub(super) serial: Option<ConsoleTarget>,
    /// Where the virtio console goes; without it there is none.
    pub(super) console: Option<ConsoleTarget>,
    /// The socket on which commands are taken.
    pub(super) control: Option<PathBuf>,
    /// What the process gives up.
    pub(super) sandbox: SandboxArgs,
}

impl Config {
    /// Where the serial console goes: to stdin and stdout, unless the other console does.
    pub(super) fn serial(&self) -> &ConsoleTarget {
        match (&self.serial, &self.console) {
            (Some(target), _) => target,
            (None, Some(ConsoleTarget::Stdio)) => &ConsoleTarget::Null,
            (None, _) => &ConsoleTarget::Stdio,
        }
    }

    /// Both consoles, by the names of their options.
    pub(super) fn consoles(&self) -> impl Iterator<Item = (&'static str, &ConsoleTarget)> {
        let console = self.console.as_ref().map(|target| ("console", target));
        [("serial", self.serial())].into_iter().chain(console)
    }

    /// The files that consoles write to.
    pub(super) fn outputs(&self) -> impl Iterator<Item = NamedFile<'_>> {
        self.consoles().filter_map(|(name, target)| match target {
            ConsoleTarget::File(path) => Some((name, path.as_path())),
            _ => None,
        })
    }

    /// The files and sockets of this VM beside those of its configuration: `inputs` are read, `outputs` written.
    pub(super) fn files<'a>(
        &'a self,
        inputs: &[NamedFile<'a>],
        outputs: &[NamedFile<'a>],
    ) -> NamedFiles<'a> {
        let mut files = NamedFiles::default();
        files.inputs.extend(inputs);
        files.outputs.extend(self.outputs());
        files.outputs.extend(outputs);
        let control = self.control.as_deref();
        files.sockets.extend(control.map(|path| ("control", path)));
        files
    }

    /// Refuses what cannot be, whatever the host.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.vm.check_paths(&self.files(&[], &[]))?;
        let on_stdio = |(_, target): &(_, &ConsoleTarget)| **target == ConsoleTarget::Stdio;
        if self.consoles().filter(on_stdio).count() > 1 {
            return Err(Error::Config {
                field: "console".into(),
                value: "stdio".to_owned(),
                cause: "the serial console has stdin and stdout already".to_owned(),
                cure: "give serial=null, or serial=file=PATH".to_owned(),
            });
        }
        self.sandbox.user().map(drop)
    }

    /// Checks that every descriptor that is named is open; to be called before this program opens a file that
    /// might get its number.
    pub(super) fn check_descriptors(&self) -> Result<(), Error> {
        self.vm.check_descriptors()?;
        let files = self.files(&[], &[]);
        let mut named = files.outputs.iter().chain(&files.sockets);
        named.try_for_each(|(name, path)| check_descriptor_path(name, path))
    }

    /// Those.
    pub(super) fn descriptors(&self) -> Vec<RawFd> {
        self.vm.descriptors(&self.files(&[], &[]))
    }

    /// Remarks on files of consoles that cannot be written now.
    pub(super) fn busy(&self) -> impl Iterator<Item = String> {
        self.outputs()
            .filter_map(|(name, path)| busy_output(name, path))
    }
}

/// Where a console of the guest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ConsoleTarget {
    /// stdin and stdout of the process.
    Stdio,
    /// Nowhere; no input.
    Null,
    /// Output to a file that is created or emptied; no input.
    File(PathBuf),
}

impl ConsoleTarget {
    /// What it may be.
    const FORMS: &'static str = "stdio, null or file=PATH";
}

impl FromStr for ConsoleTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err(format!("it is {}", Self::FORMS)),
        }
    }
}

impl<'de> serde::Deserialize<'de> for ConsoleTarget {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        with_text(from, Self::FORMS)
    }
}

impl fmt::Display for ConsoleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Null => f.write_str("null"),
            Self::File(path) => write!(f, "file={}", path.display()),
        }
    }
}
