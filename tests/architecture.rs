//! The rules of the house (docs/architecture.md), executable.

#[path = "architecture/imports.rs"]
mod imports;

use std::fs;
use std::path::{Path, PathBuf};

/// The only files under `src/` and `devices/` that may contain `unsafe`.
const UNSAFE: &[&str] = &[
    "devices/src/virtio/block/sys.rs",
    "devices/src/virtio/block/uring.rs",
    "devices/src/virtio/iovec.rs",
    "devices/src/virtio/net/interface.rs",
    "devices/src/virtio/net/tap.rs",
    "devices/src/virtio/net/tests.rs",
    "devices/src/virtio/release.rs",
    "devices/src/virtio/testing.rs",
    "src/exit.rs",
    "src/host/landlock.rs",
    "src/kick.rs",
    "src/memory.rs",
];
/// The only files under `src/` that may name kvm-bindings; none under `devices/` may.
const KVM_BINDINGS: [&str; 5] = [
    "src/dispatch.rs",
    "src/exit.rs",
    "src/kick.rs",
    "src/memory.rs",
    "src/msi.rs",
];
/// The one place of the core that names the host facade, and the build script that passes its
/// findings on.
const FACADE: [&str; 1] = ["src/lib.rs"];
/// The folders of the backends below `arch/`.
const BACKENDS: [&str; 3] = ["aarch64", "riscv64", "x86_64"];
/// The crates whose files import each other in no circle.
const WITHOUT_CIRCLES: [&str; 4] = ["arch/aarch64", "arch/host", "arch/riscv64", "arch/x86_64"];
/// Lines of one file.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a folder: its path relative to the repository, and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).expect("a folder of the house is missing") {
            let path = entry.expect("readable folder").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root");
                let text = fs::read_to_string(&path).expect("UTF-8");
                found.push((name.display().to_string(), text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "no sources under {folder}");
    found
}

/// Lines with code, without comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .map(|(number, line)| (number, line.split("//").next().unwrap_or_default()))
        .filter(|(_, line)| !line.trim().is_empty())
}

fn forbid(folder: &str, words: &[&str], allowed: &[&str]) {
    for (name, text) in sources(folder) {
        if allowed.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in code(&text) {
            for word in words {
                assert!(
                    !line.contains(word),
                    "{name}:{number} contains `{word}`: {line}"
                );
            }
        }
    }
}

#[test]
fn the_core_and_the_devices_name_no_architecture() {
    let words = [
        "target_arch",
        "arch_x86_64",
        "arch_aarch64",
        "arch_riscv64",
        "x86_64",
        "aarch64",
    ];
    forbid("src", &words, &[]);
    forbid("devices", &words, &[]);
    forbid("src", &["arch_host"], &FACADE);
    forbid("devices", &["arch::", "arch_host", "vmm_reference"], &[]);
}

#[test]
fn target_arch_stands_only_in_the_facade_and_one_line_per_backend() {
    forbid("arch/src", &["target_arch", "#[cfg(feature"], &[]);
    for backend in BACKENDS {
        let folder = format!("arch/{backend}/src");
        let mut gated = 0;
        for (name, text) in sources(&folder) {
            for (number, line) in code(&text).filter(|(_, line)| line.contains("target_arch")) {
                assert_eq!(name, format!("{folder}/lib.rs"), "{name}:{number}: {line}");
                gated += 1;
            }
        }
        assert_eq!(
            gated, 1,
            "exactly one line of {backend} gates its host half"
        );
    }
}

#[test]
fn kvm_bindings_stay_in_the_listed_modules() {
    forbid("src", &["kvm_bindings"], &KVM_BINDINGS);
    forbid("devices", &["kvm_bindings", "kvm_ioctls"], &[]);
}

#[test]
fn unsafe_stays_in_the_listed_modules_and_is_explained() {
    forbid("src", &["unsafe "], UNSAFE);
    forbid("devices", &["unsafe "], UNSAFE);
    for folder in [
        "src",
        "devices",
        "arch/src",
        "arch/aarch64/src",
        "arch/riscv64/src",
        "arch/x86_64/src",
        "arch/host/src",
    ] {
        for (name, text) in sources(folder) {
            let blocks = code(&text)
                .filter(|(_, line)| line.contains("unsafe {"))
                .count();
            let notes = text.matches("SAFETY:").count();
            assert!(
                notes >= blocks,
                "{name}: {blocks} unsafe blocks, {notes} SAFETY notes"
            );
        }
    }
}

#[test]
fn no_file_is_too_long_to_read() {
    for folder in [
        "src", "arch", "devices", "tests", "xtask", "benches", "examples",
    ] {
        for (name, text) in sources(folder) {
            let lines = code(&text).count();
            assert!(lines <= MAX_LINES, "{name} has {lines} lines of code");
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for name in WITHOUT_CIRCLES {
        let folder = format!("{name}/src/");
        let files = sources(&folder);
        let files = files
            .iter()
            .map(|(name, text)| (&name[folder.len()..], &text[..]));
        let circle = imports::Modules::new(files).circle();
        assert_eq!(
            circle, None,
            "in {name}: move what they share to a file of its own"
        );
    }
}

#[test]
fn dependencies_follow_the_arrows() {
    let crates = [
        "vmm-arch",
        "vmm-arch-aarch64",
        "vmm-arch-host",
        "vmm-arch-riscv64",
        "vmm-arch-x86-64",
        "vmm-devices",
        "vmm-reference",
    ];
    let backends = [
        "vmm-arch",
        "vmm-arch-aarch64",
        "vmm-arch-riscv64",
        "vmm-arch-x86-64",
    ];
    let arrows: [(&str, &[&str]); 7] = [
        ("Cargo.toml", &["vmm-arch", "vmm-arch-host", "vmm-devices"]),
        ("arch/Cargo.toml", &[]),
        ("arch/aarch64/Cargo.toml", &["vmm-arch"]),
        ("arch/riscv64/Cargo.toml", &["vmm-arch"]),
        ("arch/x86_64/Cargo.toml", &["vmm-arch"]),
        ("arch/host/Cargo.toml", &backends),
        ("devices/Cargo.toml", &[]),
    ];
    for (manifest, allowed) in arrows {
        let text = fs::read_to_string(root().join(manifest)).expect("manifest");
        // In the workspace's manifest the table of versions comes first; the package's own
        // dependencies follow `[package]`.
        let package = text.split_once("[package]").expect("a package").1;
        for line in package.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if crates.contains(&name) {
                assert!(
                    allowed.contains(&name),
                    "{manifest} must not depend on {name}"
                );
            }
        }
    }
}
