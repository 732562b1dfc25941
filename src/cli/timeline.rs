//! `--boot-timeline FILE`: where the time of a VM's start went, as JSON or as a page with bars.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vmm_reference::arch::MachinePlan;
use vmm_reference::{Error, Milestone, Timeline, VmConfig};

use super::files::OutputFile;

/// The start of this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProcessStart {
    main: Instant,
    before: Duration,
}

impl ProcessStart {
    /// To be called first in main. What came before is counted as the processor time it took: the
    /// kernel tells when a process started in hundredths of a second only.
    pub(super) fn now() -> Self {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        Self {
            main: Instant::now(),
            before: used.try_into().unwrap_or_default(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Html,
    Json,
}

/// Where the timeline goes; the file is there before the VM is, so that a wrong name is found early.
#[derive(Debug)]
pub(super) struct Output {
    file: OutputFile,
    format: Format,
    start: ProcessStart,
}

/// A stretch of the start, in microseconds since the start of the process.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    /// Whose time it is: of the VMM or of the guest.
    of: &'static str,
    #[serde(rename = "from_us")]
    from: u64,
    #[serde(rename = "to_us")]
    to: u64,
}

/// All of it, as the JSON file has it.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    arch: Cow<'static, str>,
    vcpus: u32,
    memory_mib: u64,
    steps: Vec<Step>,
    /// What was never seen.
    missing: Vec<&'static str>,
}

const VMM: &str = "vmm";
const GUEST: &str = "guest";

/// What ends at a milestone.
fn name(milestone: Milestone) -> &'static str {
    match milestone {
        Milestone::Begun => "command line, consoles",
        Milestone::Probed => "/dev/kvm: what the host offers",
        Milestone::Planned => "plan; kernel file",
        Milestone::Memory => "VM, guest memory",
        Milestone::Vcpus => "interrupt chip, vCPUs",
        Milestone::Devices => "devices",
        Milestone::Loaded => "loading kernel and initrd",
        Milestone::Built => "boot tables, registers",
        Milestone::Entered => "threads, to the first guest instruction",
        Milestone::Output => "first console byte",
        Milestone::DiskRequest => "first disk request",
        Milestone::Init => "init",
        _ => "another milestone",
    }
}

/// The format that a file's name asks for.
pub(super) fn format(path: &Path) -> Result<Format, Error> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("html") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        _ => Err(Error::Config {
            field: "boot-timeline".into(),
            value: path.display().to_string(),
            cause: "the name's ending says what is written, and this one says nothing".to_owned(),
            cure: "end it in .html or .json".to_owned(),
        }),
    }
}

impl Output {
    pub(super) fn create(
        path: &Path,
        start: ProcessStart,
        config: &VmConfig,
    ) -> Result<Self, Error> {
        let format = format(path)?;
        Ok(Self {
            file: OutputFile::open("boot-timeline", path, config)?,
            format,
            start,
        })
    }

    /// Writes what was reached so far.
    pub(super) fn write(self, timeline: &Timeline, plan: &MachinePlan) -> Result<(), Error> {
        let report = Report::new(timeline, plan, self.start);
        let text = match self.format {
            Format::Html => report.html(),
            Format::Json => serde_json::to_string_pretty(&report).unwrap_or_default() + "\n",
        };
        self.file.write(text.as_bytes())
    }
}

impl Report {
    fn new(timeline: &Timeline, plan: &MachinePlan, start: ProcessStart) -> Self {
        let since_start = |at: Instant| {
            let elapsed = at.saturating_duration_since(start.main) + start.before;
            u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
        };
        let main = since_start(start.main);
        let mut steps = vec![Step {
            name: "process, to its main function (processor time)",
            of: VMM,
            from: 0,
            to: main,
        }];
        let mut missing = Vec::new();
        let mut from = main;
        for milestone in Milestone::ALL {
            let Some(at) = timeline.at(milestone) else {
                missing.push(name(milestone));
                continue;
            };
            let to = since_start(at);
            let of = if milestone <= Milestone::Entered {
                VMM
            } else {
                GUEST
            };
            steps.push(Step {
                name: name(milestone),
                of,
                from,
                to,
            });
            // The guest's milestones are independent of each other: all count from its start.
            if of == VMM {
                from = to;
            }
        }
        Self {
            version: env!("CARGO_PKG_VERSION"),
            arch: plan.arch.clone(),
            vcpus: plan.vcpus,
            memory_mib: plan.ram_size() >> 20,
            steps,
            missing,
        }
    }

    /// A page without scripts and without anything from elsewhere. None of its text is the user's or
    /// the guest's.
    fn html(&self) -> String {
        let mut page = String::from(HEAD);
        let _ = writeln!(
            page,
            "<p>vmm-reference {}, {}, {} vCPUs, {} MiB</p>",
            self.version, self.arch, self.vcpus, self.memory_mib
        );
        let entered = self.steps.iter().filter(|step| step.of == VMM);
        let entered = entered.map(|step| step.to).max().unwrap_or_default();
        for (title, of, from) in [
            ("The VMM, to the first guest instruction", VMM, 0),
            ("The guest, from its first instruction on", GUEST, entered),
        ] {
            let steps = self.steps.iter().filter(|step| step.of == of);
            chart(&mut page, title, from, steps);
        }
        for what in &self.missing {
            let _ = write!(page, "<p>Not seen: {what}.");
            if *what == name(Milestone::Init) {
                page.push_str(" A Linux kernel says it on its console, unless it is quiet.");
            }
            page.push_str("</p>\n");
        }
        page
    }
}

/// Bars on one scale, which begins at `from`.
fn chart<'a>(page: &mut String, title: &str, from: u64, steps: impl Iterator<Item = &'a Step>) {
    let steps: Vec<_> = steps.collect();
    let Some(end) = steps.iter().map(|step| step.to).max() else {
        return;
    };
    let whole = end.saturating_sub(from).max(1);
    let percent = |micros: u64| micros as f64 * 100.0 / whole as f64;
    let _ = write!(
        page,
        "<h2>{title}: {}</h2>\n<table>\n",
        time(end.saturating_sub(from))
    );
    for step in steps {
        let left = step.from.saturating_sub(from);
        let width = step.to.saturating_sub(step.from);
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"b\"><div style=\"margin-left:{:.2}%;\
             width:{:.2}%\"></div></td></tr>",
            step.name,
            time(width),
            percent(left),
            percent(width)
        );
    }
    page.push_str("</table>\n");
}

fn time(micros: u64) -> String {
    format!("{}.{:03} ms", micros / 1000, micros % 1000)
}

const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<meta charset=\"utf-8\">
<title>Boot timeline</title>
<style>
body { font: 15px system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
td { padding: 3px 12px 3px 0; white-space: nowrap }
.n { text-align: right; font-variant-numeric: tabular-nums }
.b { width: 100%; background: #f3f3f3 }
.b div { background: #3b76b0; height: 14px; min-width: 1px }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #1b1b1b }
  .b { background: #2a2a2a }
}
</style>
<h1>Boot timeline</h1>
";
