//! `ctl PATH snapshot --diff` and `snapshot merge`, as processes.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::common::trial::{COUNT, Trial};
use crate::common::{self, Ended, finish, option, vmm};

fn run(arguments: &[&str]) -> Ended {
    finish(vmm(arguments).spawn().unwrap())
}

/// Nothing where the kernel does not tell what changes.
pub(crate) fn is_told(trial: &Trial) -> bool {
    let told = trial.ctl(&["snapshot", &trial.path("saved"), "--diff"]);
    if told.status.code() != Some(0) {
        eprintln!("SKIPPED: {told:?}");
        assert!(std::env::var_os("CI").is_none(), "{told:?}");
        return false;
    }
    assert!(told.stdout.contains(" of memory, all of it; "), "{told:?}");
    true
}

#[test]
fn a_vm_goes_on_from_layers_in_other_processes() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let mut child = trial.spawn(0, &[&kernel, "--rng=off", "--guest-memory=32"]);
    if !is_told(&trial) {
        return;
    }
    let mut all = Vec::new();
    for generation in 0..4 {
        trial.wait(generation);
        trial.said(&["pause"]);
        let said = trial.said(&["snapshot", &saved, "--diff"]);
        let layer = if generation == 3 { 2 } else { generation + 2 };
        let expected = format!(" of memory, what changed (layer {layer}); ");
        assert!(said.contains(&expected), "{said}");
        let inspected = run(&["inspect", &saved]).stdout;
        let layers = inspected.matches("\nlayer     ").count();
        assert_eq!(layers, usize::try_from(layer).unwrap(), "{inspected}");
        assert_eq!(trial.files().len(), layers + 1);
        trial.said(&["stop"]);
        assert_eq!(child.finish().status.code(), Some(0));
        all.extend(fs::read(trial.output(generation)).unwrap());
        if generation == 2 {
            let merged = run(&["snapshot", "merge", &saved]);
            let said = format!("{saved}: merged 4 layers: ");
            assert!(merged.stdout.starts_with(&said), "{merged:?}");
            assert_eq!(trial.files().len(), 2);
            let again = run(&["snapshot", "merge", &saved]);
            assert!(again.stdout.contains("is one file already"), "{again:?}");
        }
        child = trial.spawn(generation + 1, &["restore", &saved]);
    }
    trial.wait(4);
    // What it runs on may be merged meanwhile: it goes on, and what it is saved as next is whole.
    run(&["snapshot", "merge", &saved]);
    assert_eq!(trial.files().len(), 2);
    trial.said(&["pause"]);
    let said = trial.said(&["snapshot", &saved, "--diff"]);
    assert!(said.contains(" of memory, all of it; "), "{said}");
    trial.said(&["stop"]);
    child.finish();
    all.extend(fs::read(trial.output(4)).unwrap());
    for pair in all.windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1));
    }
}

/// Whenever it is killed, the folder has the saved VM of before or the next one, all of whose files are there.
#[test]
fn r46_whoever_is_killed_leaves_whole_layers() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let (saved, control) = (trial.path("saved"), trial.path("control"));
    let child = trial.spawn(0, &[&kernel, "--guest-memory=32"]);
    if !is_told(&trial) {
        return;
    }
    let diff = ["ctl", &control, "snapshot", &saved, "--diff"];
    let merge = ["snapshot", "merge", &saved];
    const STEPS: u32 = 12;
    for command in [&diff[..], &merge] {
        run(&diff);
        let begin = Instant::now();
        run(command);
        let whole = begin.elapsed();
        for step in 0..STEPS {
            if command == merge {
                run(&diff);
                run(&diff);
            }
            let mut killed = vmm(command).spawn().unwrap();
            thread::sleep(whole * step / STEPS);
            killed.kill().unwrap();
            killed.wait().unwrap();
            // It opens all of its files.
            let inspected = run(&["inspect", &saved]);
            assert_eq!(inspected.status.code(), Some(0), "{step}: {inspected:?}");
        }
    }
    trial.is_written();
    let said = trial.said(&["snapshot", &saved, "--diff"]);
    assert!(said.starts_with("saved to "), "{said}");
    trial.said(&["stop"]);
    child.finish();
    trial.goes_on();
}

#[test]
fn two_commands_at_once_do_not_mix_their_layers() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let saved = trial.path("saved");
    let child = trial.spawn(0, &[&kernel, "--guest-memory=32"]);
    trial.said(&["snapshot", &saved]);
    let files = trial.files();
    let folder = fs::File::open(&saved).unwrap();
    rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let ended = trial.ctl(&["snapshot", &saved]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("another command"), "{ended:?}");
    assert!(
        ended.stderr.contains("cure: wait until that is done"),
        "{ended:?}"
    );
    assert_eq!(trial.files(), files);
    drop(folder);
    trial.said(&["snapshot", &saved]);
    trial.said(&["stop"]);
    child.finish();
}

/// What has names as this program's own files have, and what no state names, is what somebody who was killed has left.
#[test]
fn r46_what_the_killed_have_left_goes_with_the_next_one_and_nothing_else() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let child = trial.spawn(0, &[&kernel, "--rng=off", "--guest-memory=32"]);
    if !is_told(&trial) {
        return;
    }
    let saved = trial.path("saved");
    let own = [
        "disk",
        "memory-1a",
        "memory-1A-2",
        "memory-mine",
        "state-",
        "state.old",
    ];
    let left = ["memory-1a-2", "memory-18f3-9", "state-1a-2"];
    for name in own.iter().chain(&left) {
        fs::write(Path::new(&saved).join(name), name).unwrap();
    }
    fs::create_dir(Path::new(&saved).join("memory-2-1")).unwrap();
    let is_clean = |layers: usize| {
        let files = trial.files();
        for name in left {
            assert!(!files.iter().any(|file| file == name), "{name}: {files:?}");
        }
        // Those of before, a folder, the state and the memory.
        assert_eq!(files.len(), own.len() + 2 + layers, "{files:?}");
    };
    trial.said(&["snapshot", &saved, "--diff"]);
    is_clean(2);
    fs::write(Path::new(&saved).join(left[0]), "").unwrap();
    trial.said(&["snapshot", &saved, "--diff"]);
    is_clean(3);
    fs::write(Path::new(&saved).join(left[0]), "").unwrap();
    run(&["snapshot", "merge", &saved]);
    is_clean(1);
    trial.said(&["stop"]);
    child.finish();
    trial.goes_on();
}

#[test]
fn a_folder_without_a_saved_vm_is_not_merged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere");
    let ended = run(&["snapshot", "merge", path.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert!(ended.stderr.contains("nowhere/state: No such"), "{ended:?}");
    assert!(
        ended.stderr.contains("cure: name the folder that"),
        "{ended:?}"
    );
    assert!(!Path::new(&path).exists());
    // An empty folder is the user's.
    fs::create_dir(&path).unwrap();
    let ended = run(&["snapshot", "merge", path.to_str().unwrap()]);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn a_layer_is_not_put_above_files_that_are_not_there() {
    let trial = Trial::new();
    let kernel = common::kernel(COUNT);
    let kernel = option("kernel", kernel.path());
    let child = trial.spawn(0, &[&kernel, "--rng=off", "--guest-memory=32"]);
    if !is_told(&trial) {
        return;
    }
    let saved = trial.path("saved");
    let lost = trial
        .files()
        .into_iter()
        .find(|name| name.starts_with("memory-"));
    fs::remove_file(Path::new(&saved).join(lost.unwrap())).unwrap();
    let told = trial.ctl(&["snapshot", &saved, "--diff"]);
    assert!(told.stdout.contains(" of memory, all of it; "), "{told:?}");
    assert!(
        told.stderr.contains("what is there is not whole"),
        "{told:?}"
    );
    trial.said(&["stop"]);
    child.finish();
    trial.goes_on();
}
