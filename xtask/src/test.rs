//! `cargo xtask test`: every check, stopping at the first failure.
//!
//! There are two lanes, so that both kinds of work overlap: one compiles and runs tests, then machines; the other
//! one runs the labs' machines, each as soon as the first lane has built what it is made of, then the fuzz targets.
//! Machines come first where processors are short: a virtual processor that waits for one makes the others of its
//! machine spin. What comes from the network comes beside both.

use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::api;
use crate::apt::Unavailable;
use crate::build::{cargo, cargo_command, compile, fuzz_command, guests_command};
use crate::cycles;
use crate::dist;
use crate::fctools;
use crate::first;
use crate::fuzz;
use crate::lab::{self, Lab, Ready, Scope};
use crate::needs::Needs;
use crate::python;
use crate::step::{self, Result, Stopped, step};

/// Targets that the workspace must compile for, besides the host.
const FOREIGN: [&str; 2] = ["aarch64-unknown-linux-gnu", "riscv64gc-unknown-linux-gnu"];
/// The target of the static build.
const STATIC: &str = "x86_64-unknown-linux-musl";
/// Targets of the micro-guests.
const BARE: [&str; 3] = [
    "aarch64-unknown-none-softfloat",
    "riscv64gc-unknown-none-elf",
    "x86_64-unknown-none",
];
/// The feature set that every change is checked with besides all, and those of the full run.
const FEATURES: [&str; 1] = [""];
const MORE_FEATURES: [&str; 13] = [
    "cli,virtio-blk",
    "host,elf",
    "cli,serial,elf",
    "host",
    "cli,elf",
    "cli,pci",
    "completions",
    "config-file",
    "cli,virtio-balloon",
    "cli,virtio-console",
    "cli,virtio-net",
    "cli,virtio-rng",
    "cli,virtio-vsock",
];

pub(crate) fn run(scope: Scope, with_lab: bool) -> Result<()> {
    let result = lanes(scope, with_lab);
    println!("{}", step::table());
    let skipped = result?;
    print!("{skipped}");
    println!("all checks passed");
    Ok(())
}

/// Gives the lines that say what was skipped.
fn lanes(scope: Scope, with_lab: bool) -> Result<String> {
    let all = || {
        if with_lab {
            labs(scope)
        } else {
            Ok(Vec::new())
        }
    };
    let (labs, to_fetch) = (all()?, all()?);
    let needs = labs.iter().map(Lab::needs).fold(needs(scope)?, Needs::and);
    needs.provide()?;
    let (sender, ready) = mpsc::channel();
    let (fetched, is_fetched) = mpsc::channel();
    let ready = Mutex::new(ready);
    thread::scope(|threads| {
        let beside = threads.spawn(|| {
            machines(&ready)?;
            // `cargo xtask fuzz` searches longer.
            let seconds = if scope == Scope::Full { 10 } else { 3 };
            stopping(fuzz::run(None, seconds))
        });
        threads.spawn(move || {
            for lab in &to_fetch {
                // Nobody receives after a failure, which says so itself.
                let _ = fetched.send(lab.fetch());
            }
        });
        let mut skipped = String::new();
        let mut labs = labs.into_iter();
        let mut sender = Some(sender);
        let mut prepare = || -> Result<()> {
            if let (Some(lab), Some(to)) = (labs.next(), &sender) {
                let name = lab.name();
                lab.build()?;
                match is_fetched.recv()?.and_then(|()| lab.prepare()) {
                    Err(error) if error.is::<Unavailable>() => {
                        skipped = format!("{skipped}SKIPPED: lab {name}: {error}\n");
                    }
                    ready => {
                        // Nobody receives after a failure, which says so itself.
                        let _ = to.send(ready?);
                    }
                }
            }
            // After the last one the other lane does what comes next.
            if labs.len() == 0 {
                sender = None;
            }
            Ok(())
        };
        let work = stopping(checks(scope, &mut prepare));
        drop(sender);
        let own = if work.is_ok() {
            machines(&ready)
        } else {
            Ok(())
        };
        let beside = beside.join();
        let beside = beside.unwrap_or_else(|_| Err("the lane of the labs panicked".into()));
        let mut failures: Vec<_> = [work, own, beside]
            .into_iter()
            .filter_map(Result::err)
            .collect();
        // What was only stopped comes last.
        failures.sort_by_key(|error| error.is::<Stopped>());
        let mut failures = failures.into_iter();
        if let Some(first) = failures.next() {
            // Each that has a cause of its own, not only the one that the command ends with.
            for other in failures.filter(|error| !error.is::<Stopped>()) {
                println!("{other}");
            }
            return Err(first);
        }
        if !with_lab {
            skipped.push_str("SKIPPED: the lab (--no-lab)\n");
        }
        Ok(skipped)
    })
}

fn labs(scope: Scope) -> Result<Vec<Lab>> {
    let labs = lab::all().into_iter();
    labs.map(|name| Lab::new(name, scope, None)).collect()
}

/// A lane of the labs.
fn machines(ready: &Mutex<Receiver<Ready>>) -> Result<()> {
    let next = || {
        let ready = ready.lock().unwrap_or_else(PoisonError::into_inner);
        ready.recv().ok()
    };
    stopping(std::iter::from_fn(next).try_for_each(|lab| lab.run()))
}

/// After a failure nothing begins any more, in no lane.
fn stopping(result: Result<()>) -> Result<()> {
    if result.is_err() {
        step::stop();
    }
    result
}

/// The first lane. `prepare` makes the next lab ready.
fn checks(scope: Scope, prepare: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let full = scope == Scope::Full;
    require_kvm()?;
    prepare()?;
    prepare()?;
    first::run()?;
    format()?;
    prepare()?;
    compile("clippy --workspace --all-targets -- -D warnings")?;
    let features = FEATURES.iter().chain(MORE_FEATURES.iter().filter(|_| full));
    for features in features {
        compile(&format!(
            "clippy --lib --bins --no-default-features --features={features} -- -D warnings"
        ))?;
    }
    prepare()?;
    others_clippy(full)?;
    // What is not the backends' is the same code as here; without the full run, the lab builds all of it.
    for target in FOREIGN.into_iter().filter(|_| full) {
        let pure = "-p vmm-arch -p vmm-devices -p vmm-arch-aarch64 -p vmm-arch-riscv64 \
            -p vmm-arch-x86-64 -p vmm-arch-host";
        for what in [
            pure,
            "--lib --no-default-features",
            "--workspace --lib --bins --tests",
        ] {
            compile(&format!("clippy {what} --target {target} -- -D warnings"))?;
        }
    }
    if full {
        // Its C library declares some calls otherwise.
        compile(&format!("check --workspace --tests --target {STATIC}"))?;
    }
    let mut doc = cargo_command();
    doc.args(["doc", "--workspace", "--no-deps"]);
    step("cargo doc", doc.env("RUSTDOCFLAGS", "-D warnings"))?;

    if full {
        cargo("clippy -p xtask --features=api -- -D warnings")?;
        if let Some(reason) = api::listing(true)? {
            println!("SKIPPED: {reason}");
        }
        cargo("clippy --features=schema --lib --examples --tests -- -D warnings")?;
        cargo("test --features=schema --test control_schema")?;
        dist::check()?;
    }

    if full {
        cargo("test --no-default-features --test planner")?;
        // The least that boots.
        cargo("test --no-default-features --features=host,elf --test library")?;
        cargo("test --workspace")?;
        // Another C library makes other system calls.
        cargo(&format!("test -p vmm-jail --target {STATIC}"))?;
    }
    compile("test --workspace --features=vmm-reference/completions --no-run")?;
    cargo("test --workspace --features=vmm-reference/completions")?;
    if full && let Some(reason) = fctools::run(&[])? {
        println!("SKIPPED: {reason}");
    }
    if full && let Some(reason) = cycles::run()? {
        println!("SKIPPED: {reason}");
    }
    if full && let Some(reason) = python::run()? {
        println!("SKIPPED: {reason}");
    }
    // The other builds' own unit tests, under QEMU's user-mode emulation: of what differs. The rest asks the kernel for
    // what that does not emulate (filters, pages of a process), and runs in the lab, on real ones.
    let pure =
        "-p vmm-arch -p vmm-arch-aarch64 -p vmm-arch-riscv64 -p vmm-arch-x86-64 -p vmm-arch-host";
    FOREIGN
        .into_iter()
        .filter(|_| full)
        .try_for_each(|target| cargo(&format!("test --lib {pure} --target {target}")))
}

fn format() -> Result<()> {
    cargo("fmt --all --check")?;
    step(
        "rustfmt of the built-in guests",
        Command::new("rustfmt")
            .args(["--check", "--edition=2024"])
            .args(
                ["aarch64", "riscv64", "x86_64"].map(|arch| format!("arch/{arch}/hello/main.rs")),
            ),
    )?;
    let mut guests = guests_command();
    step(
        "cargo fmt (micro-guests)",
        guests.args(["fmt", "--all", "--check"]),
    )?;
    let mut fuzz = fuzz_command();
    step("cargo fmt (fuzz targets)", fuzz.args(["fmt", "--check"]))
}

/// The workspaces beside this one.
fn others_clippy(full: bool) -> Result<()> {
    let others = [
        "clippy --release -p micro-guest-aarch64 --target=aarch64-unknown-none-softfloat -- -D warnings",
        "clippy --release -p micro-guest-riscv64 --target=riscv64gc-unknown-none-elf -- -D warnings",
    ];
    let all = ["clippy --release -- -D warnings"]
        .into_iter()
        .chain(others.into_iter().filter(|_| full));
    for arguments in all {
        let mut guests = guests_command();
        step(
            &format!("cargo {arguments} (micro-guests)"),
            guests.args(arguments.split(' ')),
        )?;
    }
    if !full {
        return Ok(());
    }
    let mut fuzz = fuzz_command();
    step(
        "cargo clippy (fuzz targets)",
        fuzz.args(["clippy", "--", "-D", "warnings"]),
    )
}

fn needs(scope: Scope) -> Result<Needs> {
    let needs = match scope {
        Scope::Full => python::needs()?
            .targets(FOREIGN)
            .targets([STATIC])
            .tools(&[("qemu-aarch64-static", "qemu-user-static")]),
        Scope::Smoke => Needs::default(),
    };
    let needs = needs
        .components(&["rustfmt", "clippy"])
        .targets(BARE)
        .tools(&[
            ("iasl", "acpica-tools"),
            ("dtc", "device-tree-compiler"),
            ("qemu-img", "qemu-utils"),
            // A file system whose files can share blocks.
            ("/usr/sbin/mkfs.xfs", "xfsprogs"),
            // Its completions.
            ("zsh", "zsh"),
        ])
        .unpacked(&[("promtool", "prometheus")])
        .and(fuzz::needs());
    Ok(needs)
}

fn require_kvm() -> Result<()> {
    if Path::new("/dev/kvm").exists() {
        Ok(())
    } else {
        Err("/dev/kvm is missing, and the integration tests run on it; `cargo run -- doctor` says more".into())
    }
}
