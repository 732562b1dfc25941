//! The lab: for each architecture a first-level machine under full emulation that offers a real
//! (nested) KVM, our binary in it, and stock kernels as its guests.
//!
//! What is done there is data ([`Case`]), grouped by the machine it is done in ([`Session`]), so that it
//! can be listed and chosen from without a machine.

mod architecture;
mod architectures;
mod bochs;
mod case;
mod devices;
mod golden;
mod images;
mod machine;
mod own_kernel;
mod plain;
mod scope;
mod system;

pub(crate) use architecture::Architecture;
pub(crate) use architectures::ARCHITECTURES;
use case::Case;
use images::Images;
use machine::Machine;
pub(crate) use scope::Scope;

use std::path::PathBuf;

use crate::build::target;
use crate::needs::Needs;
use crate::step::{Result, go_on, timed};
use crate::system::System;

/// The machine's file with a kernel of our own.
const OWN_KERNEL: &str = "/own-kernel";

/// What a first-level machine is emulated by.
#[derive(Debug, Clone, Copy)]
enum Emulator {
    /// QEMU, with these arguments.
    Qemu(&'static str),
    Bochs,
}

/// One first-level machine and what is done in it.
#[derive(Debug)]
struct Session {
    emulator: Emulator,
    /// Whether it has the disk of a stock system.
    has_system: bool,
    cases: Vec<Case>,
}

impl Session {
    /// Keeps the cases with this text in their name, and those that they need before them.
    fn choose(&mut self, only: &str) {
        let mut needed = false;
        let mut wanted: Vec<_> = std::mem::take(&mut self.cases)
            .into_iter()
            .rev()
            .filter(|case| {
                let kept = needed || case.name.contains(only);
                needed = kept && case.follows;
                kept
            })
            .collect();
        wanted.reverse();
        self.cases = wanted;
    }
}

/// What is done under one name: chosen, not yet prepared.
#[derive(Debug)]
pub(crate) struct Lab {
    name: &'static str,
    arch: &'static Architecture,
    sessions: Vec<Session>,
}

/// A lab whose files are there.
#[derive(Debug)]
pub(crate) struct Ready {
    lab: Lab,
    images: Images,
    system: Option<System>,
}

impl Lab {
    /// Everything, or the cases with this text in their name.
    pub(crate) fn new(name: &str, scope: Scope, only: Option<&str>) -> Result<Self> {
        let row = |name: &str| {
            let mut rows = ARCHITECTURES.iter();
            rows.find(|arch| arch.name == name)
                .ok_or_else(|| format!("{name}: no such lab"))
        };
        let (name, arch, mut sessions) = if name == bochs::NAME {
            let arch = row("x86_64")?;
            (bochs::NAME, arch, vec![second_machine(arch, scope)?])
        } else {
            let arch = row(name)?;
            (arch.name, arch, sessions(arch, scope)?)
        };
        if let Some(only) = only {
            let all = names(&sessions);
            for session in &mut sessions {
                session.choose(only);
            }
            sessions.retain(|session| !session.cases.is_empty());
            if sessions.is_empty() {
                let all = all.join("\n  ");
                return Err(format!(
                    "--only={only}: no case of {name} has this in its name; there are:\n  {all}\n  \
                     cure: another text, or --full, which has more cases"
                )
                .into());
            }
        }
        Ok(Self {
            name,
            arch,
            sessions,
        })
    }

    /// A machine in which a golden snapshot is made.
    fn golden(arch: &'static Architecture) -> Self {
        Self {
            name: arch.name,
            arch,
            sessions: vec![Session {
                emulator: Emulator::Qemu(arch.qemu_arguments),
                has_system: false,
                cases: vec![golden::case(arch)],
            }],
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// The names of its cases, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.sessions)
    }

    /// Where its machine's files are.
    fn folder(&self) -> PathBuf {
        target().join("lab").join(self.name)
    }

    /// Whether a case uses a file of the machine.
    fn uses(&self, file: &str) -> bool {
        let mut cases = self.sessions.iter().flat_map(|session| &session.cases);
        cases.any(|case| case.uses(file))
    }

    /// What preparing and running it needs.
    pub(crate) fn needs(&self) -> Needs {
        let needs = match self.name {
            bochs::NAME => bochs::needs(),
            _ => Needs::default().qemu(self.arch.qemu, self.arch.qemu_package),
        };
        let needs = if self.uses(OWN_KERNEL) {
            needs.and(own_kernel::needs())
        } else {
            needs
        };
        needs
            .targets([self.arch.target, self.arch.guests.0])
            .tools(&[
                ("cpio", "cpio"),
                ("depmod", "kmod"),
                ("mke2fs", "e2fsprogs"),
                ("xz", "xz-utils"),
                ("zstd", "zstd"),
            ])
    }

    /// Gets what it is made of; quick when that is there.
    pub(crate) fn fetch(&self) -> Result<()> {
        let name = format!("getting what the lab {} is made of", self.name);
        timed(&name, || {
            self.system()?;
            if self.uses(OWN_KERNEL) {
                own_kernel::fetch()?;
            }
            images::fetch(self.arch).map(drop)
        })
    }

    fn system(&self) -> Result<Option<System>> {
        let has_system = self.sessions.iter().any(|session| session.has_system);
        let kernel = self.arch.system_kernel.filter(|_| has_system);
        let system = kernel.map(|kernel| crate::system::prepare(self.arch.debian, kernel));
        system.transpose()
    }

    /// Builds what it needs of ours.
    pub(crate) fn build(&self) -> Result<()> {
        images::build(self.arch).map(drop)
    }

    /// Gets and builds what it is made of; quick when that is there and nothing has changed.
    pub(crate) fn prepare(self) -> Result<Ready> {
        let name = format!("preparing the lab {}", self.name);
        timed(&name, || {
            let system = self.system()?;
            let images = images::prepare(self.arch, &self.folder(), |file| self.uses(file))?;
            Ok(Ready {
                lab: self,
                images,
                system,
            })
        })
    }
}

impl Ready {
    /// Runs all cases; stops at the first that fails.
    pub(crate) fn run(&self) -> Result<()> {
        timed(&format!("lab {}", self.lab.name), || {
            for session in &self.lab.sessions {
                let mut machine = self.start(session)?;
                for case in &session.cases {
                    go_on()?;
                    case.run(&mut machine)?;
                }
            }
            Ok(())
        })
    }
}

impl Ready {
    fn start(&self, session: &Session) -> Result<Machine> {
        let Self {
            lab,
            images,
            system,
        } = self;
        let (emulator, patience) = match session.emulator {
            Emulator::Qemu(arguments) => {
                let system = system.as_ref().filter(|_| session.has_system);
                let disk = system.map(|system| system.disk.as_path());
                let command = machine::qemu(lab.arch, arguments, images, disk);
                (command, machine::PATIENCE)
            }
            Emulator::Bochs => (bochs::emulator(&lab.folder(), images)?, bochs::PATIENCE),
        };
        Machine::start(lab.name, emulator, patience)
    }
}

/// Makes the golden snapshot of an architecture: with this machine's KVM if it is its own, else in the lab's machine.
pub(crate) fn golden(name: &str) -> Result<()> {
    let mut rows = ARCHITECTURES.iter();
    let found = rows.find(|arch| arch.name == name);
    let arch = found.ok_or_else(|| format!("{name}: no such architecture"))?;
    if name == std::env::consts::ARCH {
        return golden::make(arch);
    }
    let lab = Lab::golden(arch);
    lab.needs().provide()?;
    lab.prepare()?.run()
}

/// The names of all labs.
pub(crate) fn all() -> [&'static str; 4] {
    ["x86_64", bochs::NAME, "aarch64", "riscv64"]
}

fn names(sessions: &[Session]) -> Vec<String> {
    let cases = sessions.iter().flat_map(|session| &session.cases);
    cases.map(|case| case.name.clone()).collect()
}

/// What is done for an architecture. The smoke lab has everything once on the machine's own
/// architecture, and on the others what may differ there.
fn sessions(arch: &'static Architecture, scope: Scope) -> Result<Vec<Session>> {
    let everything = scope == Scope::Full || arch.name == std::env::consts::ARCH;
    let mut cases = plain::cases(arch, scope);
    cases.extend(devices::cases(arch, scope, everything)?);
    // The image of another architecture takes ten minutes to build.
    let has_system = everything && arch.system_kernel.is_some();
    if has_system {
        cases.extend(system::cases(arch, scope));
    }
    // On its own architecture the host has run them on its own KVM.
    if scope == Scope::Full || arch.name != std::env::consts::ARCH {
        cases.push(plain::micro_guests(""));
    }
    let mut sessions = vec![Session {
        emulator: Emulator::Qemu(arch.qemu_arguments),
        has_system,
        cases,
    }];
    if scope == Scope::Full && arch.name == "x86_64" {
        // Chosen alone, it needs no stock system.
        sessions.push(Session {
            emulator: Emulator::Qemu(arch.qemu_arguments),
            has_system: false,
            cases: vec![plain::own_kernel()],
        });
    }
    for lesser in arch.lesser {
        sessions.push(Session {
            emulator: Emulator::Qemu(lesser.qemu_arguments),
            has_system: false,
            cases: plain::lesser(arch, lesser, scope)?,
        });
    }
    Ok(sessions)
}

/// What is done on x86_64's second machine, which is slow and differs in the processor's extension only.
fn second_machine(arch: &'static Architecture, scope: Scope) -> Result<Session> {
    let mut cases = plain::once(arch, scope);
    if scope == Scope::Full {
        cases.extend(devices::once(arch)?);
        cases.push(plain::micro_guests(bochs::TESTS));
        for parameter in bochs::OLDER {
            let reload = bochs::reload(parameter);
            cases.extend(plain::after(arch, parameter, &reload));
        }
    }
    Ok(Session {
        emulator: Emulator::Bochs,
        has_system: false,
        cases,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_the_full_lab_has_all_of_the_smoke_lab() {
        for lab in all() {
            let names = |scope| Lab::new(lab, scope, None).unwrap().names();
            let (smoke, full) = (names(Scope::Smoke), names(Scope::Full));
            for all in [&smoke, &full] {
                let mut sorted = all.clone();
                sorted.sort();
                sorted.dedup();
                assert_eq!(sorted.len(), all.len(), "{all:?}");
            }
            let lost: Vec<_> = smoke.iter().filter(|name| !full.contains(name)).collect();
            assert_eq!(lost, Vec::<&String>::new(), "{lab}");
        }
    }

    #[test]
    fn a_text_that_no_case_has_is_an_error_that_lists_them() {
        let error = Lab::new("x86_64", Scope::Smoke, Some("no such")).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("--only=no such") && said.contains("\n  built-in guest, 1 vCPUs\n"));
    }

    #[test]
    fn a_case_comes_with_those_that_it_needs() {
        let lab = Lab::new("x86_64", Scope::Smoke, Some("pci: disks: read only"));
        let names = lab.unwrap().names();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[0], "pci: disks: write, trim");
    }

    #[test]
    fn chosen_cases_need_no_machine_of_the_others() {
        let lab = Lab::new("riscv64", Scope::Smoke, Some("no AIA")).unwrap();
        assert_eq!(lab.sessions.len(), 1);
        assert_eq!(lab.names(), ["no AIA: built-in guest"]);
    }
}
