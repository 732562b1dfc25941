//! Runs the fuzz targets, with libFuzzer on stable Rust.

use std::process::Command;

use fs_err as fs;

use crate::build::{fuzz_command, fuzz_target};
use crate::needs::Needs;
use crate::step::{Result, output, step, timed};

/// What cargo-fuzz passes too: coverage for libFuzzer, overflow checks.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 -Cdebug-assertions";

/// What building them needs.
pub(crate) fn needs() -> Needs {
    Needs::default().tools(&[("c++", "g++")])
}

/// Runs one target, or all, for so many seconds each. What they find on the way stays in
/// `fuzz/corpus`, and what kills them in `fuzz/artifacts`.
pub(crate) fn run(only: Option<&str>, seconds: u32) -> Result<()> {
    let targets = targets(only)?;
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    // A target of its own: the flags are not for build scripts.
    step(
        "cargo build (fuzz targets)",
        fuzz_command()
            .args(["build", "--quiet", "--release", "--target", &host])
            .env("RUSTFLAGS", FLAGS),
    )?;
    for name in targets {
        let corpus = format!("fuzz/corpus/{name}");
        let artifacts = format!("fuzz/artifacts/{name}/");
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        let binary = fuzz_target().join(&host).join("release").join(&name);
        // What libFuzzer says matters only if it finds something.
        timed(&format!("fuzzing {name} for {seconds} s"), || {
            output(
                Command::new(binary)
                    .args([&corpus, &format!("fuzz/seeds/{name}")])
                    .arg(format!("-max_total_time={seconds}"))
                    .arg(format!("-artifact_prefix={artifacts}"))
                    .args(["-verbosity=0", "-rss_limit_mb=2048", "-timeout=20"]),
            )
        })?;
    }
    Ok(())
}

/// The names of all targets, or the one that is asked for.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let mut all: Vec<String> = fs::read_dir("fuzz/fuzz_targets")?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    all.sort();
    match only {
        None => Ok(all),
        Some(only) if all.iter().any(|name| name == only) => Ok(vec![only.to_owned()]),
        Some(only) => {
            Err(format!("{only}: no such fuzz target; there are: {}", all.join(", ")).into())
        }
    }
}
