//! Running tools and parts of the work: what runs, where it failed, and how long it took.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// One line of the table.
struct Row {
    name: String,
    start: Duration,
    took: Duration,
    /// How it ended, if it did not pass.
    end: &'static str,
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static TABLE: Mutex<Vec<Row>> = Mutex::new(Vec::new());

/// A step was not begun because another one has failed.
#[derive(Debug)]
pub(crate) struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped, because another step has failed")
    }
}

impl std::error::Error for Stopped {}

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Lets no further step begin.
pub(crate) fn stop() {
    STOPPED.store(true, Ordering::Relaxed);
}

/// Whether the work goes on.
pub(crate) fn go_on() -> Result<()> {
    if STOPPED.load(Ordering::Relaxed) {
        return Err(Stopped.into());
    }
    Ok(())
}

/// Runs a part of the work, which may print, and keeps its time for the table.
pub(crate) fn timed<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    go_on()?;
    println!("==> {name}");
    let start = START.elapsed();
    let result = work();
    let took = START.elapsed().saturating_sub(start);
    println!("    {name}: {:.1} s", took.as_secs_f64());
    TABLE
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(Row {
            name: name.to_owned(),
            start,
            took,
            end: match &result {
                Ok(_) => "",
                Err(error) if error.is::<Stopped>() => "  stopped",
                Err(_) => "  FAILED",
            },
        });
    result
}

/// The steps in the order of their starts. Some ran beside others, so their times sum up to more than
/// the whole.
pub(crate) fn table() -> String {
    let mut rows = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    rows.sort_by_key(|row| row.start);
    let mut text = String::from("   start    took  step\n");
    for row in rows.iter() {
        let (start, took) = (row.start.as_secs_f64(), row.took.as_secs_f64());
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{start:>6.0} s {took:>5.0} s  {}{}",
            row.name, row.end
        );
    }
    let whole = START.elapsed().as_secs();
    let _ = write!(text, "{whole:>16} s  in all");
    text
}

/// Runs a command that prints for itself and expects success.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    timed(name, || run(command))
}

/// Runs a command that prints for itself and expects success: no step of its own.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", shown(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed: {status}", shown(command)).into())
    }
}

/// Runs a command quietly and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output();
    printed(command, output)
}

/// The same with what it reads from its input; it may leave some of it.
pub(crate) fn output_of(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = command.spawn().and_then(|mut child| {
        let stdin = child.stdin.take();
        thread::scope(|scope| {
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input)));
            child.wait_with_output()
        })
    });
    printed(command, output)
}

fn printed(command: &Command, output: io::Result<Output>) -> Result<Vec<u8>> {
    let output = output.map_err(|error| format!("{}: {error}", shown(command)))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{} failed: {}\n{said}", shown(command), output.status).into())
    }
}

/// Like [`output`], as text without the line's end.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(output(command)?)?.trim().to_owned())
}

/// A command as one would type it, with its folder.
fn shown(command: &Command) -> String {
    let folder = match command.get_current_dir() {
        Some(folder) => folder.display().to_string(),
        None => "the workspace".to_owned(),
    };
    let mut text = format!("in {folder}: {}", command.get_program().to_string_lossy());
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        if argument.contains([' ', '\n', '"', '\'', '$', '*']) {
            // Writing to a string cannot fail.
            let _ = write!(text, " {argument:?}");
        } else {
            let _ = write!(text, " {argument}");
        }
    }
    text
}
