//! Enters a jail and tries what should not work from inside, for tests/attempts.rs. Not for users.
//!
//! `vmm-jail-attempt SANDBOX [NAME=VALUE …] [ATTEMPT …]` prints the report, what is missing, and a line for each attempt
//! in the order in which they stand there. Words before the attempts change what it is like:
//! `refuse=CALL:ERRNO` has the host refuse a system call, `user=UID` becomes a user, `sockets=FOLDER` keeps a folder (`none`: no folder any more),
//! `open=FOLDER` leaves one open, `thread=yes` has a second thread, `ahead=yes` has the namespaces made ahead, `role=NAME`
//! makes the attempts in a thread of that role.

mod attempts;

use std::collections::BTreeMap;
use std::fs::File;
use std::process::ExitCode;
use std::{env, thread};

use jail::{Ahead, Cgroup, Filter, Jail, Limits, Report, Sandbox, User, prepare, roles};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let sandbox = match arguments.next().as_deref() {
        Some("auto") => Sandbox::Auto,
        Some("strict") => Sandbox::Strict,
        Some("off") => Sandbox::Off,
        other => return Err(format!("no sandbox: {other:?}").into()),
    };
    let (mut options, mut attempts) = (Options::default(), Vec::new());
    for argument in arguments {
        match argument.split_once('=') {
            Some((name, value)) => options.set(name, value)?,
            None => attempts.push(argument),
        }
    }
    // Before there is a filter that forbids it.
    let tried = attempts::Prepared::new(&attempts)?;
    refuse(&options.refused)?;
    let jail = options.jail(sandbox);
    let ahead = options.ahead.then(Ahead::start).flatten();
    let report = jail.enter(ahead)?;
    tell(&report);
    let try_all = move || {
        for name in &attempts {
            println!("{name}: {}", tried.attempt(name));
        }
    };
    let Some(role) = options.role else {
        try_all();
        return Ok(());
    };
    let filter = if role == roles::served::START {
        Filter::refusing(
            roles::served::START,
            roles::served::REFUSED,
            roles::served::REFUSED_BUT,
        )?
    } else {
        let known = roles::ALL
            .iter()
            .chain(roles::served::ALL)
            .find(|known| known.name == role);
        Filter::new(known.ok_or("no such role")?)?
    };
    prepare(|| ())?;
    let work = move || -> std::result::Result<(), jail::FilterError> {
        filter.install()?;
        try_all();
        Ok(())
    };
    let thread = thread::Builder::new().name("work".into()).spawn(work)?;
    match thread.join() {
        Ok(done) => Ok(done?),
        Err(_) => Err("the thread panicked".into()),
    }
}

#[derive(Default)]
struct Options {
    refused: Vec<(i64, Vec<SeccompRule>, u32)>,
    user: Option<User>,
    sockets: Vec<String>,
    open: Vec<File>,
    limits: Limits,
    role: Option<String>,
    ahead: bool,
}

impl Options {
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "refuse" => {
                let (call, errno) = value.split_once(':').ok_or("CALL:ERRNO")?;
                self.refused.push(attempts::refusal(call, errno)?);
            }
            "user" => {
                let uid = value.parse()?;
                self.user = Some(User { uid, gid: uid });
            }
            "sockets" if value == "none" => self.sockets.clear(),
            "sockets" => self.sockets.push(value.to_owned()),
            "open" => self.open.push(File::open(value)?),
            "files" => self.limits.open_files = Some(value.parse()?),
            "size" => self.limits.file_size = Some(value.parse()?),
            "role" => self.role = Some(value.to_owned()),
            "cgroup" => {
                let path = value.into();
                let cgroup = Cgroup {
                    path,
                    ..Cgroup::default()
                };
                cgroup.join()?;
            }
            "ahead" => self.ahead = true,
            "thread" => drop(thread::spawn(thread::park)),
            _ => return Err(format!("no option: {name}").into()),
        }
        Ok(())
    }

    fn jail(&self, sandbox: Sandbox) -> Jail {
        let jail = Jail::new(sandbox).limits(self.limits);
        let jail = self.sockets.iter().fold(jail, Jail::sockets_in);
        match self.user {
            Some(user) => jail.user(user),
            None => jail,
        }
    }
}

fn tell(report: &Report) {
    println!("level: {}", report.level());
    for part in report.parts() {
        println!("part: {}", part.name());
    }
    for (part, why) in report.missing() {
        println!("missing: {}: {why}", part.name());
    }
}

/// The host refuses these calls, as a container's filter does.
fn refuse(calls: &[(i64, Vec<SeccompRule>, u32)]) -> Result<()> {
    for (call, rules, errno) in calls {
        let rules = BTreeMap::from([(*call, rules.clone())]);
        let refused = SeccompAction::Errno(*errno);
        let arch = TargetArch::try_from(env::consts::ARCH)?;
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, arch)?;
        seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}
