#![allow(clippy::unwrap_used)]

use std::os::unix::fs::{FileExt, fchown};

use super::*;
use crate::saved::Content;

const MARK: Mark<'_> = Mark {
    text: "mark",
    content: Content::Full,
    most: 0,
};

fn pair(folder: &Path, name: &str) -> [NewFile; 2] {
    [name, "memory"].map(|name| {
        let new = NewFile::open(&folder.join(name)).unwrap();
        new.file.write_all_at(b"new", 0).unwrap();
        new
    })
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn new_files_take_their_places_or_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("state"), "old").unwrap();
    drop(pair(folder, "state"));
    assert_eq!(fs::read(folder.join("state")).unwrap(), b"old");
    assert_eq!(names(folder), ["state"]);
    // The longest name that there may be, too.
    let long = "x".repeat(255);
    for name in ["state", &long] {
        let [state, memory] = pair(folder, name);
        publish(state, memory, &MARK).unwrap();
        assert_eq!(fs::read(folder.join(name)).unwrap(), b"new");
    }
    assert_eq!(names(folder), ["memory", "state", &long]);
}

#[test]
fn r46_a_state_whose_memory_has_taken_its_place_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let [state, memory] = pair(folder, "state");
    let marks = saved::set_mark(&memory.file, &MARK);
    state.set_mode(0o666).unwrap();
    // Something that no file can take the place of.
    fs::create_dir_all(folder.join("state/full")).unwrap();
    assert!(publish(state, memory, &MARK).is_err());
    let expected: &[&str] = match marks {
        true => &[".state.next", "memory", "state"],
        false => &["memory", "state"],
    };
    assert_eq!(names(folder), expected);
    if marks {
        let found = fs::metadata(folder.join(".state.next")).unwrap();
        assert_eq!(found.mode() & 0o777, 0o644);
    }
}

#[test]
fn nothing_of_anybody_else_is_written_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join(".state.next"), "mine").unwrap();
    let [state, memory] = pair(folder, "state");
    publish(state, memory, &MARK).unwrap();
    assert_eq!(fs::read(folder.join(".state.next")).unwrap(), b"mine");
    assert_eq!(names(folder), [".state.next", "memory", "state"]);
    let [state, memory] = ["state", ".state.next"].map(|name| NewFile::open(&folder.join(name)));
    assert!(state.unwrap().is_same(&memory.unwrap()));
    // A link to what is still to be made stays one.
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("memory");
    std::os::unix::fs::symlink(&target, folder.join("link")).unwrap();
    let [state, memory] = [folder.join("other"), folder.join("link")].map(|path| {
        let new = NewFile::open(&path).unwrap();
        new.file.write_all_at(b"new", 0).unwrap();
        new
    });
    publish(state, memory, &MARK).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"new");
    assert!(folder.join("link").is_symlink());
}

#[test]
fn who_may_write_to_a_state_may_do_so_when_it_has_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("state"), "old").unwrap();
    fs::set_permissions(folder.join("state"), Permissions::from_mode(0o664)).unwrap();
    let [state, memory] = pair(folder, "state");
    publish(state, memory, &MARK).unwrap();
    let found = fs::metadata(folder.join("state")).unwrap();
    assert_eq!(found.mode() & 0o777, 0o664);
}

#[test]
fn a_state_that_waits_is_of_a_known_owner_and_only_he_writes_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let create = |name| File::create(folder.path().join(name)).unwrap();
    let [waiting, memory] = ["waiting", "memory"].map(create);
    for (mode, expected) in [
        (0o644, true),
        (0o600, true),
        (0o664, false),
        (0o646, false),
        (0o666, false),
    ] {
        waiting
            .set_permissions(Permissions::from_mode(mode))
            .unwrap();
        assert_eq!(is_own(&waiting, [None, None]), expected, "{mode:o}");
    }
    waiting
        .set_permissions(Permissions::from_mode(0o600))
        .unwrap();
    if !geteuid().is_root() {
        eprintln!("SKIPPED: only root gives files to others");
        return;
    }
    fchown(&waiting, Some(1234), None).unwrap();
    assert!(!is_own(&waiting, [None, Some(&memory)]));
    fchown(&memory, Some(1234), None).unwrap();
    assert!(is_own(&waiting, [None, Some(&memory)]));
}

#[test]
fn what_is_merged_is_a_copy_with_the_holes_of_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("memory");
    let before = File::create(&path).unwrap();
    before.set_len(64 << 20).unwrap();
    before.write_all_at(b"old", 1 << 20).unwrap();
    let new = NewFile::open(&path).unwrap();
    new.begin_with(64 << 20).unwrap();
    let mut bytes = [0; 3];
    new.file.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert_eq!(&bytes, b"old");
    let found = new.file.metadata().unwrap();
    assert_eq!(found.len(), 64 << 20);
    assert!(found.blocks() * 512 < 1 << 20, "{found:?}");
    // Of another machine.
    new.begin_with(32 << 20).unwrap();
    assert_eq!(new.file.metadata().unwrap().len(), 0);
}
