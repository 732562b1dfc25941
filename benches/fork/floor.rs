//! The least that a fork of a VM takes: fork(2), a VM and a vCPU over the same memory, and their registers.

use std::io::{BufRead, Write};
use std::process::Command;
use std::time::Instant;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_pit_config, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::mm::{Advice, madvise};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, MmapRegion, VolatileMemory};

use super::{Result, Talk};

/// Set in the process that is a floor, to its memory in MiB and its pages.
pub(super) const FLOOR: &str = "FORK_FLOOR";

/// The process, as others see it.
pub(super) struct Process(Talk);

impl Process {
    pub(super) fn start(mib: u64, pages: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.env(FLOOR, format!("{mib} {pages}"));
        let mut talk = Talk::start(command)?;
        talk.line()?;
        Ok(Self(talk))
    }

    /// How long the parent stands still, and when the child calls KVM_RUN, in microseconds.
    pub(super) fn fork(&mut self) -> Result<(f64, f64)> {
        let line = self.0.ask()?;
        let (still, ready) = line.trim().split_once(' ').ok_or("no times")?;
        Ok((still.parse()?, ready.parse()?))
    }
}

struct Machine {
    // The vCPU goes before its VM.
    vcpu: VcpuFd,
    vm: VmFd,
}

impl Machine {
    fn new(kvm: &Kvm, ram: &MmapRegion) -> Result<Self> {
        let vm = kvm.create_vm()?;
        let memslot = kvm_userspace_memory_region {
            memory_size: ram.size() as u64,
            userspace_addr: ram.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the mapping outlives the VM.
        unsafe { vm.set_user_memory_region(memslot)? };
        vm.set_tss_address(0xfffb_d000)?;
        vm.create_irq_chip()?;
        vm.create_pit2(kvm_pit_config::default())?;
        let vcpu = vm.create_vcpu(0)?;
        Ok(Self { vcpu, vm })
    }
}

/// Forks for each line that comes, and prints the times.
pub(super) fn run(what: &str) -> Result<()> {
    let (mib, pages) = what.split_once(' ').ok_or("no pages")?;
    let len = mib.parse::<usize>()? << 20;
    let ram = MmapRegionBuilder::new(len)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()?;
    if pages == "transparent" {
        // SAFETY: the advice changes nothing about the content of our mapping.
        unsafe { madvise(ram.as_ptr().cast(), len, Advice::LinuxHugepage)? };
    }
    let all = ram.get_slice(0, len)?;
    for page in (0..len).step_by(4096) {
        all.write_obj(1u8, page)?;
    }
    let kvm = Kvm::new()?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let Machine { vcpu, vm } = Machine::new(&kvm, &ram)?;
    vcpu.set_cpuid2(&cpuid)?;
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    for line in std::io::stdin().lock().lines() {
        line?;
        let begin = Instant::now();
        let state = (
            vcpu.get_regs()?,
            vcpu.get_sregs()?,
            vcpu.get_xsave()?,
            vcpu.get_lapic()?,
            vcpu.get_vcpu_events()?,
            vm.get_clock()?,
        );
        let (hear, tell) = std::io::pipe()?;
        // SAFETY: this process has one thread.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ran = || -> Result<u128> {
                let Machine { mut vcpu, vm } = Machine::new(&kvm, &ram)?;
                vcpu.set_cpuid2(&cpuid)?;
                let (regs, sregs, xsave, lapic, events, clock) = &state;
                vm.set_clock(clock)?;
                vcpu.set_sregs(sregs)?;
                vcpu.set_regs(regs)?;
                // SAFETY: the state has no more than such an area, as KVM has given it.
                unsafe { vcpu.set_xsave(xsave)? };
                vcpu.set_lapic(lapic)?;
                vcpu.set_vcpu_events(events)?;
                vcpu.set_kvm_immediate_exit(1);
                let ready = begin.elapsed();
                match vcpu.run() {
                    Err(error) if error.errno() == libc::EINTR => Ok(ready.as_micros()),
                    other => Err(format!("KVM_RUN: {other:?}").into()),
                }
            };
            let text = ran().map_or_else(|error| error.to_string(), |us| us.to_string());
            let _ = (&tell).write_all(text.as_bytes());
            // SAFETY: nothing of the parent's is dropped.
            unsafe { libc::_exit(0) };
        }
        if pid < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let still = begin.elapsed().as_micros();
        drop(tell);
        let ready = std::io::read_to_string(hear)?;
        // SAFETY: the status is not asked for.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        writeln!(out, "{still} {ready}")?;
    }
    Ok(())
}
