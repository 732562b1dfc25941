//! The micro-guests of `tests/guests`, built.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The kernel of the micro-guests in `tests/guests`, built at the first call; or the file that the
/// environment names, where there is no cargo to build one.
pub(crate) fn guest_image() -> PathBuf {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    let named = || std::env::var_os("VMM_TEST_GUEST").map(PathBuf::from);
    IMAGE
        .get_or_init(|| named().unwrap_or_else(build_guests))
        .clone()
}

/// Target and package of the guests for the machine this runs on.
fn guests() -> (&'static str, &'static str) {
    match std::env::consts::ARCH {
        "aarch64" => ("aarch64-unknown-none-softfloat", "micro-guest-aarch64"),
        "riscv64" => ("riscv64gc-unknown-none-elf", "micro-guest-riscv64"),
        _ => ("x86_64-unknown-none", "micro-guest"),
    }
}

/// What the caller's build is told about flags and folders must not reach a bare-metal program.
const HOST_BUILD: [&str; 8] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "CARGO_BUILD_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTFLAGS",
];

fn build_guests() -> PathBuf {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut folders = folders.map(|folder| folder.join("tests/guests"));
    let folder = folders.find(|folder| folder.join("Cargo.toml").is_file());
    let folder = folder.expect("the package is in the workspace of the micro-guests");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    let (target, package) = guests();
    // `cargo xtask` has the same.
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
    command
        .args(["build", "--release", "--locked"])
        .args(["--target", target, "--package", package])
        .arg("--target-dir")
        .arg(&built);
    for name in HOST_BUILD {
        command.env_remove(name);
    }
    let output = command.current_dir(&folder).output().unwrap();
    assert!(
        output.status.success(),
        "cure, if the target is missing: rustup target add {target}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    built.join(target).join("release").join(package)
}
