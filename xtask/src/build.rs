//! Running cargo, and where it puts things.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::step::{Result, step, text};

static TARGET: OnceLock<PathBuf> = OnceLock::new();

/// Asks cargo for its target folder, which the environment or a configuration may have moved. From the
/// folder that xtask was started in: a relative path counts from there.
pub(crate) fn find_target() -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let said = text(
        Command::new("cargo")
            .args([
                "metadata",
                "--no-deps",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(manifest),
    )?;
    let folder = said
        .split_once("\"target_directory\":\"")
        .and_then(|(_, rest)| rest.split('"').next())
        .ok_or("cargo metadata names no target folder")?;
    TARGET
        .set(PathBuf::from(folder))
        .map_err(|_| "the target folder is known".into())
}

/// Cargo's target folder.
pub(crate) fn target() -> &'static Path {
    TARGET.get().map_or(Path::new("target"), PathBuf::as_path)
}

/// Cargo, for the workspace.
pub(crate) fn cargo_command() -> Command {
    let mut command = Command::new("cargo");
    command.env("CARGO_TARGET_DIR", target());
    // A test hands it the metrics.
    let promtool = unpacked("promtool");
    if promtool.is_file() {
        command.env("VMM_TEST_PROMTOOL", promtool);
    }
    command
}

/// Cargo, for the workspace, when nothing but the compiler runs: what else runs goes first.
pub(crate) fn compiling_command() -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "10", "cargo"])
        .env("CARGO_TARGET_DIR", target());
    command
}

/// Cargo, for the workspace of the micro-guests. The tests build there too.
pub(crate) fn guests_command() -> Command {
    let mut command = Command::new("cargo");
    command
        .env("CARGO_TARGET_DIR", guests_target())
        .current_dir("tests/guests");
    command
}

/// Cargo, for the workspace of the fuzz targets.
pub(crate) fn fuzz_command() -> Command {
    let mut command = Command::new("cargo");
    command
        .env("CARGO_TARGET_DIR", fuzz_target())
        .current_dir("fuzz");
    command
}

/// Where a program is that was unpacked out of a package.
pub(crate) fn unpacked(program: &str) -> PathBuf {
    target().join("unpacked").join(program)
}

/// Where the micro-guests are built: `tests/common/process.rs` has the same.
pub(crate) fn guests_target() -> PathBuf {
    target().join("tmp/guests")
}

/// Where the fuzz targets are built.
pub(crate) fn fuzz_target() -> PathBuf {
    target().join("fuzz")
}

/// Runs cargo with arguments separated by blanks, as a step.
pub(crate) fn cargo(arguments: &str) -> Result<()> {
    step(
        &format!("cargo {arguments}"),
        cargo_command().args(arguments.split(' ')),
    )
}

/// The same, when nothing but the compiler runs.
pub(crate) fn compile(arguments: &str) -> Result<()> {
    step(
        &format!("cargo {arguments}"),
        compiling_command().args(arguments.split(' ')),
    )
}
