//! A guest that counts the ticks of a timer, through many processes.

use std::io::{Read, Write};

use super::{SMALL, Wanderer};
use crate::{passed, start};

/// How often it goes on elsewhere; machines of other architectures are emulated.
const GENERATIONS: u32 = if cfg!(target_arch = "x86_64") { 60 } else { 6 };

impl Wanderer {
    /// The next line.
    pub(super) fn line(&mut self) -> &str {
        let stdout = self.child.child().stdout.as_mut().unwrap();
        let start = self.stdout.len();
        let mut byte = [0];
        while byte != *b"\n" {
            assert_eq!(stdout.read(&mut byte).unwrap(), 1, "{}", self.stdout);
            self.stdout.push(byte[0].into());
        }
        &self.stdout[start..]
    }

    pub(super) fn types(&mut self, text: &[u8]) {
        let stdin = self.child.child().stdin.as_mut().unwrap();
        stdin.write_all(text).unwrap();
    }
}

fn ticks_on(mode: &str, machine: &str) {
    let mut wanderer =
        Wanderer::new(|control| start(&format!("ticks mode={mode}"), &[machine, control, SMALL]));
    wanderer.is_whole = true;
    wanderer.line();
    while wanderer.generations < GENERATIONS {
        assert!(wanderer.goes_on(&[]), "{mode}: {}", wanderer.stdout);
        if wanderer.generations == GENERATIONS / 2 {
            wanderer.types(b"u");
            while wanderer.line() != "user mode\n" {}
        }
        wanderer.line();
    }
    wanderer.types(b"q");
    let mut ended = wanderer.child.finish();
    ended.stdout.insert_str(0, &wanderer.stdout);
    let mut lines = passed(ended);
    assert!(lines.len() > GENERATIONS as usize, "{mode}: {lines:?}");
    lines.retain(|line| line != "user mode");
    for (number, line) in (1..).zip(&lines) {
        assert_eq!(*line, format!("{number}"), "{mode}: {lines:?}");
    }
}

#[test]
fn registers_stay_in_every_process() {
    ticks_on("none", "--lean=on");
}

#[test]
fn a_periodic_timer_ticks_in_every_process() {
    ticks_on("periodic", "--lean=on");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_timer_that_ends_once_does_so_in_every_process() {
    ticks_on("one-shot", "--lean=on");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_deadline_ends_in_every_process() {
    ticks_on("deadline", "--lean=on");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_interval_timer_and_the_pics_tick_in_every_process() {
    ticks_on("pit", "--lean=off");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_timer_ticks_beside_all_chips_in_every_process() {
    ticks_on("periodic", "--lean=off");
}
