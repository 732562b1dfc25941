//! How long a start takes, beside the least any VMM must do.
//!
//! Each round runs the VMM and three floor VMMs (one memslot, one vCPU, run; then with irqchip and
//! PIT; then also with the vCPU's CPUID, which every guest kernel needs) as processes of their own,
//! in turn, so that all see the same machine. Measured
//! is from spawn to the line that announces the first KVM_RUN, and from spawn to the exit of a
//! guest whose first instructions ask for a reset. Prints medians and ratios:
//! `cargo bench --bench startup`.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const ROUNDS: usize = 100;
/// `mov al, 0xfe; out 0x64, al; hlt`: the same bytes in every mode.
const CODE: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];
const ENTRY: u64 = 0x10_0000;
const MARK: &str = "enters the guest";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let result = match std::env::var("FLOOR").as_deref() {
        Ok("bare") => floor(false, false),
        Ok("irqchip") => floor(true, false),
        Ok("cpuid") => floor(true, true),
        _ => compare(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("startup bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The least a VMM can do to run [`CODE`].
fn floor(irqchip: bool, cpuid: bool) -> Result<()> {
    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    let ram: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 256 << 20)])?;
    let region = ram.iter().next().ok_or("no region")?;
    let memslot = kvm_userspace_memory_region {
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..Default::default()
    };
    // SAFETY: the region outlives the VM.
    unsafe { vm.set_user_memory_region(memslot)? };
    if irqchip {
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
    }
    let mut vcpu = vm.create_vcpu(0)?;
    if cpuid {
        vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    }
    ram.write_slice(&CODE, GuestAddress(0x1000))?;
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rflags) = (0x1000, 2);
    vcpu.set_regs(&regs)?;
    eprintln!("{MARK}");
    match vcpu.run()? {
        VcpuExit::IoOut(0x64, _) => Ok(()),
        other => Err(format!("unexpected exit {other:?}").into()),
    }
}

/// An ELF kernel with [`CODE`] at [`ENTRY`], for the 64-bit protocol.
fn kernel(path: &Path) -> Result<()> {
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(ENTRY.to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend([64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let len = u64::try_from(CODE.len())?;
    for value in [0x1000, ENTRY, ENTRY, len, len, 0x1000u64] {
        elf.extend(value.to_le_bytes());
    }
    elf.resize(0x1000, 0);
    elf.extend(CODE);
    std::fs::write(path, elf)?;
    Ok(())
}

/// Spawn to first KVM_RUN, and spawn to exit.
fn measure(command: &mut Command) -> Result<(Duration, Duration)> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut entered = None;
    let stderr = child.stderr.take().ok_or("no stderr")?;
    for line in BufReader::new(stderr).lines() {
        if line?.contains(MARK) {
            entered.get_or_insert(start.elapsed());
        }
    }
    let status = child.wait()?;
    let life = start.elapsed();
    if !status.success() {
        return Err(format!("{command:?} ended with {status}").into());
    }
    Ok((entered.ok_or("the guest was never entered")?, life))
}

fn compare() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("exit.elf");
    kernel(&path)?;
    let this = std::env::current_exe()?;
    let floor = |kind: &str| {
        let mut command = Command::new(&this);
        command.env("FLOOR", kind);
        command
    };
    let mut vmm = Command::new(env!("CARGO_BIN_EXE_vmm-reference"));
    vmm.arg("--log-level=trace")
        .arg(format!("--kernel={}", path.display()));
    let mut runs = [
        ("floor", floor("bare")),
        ("floor+irqchip", floor("irqchip")),
        ("floor+irqchip+cpuid", floor("cpuid")),
        ("vmm", vmm),
    ];
    let mut samples = [const { (Vec::new(), Vec::new()) }; 4];
    for _ in 0..ROUNDS {
        for ((_, command), (entry, life)) in runs.iter_mut().zip(&mut samples) {
            let (entered, lived) = measure(command)?;
            entry.push(entered);
            life.push(lived);
        }
    }
    let median = |samples: &mut Vec<Duration>| {
        samples.sort();
        samples[samples.len() / 2].as_secs_f64() * 1e3
    };
    let rows: Vec<_> = samples
        .iter_mut()
        .map(|(a, b)| (median(a), median(b)))
        .collect();
    let base = rows[1];
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:20} {:>16} {:>7} {:>14} {:>7}",
        "", "first KVM_RUN", "ratio", "whole life", "ratio"
    )?;
    for ((name, _), (entry, life)) in runs.iter().zip(&rows) {
        let (entry_ratio, life_ratio) = (entry / base.0, life / base.1);
        writeln!(
            out,
            "{name:20} {entry:13.2} ms {entry_ratio:7.2} {life:11.2} ms {life_ratio:7.2}"
        )?;
    }
    Ok(())
}
