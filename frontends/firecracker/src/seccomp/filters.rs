//! Which filter each thread has. By default the tables of the crate `jail` say it; a file that a user brings has a
//! filter for the threads of the machine (`vmm`), one for its vCPUs (`vcpu`), and one for the API's thread (`api`).
//!
//! The thread that runs the machine has its own from when it does so: a start that fails is an answer, and another one
//! follows, which opens what it needs. Until then, and for all threads that begin, it has one that refuses the worst.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use jail::roles::{self, served};
use jail::{Filter, FilterError, Role};
use vmm_reference::{Confinement, ConfinementReport, Error, ThreadRole};

use super::container::{ContainerError, LONGEST, Programs};
use crate::files::open_regular;
use crate::terminal;

/// The threads that filters are for, by the names that users' files have for them.
const VMM: &str = "vmm";
const API: &str = "api";
const VCPU: &str = "vcpu";

/// Why a file has no filters for this process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FilterFault {
    #[error("Filter file open error: {0}")]
    Open(io::Error),
    #[error("Filter deserialization failed: {0}")]
    Content(#[from] ContainerError),
    #[error(
        "Filter deserialization failed: it is for the architecture {found:#x}, and this is {} ({here:#x}): make it with \
         --target-arch {}",
        std::env::consts::ARCH,
        std::env::consts::ARCH
    )]
    Architecture { found: u32, here: u32 },
    #[error("Invalid thread categories: {0}")]
    Unknown(String),
    #[error("Missing Thread Category: {0}")]
    Missing(&'static str),
}

/// The filters of this process' threads.
#[derive(Debug)]
pub(crate) struct Filters {
    given: Option<Given>,
    /// The thread that runs the machine has its own.
    runs: AtomicBool,
}

/// What a user has brought.
#[derive(Debug)]
struct Given {
    vmm: Filter,
    api: Filter,
    vcpu: Filter,
}

impl Filters {
    /// Those that threads have by default.
    pub(crate) fn usual() -> Self {
        Self {
            given: None,
            runs: AtomicBool::new(false),
        }
    }

    /// Those of a file.
    pub(crate) fn of_file(path: &Path) -> Result<Self, FilterFault> {
        let mut bytes = Vec::new();
        let file = open_regular(path, false).map_err(FilterFault::Open)?;
        // One that is longer is refused for that.
        let read = file.take(LONGEST as u64 + 1).read_to_end(&mut bytes);
        read.map_err(FilterFault::Open)?;
        Ok(Self {
            given: Some(Given::new(Programs::read(&bytes)?)?),
            ..Self::usual()
        })
    }

    /// Whether a user has brought them.
    pub(crate) fn are_given(&self) -> bool {
        self.given.is_some()
    }

    /// The process begins: what this thread is refused, threads that it makes are refused too. A user's filters are all
    /// that there is.
    pub(crate) fn begin(&self) {
        if self.given.is_none() {
            let filter = Filter::refusing(served::START, served::REFUSED, served::REFUSED_BUT);
            install(filter.as_ref());
        }
    }

    /// The thread answers the API from now on.
    pub(crate) fn begin_api(&self) {
        match &self.given {
            Some(given) => install(Ok(&given.api)),
            None => install(Filter::new(&served::API).as_ref()),
        }
    }

    /// The thread writes metrics from now on, and tells of what ends the process, violations of other filters among it:
    /// so its filter is not a user's.
    pub(crate) fn begin_clock() {
        install(Filter::new(&served::CLOCK).as_ref());
    }

    fn begin_role(&self, role: &Role) {
        install(Filter::new(role).as_ref());
    }
}

impl Given {
    fn new(mut file: Programs) -> Result<Self, FilterFault> {
        let here = jail::architecture(std::env::consts::ARCH).unwrap_or_default();
        if file.architecture != here {
            let found = file.architecture;
            return Err(FilterFault::Architecture { found, here });
        }
        let names = file.programs.keys().map(String::as_str);
        let unknown: Vec<_> = names
            .filter(|name| ![VMM, API, VCPU].contains(name))
            .collect();
        if !unknown.is_empty() {
            return Err(FilterFault::Unknown(unknown.join(",")));
        }
        let mut filter = |name: &'static str| {
            let program = file.programs.remove(name);
            let program = program.ok_or(FilterFault::Missing(name))?;
            Ok::<_, FilterFault>(Filter::of_instructions(name, &program))
        };
        Ok(Self {
            vmm: filter(VMM)?,
            api: filter(API)?,
            vcpu: filter(VCPU)?,
        })
    }
}

impl Confinement for Filters {
    fn enter(&self) -> Result<(), Error> {
        Ok(())
    }

    fn report(&self) -> ConfinementReport {
        ConfinementReport::new("filters")
    }

    fn begin(&self, role: ThreadRole) {
        match (&self.given, role) {
            (Some(given), ThreadRole::Vcpu) => install(Ok(&given.vcpu)),
            (Some(given), _) => install(Ok(&given.vmm)),
            (None, role) => {
                // There is one for each kind of thread; one that is new would have none.
                let known = roles::ALL.iter().find(|known| known.name == role.name());
                match known {
                    Some(role) => self.begin_role(role),
                    None => refuse(&format!(
                        "there is no filter for the thread {}",
                        role.name()
                    )),
                }
            }
        }
    }

    fn may_build_again(&self) -> bool {
        true
    }

    fn run(&self) {
        if self.runs.swap(true, Ordering::Relaxed) {
            return;
        }
        match &self.given {
            Some(given) => install(Ok(&given.vmm)),
            None => self.begin_role(&served::RUNNING),
        }
    }
}

/// The thread has this filter from now on, or the process ends.
fn install(filter: Result<&Filter, &FilterError>) {
    let failed = match filter.map(Filter::install) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error),
        Err(error) => chain(error),
    };
    refuse(&failed);
}

fn chain(error: &FilterError) -> String {
    use std::error::Error as _;
    let source = error.source().map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// Ends the process: a thread that should have a filter never runs without one.
fn refuse(cause: &str) -> ! {
    log::error!("Seccomp error: {cause}. --no-seccomp does without filters.");
    // Who has closed stderr does not want to know.
    let _ = writeln!(
        io::stderr(),
        "Error: Seccomp error: {cause}. --no-seccomp does without filters."
    );
    log::error!("Firecracker exiting with error. exit_code=1");
    terminal::restore();
    std::process::exit(1)
}
