//! `doctor`: what the host offers, what is missing and how to cure it.

use std::process::ExitCode;

use serde_json::{Map, json};
use vmm_reference::{Check, Error, HostPlatform, Level, MissingPart, diagnose};

use super::arguments::DoctorOptions;
use super::config::Config;
use super::confined;
use super::errors::with_options;
use super::files::print;
use super::status::FAILED;

pub(super) fn check(options: &DoctorOptions) -> Result<ExitCode, Error> {
    // As for a VM.
    super::run::allow_many_files();
    let mut checks = diagnose::<HostPlatform>();
    checks.push(sandbox());
    let worst = checks.iter().map(|check| check.level).max();
    let fails = worst == Some(Level::Fail);
    if options.json {
        print(&json(&checks, fails)?)?;
    } else {
        print(&text(&checks, fails))?;
    }
    Ok(if fails {
        FAILED.into()
    } else {
        ExitCode::SUCCESS
    })
}

/// How much of a sandbox a VM has here: this process enters it.
fn sandbox() -> Check {
    const NAME: &str = "sandbox";
    const WHAT: &str = "sandbox";
    let report = match confined::tried(&Config::default()) {
        Ok(report) => report,
        Err(error) => return Check::warn(NAME, WHAT, error.to_string(), OFF),
    };
    if report.missing.is_empty() {
        return Check::ok(
            NAME,
            WHAT,
            format!("{}: VMs give up all that they can", report.level),
        );
    }
    let missing = report.missing.iter();
    let missing: Vec<_> = missing
        .map(|MissingPart { part, why, .. }| format!("without {part}: {why}"))
        .collect();
    let found = format!("{}; {}", report.level, missing.join("; "));
    Check::warn(NAME, WHAT, found, LESS)
}

/// What is said where there is less than all of it, or nothing.
const LESS: &str =
    "the reasons say what the host has to allow (docs/security.md); sandbox=auto does without it";
const OFF: &str = "use sandbox=off, or find out what keeps the process from it";

fn text(checks: &[Check], fails: bool) -> String {
    let mut lines = Vec::new();
    for check in checks {
        let level = match check.level {
            Level::Ok => "ok  ",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        lines.push(format!("{level}  {}: {}", check.what, check.found));
        lines.extend(
            check
                .cure
                .iter()
                .map(|cure| format!("      cure: {}", with_options(cure))),
        );
    }
    lines.push(
        if fails {
            "this host cannot run VMs yet"
        } else {
            "this host can run VMs"
        }
        .to_owned(),
    );
    lines.join("\n")
}

/// One object, a key for each check; of several with one name, as for capabilities, the worst.
fn json(checks: &[Check], fails: bool) -> Result<String, Error> {
    let mut object: Map<String, serde_json::Value> = Map::new();
    let levels = [
        (Level::Ok, "ok"),
        (Level::Warn, "warn"),
        (Level::Fail, "fail"),
    ];
    let of = |level| checks.iter().filter(move |check| check.level == level);
    let sorted = levels
        .into_iter()
        .flat_map(|(level, name)| of(level).map(move |check| (check, name)));
    for (check, level) in sorted {
        let value = json!({
            "level": level,
            "what": check.what,
            "found": check.found,
            "cure": check.cure,
        });
        object.insert(check.name.to_owned(), value);
    }
    let all = json!({ "can_run_vms": !fails, "checks": object });
    serde_json::to_string_pretty(&all).map_err(super::plan::cannot_print)
}
