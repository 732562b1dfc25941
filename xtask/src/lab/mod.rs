//! The lab: for each architecture a first-level machine under full emulation that offers a real
//! (nested) KVM, our binary in it, and stock kernels as its guests.
//!
//! What is done there is data ([`Case`]), grouped by the machine it is done in ([`Session`]), so that it
//! can be listed and chosen from without a machine.

mod architectures;
mod case;
mod devices;
mod images;
mod machine;
mod plain;
mod system;

pub(crate) use architectures::{ARCHITECTURES, Architecture};
use case::Case;
use images::Images;
use machine::Machine;

use crate::needs::Needs;
use crate::step::{Result, go_on, timed};
use crate::system::System;

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// What a change has to pass.
    Smoke,
    /// Every combination there is.
    Full,
}

/// One first-level machine and what is done in it.
#[derive(Debug)]
struct Session {
    /// The emulator's arguments.
    arguments: &'static str,
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

/// What is done for one architecture: chosen, not yet prepared.
#[derive(Debug)]
pub(crate) struct Lab {
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
    pub(crate) fn new(
        arch: &'static Architecture,
        scope: Scope,
        only: Option<&str>,
    ) -> Result<Self> {
        let mut sessions = sessions(arch, scope)?;
        if let Some(only) = only {
            let all = names(&sessions);
            for session in &mut sessions {
                session.choose(only);
            }
            sessions.retain(|session| !session.cases.is_empty());
            if sessions.is_empty() {
                let all = all.join("\n  ");
                return Err(format!(
                    "--only={only}: no case of {} has this in its name; there are:\n  {all}\n  \
                     cure: another text, or --full, which has more cases",
                    arch.name
                )
                .into());
            }
        }
        Ok(Self { arch, sessions })
    }

    /// Its architecture's name.
    pub(crate) fn name(&self) -> &'static str {
        self.arch.name
    }

    /// The names of its cases, in their order.
    pub(crate) fn names(&self) -> Vec<String> {
        names(&self.sessions)
    }

    /// Whether a case uses a file of the machine.
    fn uses(&self, file: &str) -> bool {
        let mut cases = self.sessions.iter().flat_map(|session| &session.cases);
        cases.any(|case| case.uses(file))
    }

    /// What preparing and running it needs.
    pub(crate) fn needs(&self) -> Needs {
        Needs::default()
            .targets([self.arch.target, self.arch.guests.0])
            .tools(&[
                ("cpio", "cpio"),
                ("depmod", "kmod"),
                ("mke2fs", "e2fsprogs"),
                ("xz", "xz-utils"),
                ("zstd", "zstd"),
            ])
            .qemu(self.arch.qemu, self.arch.qemu_package)
    }

    /// Gets and builds what it is made of; quick when that is there and nothing has changed.
    pub(crate) fn prepare(self) -> Result<Ready> {
        let name = format!("preparing the lab {}", self.arch.name);
        timed(&name, || {
            let has_system = self.sessions.iter().any(|session| session.has_system);
            let system = match self.arch.system_kernel {
                Some(kernel) if has_system => {
                    Some(crate::system::prepare(self.arch.debian, kernel)?)
                }
                _ => None,
            };
            let images = images::prepare(self.arch, self.uses("/micro_guests"))?;
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
        let arch = self.lab.arch;
        timed(&format!("lab {}", arch.name), || {
            for session in &self.lab.sessions {
                let disk = self.system.as_ref().filter(|_| session.has_system);
                let disk = disk.map(|system| system.disk.as_path());
                let mut machine = Machine::start(arch, session.arguments, &self.images, disk)?;
                for case in &session.cases {
                    go_on()?;
                    case.run(&mut machine)?;
                }
            }
            Ok(())
        })
    }
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
        cases.push(plain::micro_guests());
    }
    let mut sessions = vec![Session {
        arguments: arch.qemu_arguments,
        has_system,
        cases,
    }];
    for lesser in arch.lesser {
        sessions.push(Session {
            arguments: lesser.qemu_arguments,
            has_system: false,
            cases: plain::lesser(arch, lesser)?,
        });
    }
    Ok(sessions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_the_full_lab_has_all_of_the_smoke_lab() {
        for arch in ARCHITECTURES {
            let names = |scope| Lab::new(arch, scope, None).unwrap().names();
            let (smoke, full) = (names(Scope::Smoke), names(Scope::Full));
            for all in [&smoke, &full] {
                let mut sorted = all.clone();
                sorted.sort();
                sorted.dedup();
                assert_eq!(sorted.len(), all.len(), "{all:?}");
            }
            let lost: Vec<_> = smoke.iter().filter(|name| !full.contains(name)).collect();
            assert_eq!(lost, Vec::<&String>::new(), "{}", arch.name);
        }
    }

    #[test]
    fn a_text_that_no_case_has_is_an_error_that_lists_them() {
        let error = Lab::new(&ARCHITECTURES[0], Scope::Smoke, Some("no such")).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("--only=no such") && said.contains("\n  built-in guest, 1 vCPUs\n"));
    }

    #[test]
    fn a_case_comes_with_those_that_it_needs() {
        let lab = Lab::new(
            &ARCHITECTURES[0],
            Scope::Smoke,
            Some("mmio: disks: read only"),
        );
        let names = lab.unwrap().names();
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[0], "mmio: disks: write, trim");
    }

    #[test]
    fn chosen_cases_need_no_machine_of_the_others() {
        let lab = Lab::new(&ARCHITECTURES[2], Scope::Smoke, Some("no AIA")).unwrap();
        assert_eq!(lab.sessions.len(), 1);
        assert_eq!(lab.names(), ["no AIA: built-in guest"]);
    }
}
