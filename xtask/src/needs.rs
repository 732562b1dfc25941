//! What a command needs on the machine: found, installed where that is possible, or listed.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::{Result, step, text};
use crate::{apt, build, unpacked};

/// What one command needs.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    targets: Vec<&'static str>,
    components: Vec<&'static str>,
    tools: Vec<(&'static str, &'static str)>,
    qemu: Vec<(&'static str, &'static str)>,
    unpacked: Vec<(&'static str, &'static str)>,
}

/// What Debian's cross compilers link with, by target.
const CROSS: [(&str, [(&str, &str); 2]); 2] = [
    (
        "aarch64-unknown-linux-gnu",
        [
            ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
            ("/usr/aarch64-linux-gnu/lib/crt1.o", "libc6-dev-arm64-cross"),
        ],
    ),
    (
        "riscv64gc-unknown-linux-gnu",
        [
            ("riscv64-linux-gnu-gcc", "gcc-riscv64-linux-gnu"),
            (
                "/usr/riscv64-linux-gnu/lib/libc.a",
                "libc6-dev-riscv64-cross",
            ),
        ],
    ),
];

impl Needs {
    /// Targets of Rust, with what links for them.
    pub(crate) fn targets(mut self, targets: impl IntoIterator<Item = &'static str>) -> Self {
        for target in targets {
            self.targets.push(target);
            for (name, tools) in CROSS {
                if name == target && !target.starts_with(std::env::consts::ARCH) {
                    self.tools.extend(tools);
                }
            }
        }
        self
    }

    /// Components of Rust: `rustfmt`, `clippy`.
    pub(crate) fn components(mut self, components: &[&'static str]) -> Self {
        self.components.extend(components);
        self
    }

    /// Pairs of a tool, a program's name or a file, and Debian's package of it.
    pub(crate) fn tools(mut self, tools: &[(&'static str, &'static str)]) -> Self {
        self.tools.extend(tools);
        self
    }

    /// An emulator of the version that the lab needs, and Debian's package of it.
    pub(crate) fn qemu(mut self, program: &'static str, package: &'static str) -> Self {
        self.qemu.push((program, package));
        self
    }

    /// Pairs of a program and Debian's package of it, which is unpacked and not installed.
    pub(crate) fn unpacked(mut self, programs: &[(&'static str, &'static str)]) -> Self {
        self.unpacked.extend(programs);
        self
    }

    /// Both.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.targets.extend(other.targets);
        self.components.extend(other.components);
        self.tools.extend(other.tools);
        self.qemu.extend(other.qemu);
        self.unpacked.extend(other.unpacked);
        self
    }

    /// Installs what is missing. Nothing at all when a part of it cannot be installed here: then the
    /// error lists what is missing.
    pub(crate) fn provide(&self) -> Result<()> {
        let sysroot = PathBuf::from(text(Command::new("rustc").args(["--print", "sysroot"]))?);
        let targets = missing(&self.targets, |name| {
            sysroot.join("lib/rustlib").join(name).join("lib").exists()
        });
        let components = missing(&self.components, |name| {
            let program = if *name == "rustfmt" {
                "rustfmt"
            } else {
                "cargo-clippy"
            };
            sysroot.join("bin").join(program).exists()
        });
        let tools = missing(&self.tools, |(tool, _)| is_tool(tool));
        let qemu = missing(&self.qemu, |(program, _)| apt::is_new_qemu(program));
        let unpacked = missing(&self.unpacked, |(program, _)| {
            is_tool(program) || build::unpacked(program).is_file()
        });
        let rust = !targets.is_empty() || !components.is_empty();
        let debian = !tools.is_empty() || !qemu.is_empty();
        let can_unpack = is_tool("apt-get") && is_tool("dpkg-deb");
        let can_provide = (!rust || is_tool("rustup"))
            && (!debian || can_install()?)
            && (unpacked.is_empty() || can_unpack);
        if !can_provide {
            return Err(list(&targets, &components, &tools, &qemu, &unpacked).into());
        }
        if !components.is_empty() {
            rustup("component", &components)?;
        }
        if !targets.is_empty() {
            rustup("target", &targets)?;
        }
        let mut packages: Vec<_> = tools.iter().map(|&(_, package)| package).collect();
        packages.dedup();
        if !packages.is_empty() {
            apt::update()?;
            apt::install(&packages)?;
        }
        qemu.iter()
            .try_for_each(|(program, package)| apt::install_qemu(program, package))?;
        unpacked.iter().try_for_each(|one| {
            let (program, package) = one;
            unpacked::provide(program, package)
                .map_err(|error| format!("{error}\n{}", list(&[], &[], &[], &[], &[*one])).into())
        })
    }
}

fn rustup(kind: &str, names: &[&str]) -> Result<()> {
    step(
        &format!("rustup {kind} add {}", names.join(" ")),
        Command::new("rustup").args([kind, "add"]).args(names),
    )
}

fn missing<T: Copy + PartialEq>(all: &[T], is_there: impl Fn(&T) -> bool) -> Vec<T> {
    let mut missing = Vec::new();
    for one in all {
        if !missing.contains(one) && !is_there(one) {
            missing.push(*one);
        }
    }
    missing
}

/// What is missing, each with its cure.
fn list(
    targets: &[&str],
    components: &[&str],
    tools: &[(&str, &str)],
    qemu: &[(&str, &str)],
    unpacked: &[(&str, &str)],
) -> String {
    let mut lines = vec!["these are missing and cannot be installed here:".to_owned()];
    lines.extend(targets.iter().map(|name| {
        format!("  the Rust target {name}: rustup target add {name}, or your distribution's package of it")
    }));
    lines.extend(
        components
            .iter()
            .map(|name| format!("  {name}: rustup component add {name}")),
    );
    lines.extend(tools.iter().map(|(tool, package)| {
        format!("  {tool}: as root, apt-get install {package} (Debian's name)")
    }));
    lines.extend(qemu.iter().map(|(program, package)| {
        format!(
            "  {program} of QEMU 10 or newer: package {package}, on Debian 12 from its backports"
        )
    }));
    lines.extend(unpacked.iter().map(|(program, package)| {
        format!("  {program} on the path: out of Debian's package {package}, for instance")
    }));
    lines.join("\n")
}

/// Packages are installed by apt, as root.
fn can_install() -> Result<bool> {
    Ok(is_tool("apt-get") && apt::is_root()?)
}

/// Whether a program is on the path, or a file is there.
fn is_tool(name: &str) -> bool {
    let is_there = |folder: PathBuf| folder.join(name).is_file();
    Path::new(name).is_absolute() && Path::new(name).exists()
        || std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(is_there))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_listed_with_its_cure() {
        let said = list(
            &["t1"],
            &["clippy"],
            &[("dtc", "device-tree-compiler")],
            &[("qemu-system-x", "qemu-x")],
            &[("judge", "court")],
        );
        let cures = [
            "rustup target add t1",
            "rustup component add clippy",
            "apt-get install device-tree-compiler",
            "package qemu-x",
            "judge on the path: out of Debian's package court",
        ];
        assert_eq!(said.lines().count(), 6);
        for (line, cure) in said.lines().skip(1).zip(cures) {
            assert!(line.contains(cure), "{said}");
        }
    }

    #[test]
    fn what_is_asked_for_twice_is_missing_once() {
        assert_eq!(missing(&["a", "b", "a"], |name| *name == "b"), ["a"]);
    }
}
