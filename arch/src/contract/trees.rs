//! Device trees, read by an outsider: `dtc`, the compiler of Linux' own trees.

use std::io::Write;
use std::process::{Command, Stdio};

use super::machines::{GIB, Loaded, MIB, config, variants};
use crate::kernel::Protocol;
use crate::{AddressRange, Lean, Platform};

/// Every tree that a backend makes is one that `dtc` reads without a remark. Backends that make none
/// pass.
///
/// # Panics
/// When it has one, or is not installed.
pub fn device_trees_are_read_without_a_remark<P: Platform>(platform: &P, protocols: &[Protocol]) {
    if !protocols.contains(&Protocol::DeviceTree) {
        return;
    }
    for (memory, vcpus) in [(16 * MIB, 1), (256 * MIB, 2), (5 * GIB, 8)] {
        for config in variants(&config(memory, vcpus)) {
            if config.lean == Lean::On {
                continue;
            }
            for serial in [true, false] {
                let config = crate::MachineConfig {
                    serial,
                    ..config.clone()
                };
                let loaded = Loaded::new(platform, &config, Protocol::DeviceTree);
                let boot = loaded.boot(platform).expect("boot information fits");
                let is_tree = |range: &AddressRange| boot.arguments.contains(&range.base);
                let mut blocks = boot.placed.iter().map(|block| block.range);
                let tree = blocks.find(is_tree).expect("no argument is a block's");
                let text = decompiled(&loaded.read(tree));
                assert!(
                    text.contains(&loaded.plan.cmdline),
                    "no command line: {text}"
                );
                let cpus = text.matches("device_type = \"cpu\";").count();
                assert_eq!(cpus, vcpus as usize, "vCPUs of {text}");
            }
        }
    }
}

/// What `dtc` makes of a tree, if it has no remarks.
///
/// # Panics
/// When it has one, or is not installed.
#[must_use]
pub fn decompiled(tree: &[u8]) -> String {
    let mut dtc = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dtc is needed (Debian: device-tree-compiler)");
    // It reads all before it writes. That it may end early, its remarks say.
    let _ = dtc.stdin.take().map(|mut stdin| stdin.write_all(tree));
    let output = dtc.wait_with_output().expect("dtc has been started");
    let remarks = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && remarks.is_empty(),
        "dtc about the device tree: {remarks}"
    );
    String::from_utf8(output.stdout).expect("device tree source is text")
}
