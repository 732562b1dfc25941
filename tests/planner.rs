//! The planner side of the core and the contract suite, on a platform that exists nowhere: no KVM,
//! no backend, any host.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vm_fdt::FdtWriter;
use vm_memory::{Bytes, GuestAddress};
use vmm_reference::arch::kernel::{KernelHeader, Protocol};
use vmm_reference::arch::{
    AddressRange, BootError, BootInfo, BootRequest, DeviceKind, DevicePlan, Difference, Gsi,
    GuestRam, IrqModel, KernelPlacement, MachineConfig, MachinePlan, PciPlan, Placed, PlanError,
    Platform, Space, Transport, Unsaved, VcpuId, WiredRoute, contract, device_tree, virtio_mmio,
};
use vmm_reference::{VmConfig, plan};

const RAM: u64 = 0x8000_0000;
const BOOT_BLOCK: AddressRange = AddressRange::new(RAM, 0x1_0000);
const MMIO_WINDOW: AddressRange = AddressRange::new(0x1_0000, 0x1_0000);
const WINDOW_OFFSET: u64 = 0x10_0000;
const LINES: Range<Gsi> = 32..64;

/// What a broken platform does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    LosesAPage,
    DeviceInRam,
    SharedInterrupt,
    InterruptBeyondTheChip,
    WindowOutsideRam,
    IgnoresAppend,
    UnwiredLine,
    IgnoresTheTransport,
    BarOutsideTheWindow,
    SharedSlot,
    PciWindowInRam,
    MessagesOnLines,
    EndlessBus,
    AcceptsNoVcpus,
    ChangesItsMind,
    WritesElsewhere,
    WritesOverTheInitrd,
    ForgetsTheCommandLine,
    TreeWithoutCells,
    StartsEveryVcpu,
    PlacesKernelsAnywhere,
    EntersElsewhere,
    NamesNoKernel,
    BreaksItsPromise,
}

/// RAM from 2 GiB on, devices below, everything that the guest is told in one block.
#[derive(Debug)]
struct Fake(Flaw);

#[derive(Debug, Clone, PartialEq)]
/// Whether every line goes somewhere.
struct Lines(bool);

impl IrqModel for Lines {
    fn lines(&self) -> Range<Gsi> {
        LINES
    }

    fn wired_routes(&self) -> Vec<WiredRoute> {
        let wired = if self.0 {
            LINES
        } else {
            LINES.start + 1..LINES.end
        };
        let route = |gsi| WiredRoute {
            gsi,
            chip: 0,
            pin: gsi - LINES.start,
        };
        wired.map(route).collect()
    }
}

impl Fake {
    fn has(&self, flaw: Flaw) -> bool {
        self.0 == flaw
    }

    fn pci(&self, memory: u64) -> PciPlan {
        let above_ram = (RAM + memory).max(1 << 32);
        PciPlan {
            ecam: AddressRange::new(0x100_0000, PciPlan::ECAM_LEN),
            window32: AddressRange::new(0x200_0000, 0x100_0000),
            window64: Some(AddressRange::new(
                if self.has(Flaw::PciWindowInRam) {
                    above_ram.min(RAM + memory) - 1
                } else {
                    above_ram
                },
                1 << 30,
            )),
            first_msi_gsi: if self.has(Flaw::MessagesOnLines) {
                LINES.end - 1
            } else {
                LINES.end
            },
        }
    }
}

fn refuse<T>(field: &'static str, value: impl ToString) -> Result<T, PlanError> {
    Err(PlanError::Config {
        field: field.into(),
        value: value.to_string(),
        cause: "no such machine".to_owned(),
        cure: "wish for another".to_owned(),
    })
}

impl Platform for Fake {
    type IrqChip = Lines;
    type VcpuSetup = Option<u64>;
    type Promise = ();
    type VcpuState = Unsaved;
    type ChipState = Unsaved;
    type ClockState = Unsaved;

    fn promise(&self) -> Option<()> {
        Some(())
    }

    fn keep(&mut self, (): ()) -> Vec<Difference> {
        let broken = self.has(Flaw::BreaksItsPromise);
        let difference = || Difference::new("everything", "it", "not");
        broken.then(difference).into_iter().collect()
    }

    fn pass_time(&self, _: Duration, clock: &mut Unsaved, _: &mut [Unsaved]) {
        match *clock {}
    }

    fn setup_memory_layout(&self, config: &MachineConfig) -> Result<MachinePlan, PlanError> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let MachineConfig { memory, vcpus, .. } = *config;
        if !(16 << 20..=1 << 40).contains(&memory) || !memory.is_multiple_of(4096) {
            return refuse("guest-memory", memory);
        }
        if vcpus > 64 || vcpus == 0 && !self.has(Flaw::AcceptsNoVcpus) {
            return refuse("vcpus", vcpus);
        }
        let lost = 4096 * u64::from(self.has(Flaw::LosesAPage));
        let uart = DevicePlan {
            id: None,
            messages: None,
            kind: DeviceKind::Uart16550,
            space: Space::Mmio,
            range: AddressRange::new(0x1000, 8),
            irq: Some(32),
        };
        let mut devices = vec![DevicePlan {
            id: None,
            messages: None,
            kind: DeviceKind::AcpiPower,
            space: Space::Mmio,
            range: AddressRange::new(
                if self.has(Flaw::DeviceInRam) {
                    RAM
                } else {
                    0x2000
                },
                4,
            ),
            irq: Some(match self.0 {
                Flaw::SharedInterrupt => 32,
                Flaw::InterruptBeyondTheChip => 64,
                _ => 33,
            }),
        }];
        devices.extend(config.serial.then_some(uart));
        let pci = (config.transport == Transport::Pci && !self.has(Flaw::IgnoresTheTransport))
            .then(|| self.pci(memory));
        if let Some(pci) = &pci {
            let most = if self.has(Flaw::EndlessBus) {
                31
            } else {
                usize::MAX
            };
            let kinds = &config.virtio[..config.virtio.len().min(most)];
            let mut functions = pci.devices(kinds, None)?;
            match (self.0, functions.last_mut()) {
                (Flaw::BarOutsideTheWindow, Some(last)) => last.range.base = 0x20_0000,
                (Flaw::SharedSlot, Some(last)) => {
                    last.kind = DeviceKind::VirtioPci {
                        kind: *kinds.last().unwrap(),
                        slot: 1,
                    }
                }
                _ => {}
            }
            devices.extend(functions);
        }
        if pci.is_none() {
            devices.extend(virtio_mmio(MMIO_WINDOW, 40..=48, &config.virtio)?);
        }
        let mut cmdline = config.cmdline.clone();
        if self.has(Flaw::IgnoresAppend) {
            cmdline.append = None;
        }
        if self.has(Flaw::ChangesItsMind) {
            let calls = CALLS.fetch_add(1, Ordering::Relaxed);
            cmdline.append = Some(format!("contract append=1 {calls}"));
        }
        let beyond = 4096 * u64::from(self.has(Flaw::WindowOutsideRam));
        Ok(MachinePlan {
            lean: None,
            arch: "fake".into(),
            ram: vec![AddressRange::new(RAM, memory - lost)],
            reserved: Vec::new(),
            kernel_window: AddressRange::new(
                RAM + WINDOW_OFFSET,
                memory - WINDOW_OFFSET - lost + beyond,
            ),
            mmio_window: MMIO_WINDOW,
            devices,
            pci,
            vcpus,
            cmdline: cmdline.text(if config.serial { "console=fake" } else { "" }),
            vmgenid: None,
            remarks: Vec::new(),
        })
    }

    fn place_kernel(
        &self,
        header: &KernelHeader,
        plan: &MachinePlan,
    ) -> Result<KernelPlacement, BootError> {
        let KernelHeader::Image(image) = header else {
            let name = match self.0 {
                Flaw::NamesNoKernel => String::new(),
                _ => header.describe(),
            };
            return Err(BootError::Kernel(name));
        };
        let mut window = plan.kernel_window;
        if self.has(Flaw::PlacesKernelsAnywhere) {
            window.base = 0;
        }
        let kernel = image.place(window)?;
        Ok(match self.0 {
            Flaw::EntersElsewhere => KernelPlacement {
                entry: kernel.range.end(),
                ..kernel
            },
            _ => kernel,
        })
    }

    fn irq_chip(&self, _: &MachinePlan) -> Result<Lines, PlanError> {
        Ok(Lines(!self.has(Flaw::UnwiredLine)))
    }

    fn build_boot_info(
        &self,
        request: &BootRequest<'_, Self>,
        ram: &GuestRam,
    ) -> Result<BootInfo, BootError> {
        let tree = self.tree(request).unwrap();
        let size = tree.len() as u64;
        if size > BOOT_BLOCK.len {
            return Err(BootError::TooLarge {
                what: "the tree",
                size,
                cause: "it is long".to_owned(),
            });
        }
        let mut address = BOOT_BLOCK.base;
        if let (Flaw::WritesOverTheInitrd, Some(initrd)) = (self.0, request.initrd) {
            address = initrd.base;
        }
        let write = |address, text: &[u8]| {
            ram.write_slice(text, GuestAddress(address))
                .map_err(|source| BootError::Memory { what: "it", source })
        };
        write(address, &tree)?;
        if self.has(Flaw::WritesElsewhere) {
            write(BOOT_BLOCK.end(), b"x")?;
        }
        let range = AddressRange::new(address, BOOT_BLOCK.len);
        Ok(BootInfo {
            entry: request.kernel.entry,
            arguments: [address, 0, 0, 0],
            protocol: request.kernel.protocol,
            placed: vec![Placed {
                name: "the block",
                range,
            }],
        })
    }

    fn configure_vcpu(
        &self,
        _: VcpuId,
        _: &MachinePlan,
        boot: Option<&BootInfo>,
    ) -> Result<Option<u64>, PlanError> {
        let entry = boot.map(|boot| boot.entry);
        Ok(if self.has(Flaw::StartsEveryVcpu) {
            Some(0)
        } else {
            entry
        })
    }
}

impl Fake {
    fn tree(&self, request: &BootRequest<'_, Self>) -> Result<Vec<u8>, vm_fdt::Error> {
        let mut fdt = FdtWriter::new()?;
        let root = fdt.begin_node("")?;
        if !self.has(Flaw::TreeWithoutCells) {
            fdt.property_u32("#address-cells", 2)?;
            fdt.property_u32("#size-cells", 2)?;
        }
        if !self.has(Flaw::ForgetsTheCommandLine) {
            device_tree::chosen(&mut fdt, request, None)?;
        }
        device_tree::memory(&mut fdt, request.plan)?;
        let cpus = fdt.begin_node("cpus")?;
        fdt.property_u32("#address-cells", 1)?;
        fdt.property_u32("#size-cells", 0)?;
        for id in 0..request.plan.vcpus {
            let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
            fdt.property_string("device_type", "cpu")?;
            fdt.property_u32("reg", id)?;
            fdt.end_node(cpu)?;
        }
        fdt.end_node(cpus)?;
        fdt.end_node(root)?;
        fdt.finish()
    }
}

vmm_reference::arch::platform_contract!(Fake(Flaw::None), [Protocol::DeviceTree]);

#[test]
fn the_contract_finds_every_flaw() {
    let protocols = [Protocol::DeviceTree];
    let plans: fn(Fake) = |fake| contract::plans_hold_over_all_sizes(&fake);
    let configuration: fn(Fake) = |fake| contract::the_configuration_is_in_the_plan(&fake);
    let refusals: fn(Fake) = |fake| contract::bad_values_are_refused_by_name(&fake);
    let boot = move |fake: Fake| contract::boot_information_is_placed_well(&fake, &protocols);
    let trees =
        move |fake: Fake| contract::device_trees_are_read_without_a_remark(&fake, &protocols);
    let vcpus = move |fake: Fake| contract::every_vcpu_can_be_configured(&fake, &protocols);
    type Check<'a> = &'a dyn Fn(Fake);
    let kernels = move |fake: Fake| contract::kernels_have_their_place(&fake, &protocols);
    let promises: fn(Fake) = |fake| contract::a_host_keeps_its_own_promise(fake);
    let checks: [(Flaw, Check<'_>, &str); 24] = [
        (Flaw::LosesAPage, &plans, "RAM of"),
        (Flaw::DeviceInRam, &plans, "overlaps devices"),
        (Flaw::SharedInterrupt, &plans, "interrupts are shared"),
        (Flaw::InterruptBeyondTheChip, &plans, "interrupts outside"),
        (Flaw::WindowOutsideRam, &plans, "window lies outside RAM"),
        (Flaw::ChangesItsMind, &plans, "left == right"),
        (Flaw::UnwiredLine, &plans, "a line goes nowhere"),
        (Flaw::IgnoresTheTransport, &plans, "Mmio devices of"),
        (Flaw::BarOutsideTheWindow, &plans, "is not in"),
        (Flaw::SharedSlot, &plans, "slots are shared"),
        (Flaw::PciWindowInRam, &plans, "overlaps the PCI bus"),
        (Flaw::MessagesOnLines, &plans, "messages from 63 on"),
        (Flaw::EndlessBus, &refusals, "32 devices by Pci gave"),
        (Flaw::IgnoresAppend, &configuration, "contract base"),
        (Flaw::AcceptsNoVcpus, &refusals, "0 vCPUs gave"),
        (Flaw::WritesElsewhere, &boot, "is in no block"),
        (
            Flaw::WritesOverTheInitrd,
            &boot,
            "overlaps kernel or initrd",
        ),
        (
            Flaw::ForgetsTheCommandLine,
            &boot,
            "command line is nowhere",
        ),
        (Flaw::TreeWithoutCells, &trees, "dtc about the device tree"),
        (Flaw::StartsEveryVcpu, &vcpus, "starts the kernel or waits"),
        (Flaw::PlacesKernelsAnywhere, &kernels, "outside the window"),
        (Flaw::EntersElsewhere, &kernels, "outside the kernel"),
        (Flaw::NamesNoKernel, &kernels, "the z80 ELF is not named"),
        (Flaw::BreaksItsPromise, &promises, "left == right"),
    ];
    for (flaw, check, text) in checks {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(Fake(flaw))))
            .expect_err(&format!("{flaw:?} was not found"));
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap();
        assert!(message.contains(text), "{flaw:?}: {message}");
    }
}

#[test]
fn the_core_plans_without_kvm() {
    let config = VmConfig::default()
        .with_memory_mib(64)
        .with_vcpus(3)
        .with_append("quiet");
    let machine = plan(&Fake(Flaw::None), &config).unwrap();
    assert_eq!(machine.ram, [AddressRange::new(RAM, 64 << 20)]);
    assert_eq!(machine.vcpus, 3);
    // Without the feature no configuration has a serial console.
    let console = if cfg!(feature = "serial") {
        "console=fake "
    } else {
        ""
    };
    assert_eq!(machine.cmdline, format!("{console}quiet"));

    let error = plan(&Fake(Flaw::None), &config.with_vcpus(65)).unwrap_err();
    assert_eq!(error.to_string(), "vcpus=65: no such machine");
}
