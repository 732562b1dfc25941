//! `plan`: the machine as text or JSON, of this host or of any other architecture.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;
use vmm_reference::arch::{AddressRange, LeanChoice, MachinePlan, Planner, Space};
use vmm_reference::{
    ARCHITECTURES, ConfinementReport, Error, HostPlatform, HugePages, MemoryBacking, MissingPart,
    NamedFile, PlannedFor, VmConfig, busy_output, device_tree, in_plain_words, planner,
    planner_with_facts, probe, rehearse, transparent_page_bytes,
};
#[cfg(feature = "control")]
use vmm_reference::{ControlSocket, Place};

use super::arguments::PlanOptions;
use super::config::Config;
use super::confined;
use super::errors::with_options;
use super::files::{OutputFile, print as print_text, read_text};

/// `inputs` are the files that the command line has read; `boot_timeline` is what a VM would write.
pub(super) fn print(
    all: &Config,
    options: &PlanOptions,
    inputs: &[NamedFile<'_>],
    boot_timeline: Option<&Path>,
) -> Result<ExitCode, Error> {
    if let Some(path) = boot_timeline {
        super::timeline::format(path)?;
    }
    let config = &all.vm;
    if options.arch.is_none() {
        all.check_descriptors()?;
    }
    let facts = options
        .facts
        .as_deref()
        .map(|path| Facts::read(path, options.arch.as_deref()))
        .transpose()?;
    let other = options.arch.is_some();
    let inputs: Vec<NamedFile<'_>> = inputs
        .iter()
        .copied()
        .chain(options.facts.as_deref().map(|path| ("--facts", path)))
        .collect();
    config.check_outputs(&all.files(&inputs, &options.outputs(boot_timeline)))?;
    let mut busy = Vec::new();
    if !other {
        busy.extend(all.busy());
        busy.extend(boot_timeline.and_then(|path| busy_output("boot-timeline", path)));
        #[cfg(feature = "control")]
        if let Some(path) = &all.control
            && ControlSocket::check(path)? == Place::InUse
        {
            busy.push(format!(
                "control={}: another program listens there, and it is refused as long as that is so",
                path.display()
            ));
        }
    }
    let planner = choose(options, facts, config)?;
    let planned_for = if other {
        PlannedFor::AnotherHost
    } else {
        PlannedFor::ThisHost
    };
    let mut plan = rehearse(&*planner, config, planned_for)?;
    plan.remarks.extend(busy);
    super::run::warn_consoles(all, &plan.cmdline);
    if let Some(path) = &options.dump_dtb {
        let tree = device_tree(&*planner, &plan, config)?;
        OutputFile::open("dump-dtb", path, config)?.write(&tree)?;
    }
    // Last: nothing can be opened afterwards.
    let sandbox = (!other).then(|| confined::tried(all)).transpose()?;
    let printed = Printed {
        plan: &plan,
        sandbox,
        memory_backing: config.memory_backing,
        huge_pages: config.huge_pages,
        page_size_bytes: page_size(config.huge_pages, planned_for),
    };
    let text = if options.json {
        serde_json::to_string_pretty(&printed).map_err(cannot_print)?
    } else {
        text(&printed)
    };
    print_text(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The machine, and what its RAM is on the host.
#[derive(Serialize)]
struct Printed<'a> {
    #[serde(flatten)]
    plan: &'a MachinePlan,
    memory_backing: MemoryBacking,
    huge_pages: HugePages,
    /// Of the largest pages that are asked for; another host's usual ones are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    page_size_bytes: Option<u64>,
    /// What the VM's process gives up on this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox: Option<ConfinementReport>,
}

fn page_size(pages: HugePages, planned_for: PlannedFor) -> Option<u64> {
    let here = planned_for == PlannedFor::ThisHost;
    match pages {
        HugePages::Off => here.then(|| rustix::param::page_size() as u64),
        HugePages::Transparent => here.then(transparent_page_bytes),
        reserved => reserved.reserved_bytes(),
    }
}

impl Printed<'_> {
    /// What RAM is, in one line.
    fn backing(&self) -> String {
        let size = self
            .page_size_bytes
            .map(|bytes| format!(" of {}", vmm_reference::arch::size_text(bytes)))
            .unwrap_or_default();
        let pages = match self.huge_pages {
            HugePages::Off => format!("pages{size}"),
            HugePages::Transparent => format!("transparent huge pages{size}"),
            _ => format!("huge pages{size}, all reserved at the start"),
        };
        format!("{} memory in {pages}", self.memory_backing)
    }
}

pub(super) fn cannot_print(error: serde_json::Error) -> Error {
    Error::Host {
        what: "cannot print".to_owned(),
        source: error.into(),
    }
}

/// A file with the facts of a host, which is of the architecture that was asked for.
struct Facts<'a> {
    path: &'a Path,
    text: String,
}

impl<'a> Facts<'a> {
    fn read(path: &'a Path, arch: Option<&str>) -> Result<Self, Error> {
        let text = read_text("facts", path)?;
        let facts = Self { path, text };
        let fits = |arch: &&&str| matches!(facts.planner(arch), Ok(Some(_)));
        let (found, asked) = (ARCHITECTURES.iter().find(fits), arch);
        let (cause, cure) = match (found, asked) {
            (Some(found), Some(asked)) if *found != asked => (
                format!("it has the facts of a host of {found}, and --arch says {asked}"),
                format!("write --arch={found}, or name the facts of another host"),
            ),
            (Some(found), None) => (
                format!(
                    "it has the facts of a host of {found}, and without --arch the plan is for this one, \
                     of {}",
                    std::env::consts::ARCH
                ),
                format!("add --arch={found}"),
            ),
            (None, None) => (
                "it has the facts of no host that there is a backend for".to_owned(),
                CURE.to_owned(),
            ),
            // What is wrong with them, the backend that was asked for says.
            _ => return Ok(facts),
        };
        Err(facts.refuse(cause, cure))
    }

    fn planner(&self, arch: &str) -> Result<Option<Box<dyn Planner>>, serde_json::Error> {
        planner_with_facts(arch, &mut serde_json::Deserializer::from_str(&self.text))
    }

    fn refuse(&self, cause: String, cure: String) -> Error {
        Error::Config {
            field: "facts".into(),
            value: self.path.display().to_string(),
            cause,
            cure,
        }
    }
}

const CURE: &str = "give a file that `plan --dump-facts` wrote on a host of that architecture";

/// The platform to plan for.
fn choose(
    options: &PlanOptions,
    facts: Option<Facts<'_>>,
    config: &VmConfig,
) -> Result<Box<dyn Planner>, Error> {
    let found = match (&options.arch, facts) {
        (None, _) => {
            let platform = probe::<HostPlatform>()?;
            if let Some(path) = &options.dump_facts {
                let facts = serde_json::to_string_pretty(&platform).map_err(cannot_print)?;
                OutputFile::open("dump-facts", path, config)?.write(facts.as_bytes())?;
            }
            Some(Box::new(platform) as Box<dyn Planner>)
        }
        (Some(arch), None) => planner(arch),
        (Some(arch), Some(facts)) => facts.planner(arch).map_err(|error| {
            let text = error.to_string();
            // The place, once more.
            let text = text
                .rsplit_once(" at line ")
                .map_or(&*text, |(text, _)| text);
            let said = in_plain_words(text, "key");
            let (line, column) = (error.line(), error.column().max(1));
            facts.refuse(
                format!("line {line}, column {column}: {said}"),
                CURE.to_owned(),
            )
        })?,
    };
    found.ok_or_else(|| Error::Config {
        field: "arch".into(),
        value: options.arch.clone().unwrap_or_default(),
        cause: "there is no backend for it".to_owned(),
        cure: "see --help for those there are".to_owned(),
    })
}

fn text(printed: &Printed<'_>) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_text(&mut out, printed);
    out
}

/// What became of `--lean`.
pub(super) fn lean(choice: &LeanChoice) -> String {
    let kind = if choice.lean { "lean" } else { "not lean" };
    format!("{kind}: {}", choice.why)
}

fn write_text(out: &mut String, printed: &Printed<'_>) -> std::fmt::Result {
    let plan = printed.plan;
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
    writeln!(out, "{}", printed.backing())?;
    if let Some(choice) = &plan.lean {
        writeln!(out, "{}", lean(choice))?;
    }
    if let Some(sandbox) = &printed.sandbox {
        writeln!(out, "sandbox: {}", sandbox.level)?;
        for MissingPart { part, why, .. } in &sandbox.missing {
            writeln!(out, "  without {part}: {why}")?;
        }
    }
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
    let windows = plan.pci.map(|pci| [Some(pci.window32), pci.window64]);
    for window in windows.into_iter().flatten().flatten() {
        writeln!(out, "  {}  window for PCI BARs", range(&window, 18))?;
    }
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
            .or_else(|| {
                let messages = device.messages?;
                let last = messages.first + messages.count.saturating_sub(1);
                Some(format!("  messages {}-{last}", messages.first))
            })
            .unwrap_or_default();
        let id = device.id.as_ref().map(|id| format!("  id {id}"));
        let id = id.unwrap_or_default();
        writeln!(out, "  {place}  {}{irq}{id}", device.kind)?;
    }
    if let Some(vmgenid) = &plan.vmgenid {
        let irq = vmgenid.irq.map(|gsi| format!("  irq {gsi}"));
        let place = range(&vmgenid.range, 18);
        writeln!(
            out,
            "  ram  {place}  VM generation ID{}",
            irq.unwrap_or_default()
        )?;
    }
    writeln!(out, "\ncommand line\n  {}", plan.cmdline)?;
    if !plan.remarks.is_empty() {
        writeln!(out, "\nremarks")?;
    }
    for remark in &plan.remarks {
        writeln!(out, "  {}", with_options(remark))?;
    }
    Ok(())
}
