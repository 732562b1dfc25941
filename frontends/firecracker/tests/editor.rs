//! `snapshot-editor`: what it refuses.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::letters::{CREATE, FULL, PAUSED, editor};
use common::{Process, busy};

#[test]
fn registers_stay_in_a_state() {
    let process = Process::start(&busy(), &[]);
    process.boot();
    process.wait_for("up\n");
    process.patch("/vm", PAUSED);
    process.put(CREATE, FULL);
    let folder = process.folder.path();
    let before = fs::read(folder.join("state")).unwrap();
    for (state, fragment) in [
        (
            "state",
            "state: no registers are taken out of a state (0x1 0x2)",
        ),
        ("kernel", "kernel: "),
    ] {
        let output = editor(
            folder,
            &[
                "edit-vmstate",
                "remove-regs",
                "0x1",
                "0x2",
                "--vmstate-path",
                state,
                "--output-path",
                "new",
            ],
        );
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(fragment), "{said}");
        assert!(!folder.join("new").exists());
    }
    assert_eq!(fs::read(folder.join("state")).unwrap(), before);
}
