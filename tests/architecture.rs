//! The rules of the house (docs/architecture.md), executable.

#[path = "architecture/imports.rs"]
mod imports;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The only files under `src/`, `devices/` and `jail/src` that may contain `unsafe`.
const UNSAFE: &[&str] = &[
    "devices/src/descriptor.rs",
    "devices/src/virtio/block/sys.rs",
    "devices/src/virtio/block/uring.rs",
    "devices/src/virtio/iovec.rs",
    "devices/src/virtio/net/interface.rs",
    "devices/src/virtio/net/tap.rs",
    "devices/src/virtio/net/tests.rs",
    "devices/src/virtio/release.rs",
    "devices/src/virtio/testing.rs",
    // A process that forks promises what the library cannot see.
    "frontends/firecracker/src/forks.rs",
    // Catches signals that no safe function catches.
    "frontends/firecracker/src/signals.rs",
    // close_range(2), unshare(2), fork(2), getsid(2).
    "frontends/jailer/src/sys.rs",
    // A process on this one's memory; unshare(2); a signal's handler.
    "jail/src/ahead.rs",
    // Asks what is open.
    "jail/src/descriptors.rs",
    "jail/src/namespaces.rs",
    "jail/src/seccomp/violation.rs",
    // A process that forks promises what the library cannot see.
    "src/cli/forks.rs",
    "src/cli/lost_memory.rs",
    // fork(2).
    "src/fork/process.rs",
    // Asks the kernel which pages were written; the tests give memory back.
    "src/snapshot/changes.rs",
    "src/snapshot/changes/tests.rs",
    "src/snapshot/chain/tests.rs",
    "src/snapshot/present.rs",
    "src/vm/cpu_time.rs",
    "src/vm/exit.rs",
    "src/host/landlock.rs",
    "src/vm/kick.rs",
    "src/vm/parked.rs",
    // Maps files over guest memory.
    "src/memory/image.rs",
    "src/memory/mod.rs",
    "src/memory/uffd.rs",
    "src/process_ids.rs",
];
/// The only files under `src/` that may name kvm-bindings; none under `devices/` may.
const KVM_BINDINGS: [&str; 5] = [
    "src/vm/dispatch.rs",
    "src/vm/exit.rs",
    "src/vm/kick.rs",
    "src/memory/mod.rs",
    "src/devices/gsi.rs",
];
/// The one place of the core that names the host facade, and the build script that passes its
/// findings on.
const FACADE: [&str; 1] = ["src/backend.rs"];
/// Folders of crates whose files import each other in no circle, besides the backends.
const WITHOUT_CIRCLES: [&str; 11] = [
    "arch/src/",
    "arch/host/src/",
    "devices/src/",
    "frontends/firecracker/src/",
    "frontends/jailer/src/",
    "jail/src/",
    "src/",
    "xtask/src/",
    "benches/block/",
    "benches/net/",
    "benches/startup/",
];
/// What the command line alone knows: its options that are no keys of a configuration, whose keys are options too.
const OTHER_OPTIONS: [&str; 9] = [
    "help",
    "config",
    "dump-config",
    "log-level",
    "boot-timeline",
    "arch",
    "facts",
    "dump-facts",
    "dump-dtb",
];
/// Lines of code of one file, without its tests.
const MAX_CODE: usize = 400;
/// Lines of code of one file, with its tests; and of a file that is nothing but tests.
const MAX_LINES: usize = 500;
/// Files that are cut later, since others work on them; they have a limit of their own.
const CUT_LATER: [&str; 1] = ["tests/command_line/plan.rs"];
const MAX_LATER: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The backends: the folders of crates below `arch/` except the facade, which are named as `uname -m` names
/// their architectures.
fn backends() -> Vec<String> {
    let folders = fs::read_dir(root().join("arch")).expect("a folder of the house is missing");
    let mut names: Vec<_> = folders
        .map(|entry| entry.expect("readable folder"))
        .filter(|entry| entry.path().join("Cargo.toml").is_file())
        .map(|entry| entry.file_name().into_string().expect("UTF-8"))
        .filter(|name| name != "host")
        .collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    names
}

/// How code names an architecture: whatever has the name of its family in it.
fn names_of(backend: &str) -> [String; 2] {
    let family = backend.trim_end_matches("64").trim_end_matches('_');
    [family.to_owned(), family.to_uppercase()]
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
    let names: Vec<_> = backends().iter().flat_map(|name| names_of(name)).collect();
    let mut words: Vec<_> = names.iter().map(String::as_str).collect();
    words.push("target_arch");
    forbid("src", &words, &[]);
    forbid("devices", &words, &[]);
    forbid("src", &["arch_host"], &FACADE);
    forbid("devices", &["arch::", "arch_host", "vmm_reference"], &[]);
}

/// The keys of a configuration, from the table of its documentation.
fn configuration_keys() -> Vec<String> {
    let text = fs::read_to_string(root().join("docs/configuration.md")).expect("documentation");
    let keys: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|key| !key.contains('.'))
        .map(str::to_owned)
        .collect();
    assert!(keys.len() >= 20, "{keys:?}");
    keys
}

/// The first of these options that a line names, as users of the command line write them.
fn named_option<'a>(line: &str, options: &'a [String]) -> Option<&'a str> {
    let names = line.split("--").skip(1).map(|behind| {
        let end = behind.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
        behind
            .get(..end.unwrap_or(behind.len()))
            .unwrap_or_default()
    });
    names
        .filter_map(|name| options.iter().find(|option| *option == name))
        .map(String::as_str)
        .next()
}

#[test]
fn only_the_command_line_names_options() {
    let mut options = configuration_keys();
    options.extend(OTHER_OPTIONS.map(str::to_owned));
    for (line, found) in [
        ("\"use --transport=mmio\"", Some("transport")),
        ("a format it boots (--help)", Some("help")),
        ("`docker --device /dev/kvm`, xz --format=lzma", None),
        ("\"use transport=mmio\"; --networks", None),
    ] {
        assert_eq!(named_option(line, &options), found, "{line}");
    }
    for folder in ["src", "arch", "devices", "jail/src"] {
        for (name, text) in sources(folder) {
            if name.starts_with("src/cli/") {
                continue;
            }
            for (number, line) in code(&text) {
                let found = named_option(line, &options);
                assert_eq!(found, None, "{name}:{number}: {line}");
            }
        }
    }
}

#[test]
fn target_arch_stands_only_in_the_facade_and_one_line_per_backend() {
    forbid("arch/src", &["target_arch", "#[cfg(feature"], &[]);
    for backend in backends() {
        let folder = format!("arch/{backend}/src");
        let mut gated = 0;
        for (name, text) in sources(&folder) {
            for (number, line) in code(&text).filter(|(_, line)| line.contains("target_arch")) {
                assert_eq!(name, format!("{folder}/lib.rs"), "{name}:{number}: {line}");
                gated += 1;
            }
        }
        // A backend begins with its pure half alone.
        let has_host_half = root().join(&folder).join("kvm.rs").is_file();
        assert_eq!(
            gated,
            usize::from(has_host_half),
            "exactly one line of {backend} gates its host half, where there is one"
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
    forbid("frontends", &["unsafe "], UNSAFE);
    forbid("jail/src", &["unsafe "], UNSAFE);
    let backends = backends()
        .into_iter()
        .map(|name| format!("arch/{name}/src"));
    let others = [
        "src",
        "devices",
        "frontends",
        "jail",
        "arch/src",
        "arch/host/src",
    ]
    .map(str::to_owned);
    for folder in backends.chain(others) {
        for (name, text) in sources(&folder) {
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
        "src",
        "arch",
        "devices",
        "frontends",
        "jail",
        "tests",
        "xtask",
        "benches",
        "examples",
    ] {
        for (name, text) in sources(folder) {
            let later = CUT_LATER.iter().any(|known| name.starts_with(known));
            let (most, most_code) = if later {
                (MAX_LATER, MAX_LATER)
            } else {
                (MAX_LINES, MAX_CODE)
            };
            let lines = code(&text).count();
            assert!(lines <= most, "{name} has {lines} lines of code");
            let is_tests = name.starts_with("tests/")
                || name
                    .split('/')
                    .any(|part| matches!(part, "tests" | "tests.rs"));
            let lines = code(&imports::without_tests(&text).0).count();
            assert!(
                is_tests || lines <= most_code,
                "{name} has {lines} lines of code without its tests"
            );
        }
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let backends = backends()
        .into_iter()
        .map(|name| format!("arch/{name}/src/"));
    for folder in backends.chain(WITHOUT_CIRCLES.map(str::to_owned)) {
        let files = sources(&folder);
        // The binary is a crate of its own.
        let is_library = files
            .iter()
            .any(|(name, _)| *name == format!("{folder}lib.rs"));
        let files = files
            .iter()
            .map(|(name, text)| (&name[folder.len()..], &text[..]))
            .filter(|(name, _)| !(is_library && *name == "main.rs"));
        let circle = imports::Modules::new(files).circle();
        assert_eq!(
            circle, None,
            "in {folder}: move what they share to a file of its own"
        );
    }
}

#[test]
fn dependencies_follow_the_arrows() {
    let package = |name: &String| format!("vmm-arch-{}", name.replace('_', "-"));
    let packages: Vec<_> = backends().iter().map(package).collect();
    let below_facade: Vec<_> = packages
        .iter()
        .map(String::as_str)
        .chain(["vmm-arch"])
        .collect();
    let mut crates = below_facade.clone();
    crates.extend([
        "vmm-arch-host",
        "vmm-devices",
        "vmm-jail",
        "vmm-reference",
        "vmm-firecracker",
    ]);
    let manifests: Vec<_> = backends()
        .iter()
        .map(|name| format!("arch/{name}/Cargo.toml"))
        .collect();
    let backends = manifests
        .iter()
        .map(|manifest| (manifest.as_str(), &["vmm-arch"][..]));
    let mut arrows: Vec<(&str, &[&str])> = backends.collect();
    arrows.extend([
        (
            "Cargo.toml",
            &["vmm-arch", "vmm-arch-host", "vmm-devices", "vmm-jail"][..],
        ),
        ("arch/Cargo.toml", &[]),
        ("arch/host/Cargo.toml", &below_facade),
        ("devices/Cargo.toml", &[]),
        // The public API, and what takes rights from threads.
        (
            "frontends/firecracker/Cargo.toml",
            &["vmm-jail", "vmm-reference"],
        ),
        ("frontends/jailer/Cargo.toml", &[]),
        ("jail/Cargo.toml", &[]),
    ]);
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

#[test]
fn every_kind_of_regression_that_a_test_names_is_on_the_list() {
    let list = fs::read_to_string(root().join("docs/regressions.md")).expect("the list");
    let listed: BTreeSet<u32> = numbers_after(&list, 'R').collect();
    let mut tested = BTreeSet::new();
    for folder in ["src", "arch", "devices", "frontends", "jail", "tests"] {
        for (_, text) in sources(folder) {
            let names = code(&text).filter_map(|(_, line)| line.trim().strip_prefix("fn "));
            let names: Vec<_> = names.filter(|name| name.starts_with('r')).collect();
            tested.extend(names.iter().flat_map(|name| {
                // `r1_r7_to_r9_…`: each of those that stand there.
                let numbers = name.split('_').map_while(|part| match part {
                    "to" => Some(None),
                    part => Some(Some(part.strip_prefix('r')?.parse::<u32>().ok()?)),
                });
                numbers.flatten().collect::<Vec<_>>()
            }));
        }
    }
    assert!(tested.is_subset(&listed), "{tested:?} {listed:?}");
    let untested: Vec<_> = listed.difference(&tested).collect();
    assert!(untested.is_empty(), "no test is named after {untested:?}");
}

/// The numbers behind a letter that begins a word.
fn numbers_after(text: &str, letter: char) -> impl Iterator<Item = u32> {
    let words = text.split(|c: char| !c.is_alphanumeric());
    words.filter_map(move |word| word.strip_prefix(letter)?.parse().ok())
}
