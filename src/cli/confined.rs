//! Takes rights from the process when everything is open, and from each thread as it begins. What each thread may
//! call stands in [`jail::roles`].

use std::error::Error as _;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::lchown;
use std::panic;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jail::roles::{self, MAIN, MAIN_WITH_FORKS};
use jail::{Ahead, Filter, FilterError, Jail, JailError, Level, Report, Role, Sandbox};
use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use vmm_reference::{Confinement, ConfinementReport, Error, ThreadRole};
use vmm_sys_util::signal::block_signal;

use super::config::Config;
use super::sandbox::{self, Mode};
use super::signals::signal_error;
use super::status::{FAILED, say};
use super::terminal;

/// What the main thread is told of: its filter alone has what their handlers call.
const HANDLED: [i32; 7] = [SIGINT, SIGTERM, SIGHUP, SIGCONT, SIGWINCH, SIGTSTP, SIGQUIT];

/// The longest path of a socket is 107 bytes (unix(7)): the name that it has at first has 8 more, and one that the guest
/// connects to has a port behind it.
const LONGEST_CONTROL: usize = 107 - 8;
const LONGEST_VSOCK: usize = 107 - 11;

/// What [`begin`] has begun.
static BEGUN: Mutex<Option<Ahead>> = Mutex::new(None);

/// Begins to make namespaces, in another process, where these arguments look like those of a VM in a sandbox: making
/// them takes as long as everything else up to where they are needed.
pub(super) fn begin(arguments: &[OsString]) -> Begun {
    let words = arguments.iter().skip(1).map(|word| word.as_encoded_bytes());
    let starts_a_vm = words
        .clone()
        .next()
        .is_none_or(|word| word.starts_with(b"-") || word == b"restore");
    let is_without = |word: &[u8]| {
        let names_a_file = |text: &[u8]| word.windows(text.len()).any(|part| part == text);
        word == b"--sandbox"
            || WITHOUT.iter().any(|text| word.starts_with(text))
            || NUMBERED.into_iter().any(names_a_file)
    };
    if starts_a_vm && !words.clone().any(is_without) {
        *begun() = Ahead::start();
    }
    Begun
}

/// Beginnings of arguments with which there may be no VM, or no namespaces made beforehand. A configuration file may say that
/// there is to be no sandbox, and name files by their numbers.
const WITHOUT: [&[u8]; 8] = [
    b"--sandbox=off",
    b"--uid",
    b"--config",
    b"--dump-config",
    b"--help",
    b"--version",
    b"-h",
    b"-V",
];

/// Where a file is named by its number, that is looked at before the other process opens any.
const NUMBERED: [&[u8]; 2] = [b"/fd/", b"fd="];

/// Waits for what was begun, if nobody has taken it: nothing of it is left when the program does something else, or ends.
pub(super) struct Begun;

impl Drop for Begun {
    fn drop(&mut self) {
        drop(begun().take());
    }
}

fn begun() -> MutexGuard<'static, Option<Ahead>> {
    BEGUN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The sandbox of this process.
#[derive(Debug)]
pub(super) struct Confined {
    jail: Jail,
    /// Begun by [`begin`].
    ahead: Mutex<Option<Ahead>>,
    /// Sockets that are made before, whose clients are the user that the process becomes.
    sockets: Vec<PathBuf>,
    user: Option<jail::User>,
    mode: Mode,
    main: Role,
    report: OnceLock<Report>,
    /// In the order of [`roles::ALL`].
    filters: Vec<OnceLock<Filter>>,
}

impl Confined {
    /// What `config` asks for; `None` where that is nothing. The process has one thread.
    ///
    /// # Errors
    /// When a value cannot be used, or signals cannot be handled.
    pub(super) fn new(config: &Config) -> Result<Option<Arc<Self>>, Error> {
        let ahead = begun().take();
        let (mode, user) = (config.sandbox.mode(), config.sandbox.user()?);
        if mode == Mode::Off && user.is_none() {
            return Ok(None);
        }
        let mut jail = Jail::new(match mode {
            Mode::Auto => Sandbox::Auto,
            Mode::Strict => Sandbox::Strict,
            Mode::Off => Sandbox::Off,
        });
        if let Some(user) = user {
            jail = jail.user(user);
        }
        jail = jail.closing_all_but(config.descriptors());
        for path in sockets(config).filter(|path| !is_descriptor(path)) {
            // What cannot be found is refused by whoever makes the socket.
            let Ok(folder) = absolute(path).map(|path| folder_of(&path)) else {
                continue;
            };
            jail = jail.sockets_in(folder);
            if path.is_relative() {
                let path = path.display();
                jail = jail.keeping_root(format!(
                    "the path of the socket {path} is too long where it begins at the root"
                ));
            }
        }
        if mode != Mode::Off {
            jail::prepare(terminal::restore_at_once).map_err(signal_error)?;
        }
        // Whoever may command the VM may have it become two.
        let may_fork = cfg!(feature = "snapshot") && config.control.is_some();
        Ok(Some(Arc::new(Self {
            ahead: Mutex::new(ahead),
            sockets: sockets(config)
                .filter(|path| !is_descriptor(path))
                .map(Path::to_owned)
                .collect(),
            user,
            jail,
            mode,
            main: if may_fork { MAIN_WITH_FORKS } else { MAIN },
            report: OnceLock::new(),
            filters: roles::ALL.iter().map(|_| OnceLock::new()).collect(),
        })))
    }

    /// The thread has this role from now on.
    fn filter(&self, role: &Role) -> Result<(), FilterError> {
        let has_filters = self
            .report
            .get()
            .is_some_and(|report| report.has(jail::Part::SystemCalls));
        if !has_filters {
            return Ok(());
        }
        self.made(role)?.map_or(Ok(()), Filter::install)
    }

    /// The filter of a role, made once.
    fn made(&self, role: &Role) -> Result<Option<&Filter>, FilterError> {
        let place = roles::ALL.iter().position(|other| other.name == role.name);
        let Some(place) = place.and_then(|place| self.filters.get(place)) else {
            return Ok(None);
        };
        if place.get().is_none() {
            let filter = Filter::new(role)?;
            let _ = place.set(filter);
        }
        Ok(place.get())
    }
}

impl Confinement for Confined {
    fn enter(&self) -> Result<(), Error> {
        if self.mode != Mode::Off {
            // Those that a start waits for, while another process still makes namespaces.
            for role in [&self.main, &roles::VCPU] {
                self.made(role).map_err(not_filtered)?;
            }
        }
        if let Some(user) = self.user {
            for path in &self.sockets {
                lchown(path, Some(user.uid), Some(user.gid)).map_err(|source| Error::Host {
                    what: format!("cannot give the socket {} to the VM's user", path.display()),
                    source,
                })?;
            }
        }
        let report = self.enter_jail()?;
        match report.level() {
            Level::Off => return Ok(()),
            Level::Weak => log::warn!("the sandbox is {report}"),
            _ => log::debug!("sandbox: {report}"),
        }
        let _ = self.report.set(report);
        sandbox::note_entered();
        // The usual one may look for the program's file, to say more.
        panic::set_hook(Box::new(|panic| say(&panic.to_string())));
        self.filter(&self.main).map_err(not_filtered)
    }

    fn report(&self) -> ConfinementReport {
        self.report
            .get()
            .map_or_else(|| ConfinementReport::new("off"), told)
    }

    fn begin(&self, role: ThreadRole) {
        if self.mode == Mode::Off {
            return;
        }
        for signal in HANDLED {
            // Refused for one that is blocked.
            let _ = block_signal(signal);
        }
        self.begin_as(role.name());
    }
}

impl Confined {
    /// The same for a thread of this program's own.
    pub(super) fn begin_as(&self, name: &str) {
        let Some(role) = roles::ALL.iter().find(|role| role.name == name) else {
            return;
        };
        if let Err(error) = self.filter(role) {
            terminal::restore_at_once();
            let error = not_filtered(error);
            super::errors::Failure::from(error).report();
            std::process::exit(FAILED.into());
        }
    }

    fn enter_jail(&self) -> Result<Report, Error> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let entered = self.jail.enter(ahead.take());
        entered.map_err(|error| self.refused(error))
    }

    fn refused(&self, error: JailError) -> Error {
        let (field, value, cure) = match &error {
            JailError::User { uid, .. } => (
                "uid",
                uid.to_string(),
                "only root becomes another user: start it as root, or leave uid and gid away",
            ),
            JailError::Threads { .. } => (
                "sandbox",
                self.mode.to_string(),
                "this is a fault of the VMM; use sandbox=off",
            ),
            _ => (
                "sandbox",
                self.mode.to_string(),
                "use sandbox=auto, which takes what there is; `vmm-reference doctor` says what this host lacks",
            ),
        };
        Error::Config {
            field: field.into(),
            value,
            cause: match error.source() {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            },
            cure: cure.to_owned(),
        }
    }
}

/// The report in words of the library.
fn told(report: &Report) -> ConfinementReport {
    let told = ConfinementReport::new(report.level().to_string());
    let missing = report.missing();
    missing.fold(told, |told, (part, why)| told.without(part.name(), why))
}

/// What the process of a VM with this configuration would give up: this one gives it up, for good.
///
/// # Errors
/// Those of such a VM.
pub(super) fn tried(config: &Config) -> Result<ConfinementReport, Error> {
    let Some(confined) = Confined::new(&with_paths_inside(config))? else {
        return Ok(ConfinementReport::new("off"));
    };
    confined.enter_jail().map(|report| told(&report))
}

fn not_filtered(error: FilterError) -> Error {
    let (what, source) = match error {
        FilterError::Install { role, source } => (
            format!("the kernel does not take the filter of {role}"),
            source,
        ),
        other => (
            "there is no filter of system calls".to_owned(),
            io::Error::other(other),
        ),
    };
    Error::Host { what, source }
}

/// The sockets whose paths are needed inside.
fn sockets(config: &Config) -> impl Iterator<Item = &Path> {
    let vsock = config.vm.vsock.iter().map(|vsock| &*vsock.path);
    config.control.as_deref().into_iter().chain(vsock)
}

fn is_descriptor(path: &Path) -> bool {
    path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd")
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("/")).to_owned()
}

/// The same path from the root on, and without `..`.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    if path.components().all(|part| part != Component::ParentDir) {
        return Ok(path);
    }
    let folder = folder_of(&path).canonicalize()?;
    Ok(path
        .file_name()
        .map_or(folder.clone(), |name| folder.join(name)))
}

/// The configuration with the paths of sockets as they are inside, where the working directory is the root: as long as
/// they are not too long for a socket so.
pub(super) fn with_paths_inside(config: &Config) -> Config {
    let mut config = config.clone();
    let paths = config
        .control
        .iter_mut()
        .map(|path| (path, LONGEST_CONTROL));
    let vsock = config.vm.vsock.iter_mut();
    for (path, longest) in paths.chain(vsock.map(|vsock| (&mut vsock.path, LONGEST_VSOCK))) {
        if let Ok(inside) = absolute(path)
            && inside.as_os_str().len() <= longest
            && !is_descriptor(path)
        {
            *path = inside;
        }
    }
    config
}
