//! `plan` for other hosts than this one, by their facts.

use crate::common::{file, finish, option, refused, vmm};

#[test]
fn plan_takes_the_facts_of_another_host() {
    let facts = file(
        br#"{"ipa_bits":36,"max_vcpus":4,"pmu":false,"sve":false,"pointer_authentication":false}"#,
    );
    let facts = option("facts", facts.path());
    refused(
        &["plan", "--arch=aarch64", &facts, "--vcpus=5"],
        &["--vcpus=5: this host offers 1 to 4 vCPUs"],
    );
    for arch in ["x86_64", "riscv64"] {
        let said = format!("it has the facts of a host of aarch64, and --arch says {arch}");
        refused(
            &["plan", &format!("--arch={arch}"), &facts],
            &["--facts=", &said, "cure: write --arch=aarch64"],
        );
    }
    refused(
        &["plan", &facts],
        &[
            "it has the facts of a host of aarch64, and without --arch",
            std::env::consts::ARCH,
            "cure: add --arch=aarch64",
        ],
    );
    for (text, said) in [
        (
            "{\"ipa_bits\": 36}",
            "line 1, column 16: the key `max_vcpus` is missing",
        ),
        (
            "{\"ipa_bits\": -1}",
            "line 1, column 15: it is 0 to 255, not -1",
        ),
        ("[", "line 1, column 1: EOF"),
    ] {
        let facts = file(text.as_bytes());
        let facts = option("facts", facts.path());
        refused(
            &["plan", "--arch=aarch64", &facts],
            &["--facts=", said, "cure: give a file"],
        );
        refused(
            &["plan", &facts],
            &["the facts of no host", "cure: give a file"],
        );
    }

    // The facts of this host give this host's plan.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facts.json");
    let here = finish(
        vmm(&["plan", &option("dump-facts", &path)])
            .spawn()
            .unwrap(),
    );
    let arch = format!("--arch={}", std::env::consts::ARCH);
    let again = finish(
        vmm(&["plan", &arch, &option("facts", &path)])
            .spawn()
            .unwrap(),
    );
    // Facts are those of the platform: the size of pages is not among them, nor what a sandbox is made of.
    let plan = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.contains(" memory in pages"))
            .filter(|line| !line.starts_with("sandbox: ") && !line.starts_with("  without "));
        lines.map(str::to_owned).collect()
    };
    assert_eq!(
        (here.status.code(), plan(&here.stdout)),
        (Some(0), plan(&again.stdout))
    );
}
