use std::io::Cursor;

#[cfg(feature = "bzimage")]
use arch::kernel::BzImage;
use arch::kernel::{Elf, Protocol};
use arch::{BootInfo, Cmdline, GuestKernel, Lean, MachineConfig, Platform, Transport};

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

use super::report::describe;
use super::*;

fn config() -> MachineConfig {
    MachineConfig {
        lean: Lean::Off,
        kernel: GuestKernel::Unknown,
        vmgenid: true,
        own_window: 0,
        keyboard: false,
        announce_virtio: false,
        memory: 32 << 20,
        vcpus: 2,
        cmdline: Cmdline::default(),
        serial: true,
        virtio: Vec::new(),
        transport: Transport::Mmio,
    }
}

fn ram() -> GuestRam {
    GuestRam::from_ranges(&[(GuestAddress(0), 32 << 20)]).unwrap()
}

#[test]
fn delivery_modes_change_and_the_mask_stays() {
    let mut lapic = kvm_lapic_state::default();
    lapic.regs[LVT_LINT0..LVT_LINT0 + 4].copy_from_slice(&[0, 2, 1, 0]);
    set_delivery_mode(&mut lapic, LVT_LINT0, DeliveryMode::ExtInt);
    assert_eq!(lapic.regs[LVT_LINT0..LVT_LINT0 + 4], [0, 7, 1, 0]);
}

#[test]
fn a_crash_report_shows_registers_and_instruction_bytes() {
    let ram = ram();
    ram.write_slice(&[0x0F, 0x0B], GuestAddress(0x1000))
        .unwrap();
    let regs = kvm_regs {
        rip: 0x1000,
        ..kvm_regs::default()
    };
    let text = describe(&regs, &kvm_sregs::default(), &ram);
    assert!(text.contains("rip 0000000000001000"), "{text}");
    assert!(text.contains("code 0f 0b 00"), "{text}");
    let regs = kvm_regs {
        rip: u64::MAX,
        ..kvm_regs::default()
    };
    let sregs = kvm_sregs {
        cr0: u64::MAX,
        cr3: u64::MAX,
        efer: u64::MAX,
        ..kvm_sregs::default()
    };
    assert!(describe(&regs, &sregs, &ram).ends_with("code unreadable"));
}

#[cfg(feature = "bzimage")]
#[test]
fn a_bzimage_is_copied_without_its_setup_code() {
    let mut image = vec![0; 1024 + 0x1000];
    image[0x1F1] = 1; // setup_sects
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020Fu16.to_le_bytes());
    image[0x211] = 1; // LOADED_HIGH
    image[1024..].fill(0xC3);
    let header = KernelHeader::BzImage(BzImage {
        version: 0x020F,
        setup_size: 1024,
        kernel_size: 0x1000,
        init_size: 0x2000,
        pref_address: 0x20_0000,
        relocatable: true,
        alignment: 0x20_0000,
        cmdline_size: 2047,
        initrd_addr_max: 0x7FFF_FFFF,
        xloadflags: 1,
        header: image[0x1F1..0x26C].to_vec(),
    });
    let facts = X86_64::typical();
    let plan = facts.setup_memory_layout(&config()).unwrap();
    let ram = ram();
    let mut image = KernelImage::Bytes(Cursor::new(image.into()));
    let kernel = facts.place_kernel(&header, &plan).unwrap();
    facts
        .load_kernel(&mut image, &header, &kernel, &ram)
        .unwrap();
    assert_eq!(kernel.entry, 0x20_0200);
    let mut copied = [0; 0x1001];
    ram.read_slice(&mut copied, GuestAddress(0x20_0000))
        .unwrap();
    assert!(copied[..0x1000].iter().all(|&byte| byte == 0xC3));
    assert_eq!(copied[0x1000], 0);
}

#[cfg(feature = "elf")]
#[test]
fn an_elf_kernel_is_copied_segment_by_segment() {
    use arch::kernel::Segment;
    const ADDRESS: u64 = 0x20_0000;
    // An ELF64 header, one PT_LOAD program header, and 16 bytes to load.
    let mut image = vec![0; 0x90];
    image[..6].copy_from_slice(&[0x7F, b'E', b'L', b'F', 2, 1]);
    image[0x18..0x20].copy_from_slice(&ADDRESS.to_le_bytes()); // e_entry
    image[0x20] = 0x40; // e_phoff
    image[0x36] = 0x38; // e_phentsize
    image[0x38] = 1; // e_phnum
    image[0x40] = 1; // p_type
    image[0x48] = 0x80; // p_offset
    image[0x58..0x60].copy_from_slice(&ADDRESS.to_le_bytes()); // p_paddr
    image[0x60] = 16; // p_filesz
    image[0x69] = 0x10; // p_memsz, 0x1000
    image[0x80..].fill(0xC3);
    let header = KernelHeader::Elf(Elf {
        entry: ADDRESS,
        pvh_entry: None,
        segments: vec![Segment {
            offset: 0x80,
            file_size: 16,
            address: ADDRESS,
            memory_size: 0x1000,
        }],
    });
    let facts = X86_64::typical();
    let plan = facts.setup_memory_layout(&config()).unwrap();
    let ram = ram();
    let mut image = KernelImage::Bytes(Cursor::new(image.into()));
    let kernel = facts.place_kernel(&header, &plan).unwrap();
    facts
        .load_kernel(&mut image, &header, &kernel, &ram)
        .unwrap();
    assert_eq!(kernel.range, arch::AddressRange::new(ADDRESS, 0x1000));
    let mut copied = [0; 17];
    ram.read_slice(&mut copied, GuestAddress(ADDRESS)).unwrap();
    assert_eq!(copied[..16], [0xC3; 16]);
    assert_eq!(copied[16], 0);
}

#[test]
fn kvm_takes_what_was_planned() {
    let Ok(kvm) = Kvm::new() else {
        eprintln!("SKIPPED: no /dev/kvm");
        return;
    };
    let facts = X86_64::probe(&kvm).unwrap();
    let plan = facts.setup_memory_layout(&config()).unwrap();
    let vm = kvm.create_vm_with_type(facts.vm_type(&plan)).unwrap();
    facts.prepare_vm(&vm).unwrap();
    let chip = facts
        .create_irq_chip(&vm, &facts.irq_chip(&plan).unwrap())
        .unwrap();
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip {
            chip_id,
            ..kvm_irqchip::default()
        };
        vm.get_irqchip(&mut chip).unwrap();
        // SAFETY: the chip that was asked for is a PIC.
        assert_eq!(unsafe { chip.chip.pic.imr }, PIC_MASK);
    }
    let boot = BootInfo {
        entry: 0x100_0200,
        arguments: [0x7000, 0, 0, 0],
        protocol: Protocol::Linux64,
        placed: Vec::new(),
    };
    for id in 0..plan.vcpus {
        let vcpu = vm.create_vcpu(id.into()).unwrap();
        let boot = (id == 0).then_some(&boot);
        let setup = facts.configure_vcpu(id, &plan, boot).unwrap();
        facts.apply_vcpu(&vm, &vcpu, &setup).unwrap();
        if id == 0 {
            let (regs, sregs) = (vcpu.get_regs().unwrap(), vcpu.get_sregs().unwrap());
            assert_eq!(
                (regs.rip, regs.rsi, regs.rsp, regs.rflags),
                (0x100_0200, 0x7000, 0x8FF0, 2)
            );
            assert_eq!(
                (sregs.cs.selector, sregs.cs.l, sregs.ss.selector),
                (0x10, 1, 0x18)
            );
            assert_eq!((sregs.cr3, sregs.efer), (0x9000, 0x500));
            assert!(
                facts
                    .describe_vcpu(&vcpu, &ram())
                    .contains("rip 0000000001000200")
            );
        }
    }
    chip.activate(&vm).unwrap();
}
