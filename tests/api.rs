//! What is promised of the public API, read from its sources.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// The types that a program puts together, and the file of each.
const CONFIGURATIONS: [(&str, &str); 6] = [
    ("VmConfig", "src/config/mod.rs"),
    ("BlkConfig", "devices/src/config.rs"),
    ("NetConfig", "devices/src/config.rs"),
    ("VsockConfig", "devices/src/config.rs"),
    ("BalloonConfig", "devices/src/config/balloon.rs"),
    ("Limits", "devices/src/config/limits.rs"),
];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The public fields of a type.
fn fields(file: &str, name: &str) -> Vec<String> {
    let text = read(file);
    let (_, body) = text.split_once(&format!("pub struct {name} {{")).unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let lines = body
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub "));
    let names = lines.filter_map(|line| line.split(':').next());
    names.map(str::to_owned).collect()
}

#[test]
fn every_field_of_a_configuration_has_a_builder() {
    let builders = ["src/config/builders.rs", "devices/src/config/builders.rs"].map(read);
    let builders = builders.join("\n");
    for (name, file) in CONFIGURATIONS {
        let start = format!("impl {name} {{");
        let (_, own) = builders.split_once(&start).unwrap();
        let own = own.split("\nimpl ").next().unwrap();
        let fields = fields(file, name);
        assert!(fields.len() > 2, "{fields:?}");
        for field in fields {
            let builder = match (name, field.as_str()) {
                ("VmConfig", "blk") => "with_disk(".to_owned(),
                ("VmConfig", "rng") => "without_rng(".to_owned(),
                ("VmConfig", "vmgenid") => "without_vmgenid(".to_owned(),
                ("BlkConfig", "discard") => "without_discard(".to_owned(),
                ("BlkConfig", "lock") => "without_lock(".to_owned(),
                ("BlkConfig" | "VsockConfig", "path") | ("VsockConfig", "cid") => "new(".to_owned(),
                _ => format!("with_{field}("),
            };
            assert!(
                own.contains(&format!("pub fn {builder}")),
                "{name}::{field}: {builder}"
            );
        }
        let before = read(file);
        let (before, _) = before.split_once(&format!("pub struct {name} {{")).unwrap();
        assert!(before.ends_with("#[non_exhaustive]\n"), "{name}");
    }
}

#[test]
fn no_type_of_a_crate_before_its_1_0_is_at_the_root_of_the_library() {
    let listing = read("docs/public-api.txt");
    let (_, library) = listing.split_once("\n## vmm_reference\n").unwrap();
    let (library, _) = library.split_once("\n## vmm_arch").unwrap();
    assert!(library.lines().count() > 300);
    for line in library.lines() {
        for name in [
            "event_manager::",
            "kvm_bindings::",
            "kvm_ioctls::",
            "linux_loader::",
            "virtio_bindings::",
            "virtio_queue::",
            "vm_allocator::",
            "vm_fdt::",
            "vm_memory::",
            "vm_superio::",
            "vmm_sys_util::",
        ] {
            assert!(!line.contains(name), "{line}");
        }
    }
}
