//! `plan`: the machine as text or JSON.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use vmm_reference::arch::{AddressRange, MachinePlan, Space};
use vmm_reference::{Error, HostPlatform, VmConfig, plan, probe};

pub(super) fn print(config: &VmConfig, json: bool) -> Result<ExitCode, Error> {
    config.check_images()?;
    let plan = plan(&probe::<HostPlatform>()?, config)?;
    let text = if json {
        serde_json::to_string_pretty(&plan).map_err(|error| Error::Host {
            what: "cannot print".to_owned(),
            source: error.into(),
        })?
    } else {
        text(&plan)
    };
    // A reader that has seen enough (`| head`) is no failure.
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn text(plan: &MachinePlan) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, plan);
    out
}

fn write_text(out: &mut String, plan: &MachinePlan) -> std::fmt::Result {
    let range = |range: &AddressRange, width| {
        format!(
            "{:#0width$x}-{:#0width$x}",
            range.base,
            range.end().saturating_sub(1)
        )
    };
    writeln!(
        out,
        "{} machine: {} vCPUs, {} MiB",
        plan.arch,
        plan.vcpus,
        plan.ram_size() >> 20
    )?;
    writeln!(out, "\nmemory")?;
    for ram in &plan.ram {
        writeln!(out, "  {}  RAM", range(ram, 18))?;
    }
    writeln!(
        out,
        "  {}  window for kernel and initrd",
        range(&plan.kernel_window, 18)
    )?;
    writeln!(
        out,
        "  {}  window for devices",
        range(&plan.mmio_window, 18)
    )?;
    for reserved in &plan.reserved {
        writeln!(out, "  {}  {}", range(&reserved.range, 18), reserved.name)?;
    }
    writeln!(out, "\ndevices")?;
    for device in &plan.devices {
        let place = match device.space {
            Space::Mmio => format!("mmio {}", range(&device.range, 18)),
            Space::Pio => format!("port {}", range(&device.range, 6)),
        };
        let irq = device
            .irq
            .map(|gsi| format!("  irq {gsi}"))
            .unwrap_or_default();
        writeln!(out, "  {place}  {}{irq}", device.kind)?;
    }
    writeln!(out, "\ncommand line\n  {}", plan.cmdline)
}
