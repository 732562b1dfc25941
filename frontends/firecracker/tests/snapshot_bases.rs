//! What a Diff snapshot is added to, and files that are written where they are: nothing is lost of a file that is not the
//! one that was meant, or when a machine cannot be saved.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::letters::*;
use common::mounted::mounted;
use rustix::fs::{XattrFlags, fgetxattr, fremovexattr, fsetxattr};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

const MEMORY: u64 = 128 << 20;
const NOT_ITS: &str = "not what the machine had when it was saved last, or loaded";

/// A Diff snapshot onto a file.
fn diff_onto(name: &str) -> String {
    DIFF.replace("diff", name)
}

/// Whether files in a folder have attributes, and what this program says in them.
fn marks(file: &Path) -> bool {
    let file = File::open(file).unwrap();
    let can = fsetxattr(&file, "user.test", b"", XattrFlags::empty()).is_ok();
    if !can {
        eprintln!("SKIPPED: the file system has no extended attributes");
    }
    can
}

fn without_marks(file: &Path) {
    let file = File::open(file).unwrap();
    for name in ["user.vmm-reference.memory", "user.vmm-reference.written"] {
        // It may have none.
        let _ = fremovexattr(&file, name);
    }
}

#[test]
fn a_diff_is_added_to_the_memory_that_it_changed_since_and_to_nothing_else() {
    let mut first = Letters::start(&[], &[TRACKED]);
    first.types("a");
    first.save(FULL);
    // A copy by a program that knows of no attributes.
    fs::write(first.path("copy"), fs::read(first.path("memory")).unwrap()).unwrap();
    fs::write(first.path("foreign"), vec![7; 128 << 20]).unwrap();
    first.types("ab");
    first.process.patch("/vm", PAUSED);
    for name in ["copy", "foreign"] {
        let before = fs::read(first.path(name)).unwrap();
        let refused = first.process.refused("PUT", CREATE, &diff_onto(name));
        assert!(refused.contains(NOT_ITS), "{refused}");
        assert!(refused.contains(&format!("file {name}:")), "{refused}");
        assert!(fs::read(first.path(name)).unwrap() == before);
        assert!(!first.path("state2").exists());
    }
    // One that was only made as long as memory is a new one, and one of another length is replaced as ever.
    let empty = File::create(first.path("empty")).unwrap();
    empty.set_len(MEMORY).unwrap();
    fs::write(first.path("short"), "short").unwrap();
    for name in ["empty", "short"] {
        first.process.put(CREATE, &diff_onto(name));
        assert_eq!(fs::metadata(first.path(name)).unwrap().len(), MEMORY);
        first.process.patch("/vm", RESUMED);
        first.process.patch("/vm", PAUSED);
    }
    // The memory of the one before the last one lacks what changed in between.
    let refused = first.process.refused("PUT", CREATE, &diff_onto("memory"));
    assert!(refused.contains(NOT_ITS), "{refused}");
    // Onto the last one, whether it is known by its mark or only as the file that it was.
    first.process.put(CREATE, FULL);
    for printed in ["abc", "abcd"] {
        first.process.patch("/vm", RESUMED);
        first.types(printed);
        first.process.patch("/vm", PAUSED);
        without_marks(&first.path("memory"));
        first.process.put(CREATE, &diff_onto("memory"));
    }
    let mut second = first.beside("second", &[]);
    let load = FROM_FILE.replace("state", "state2");
    second.process.put(LOAD, &load);
    second.types("e");
    // The first one takes the file away from under its feet.
    first.process.patch("/vm", RESUMED);
    first.types("abcde");
    first.save(&diff_onto("memory"));
    second.process.patch("/vm", PAUSED);
    let refused = second.process.refused("PUT", CREATE, &diff_onto("memory"));
    assert!(refused.contains(NOT_ITS), "{refused}");
    let mut third = first.beside("third", &[]);
    third.process.put(LOAD, &load);
    third.types("f");
    // What was loaded knows its file.
    third.save(&diff_onto("memory"));
    // And not when somebody has written to it.
    third.types("fg");
    let memory = File::options().write(true).open(first.path("memory"));
    memory.unwrap().write_all_at(&[0], 0).unwrap();
    third.process.patch("/vm", PAUSED);
    let refused = third.process.refused("PUT", CREATE, &diff_onto("memory"));
    assert!(refused.contains(NOT_ITS), "{refused}");
}

/// As `cp --preserve=all`, or a rename.
#[test]
fn memory_that_was_moved_or_put_together_is_known_by_its_mark() {
    let mut first = Letters::start(&[], &[TRACKED]);
    if !marks(&first.path("disk")) {
        return;
    }
    first.types("a");
    first.save(FULL);
    first.types("ab");
    first.save(DIFF);
    first.types("abc");
    // Onto the file with the changes: since the same one, and more of them.
    first.save(DIFF);
    let of_the_diff = FROM_FILE.replace("\"state", "\"state2");
    for (name, load, said) in [
        (
            "changes",
            of_the_diff.replace("\"memory", "\"diff"),
            "has what changed",
        ),
        ("other", of_the_diff, "is the memory of another state"),
    ] {
        let second = first.beside(name, &[]);
        let refused = second.process.refused("PUT", LOAD, &load);
        assert!(refused.contains(said), "{refused}");
    }
    // It is known to have all that was written, and nothing else.
    let mut label = [0; 96];
    let diff = File::open(first.path("diff")).unwrap();
    let len = fgetxattr(&diff, "user.vmm-reference.written", &mut label[..]).unwrap();
    let label = std::str::from_utf8(&label[..len]).unwrap();
    assert!(label.starts_with("diff "), "{label}");
    let folder = first.process.folder.path().to_owned();
    fs::rename(first.path("memory"), first.path("moved")).unwrap();
    said(&editor(&folder, &rebase("moved", "diff")));
    first.types("abcd");
    first.save(&diff_onto("moved"));
    let load = FROM_FILE
        .replace("\"state", "\"state2")
        .replace("\"memory", "\"moved");
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, &load);
    second.types("e");
}

fn rebase<'a>(memory: &'a str, diff: &'a str) -> [&'a str; 6] {
    [
        "edit-memory",
        "rebase",
        "--memory-path",
        memory,
        "--diff-path",
        diff,
    ]
}

#[test]
fn the_editor_takes_changes_and_nothing_that_only_looks_like_changes() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(FULL);
    first.types("ab");
    // Nothing was tracked: all of memory is data.
    first.save(DIFF);
    let folder = first.process.folder.path().to_owned();
    let refused = |diff: &str, fragment: &str| {
        let before = fs::read(folder.join("memory")).unwrap();
        let output = editor(&folder, &rebase("memory", diff));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(fragment), "{said}");
        assert!(fs::read(folder.join("memory")).unwrap() == before);
    };
    let has_marks = marks(&first.path("disk"));
    // A copy in which holes have become zeros.
    fs::write(first.path("filled"), vec![0; 128 << 20]).unwrap();
    refused(
        "filled",
        "filled has no holes, which stand for what did not change",
    );
    if has_marks {
        fs::copy(first.path("memory"), first.path("full")).unwrap();
        refused(
            "memory",
            "memory has all of memory, as it was saved by a Full snapshot",
        );
        said(&editor(&folder, &rebase("full", "diff")));
    }
    // Whoever has written to it is not the one that knows what it has.
    let diff = File::options().write(true).open(first.path("diff"));
    diff.unwrap().write_all_at(&[0], 0).unwrap();
    refused("diff", "diff has no holes");
}

/// As `rsync -aX`, which fills holes and keeps attributes and times.
#[test]
fn a_copy_of_a_diff_that_has_zeros_for_holes_is_refused_whatever_it_is_marked_with() {
    let mut first = Letters::start(&[], &[TRACKED]);
    if !marks(&first.path("disk")) {
        return;
    }
    first.types("a");
    first.save(FULL);
    first.types("ab");
    first.save(DIFF);
    let folder = first.process.folder.path().to_owned();
    let copy = |sparse: &str, to: &str| {
        let mut command = Command::new("cp");
        let command = command.args(["-a", sparse, "diff", to]);
        assert!(command.current_dir(&folder).status().unwrap().success());
    };
    copy("--sparse=never", "filled");
    // Half of it.
    copy("--sparse=auto", "partly");
    let half = File::options().write(true).open(folder.join("partly"));
    let half = half.unwrap();
    let times = FileTimes::new().set_modified(half.metadata().unwrap().modified().unwrap());
    half.write_all_at(&[0; 1 << 20], MEMORY / 2).unwrap();
    half.set_times(times).unwrap();
    copy("--sparse=auto", "same");
    let before = fs::read(folder.join("memory")).unwrap();
    for name in ["filled", "partly"] {
        let output = editor(&folder, &rebase("memory", name));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let expected = format!("Error: {name} had ");
        assert!(said.starts_with(&expected), "{said}");
        assert!(said.contains("bytes of data when it was written"), "{said}");
        assert!(fs::read(folder.join("memory")).unwrap() == before);
    }
    said(&editor(&folder, &rebase("memory", "same")));
    let mut second = first.beside("second", &[]);
    let load = FROM_FILE.replace("\"state", "\"state2");
    second.process.put(LOAD, &load);
    second.types("c");
}

/// Machines that cannot be saved: for one name of a file with two, for a disk that is full, for want of a thread.
#[test]
fn files_that_are_written_where_they_are_are_whole_when_the_machine_is_not_saved() {
    let script = "mount --bind mounted state && mount --bind mounted memory";
    let Some(process) = mounted(script, &["state", "memory", "mounted"]) else {
        return;
    };
    for kind in ["Full", "Diff"] {
        let refused = process.refused("PUT", CREATE, &FULL.replace("Full", kind));
        assert!(refused.contains("the same file"), "{refused}");
        assert_eq!(fs::read(process.path("mounted")).unwrap(), b"before");
    }
    drop(process);
    let script = "mount --bind mounted state && mount -t tmpfs -o size=16k none small && \
                  touch small/memory";
    let Some(process) = mounted(script, &["state", "mounted"]) else {
        return;
    };
    let body = FULL.replace("\"memory", "\"small/memory");
    for kind in ["Full", "Diff"] {
        let refused = process.refused("PUT", CREATE, &body.replace("Full", kind));
        assert!(refused.contains("No space left on device"), "{refused}");
        assert_eq!(fs::read(process.path("mounted")).unwrap(), b"before");
    }
    process.put(CREATE, FULL);
    assert!(fs::metadata(process.path("mounted")).unwrap().len() > 10_000);
    drop(process);
    let script = "mount --bind mounted state && mount --bind mounted2 memory";
    let names = ["state", "mounted", "memory", "mounted2"];
    let Some(process) = mounted(script, &names) else {
        return;
    };
    let before = limit_memory(process.pid(), None);
    for kind in ["Full", "Diff"] {
        let refused = process.refused("PUT", CREATE, &FULL.replace("Full", kind));
        assert!(
            refused.contains("Resource temporarily unavailable"),
            "{refused}"
        );
        for name in ["mounted", "mounted2"] {
            assert_eq!(fs::read(process.path(name)).unwrap(), b"before");
        }
    }
    limit_memory(process.pid(), Some(before));
    process.put(CREATE, FULL);
    assert_eq!(
        fs::metadata(process.path("mounted2")).unwrap().len(),
        MEMORY
    );
}

/// Leaves a process too little address space for another thread's stack, or gives it back what it had.
fn limit_memory(pid: i32, limit: Option<Rlimit>) -> Rlimit {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib: u64 = size
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    let limit = limit.unwrap_or(Rlimit {
        current: Some((kib << 10) + (3 << 19)),
        maximum: None,
    });
    prlimit(Pid::from_raw(pid), Resource::As, limit).unwrap()
}

#[test]
fn a_note_with_another_size_of_memory_changes_nothing() {
    let mut first = Letters::start(&[], &[]);
    first.types("a");
    first.save(FULL);
    let path = first.path("state");
    let mut state = fs::read(&path).unwrap();
    // JSON in JSON.
    change_note(&mut state, r#"mem_size_mib\":128"#, r#"mem_size_mib\":999"#);
    fs::write(&path, state).unwrap();
    let mut second = first.beside("second", &[]);
    second.process.put(LOAD, FROM_FILE);
    second.types("b");
    let config = second.process.get("/machine-config");
    assert_eq!(config["mem_size_mib"], 128);
    second.save(&diff_onto("memory"));
    assert_eq!(fs::metadata(first.path("memory")).unwrap().len(), MEMORY);
    let mut third = first.beside("third", &[]);
    third
        .process
        .put(LOAD, &FROM_FILE.replace("state", "state2"));
    third.types("c");
}

/// Changes a text in the section `note` of a state to another one of its length (docs/snapshot.md).
fn change_note(state: &mut [u8], from: &str, to: &str) {
    const HEADER: usize = 24;
    const ENTRY: usize = 48;
    let number = |bytes: &[u8]| usize::from_le_bytes(bytes.try_into().unwrap());
    let count = u32::from_le_bytes(state[20..24].try_into().unwrap()) as usize;
    let table = HEADER + ENTRY * count;
    let mut entries = (HEADER..table).step_by(ENTRY);
    let entry = entries
        .find(|entry| state[*entry..].starts_with(b"note\0"))
        .unwrap();
    let [start, len] = [32, 40].map(|at| number(&state[entry + at..entry + at + 8]));
    let note = &mut state[start..start + len];
    let mut places = note.windows(from.len());
    let place = places.position(|text| text == from.as_bytes()).unwrap();
    note[place..place + to.len()].copy_from_slice(to.as_bytes());
    let sum = crc32(note);
    state[entry + 28..entry + 32].copy_from_slice(&sum.to_le_bytes());
    let sum = crc32(&state[..table]);
    state[table..table + 4].copy_from_slice(&sum.to_le_bytes());
}

/// CRC-32, as in gzip.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
        })
    })
}
