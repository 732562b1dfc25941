//! `ctl PATH snapshot FOLDER`.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use vmm_reference::{
    BlkCopy, Command, CopiedDisk, CopyMethod, Error, MAX_DESCRIPTORS, SavedForm, SavingStatus,
    Status, Written,
};

use super::connection::Connection;
use super::copies;
use super::errors::print_error;
use super::files::print;
use super::snapshot::{Files, Folder};
use super::status::FAILED;

/// How often it is shown how far it is: not at all of what takes no longer.
const SHOWN: Duration = Duration::from_millis(500);
/// How wide that is.
const WIDTH: u64 = 40;

/// What is saved of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct How<'a> {
    /// What changed since the last time.
    pub(super) diff: bool,
    /// Disks that are copied.
    pub(super) copies: &'a [BlkCopy],
}

/// Saves the VM into a folder.
pub(super) fn save(
    vm: &mut Connection<'_>,
    folder: &Path,
    how: How<'_>,
    json: bool,
) -> Result<ExitCode, Error> {
    let How { diff, copies } = how;
    // Beside them come state and memory.
    copies::check(copies, MAX_DESCRIPTORS - 2)?;
    let files = Files::new(Folder::create(folder)?, copies)?;
    let command = Command::Snapshot {
        memory: files.memory.clone(),
        since: diff.then(|| files.id().to_owned()),
        copies: files.copies(),
        form: SavedForm::Layer,
        note: None,
    };
    // It takes as long as the disk takes for the memory.
    vm.wait_for_ever()?;
    let path = vm.path;
    let (over, is_over) = mpsc::channel();
    let answer = thread::scope(|threads| {
        if io::stderr().is_terminal() {
            threads.spawn(move || show(path, &is_over));
        }
        let answer = vm.ask(&json!(command), &files.open());
        drop(over);
        answer
    });
    let answer = match answer? {
        Ok(answer) => answer,
        Err(refusal) if json => {
            print_error(&refusal);
            return Ok(FAILED.into());
        }
        Err(refusal) => return Err(vm.refused(&refusal)),
    };
    files.publish()?;
    match serde_json::from_value::<Written>(answer.clone()) {
        Ok(written) if !json => {
            let copies = written.copies.iter().map(|copied| copy_text(copied) + "\n");
            print(&format!(
                "{}saved to {}: {} KiB of memory{}; the guest stood still for {} ms",
                copies.collect::<String>(),
                folder.display(),
                written.memory_bytes >> 10,
                match (diff, written.layers) {
                    (false, _) => String::new(),
                    (true, 0 | 1) => ", all of it".to_owned(),
                    (true, layers) => format!(", what changed (layer {layers})"),
                },
                written.still_us.div_ceil(1000)
            ))?;
        }
        _ => print(&answer.to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// How a disk was copied, for people.
pub(super) fn copy_text(copied: &CopiedDisk) -> String {
    let CopiedDisk {
        device,
        name,
        method,
        written_bytes,
        time_us,
        ..
    } = copied;
    let how = match method {
        CopyMethod::Reflink => "by a reflink".to_owned(),
        _ => format!("{} KiB written", written_bytes >> 10),
    };
    let time = time_us.div_ceil(1000);
    format!("{device} copied to {name}: {how}, in {time} ms")
}

/// Shows on a terminal how far a VM is written, until that is over.
fn show(path: &Path, is_over: &Receiver<()>) {
    let mut vm = None;
    while is_over.recv_timeout(SHOWN) == Err(RecvTimeoutError::Timeout) {
        // Whoever waits for the VM's answer says what is wrong with it.
        vm = vm.or_else(|| Connection::open(path).ok());
        let Some(vm) = &mut vm else {
            continue;
        };
        let status = vm.ask(&json!(Command::Status {}), &[]);
        let status = status.ok().and_then(Result::ok).unwrap_or(Value::Null);
        let status = serde_json::from_value::<Status>(status).ok();
        if let Some(saving) = status.and_then(|status| status.saving) {
            eprint!("\r{}", bar(saving));
        }
    }
    // The line is empty again.
    eprint!("\r\x1b[K");
}

/// How far it is, for people.
fn bar(saving: SavingStatus) -> String {
    let (done, total) = (saving.done_bytes, saving.total_bytes.max(1));
    let part = |of: u64| u64::try_from(u128::from(done) * u128::from(of) / u128::from(total));
    let filled = part(WIDTH).unwrap_or(WIDTH).min(WIDTH);
    let bar: String = (0..WIDTH)
        .map(|place| if place < filled { '#' } else { '.' })
        .collect();
    let percent = part(100).unwrap_or(100).min(100);
    format!(
        "saving [{bar}] {percent:3} %, {} of {} MiB",
        done >> 20,
        total >> 20
    )
}
