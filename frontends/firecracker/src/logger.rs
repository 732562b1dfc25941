//! The log: lines as clients look for them, `TIME [ID:THREAD:LEVEL:FILE:LINE] TEXT`. They go to stdout until a file
//! or a FIFO is named.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Log, Metadata, Record};

use crate::api::bodies::LoggerConfig;
use crate::files::open_for_lines;
use crate::metrics;

/// Where lines go, and what is in them.
#[derive(Debug, Default)]
struct Logger {
    /// What the machine is called.
    id: Option<String>,
    target: Option<Arc<File>>,
    shows_level: bool,
    shows_origin: bool,
    module: Option<String>,
}

static LOGGER: Shared = Shared(RwLock::new(Logger {
    id: None,
    target: None,
    shows_level: false,
    shows_origin: false,
    module: None,
}));
#[derive(Debug)]
struct Shared(RwLock<Logger>);

fn logger() -> RwLockWriteGuard<'static, Logger> {
    LOGGER.0.write().unwrap_or_else(PoisonError::into_inner)
}

/// Lines go to the log from now on. `id` is what the machine is called.
pub(crate) fn start(id: &str) {
    rename(id);
    // Only the second call could fail.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(log::LevelFilter::Info);
}

/// What the machine is called from now on.
pub(crate) fn rename(id: &str) {
    logger().id = Some(id.to_owned());
}

/// The file or FIFO that lines go to, if they do not go to stdout.
pub(crate) fn target() -> Option<Arc<File>> {
    logger().target.clone()
}

/// Changes what a body or the command line names; the level is the usual one if it names none.
pub(crate) fn configure(config: LoggerConfig) -> io::Result<()> {
    let file = config
        .log_path
        .map(|path| open_for_lines(&path))
        .transpose()?
        .map(Arc::new);
    let mut logger = logger();
    log::set_max_level(
        config
            .level
            .map_or(log::LevelFilter::Info, |level| level.level()),
    );
    logger.target = file.or_else(|| logger.target.take());
    logger.shows_level = config.show_level.unwrap_or(logger.shows_level);
    logger.shows_origin = config.show_log_origin.unwrap_or(logger.shows_origin);
    logger.module = config.module.or_else(|| logger.module.take());
    Ok(())
}

impl Log for Shared {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // It logs every wrong value that a guest writes to a queue's registers, without a limit.
        !metadata.target().starts_with("virtio_queue")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let logger = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let module = record.module_path().unwrap_or_default();
        let wanted = logger.module.as_deref();
        if !wanted.is_none_or(|wanted| module.starts_with(wanted)) {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let line = line(&logger, record, now.unwrap_or_default());
        let written = match &logger.target {
            Some(file) => { &**file }.write_all(line.as_bytes()),
            None => io::stdout().write_all(line.as_bytes()),
        };
        drop(logger);
        if written.is_err() {
            metrics::count("logger", "missed_log_count");
        }
    }

    fn flush(&self) {}
}

fn line(logger: &Logger, record: &Record<'_>, now: Duration) -> String {
    let thread = std::thread::current();
    let id = logger.id.as_deref().unwrap_or("anonymous-instance");
    let thread = thread.name().unwrap_or("-");
    let mut line = format!("{} [{id}:{thread}", timestamp(now));
    if logger.shows_level {
        line.push_str(&format!(":{}", record.level()));
    }
    if logger.shows_origin {
        let (file, number) = (record.file().unwrap_or("?"), record.line());
        let number = number.map_or("?".to_owned(), |number| number.to_string());
        line.push_str(&format!(":{file}:{number}"));
    }
    line.push_str(&format!("] {}\n", record.args()));
    line
}

/// A time since 1970 as `2023-06-16T07:45:41.767987318`, in UTC: a jail has no file about time zones.
fn timestamp(since: Duration) -> String {
    const DAY: u64 = 86_400;
    let (days, second) = (since.as_secs() / DAY, since.as_secs() % DAY);
    // The proleptic Gregorian calendar in eras of 400 years that begin on a first of March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_686_901_541, "2023-06-16T07:45:41"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let time = timestamp(Duration::new(seconds, 767_987_318));
            assert_eq!(time, format!("{text}.767987318"));
        }
    }

    #[test]
    fn a_line_has_what_was_asked_for() {
        let record = Record::builder()
            .args(format_args!("hello"))
            .level(log::Level::Warn)
            .file(Some("src/x.rs"))
            .line(Some(7))
            .build();
        let mut logger = Logger::default();
        let name = std::thread::current().name().unwrap_or("-").to_owned();
        let text = line(&logger, &record, Duration::ZERO);
        let start = "1970-01-01T00:00:00.000000000 [anonymous-instance:";
        assert_eq!(text, format!("{start}{name}] hello\n"));
        logger.shows_level = true;
        logger.shows_origin = true;
        let text = line(&logger, &record, Duration::ZERO);
        assert_eq!(text, format!("{start}{name}:WARN:src/x.rs:7] hello\n"));
    }
}
