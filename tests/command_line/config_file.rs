//! Configuration files: what they may say, what the command line replaces, what is refused and how.

use std::path::Path;

use crate::common::{Ended, finish, option, vmm};
use vmm_reference::VmConfig;

fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    option("config", &path)
}

fn run(arguments: &[&str]) -> Ended {
    finish(vmm(arguments).spawn().unwrap())
}

/// The configuration that these options give, by way of `--dump-config`.
fn dumped(arguments: &[&str]) -> VmConfig {
    let (config, _) = dumped_with_consoles(arguments);
    config
}

/// The same, and where the consoles go: `serial`, then `console`.
fn dumped_with_consoles(arguments: &[&str]) -> (VmConfig, Consoles) {
    let ended = run(&[arguments, &["--dump-config"]].concat());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let mut table: toml::Table = toml::from_str(&ended.stdout).unwrap();
    let consoles = ["serial", "console"].map(|key| {
        let target = table.remove(key)?;
        Some(target.as_str().unwrap().to_owned())
    });
    for key in ["control", "sandbox", "cgroup", "uid", "gid"] {
        table.remove(key);
    }
    (table.try_into().unwrap(), consoles)
}

type Consoles = [Option<String>; 2];

const FULL: &str = r#"
append = "quiet"
guest-memory = "1G"
vcpus = 2
console = "stdio"
blk = ["a.img,ro", { path = "b.img", queues = 4, limits = { bw = "10M", iops = 500 } }]
vsock = "cid=3,path=/tmp/v"
balloon = { target = 512, deflate-on-oom = true }
on-reboot = "restart"

[[net]]
tap = "vm0"
mac = "02:00:00:00:00:01"
"#;

#[test]
fn a_file_says_what_the_command_line_could() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "vm.toml", FULL);
    let options = [
        "--append=quiet",
        "--guest-memory=1G",
        "--vcpus=2",
        "--console=stdio",
        "--blk=a.img,ro",
        "--blk=b.img,queues=4,bw=10M,iops=500",
        "--vsock=cid=3,path=/tmp/v",
        "--balloon=target=512,deflate-on-oom",
        "--on-reboot=restart",
        "--net=vm0,mac=02:00:00:00:00:01",
    ];
    let config = dumped(&[&file]);
    assert_eq!(config, dumped(&options));
    assert_eq!((config.vcpus, config.blk.len()), (2, 2));
    // What was printed gives the same again, in either format.
    let ended = run(&[&file, "--dump-config"]);
    assert!(ended.stdout.ends_with('\n'));
    let again = write(folder.path(), "again.toml", &ended.stdout);
    assert_eq!(dumped(&[&again]), config);
    let table: serde_json::Value = toml::from_str(&ended.stdout).unwrap();
    let json = serde_json::to_string_pretty(&table).unwrap();
    let json = write(folder.path(), "vm.json", &json);
    assert_eq!(dumped(&[&json]), config);
}

#[test]
fn the_command_line_replaces_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(folder.path(), "vm.toml", FULL);
    let (config, consoles) = dumped_with_consoles(&[
        &file,
        "--vcpus=1",
        "--blk=c.img",
        "--rng=off",
        "--vmgenid=off",
        "--serial=file=s",
    ]);
    assert_eq!((config.vcpus, config.rng), (1, false));
    assert!(!config.vmgenid);
    assert_eq!(config.blk.len(), 1);
    assert!(config.blk[0].path.ends_with("c.img"));
    assert_eq!(config.net.len(), 1, "what is not given stays");
    let expected = ["file=s", "stdio"].map(|target| Some(target.to_owned()));
    assert_eq!(consoles, expected);
    let (_, [serial, _]) = dumped_with_consoles(&[&file]);
    assert_eq!(serial.as_deref(), Some("null"));
}

#[test]
fn plan_and_run_take_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        "vm.json",
        r#"{"guest-memory": 64, "vcpus": 2}"#,
    );
    let planned = run(&["plan", &file]);
    assert!(planned.stdout.contains("2 vCPUs, 64 MiB"), "{planned:?}");
    let kernel = crate::common::kernel(&crate::common::RESET);
    let text = format!("kernel = {:?}\n", kernel.path());
    let file = write(folder.path(), "vm.toml", &text);
    assert_eq!(run(&[&file]).status.code(), Some(0));
}

#[test]
fn what_is_wrong_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text, expected) in [
        (
            "a.toml",
            "vcpus = 1\nvcpu = 2\n",
            "line 2, column 1: vcpu: unknown key; did you mean `vcpus`?",
        ),
        (
            "b.toml",
            "xyzzy = 2\n",
            "line 1, column 1: xyzzy: unknown key; there are kernel, ",
        ),
        (
            "c.toml",
            "vcpus = 1\n[[blk]]\nqueue-sise = 4\n",
            "did you mean `queue-size`?",
        ),
        (
            "d.toml",
            "blk = [\"a,wo\"]\n",
            "line 1, column 8: blk[0]: unknown option \"wo\"",
        ),
        (
            "e.toml",
            "vcpus = 1\n\nguest-memory = [",
            "line 3, column 17: ",
        ),
        ("f.toml", "guest-memory = \"lots\"", "not a number"),
        (
            "f2.toml",
            "guest-memory = -1",
            "line 1, column 16: guest-memory: \"-1\": it is 16M to 16777215T",
        ),
        (
            "f3.toml",
            "[balloon]\ntarget = -1",
            "line 2, column 10: balloon.target: \"-1\": it is 1B to the guest's memory",
        ),
        (
            "g.json",
            "{\n\"cmdlin\": \"x\"}",
            "line 2, column 8: cmdlin: unknown key; did you mean `cmdline`?",
        ),
        ("h.json", "{", "line 1, column 1: "),
        ("i.yaml", "", "neither in .toml nor in .json"),
    ] {
        let file = write(folder.path(), name, text);
        let ended = run(&["plan", &file]);
        assert_eq!(ended.status.code(), Some(2), "{name}: {ended:?}");
        for expected in [expected, "--config=", name, "cure: "] {
            assert!(
                ended.stderr.contains(expected),
                "{expected}: {}",
                ended.stderr
            );
        }
    }
    let ended = run(&["--config=/nonexistent.toml"]);
    assert!(ended.stderr.contains("No such file"), "{}", ended.stderr);
    // Values have the limits they have on the command line.
    let file = write(
        folder.path(),
        "v.toml",
        "[[blk]]\npath = \"a\"\nqueues = 99\n",
    );
    let ended = run(&["--dump-config", &file]);
    assert!(
        ended
            .stderr
            .contains("line 3, column 10: blk[0].queues: it is 1 to 16, not 99"),
        "{}",
        ended.stderr
    );
}
