//! Metrics: a JSON object a line, with the groups and keys that clients look for, all of them and always. Numbers of
//! events are those since the line before. What this program counts itself is counted here; what the machine counts is
//! asked of it when a line is written.

mod keys;
mod machine;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use vmm_reference::{Command, Metrics, Reply, VmHandle, Watched};

use crate::api::bodies::MetricsConfig;
use crate::files::open_for_lines;

/// How often a line is written without anybody asking.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// A group and a key of it.
type Name = (&'static str, &'static str);

/// Everything that is counted, and where it goes.
#[derive(Debug, Default)]
struct State {
    /// Events since the last line.
    counts: BTreeMap<Name, u64>,
    /// What stays from one line to the next.
    values: BTreeMap<Name, u64>,
    output: Option<Arc<File>>,
    id: Option<String>,
    properties: Option<BTreeMap<String, String>>,
    machine: Option<VmHandle>,
    /// What the machine had counted at the last line.
    before: Option<Metrics>,
    /// Lines so far.
    lines: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    counts: BTreeMap::new(),
    values: BTreeMap::new(),
    output: None,
    id: None,
    properties: None,
    machine: None,
    before: None,
    lines: 0,
});

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts an event.
pub(crate) fn count(group: &'static str, key: &'static str) {
    add(group, key, 1);
}

/// Counts so many.
pub(crate) fn add(group: &'static str, key: &'static str, amount: u64) {
    *state().counts.entry((group, key)).or_default() += amount;
}

/// Sets what stays.
pub(crate) fn set(group: &'static str, key: &'static str, value: u64) {
    state().values.insert((group, key), value);
}

/// Says whose machine it is that lines tell of.
pub(crate) fn watch(machine: VmHandle) {
    state().machine = Some(machine);
}

/// Why metrics go nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigureError {
    #[error("Reinitialization of metrics not allowed.")]
    Twice,
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// Says where lines go; `id` is what the machine is called.
pub(crate) fn configure(config: MetricsConfig, id: &str) -> Result<(), ConfigureError> {
    let file = open_for_lines(&config.metrics_path)?;
    let mut state = state();
    if state.output.is_some() {
        return Err(ConfigureError::Twice);
    }
    state.output = Some(Arc::new(file));
    state.id = config.emit_id.then(|| id.to_owned());
    state.properties = config.properties;
    Ok(())
}

/// Whom a line asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The machine.
    Machine,
    /// Nobody: the machine does not run yet, or the thread that would answer may be the one that has failed.
    Nobody,
}

/// Held by whoever writes a line: what is told first is written first.
static WRITER: Mutex<()> = Mutex::new(());

/// This is the process of a fork: it counts anew, and its lines go there, if anywhere. What was its parent's is left
/// alone: its descriptors are closed by now.
pub(crate) fn forked(output: Option<File>) {
    let mut state = state();
    let before = std::mem::take(&mut *state);
    state.output = output.map(Arc::new);
    std::mem::forget(before);
}

/// A line that waits for the machine's numbers.
#[derive(Debug)]
pub(crate) struct Waiting {
    numbers: Watched,
    /// Lines that there were when they were asked for.
    lines: u64,
}

impl AsFd for Waiting {
    /// Readable once the line can be written.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.numbers.as_fd()
    }
}

/// Begins a line, if metrics go anywhere and there is a machine that answers: whoever waits for it need not wait there.
pub(crate) fn begin() -> Option<Waiting> {
    let (machine, lines) = {
        let state = state();
        state.output.as_ref()?;
        (state.machine.clone()?, state.lines)
    };
    let numbers = machine.watch_command(Command::Metrics {}, Vec::new());
    Some(Waiting {
        numbers: numbers.ok()?,
        lines,
    })
}

/// Writes it, unless another one was written meanwhile, which was told later.
pub(crate) fn end(waiting: &Waiting) -> io::Result<()> {
    let _writer = WRITER.lock();
    if state().lines != waiting.lines {
        return Ok(());
    }
    put(match waiting.numbers.take() {
        Some(Ok(Reply::Metrics(now))) => Some(now),
        _ => None,
    })
}

/// Writes a line, if metrics go anywhere.
pub(crate) fn write(ask: Ask) -> io::Result<()> {
    // At the end of a process that has failed nobody is waited for.
    let _writer = (ask == Ask::Machine).then(|| WRITER.lock());
    // The machine is asked without the lock: its threads count, too.
    let machine = Some(ask).filter(|ask| *ask == Ask::Machine);
    let machine = machine.and_then(|_| state().machine.clone());
    let now = match machine.map(|machine| machine.command(Command::Metrics {})) {
        Some(Ok(Reply::Metrics(now))) => Some(now),
        _ => None,
    };
    put(now)
}

fn put(now: Option<Metrics>) -> io::Result<()> {
    let mut state = state();
    let Some(output) = state.output.clone() else {
        return Ok(());
    };
    state.lines += 1;
    let mut line = state.line(now).to_string();
    line.push('\n');
    // Nor does anybody who counts wait for a disk.
    drop(state);
    let written = (&*output).write_all(line.as_bytes());
    let missed = match &written {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => "missed_metrics_count",
        Err(_) => "metrics_fails",
    };
    count("logger", missed);
    written
}

impl State {
    fn line(&mut self, now: Option<Metrics>) -> Value {
        let mut line = Map::new();
        let time = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = u64::try_from(time.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        line.insert("utc_timestamp_ms".to_owned(), time.into());
        if let Some(id) = &self.id {
            line.insert("id".to_owned(), id.as_str().into());
        }
        if let Some(properties) = &self.properties {
            line.insert("properties".to_owned(), serde_json::json!(properties));
        }
        for (group, _) in keys::GROUPS {
            line.insert((*group).to_owned(), keys::zeros(group).into());
        }
        let counts = std::mem::take(&mut self.counts);
        for ((group, key), value) in counts.iter().chain(&self.values) {
            keys::add(&mut line, group, key, *value);
        }
        if let Some(now) = now {
            let before = self.before.take().unwrap_or_default();
            machine::add(&mut line, &before, &now);
            self.before = Some(now);
        }
        line.into()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_every_key_and_what_was_counted_since_the_last_one() {
        let mut state = State::default();
        state.counts.insert(("put_api_requests", "drive_count"), 3);
        state.values.insert(("latencies_us", "pause_vm"), 7);
        let line = state.line(None);
        assert_eq!(line["put_api_requests"]["drive_count"], 3);
        assert_eq!(line["put_api_requests"]["drive_fails"], 0);
        assert_eq!(line["vcpu"]["exit_io_in_agg"]["min_us"], 0);
        assert!(line["utc_timestamp_ms"].as_u64().unwrap() > 0);
        let next = state.line(None);
        assert_eq!(next["put_api_requests"]["drive_count"], 0);
        assert_eq!(next["latencies_us"]["pause_vm"], 7);
        // What is counted has a key.
        for (group, key) in [("logger", "missed_log_count"), ("logger", "metrics_fails")] {
            assert!(next[group][key].is_number(), "{group}.{key}");
        }
    }
}
