#![allow(clippy::unwrap_used)]

use super::*;

fn wish(version: Version, properties: &[(&str, &str)]) -> CgroupWish {
    let properties = properties.iter().map(|(file, value)| Property {
        file: (*file).to_owned(),
        value: (*value).to_owned(),
    });
    CgroupWish {
        version,
        parent: None,
        properties: properties.collect(),
    }
}

/// Folders instead of cgroups, with the files that the kernel would make.
struct Hierarchy(tempfile::TempDir);

impl Hierarchy {
    fn new(folders: &[&str], files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for below in folders {
            fs::create_dir_all(folder.path().join(below)).unwrap();
        }
        for (file, value) in files {
            fs::write(folder.path().join(file), value).unwrap();
        }
        Self(folder)
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.path().join(file)).unwrap()
    }

    fn mounts(&self, kind: &str, options: &str) -> String {
        let folder = self.0.path().display().to_string().replace(' ', "\\040");
        format!("none {folder} {kind} rw,{options} 0 0\n")
    }
}

#[test]
fn version_1_fills_what_is_empty_from_above_and_then_joins() {
    let files = [
        "fc/cpuset.cpus",
        "fc/j/cpuset.cpus",
        "fc/cpuset.mems",
        "fc/j/cpuset.mems",
        "fc/j/tasks",
    ];
    let mut files: Vec<_> = files.map(|file| (file, "")).into();
    files.extend([("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0\n")]);
    let there = Hierarchy::new(&["fc/j"], &files);
    let wish = wish(Version::V1, &[("cpuset.cpus", "1")]);
    let mounts = there.mounts("cgroup", "cpuset");
    plan(&wish, Path::new("fc"), "j", &mounts)
        .unwrap()
        .carry_out()
        .unwrap();
    // The kernel takes a line as a whole; a file has what was there before behind it.
    assert_eq!(there.read("fc/cpuset.cpus"), "0-3");
    assert!(there.read("fc/j/cpuset.cpus").starts_with('1'));
    assert_eq!(there.read("fc/cpuset.mems"), "0");
    assert_eq!(there.read("fc/j/cpuset.mems"), "0");
    assert_eq!(there.read("fc/j/tasks"), "0");
}

#[test]
fn version_2_has_each_controller_handed_on_all_the_way() {
    let files = [
        "fc/cgroup.subtree_control",
        "fc/j/cpu.weight",
        "fc/j/cgroup.procs",
        "cgroup.subtree_control",
    ];
    let mut files: Vec<_> = files.map(|file| (file, "")).into();
    files.push(("cgroup.controllers", "cpu memory\n"));
    let there = Hierarchy::new(&["fc/j"], &files);
    let mounts = there.mounts("cgroup2", "nsdelegate");
    let asked = wish(Version::V2, &[("cpu.weight", "7")]);
    plan(&asked, Path::new("fc"), "j", &mounts)
        .unwrap()
        .carry_out()
        .unwrap();
    assert_eq!(there.read("cgroup.subtree_control"), "+cpu");
    assert_eq!(there.read("fc/cgroup.subtree_control"), "+cpu");
    assert_eq!(there.read("fc/j/cpu.weight"), "7");
    assert_eq!(there.read("fc/j/cgroup.procs"), "0");
    // Nothing is made for a controller that is not there.
    let none = wish(Version::V2, &[("pids.max", "7")]);
    let error = plan(&none, Path::new("fc"), "other", &mounts).unwrap_err();
    assert!(
        error.to_string().contains("Controller pids is unavailable"),
        "{error}"
    );
}

#[test]
fn without_values_version_2_joins_the_parent_if_there_is_one() {
    let there = Hierarchy::new(&["fc"], &[("fc/cgroup.procs", "")]);
    let mounts = there.mounts("cgroup2", "nsdelegate");
    let asked = wish(Version::V2, &[]);
    plan(&asked, Path::new("fc"), "j", &mounts)
        .unwrap()
        .carry_out()
        .unwrap();
    assert_eq!(there.read("fc/cgroup.procs"), "0");
    let nothing = plan(&asked, Path::new("other"), "j", &mounts).unwrap();
    assert!(matches!(nothing, Plan::Nothing), "{nothing:?}");
    fs::remove_file(there.0.path().join("fc/cgroup.procs")).unwrap();
    let error = plan(&asked, Path::new("fc"), "j", &mounts)
        .unwrap()
        .carry_out()
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "Failed to move process to cgroup",
        "pass any --cgroup parameters",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_cgroup_that_refuses_a_value_is_not_joined() {
    let there = Hierarchy::new(&["fc/j"], &[("fc/j/tasks", "")]);
    let asked = wish(Version::V1, &[("pids.max", "9")]);
    let mounts = there.mounts("cgroup", "pids");
    let error = plan(&asked, Path::new("fc"), "j", &mounts)
        .unwrap()
        .carry_out()
        .unwrap_err();
    assert!(error.to_string().contains("pids.max"), "{error}");
    assert_eq!(there.read("fc/j/tasks"), "");
}

#[test]
fn a_host_without_such_cgroups_is_told_of() {
    for version in [Version::V1, Version::V2] {
        let asked = wish(version, &[("cpu.weight", "7")]);
        let error = plan(
            &asked,
            Path::new("fc"),
            "j",
            "proc /proc proc rw 0 0\nodd\n",
        )
        .unwrap_err();
        assert!(matches!(error, JailerError::CgroupHierarchy(_)), "{error}");
    }
}
