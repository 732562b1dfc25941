//! The parts of the help that are long, or that depend on what this build has.

pub(super) const AFTER_HELP: &str = "\
Exit status:
  0  the guest powered off or asked for a reset, or the VM was ended on request
  1  the VMM failed (KVM or the host refused something)
  2  wrong usage, or a value that cannot be used
  3  the guest crashed (triple fault, crash event, a panic that it told of)

Keys, when stdin is a terminal:
  Ctrl-a x  end the VM      Ctrl-a h  help      Ctrl-a Ctrl-a  send Ctrl-a";

/// What the program is for.
pub(super) fn about() -> &'static str {
    if cfg!(feature = "hello-guest") {
        "Runs a virtual machine with KVM. Without --kernel, a built-in guest says hello"
    } else {
        "Runs a virtual machine with KVM"
    }
}

pub(super) fn lean() -> String {
    let guests = if cfg!(feature = "hello-guest") {
        "for the built-in guest, and for a Linux"
    } else {
        "for a Linux"
    };
    format!(
        "Leaves out what current kernels can do without, for a shorter life: on a PC the \
         interval timer (PIT) and the PICs; the I/O APIC is the VMM's, not KVM's. auto: {guests} that is new enough \
         unless its command line needs them; `plan` says which and why [default: auto]"
    )
}

/// The formats of kernels that this build boots.
pub(super) fn kernel() -> String {
    let formats: Vec<&str> = [
        ("bzImage", cfg!(feature = "bzimage")),
        ("ELF", cfg!(feature = "elf")),
        ("Image", cfg!(feature = "image")),
    ]
    .into_iter()
    .filter_map(|(format, built)| built.then_some(format))
    .collect();
    let packed = if cfg!(feature = "packed-kernels") {
        ", packed or not"
    } else {
        ""
    };
    let default = if cfg!(feature = "hello-guest") {
        " [default: a built-in guest]"
    } else {
        ""
    };
    let formats = match formats.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "of no format: this build boots none".to_owned(),
    };
    format!("Kernel image: {formats}{packed}, found by content{default}")
}

#[cfg(feature = "serial")]
pub(super) fn serial() -> String {
    let with_console = if cfg!(feature = "virtio-console") {
        "; null when --console is stdio"
    } else {
        ""
    };
    format!("Serial console: stdio, null or file=PATH [default: stdio{with_console}]")
}

#[cfg(feature = "virtio")]
pub(super) fn transport() -> &'static str {
    if cfg!(feature = "pci") {
        "How virtio devices reach the guest: on a PCI bus, or as registers of their own, for kernels \
         without PCI [default: pci]"
    } else {
        "How virtio devices reach the guest: as registers of their own [default: mmio]"
    }
}

#[cfg(feature = "config-file")]
pub(super) fn config() -> String {
    let lists = match (cfg!(feature = "virtio-blk"), cfg!(feature = "virtio-net")) {
        (true, true) => ", --blk and --net all of its disks and network devices",
        (true, false) => ", --blk all of its disks",
        (false, true) => ", --net all of its network devices",
        (false, false) => "",
    };
    format!(
        "A configuration in TOML or JSON, by the name's ending; options given here replace what it \
         says{lists}"
    )
}
