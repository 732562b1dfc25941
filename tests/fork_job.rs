//! The example of docs/fork.md, as it stands there: boot once, warm up, fork for each job, collect results over vsock. Its
//! kernel is a micro-guest.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{finish, guest_image, vmm};
use tempfile::TempDir;

/// The text of the example between two lines of which the first one begins so.
fn block(begins: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fork.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, example) = page.split_once("## Boot once, fork for each job").unwrap();
    let mut blocks = example.split("\n```\n").skip(1).step_by(2);
    let found = blocks.find(|block| block.starts_with(begins)).unwrap();
    format!("{found}\n")
}

/// A folder for the example, whose VMs do not outlive the test.
struct Example(TempDir);

impl Example {
    fn program(&self, name: &str, text: &str) {
        let path = self.0.path().join("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        for control in ["template", "c1", "c2", "c3"] {
            let control = self.0.path().join(control);
            if control.exists() {
                let stop = ["ctl", control.to_str().unwrap(), "stop"];
                finish(vmm(&stop).spawn().unwrap());
            }
        }
    }
}

#[test]
fn the_example_does_what_it_says() {
    if !Command::new("python3")
        .arg("-V")
        .output()
        .is_ok_and(|python| python.status.success())
    {
        eprintln!("SKIPPED: the example's client is written in Python, and there is no python3");
        assert!(std::env::var_os("CI").is_none());
        return;
    }
    let example = Example(tempfile::tempdir().unwrap());
    let folder = example.0.path();
    fs::create_dir(folder.join("bin")).unwrap();
    // The real guest finds its devices by itself, and what it is to do on its disk.
    let program = env!("CARGO_BIN_EXE_vmm-reference");
    example.program(
        "vmm-reference",
        &format!(
            "#!/bin/sh\ncase $1 in\n\
             ctl) exec {program} \"$@\" ;;\n\
             *) exec {program} \"$@\" --append='test=virtio_jobs virtio=pci' --guest-memory=16 ;;\n\
             esac\n"
        ),
    );
    example.program("ask", &block("#!/usr/bin/env python3"));
    fs::copy(guest_image(), folder.join("vmlinuz")).unwrap();
    fs::write(folder.join("root.img"), [0; 4096]).unwrap();
    for job in 1..=3 {
        fs::write(folder.join(format!("job{job}")), format!("job {job}\n")).unwrap();
    }
    let script = block("vmm-reference --control=template");
    let path = std::env::var("PATH").unwrap();
    let ended = Command::new("sh")
        .args(["-euc", &script])
        .env("PATH", format!("{}:{path}", folder.join("bin").display()))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = finish(ended);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(
        ended.stdout.matches("forked: process ").count(),
        3,
        "{ended:?}"
    );
    for job in 1..=3 {
        // Each fork has had the first answer of the template, and nothing of another fork.
        let result = fs::read_to_string(folder.join(format!("result{job}"))).unwrap();
        assert_eq!(result, format!("2 JOB {job}\n"), "{ended:?}");
        assert!(!folder.join(format!("c{job}")).exists());
    }
    assert!(!folder.join("template").exists());
}
