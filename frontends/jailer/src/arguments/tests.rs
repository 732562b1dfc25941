#![allow(clippy::unwrap_used)]

use super::*;

fn parsed(words: &[&str]) -> Result<Invocation> {
    let words: Vec<_> = words.iter().map(OsString::from).collect();
    parse(&words)
}

/// With all that is required, and more.
fn with(more: &[&str]) -> Result<Arguments> {
    let mut words = vec![
        "--id",
        "a-1",
        "--exec-file",
        "/x",
        "--uid",
        "1",
        "--gid",
        "2",
    ];
    words.extend(more);
    parsed(&words).map(|invocation| match invocation {
        Invocation::Run(arguments) => *arguments,
        other => panic!("{other:?}"),
    })
}

#[test]
fn what_is_not_said_is_as_in_the_original() {
    let arguments = with(&[]).unwrap();
    assert_eq!(arguments.base, Path::new("/srv/jailer"));
    assert_eq!(
        arguments.limits,
        Limits {
            file_size: None,
            files: 2048
        }
    );
    assert_eq!(arguments.cgroups.version, Version::V1);
    assert!(!arguments.daemonize && !arguments.new_pid_ns && arguments.rest.is_empty());
}

#[test]
fn what_follows_two_dashes_is_the_programs() {
    let arguments = with(&["--daemonize", "--", "--id", "b", "--", "--version"]).unwrap();
    assert!(arguments.daemonize);
    assert_eq!(arguments.rest, ["--id", "b", "--", "--version"]);
    assert_eq!(arguments.id, "a-1");
}

#[test]
fn help_and_version_win_over_mistakes() {
    assert_eq!(
        parsed(&["--odd", "--version"]).unwrap(),
        Invocation::Version
    );
    assert_eq!(parsed(&["--id", "--help"]).unwrap(), Invocation::Help);
}

#[test]
fn flags_and_values_that_are_wrong_are_named() {
    for (words, part) in [
        (&["--odd", "1"][..], "'--odd'"),
        (&["--id", "b"], "'id' stands twice"),
        (&["--netns"], "'netns' needs a value"),
        (&["--netns", "--daemonize"], "'netns' needs a value"),
        (&["--cgroup-version", "3"], "3 is an invalid cgroup version"),
        (&["--resource-limit", "no-file=x"], "no-file=x"),
        (&["--resource-limit", "memory=1"], "memory=1"),
        (&["--parent-cgroup", "/a"], "Parent cgroup path is invalid"),
        (
            &["--parent-cgroup", "a/../../b"],
            "Parent cgroup path is invalid",
        ),
        (
            &["--cgroup", "cpu.weight"],
            "Invalid format for cgroups: cpu.weight",
        ),
        (&["--cgroup", "cpu.weight="], "Invalid format for cgroups"),
        (&["--cgroup", "../cpu.weight=1"], "Cgroup invalid file"),
        (&["--cgroup", "..=1"], "Cgroup invalid file"),
        (&["--cgroup", "tasks=1"], "Cgroup invalid file"),
    ] {
        let error = with(words).unwrap_err().to_string();
        assert!(error.contains(part), "{words:?}: {error}");
    }
    let error = parsed(&["--id", "a"]).unwrap_err().to_string();
    assert!(error.contains("'exec-file'"), "{error}");
}

#[test]
fn a_value_of_a_cgroup_may_have_equals_signs() {
    let cgroups = with(&["--cgroup", "io.max=8:0 rbps=9", "--cgroup", "cpu.weight=7"])
        .unwrap()
        .cgroups;
    let found: Vec<_> = cgroups
        .properties
        .iter()
        .map(|one| (one.controller(), one.value.as_str()))
        .collect();
    assert_eq!(found, [("io", "8:0 rbps=9"), ("cpu", "7")]);
}

/// What is written there moves, ends or freezes processes of the host, or has the kernel start a program.
#[test]
fn files_of_a_cgroup_that_hold_no_limit_are_refused() {
    for file in [
        "cgroup.procs",
        "cgroup.threads",
        "cgroup.kill",
        "cgroup.freeze",
        "cgroup.type",
        "cgroup.subtree_control",
        "cgroup.event_control",
        "cgroup.clone_children",
        "cgroup.max",
        "cgroup.max.depth.procs",
        "tasks",
        "release_agent",
        "notify_on_release",
    ] {
        for version in ["1", "2"] {
            let given = format!("{file}=1");
            let error = with(&["--cgroup-version", version, "--cgroup", &given]).unwrap_err();
            let error = error.to_string();
            let named = format!("Cgroup invalid file: {given}: ");
            assert!(error.starts_with(&named), "{error}");
            let cure = ["cgroup.max.depth", "cpu.weight"];
            assert!(cure.iter().any(|cure| error.contains(cure)), "{error}");
        }
    }
    for limit in ["cgroup.max.depth=2", "cgroup.max.descendants=3"] {
        let cgroups = with(&["--cgroup-version", "2", "--cgroup", limit])
            .unwrap()
            .cgroups;
        let [property] = &cgroups.properties[..] else {
            panic!("{cgroups:?}");
        };
        assert_eq!(format!("{}={}", property.file, property.value), limit);
    }
}

#[test]
fn an_id_is_no_path() {
    let long = "a".repeat(65);
    for (text, part) in [
        (
            "",
            "Invalid instance ID: Invalid len (0);  the length must be between 1 and 64",
        ),
        (&long, "Invalid len (65)"),
        ("a/b", "Invalid char (/) at position 1"),
        ("..", "Invalid char (.) at position 0"),
        ("ä", "Invalid char (ä) at position 0"),
    ] {
        let error = parsed(&[
            "--id",
            text,
            "--exec-file",
            "/x",
            "--uid",
            "1",
            "--gid",
            "1",
        ])
        .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn no_number_leaves_root_what_it_is() {
    for number in ["-1", "4294967295", "4294967296", "root", ""] {
        let error = parsed(&[
            "--id",
            "a",
            "--exec-file",
            "/x",
            "--uid",
            number,
            "--gid",
            "1",
        ])
        .unwrap_err();
        assert!(error.to_string().starts_with("Invalid uid"), "{error}");
    }
}
