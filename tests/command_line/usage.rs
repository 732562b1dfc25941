//! What is said about a command line that cannot be used: the option, what is wrong, what would be right.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::common::{finish, refused, vmm};

#[test]
fn numbers_have_their_range_in_the_message() {
    for wrong in ["0", "-1", "99999999999", "x", "1.5", ""] {
        let vcpus = format!("--vcpus={wrong}");
        refused(
            &[&vcpus],
            &["--vcpus", "it is 1 to as many as this host offers"],
        );
    }
    for wrong in ["-1", "99999999999", "x", "1.5", ""] {
        let timeout = format!("--shutdown-timeout={wrong}");
        refused(
            &[&timeout],
            &["--shutdown-timeout", "it is 0 to 4294967295 seconds"],
        );
    }
    refused(&["--vcpus", "-1"], &["--vcpus", "it is 1 to"]);
    for wrong in ["-1", "16777216T", "99999999999999999999999"] {
        let memory = format!("--guest-memory={wrong}");
        refused(&[&memory], &["--guest-memory", "it is 16M to 16777215T"]);
    }
    #[cfg(feature = "virtio-blk")]
    refused(
        &["--blk=a,queues=99999"],
        &["--blk", "queues", "it is 1 to 16"],
    );
    #[cfg(feature = "virtio-net")]
    refused(
        &["--net=vm0,mtu=70000"],
        &["--net", "mtu", "it is 68 to 65535"],
    );
    #[cfg(feature = "virtio-vsock")]
    refused(
        &["--vsock=cid=2,path=v"],
        &["--vsock", "cid", "it is 3 to 4294967294"],
    );
    #[cfg(feature = "virtio-balloon")]
    refused(
        &["--balloon=target=-1"],
        &["--balloon", "target", "it is 1B to the guest's memory"],
    );
}

#[test]
fn words_that_are_none_of_an_option_are_named_with_those_that_are() {
    refused(&["--on-reboot=x"], &["--on-reboot", "exit, restart"]);
    refused(&["--lean=x"], &["--lean", "auto, on, off"]);
    refused(&["--log-level=x"], &["--log-level", "off, error, warn"]);
    refused(
        &["plan", "--arch=vax"],
        &["--arch", "aarch64, riscv64, x86_64"],
    );
    refused(
        &["--serial=tty"],
        &["--serial", "it is stdio, null or file=PATH"],
    );
    refused(&["--vmgenid=yes"], &["--vmgenid", "on, off"]);
    #[cfg(feature = "snapshot")]
    refused(
        &["restore", "saved", "--memory=uffd="],
        &["--memory", "it is lazy, prefault, uffd=SOCKET or uffd=fd=N"],
    );
    #[cfg(feature = "snapshot")]
    refused(
        &["restore", "saved", "--clock=now"],
        &["--clock", "stopped, realtime"],
    );
    #[cfg(feature = "virtio-rng")]
    refused(&["--rng=yes"], &["--rng", "on, off"]);
    #[cfg(feature = "virtio-blk")]
    for word in ["yes", "true", "1"] {
        let disk = format!("--blk=a,ro={word}");
        refused(&[&disk], &["--blk", "ro", "it is on or off"]);
    }
}

#[test]
fn a_value_that_has_to_stand_after_an_equals_sign_is_said_so() {
    #[cfg(feature = "virtio-console")]
    for before in [&["plan"][..], &[]] {
        for word in ["null", "foo", "file=x"] {
            let arguments = [before, &["--console", word]].concat();
            let cure = format!("cure: write --console={word}");
            refused(&arguments, &["after an equals sign", &cure]);
        }
    }
    #[cfg(feature = "virtio-balloon")]
    refused(
        &["--balloon", "target=64"],
        &["cure: write --balloon=target=64"],
    );
    refused(&["--vcpus=2", "plan"], &["plan:", "cure: write plan first"]);
    refused(
        &["--vcpus=2", "doctor"],
        &["doctor:", "cure: leave the options away"],
    );
}

#[test]
fn a_kernel_command_line_is_one_line_of_utf_8() {
    let kernel = crate::common::kernel(&crate::common::RESET);
    let kernel = crate::common::option("kernel", kernel.path());
    for option in ["--append", "--cmdline"] {
        for (text, said) in [
            ("a\nb", "a line's end"),
            ("a\u{1b}[2Jb", "control character 0x1b"),
            ("a\rb", "control character 0x0d"),
        ] {
            let argument = format!("{option}={text}");
            for command in [&["plan"][..], &[]] {
                refused(
                    &[command, &[&kernel, &argument]].concat(),
                    &[option, said, "cure: separate"],
                );
            }
        }
    }
    let planned = finish(vmm(&["plan", "--append=a\tb"]).spawn().unwrap());
    assert_eq!(planned.status.code(), Some(0), "{planned:?}");
    let mut options = vec!["--append", "--cmdline", "--serial"];
    if cfg!(feature = "virtio-blk") {
        options.push("--blk");
    }
    for option in options {
        let argument = [option.as_bytes(), b"=a\xff"].concat();
        let ended = finish(vmm(&[]).arg(OsStr::from_bytes(&argument)).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        let named = ended.stderr.contains(option);
        assert!(
            named && ended.stderr.contains("not text in UTF-8"),
            "{ended:?}"
        );
    }
}

#[test]
#[cfg(feature = "virtio-blk")]
fn r66_paths_hold_commas_and_equals_signs() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a=b.img", "a,b.img", "say \"hi\"", "path=x,ro"] {
        let path = folder.path().join(name);
        std::fs::write(&path, [0; 512]).unwrap();
        let path = path.display().to_string();
        let quoted = format!("--blk=path=\"{}\",ro", path.replace('"', "\"\""));
        let ended = finish(vmm(&["plan", &quoted]).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(0), "{quoted}: {ended:?}");
        #[cfg(feature = "config-file")]
        {
            let dumped = finish(vmm(&["--dump-config", &quoted]).spawn().unwrap());
            let file = folder.path().join("vm.toml");
            std::fs::write(&file, &dumped.stdout).unwrap();
            let file = crate::common::option("config", &file);
            let again = finish(vmm(&["--dump-config", &file]).spawn().unwrap());
            assert_eq!(
                (again.status.code(), again.stdout),
                (Some(0), dumped.stdout)
            );
        }
    }
    let bare = format!("--blk={}", folder.path().join("a=b.img").display());
    let ended = finish(vmm(&["plan", &bare]).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
}

/// As far as no host is asked.
#[test]
#[cfg(feature = "config-file")]
fn a_configuration_that_no_host_can_run_is_not_dumped() {
    for (argument, said) in [
        ("--vcpus=0", "it is 1 to as many"),
        ("--guest-memory=8", "give at least 16 MiB"),
        ("--guest-memory=16385K", "not whole pages"),
        ("--append=a\nb", "a line's end"),
    ] {
        refused(&["--dump-config", argument], &[said]);
        refused(&["plan", argument], &[said]);
    }
}

#[test]
#[cfg(feature = "config-file")]
fn a_path_that_a_file_cannot_hold_is_not_written_to_one() {
    let name = OsStr::from_bytes(b"--kernel=a\xff");
    let ended = finish(vmm(&["--dump-config"]).arg(name).spawn().unwrap());
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("UTF-8 only"), "{ended:?}");
}

#[test]
fn what_cannot_be_printed_is_an_error() {
    let full = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["help"],
        &["help", "plan"],
        &["plan", "--help"],
        &["doctor", "--help"],
        &["plan"],
        &["plan", "--json"],
        &["doctor"],
        #[cfg(feature = "config-file")]
        &["--dump-config"],
    ] {
        let ended = finish(vmm(arguments).stdout(full()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("cannot write to standard output"),
            "{ended:?}"
        );
    }
    // A reader that has seen enough is no failure.
    let mut child = vmm(&["--help"]).spawn().unwrap();
    drop(child.stdout.take());
    let ended = finish(child);
    assert_eq!((ended.status.code(), &*ended.stderr), (Some(0), ""));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    for (arguments, text) in [
        (
            &["plan", "--json", "--vcpus=5000"][..],
            "--vcpus=5000: this host",
        ),
        (&["plan", "--json", "--vcpus=x"], "it is 1 to as many"),
        (&["plan", "--fly", "--json"], "--fly"),
        (&["inspect", "/no/where", "--json"], "No such file"),
    ] {
        let ended = finish(vmm(arguments).spawn().unwrap());
        assert_eq!((ended.status.code(), &*ended.stderr), (Some(2), ""));
        let answer: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        let error = &answer["error"];
        assert_eq!(error["kind"], "usage");
        assert!(
            error["message"].as_str().unwrap().contains(text),
            "{answer}"
        );
        assert!(error["cure"].is_string(), "{answer}");
    }
}

#[test]
fn help_lists_what_this_build_has() {
    let help = finish(vmm(&["--help"]).spawn().unwrap());
    assert_eq!(help.status.code(), Some(0), "{help:?}");
    for (option, feature, built) in [
        ("--blk", "virtio-blk", cfg!(feature = "virtio-blk")),
        ("--net", "virtio-net", cfg!(feature = "virtio-net")),
        ("--vsock", "virtio-vsock", cfg!(feature = "virtio-vsock")),
        (
            "--console",
            "virtio-console",
            cfg!(feature = "virtio-console"),
        ),
        (
            "--balloon",
            "virtio-balloon",
            cfg!(feature = "virtio-balloon"),
        ),
        ("--rng", "virtio-rng", cfg!(feature = "virtio-rng")),
        ("--transport", "virtio", cfg!(feature = "virtio")),
        ("--config", "config-file", cfg!(feature = "config-file")),
        (
            "--console-overflow",
            "virtio-console",
            cfg!(feature = "virtio-console"),
        ),
        ("--control", "control", cfg!(feature = "control")),
        ("ctl", "control", cfg!(feature = "control")),
        ("built-in guest", "", cfg!(feature = "hello-guest")),
    ] {
        assert_eq!(
            help.stdout.contains(option),
            built,
            "{option}: {}",
            help.stdout
        );
        if !built && !feature.is_empty() {
            let cure = format!("cure: build with the feature {feature}");
            let argument = format!("{option}=x");
            refused(&[&argument], &[option, "this build has no", &cure]);
        }
    }
    for (format, built) in [
        ("bzImage", cfg!(feature = "bzimage")),
        ("ELF", cfg!(feature = "elf")),
        ("packed or not", cfg!(feature = "packed-kernels")),
        ("[default: a built-in guest]", cfg!(feature = "hello-guest")),
        ("PCI bus", cfg!(feature = "pci")),
    ] {
        // Words may stand on two lines.
        let text: Vec<&str> = help.stdout.split_whitespace().collect();
        assert_eq!(
            text.join(" ").contains(format),
            built,
            "{format}: {}",
            help.stdout
        );
    }
}
