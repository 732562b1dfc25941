//! When an embedder may take rights from its process and from each thread.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use devices::sealed::is_sealed;
use vmm_reference::{
    Attachments, Confinement, ConfinementReport, Console, Error, ExitReason, OnReboot, ThreadRole,
    Vm, VmConfig,
};

/// Writes down what it is told, and whether files may be opened then.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<(&'static str, bool)>>);

impl Recorder {
    fn note(&self, what: &'static str) {
        self.0.lock().unwrap().push((what, is_sealed()));
    }
}

impl Confinement for Recorder {
    fn enter(&self) -> Result<(), Error> {
        self.note("enter");
        Ok(())
    }

    fn report(&self) -> ConfinementReport {
        ConfinementReport::new("none")
    }

    fn begin(&self, role: ThreadRole) {
        self.note(role.name());
    }

    fn may_build_again(&self) -> bool {
        true
    }

    fn run(&self) {
        // The threads are there, and begin when they get to it.
        let vcpus = || {
            let told = self.0.lock().unwrap();
            told.iter().filter(|(what, _)| *what == "vcpu").count()
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while vcpus() < 2 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        self.note("run");
    }
}

#[test]
fn a_process_opens_files_until_a_vm_runs_and_its_thread_begins_after_the_vcpus_have() {
    let recorder = Arc::new(Recorder::default());
    let attachments = || Attachments::from(Console::null()).with_confinement(recorder.clone());
    let mut bad = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut bad, b"no kernel").unwrap();
    let config = VmConfig::default().with_kernel(bad.path());
    assert!(Vm::new(&config, attachments()).is_err());
    assert!(!is_sealed());
    recorder.0.lock().unwrap().clear();

    let kernel = common::kernel(&common::RESET);
    let mut config = VmConfig::default()
        .with_kernel(kernel.path())
        .with_vcpus(2)
        .with_on_reboot(OnReboot::Exit);
    config.rng = true;
    let vm = Vm::new(&config, attachments()).unwrap();
    assert!(!is_sealed());
    assert_eq!(vm.run().unwrap(), ExitReason::Reset);
    let told = recorder.0.lock().unwrap();
    let rng = ("virtio-rng", false);
    let begun = [
        ("enter", false),
        rng,
        ("vcpu", true),
        ("vcpu", true),
        ("run", true),
    ];
    // The device's thread begins whenever it does.
    let without = |told: &[(&'static str, bool)]| {
        let mut told = told.to_vec();
        told.retain(|(what, _)| *what != rng.0);
        told
    };
    assert_eq!(without(&told), without(&begun), "{told:?}");
    assert!(told.iter().any(|(what, _)| *what == rng.0), "{told:?}");
}
