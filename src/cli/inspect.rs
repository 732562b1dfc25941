//! `inspect`: what a kernel file is and whether it boots here; what a saved VM is.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use vmm_reference::arch::LeanChoice;
use vmm_reference::{Error, KernelReport, VmConfig, inspect, planner};

use super::arguments::InspectOptions;

pub(super) fn print(options: &InspectOptions) -> Result<ExitCode, Error> {
    #[cfg(feature = "snapshot")]
    if options.kernel.is_dir() {
        let text = super::restore::describe(&options.kernel, options.json)?;
        super::files::print(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let report = inspect(&options.kernel)?;
    let lean = lean(&report);
    let text = if options.json {
        let all = Report {
            report: &report,
            lean,
        };
        serde_json::to_string_pretty(&all).map_err(super::plan::cannot_print)?
    } else {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write_text(&mut text, &report, lean.as_ref());
        text
    };
    super::files::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What JSON has.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    report: &'a KernelReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    lean: Option<LeanChoice>,
}

/// Whether its machine would be lean on a typical host, with the default command line; `None` where that
/// makes no difference.
fn lean(report: &KernelReport) -> Option<LeanChoice> {
    let mut machine = VmConfig::default().machine().ok()?;
    machine.kernel = report.guest;
    planner(report.architecture?)?.plan(&machine).ok()?.lean
}

fn write_text(
    out: &mut String,
    report: &KernelReport,
    lean: Option<&LeanChoice>,
) -> std::fmt::Result {
    writeln!(out, "format        {}", report.format)?;
    if let Some(architecture) = report.architecture {
        writeln!(out, "architecture  {architecture}")?;
    }
    if let Some(version) = &report.version {
        writeln!(out, "version       {version}")?;
    }
    if !report.compression.is_empty() {
        writeln!(out, "compression   {}", report.compression.join(", then "))?;
    }
    writeln!(out, "file          {} bytes", report.file_size)?;
    if let Some(size) = report.memory_size {
        writeln!(out, "memory        {size} bytes")?;
    }
    if let Some(address) = report.load_address {
        writeln!(out, "load address  {address:#x}")?;
    }
    for (protocol, address) in &report.entries {
        writeln!(out, "entry         {address:#x} ({protocol})")?;
    }
    if let Some(limit) = report.cmdline_limit {
        writeln!(out, "command line  {limit} bytes at most")?;
    }
    if let Some(choice) = lean {
        writeln!(out, "machine       {}", super::plan::lean(choice))?;
    }
    for (option, value) in &report.options {
        writeln!(out, "option        CONFIG_{option}={value}")?;
    }
    for note in &report.notes {
        writeln!(out, "note          {note}")?;
    }
    for problem in &report.problems {
        writeln!(out, "problem       {problem}")?;
    }
    if report.problems.is_empty() {
        writeln!(out, "nothing in the file speaks against booting it here")?;
    }
    Ok(())
}
