//! Memory, registers and timers of forks.

use std::fs;
use std::path::Path;

use super::{Family, SMALL, ctl, wait_until};
use crate::common::pool::HugePagePool;
use crate::start;

/// Numbers from `first` on, a line each, up to what the guest says at its end.
fn count_from(first: u64, lines: &[&str]) -> u64 {
    let numbers: Vec<u64> = lines.iter().map_while(|line| line.parse().ok()).collect();
    for (expected, number) in (first..).zip(&numbers) {
        assert_eq!(*number, expected, "{lines:?}");
    }
    first + numbers.len() as u64
}

#[test]
fn no_page_of_memory_is_shared_once_it_is_written_to() {
    for pages in ["--huge-pages=off", "--huge-pages=transparent"] {
        let mut family = Family::new(|control| {
            start("pages rounds=200", &["--guest-memory=64", pages, control])
        });
        let mut count = 0;
        while count < 4 && family.forks(&[]) {
            count += 1;
        }
        assert!(count > 0, "it is over before it was forked");
        for said in family.forks_pass() {
            let lines: Vec<_> = said.lines().collect();
            assert_eq!(lines[lines.len() - 2], "15360 pages", "{said}");
        }
        let lines = family.passes();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        assert_eq!(count_from(1, &lines), 201);
    }
}

/// The pages of a pool are copied, if it has as many more.
#[test]
fn memory_of_a_pool_is_copied_or_the_fork_is_refused() {
    let Some(_pool) = HugePagePool::with(16) else {
        return;
    };
    let mut family = Family::new(|control| {
        start(
            "pages rounds=2000",
            &["--guest-memory=16", "--huge-pages=2M", control],
        )
    });
    assert!(family.forks(&[]));
    assert_eq!(HugePagePool::free(), 0);
    let control = family.path("control");
    let refused = ctl(
        &control,
        &["fork", &format!("--control={}", family.path("new"))],
    );
    let said = "needs 8 huge pages, and this host has not as many free any more";
    assert!(refused.stderr.contains(said), "{refused:?}");
    family.forks_pass();
    let lines = family.passes();
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    assert_eq!(count_from(1, &lines), 2001);
    assert_eq!(HugePagePool::free(), 16);
}

/// Each fork is one of the fork before it, which then ends.
#[test]
fn registers_and_timers_go_on_through_forks_of_forks() {
    const GENERATIONS: usize = 30;
    for (mode, lean) in [
        ("none", "--lean=on"),
        ("periodic", "--lean=on"),
        ("deadline", "--lean=on"),
        ("pit", "--lean=off"),
        ("periodic", "--lean=off"),
    ] {
        let mut family = Family::new(|control| {
            let serial = format!("--serial=file={}.serial", &control["--control=".len()..]);
            start(
                &format!("ticks mode={mode}"),
                &[lean, control, SMALL, &serial],
            )
        });
        let (mut control, mut serial) = (family.path("control"), family.path("control.serial"));
        let mut said = String::new();
        for _ in 0..GENERATIONS {
            wait_until("it stands still", || {
                fs::read_to_string(&serial).is_ok_and(|said| said.lines().count() > 2)
            });
            // What was printed before is here, what comes after is there.
            assert!(ctl(&control, &["pause"]).status.success());
            assert!(family.forks_of(&control, &[]));
            assert!(ctl(&control, &["stop"]).status.success());
            wait_until("its socket stays", || !Path::new(&control).exists());
            said += &fs::read_to_string(&serial).unwrap();
            let fork = family.forks.last().unwrap();
            (control, serial) = (fork.control.clone(), fork.serial.clone());
        }
        let lines: Vec<_> = said.lines().collect();
        let whole = &lines[..lines.len() - 1];
        let next = count_from(1, whole);
        assert_eq!(next, 1 + whole.len() as u64, "{mode}: {said}");
        assert!(ctl(&control, &["stop"]).status.success());
        family.forks.clear();
        let _ = family.parent.take().unwrap().wait();
    }
}
