//! Devices of the embedder's own, as a guest sees them.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};

use vmm_reference::{
    Attachments, BusDevice, Console, ExitReason, Interrupt, OnReboot, Outcome, OwnDevice, Vm,
    VmConfig,
};

const BASE: u64 = 0xf000_0000;
const PORT: u16 = 0x500;

/// Writes down what it is asked, and answers.
#[derive(Debug, Default)]
struct Recorder {
    accesses: Mutex<Vec<(u64, Option<u64>, usize)>>,
    /// Raised by each write.
    interrupt: Interrupt,
    /// After so many writes the machine is switched off.
    ends_after: Option<usize>,
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0x5a);
        self.accesses
            .lock()
            .unwrap()
            .push((offset, None, data.len()));
    }

    fn write(&self, offset: u64, data: &[u8]) -> Outcome {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        let mut accesses = self.accesses.lock().unwrap();
        accesses.push((offset, Some(u64::from_le_bytes(value)), data.len()));
        self.interrupt.raise();
        match self.ends_after {
            Some(count) if accesses.len() >= count => Outcome::PowerOff,
            _ => Outcome::Continue,
        }
    }
}

/// `mov ebx, BASE; mov dword [rbx + 8], 0x11223344; mov eax, [rbx]; mov dx, PORT; out dx, eax; in al, dx`, and a
/// reset.
fn touch() -> Vec<u8> {
    let mut code = vec![0xbb, 0, 0, 0, 0xf0, 0xc7, 0x43, 8, 0x44, 0x33, 0x22, 0x11];
    code.extend([0x8b, 0x03, 0x66, 0xba, 0x00, 0x05, 0xef, 0xec]);
    code.extend(common::RESET);
    code
}

#[test]
fn a_guest_reaches_a_device_of_the_embedder_in_memory_and_at_ports_also_after_restarts() {
    let kernel = common::kernel(&touch());
    let config = VmConfig::default()
        .with_kernel(kernel.path())
        .with_on_reboot(OnReboot::Restart);
    let memory = Arc::new(Recorder::default());
    let ports = Arc::new(Recorder {
        // A read and a write at each start.
        ends_after: Some(5),
        ..Recorder::default()
    });
    let attachments = Attachments::from(Console::null())
        .with_device(OwnDevice::in_memory("memory", BASE, 0x1000, memory.clone()))
        .with_device(OwnDevice::at_ports("ports", PORT, 4, ports.clone()));
    let ended = Vm::new(&config, attachments).unwrap().run().unwrap();
    assert_eq!(ended, ExitReason::PoweredOff);
    let each = [(8, Some(0x1122_3344), 4), (0, None, 4)];
    assert_eq!(*memory.accesses.lock().unwrap(), each.repeat(3));
    let mut each = [(0, Some(0x5a5a_5a5a), 4), (0, None, 1)].repeat(3);
    each.pop();
    assert_eq!(*ports.accesses.lock().unwrap(), each);
}

#[test]
fn a_device_of_the_embedder_interrupts_also_after_restarts() {
    const GSI: u32 = 20;
    // mov ebx, the I/O APIC; entry of pin 20: vector 0x40, an edge, to the first local APIC
    let mut code = vec![0xbb, 0, 0, 0xc0, 0xfe];
    for (register, value) in [(0x10 + 2 * GSI, 0x40u32), (0x11 + 2 * GSI, 0)] {
        code.extend([0xc7, 0x03]); // mov dword [rbx], register
        code.extend(register.to_le_bytes());
        code.extend([0xc7, 0x43, 0x10]); // mov dword [rbx + 0x10], value
        code.extend(value.to_le_bytes());
    }
    // mov esi, the local APIC; mov dword [rsi + 0xf0], enabled
    code.extend([0xbe, 0, 0, 0xe0, 0xfe]);
    code.extend([0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 1, 0, 0]);
    // mov edi, BASE; mov dword [rdi], 1
    code.extend([0xbf, 0, 0, 0, 0xf0, 0xc7, 0x07, 1, 0, 0, 0]);
    // until vector 0x40 is requested: test dword [rsi + 0x220], 1; jz
    code.extend([0xf7, 0x86, 0x20, 2, 0, 0, 1, 0, 0, 0, 0x74, 0xf4]);
    code.extend(common::RESET);
    let kernel = common::kernel(&code);
    for lean in [vmm_reference::Lean::Off, vmm_reference::Lean::On] {
        let config = VmConfig::default()
            .with_kernel(kernel.path())
            .with_on_reboot(OnReboot::Restart)
            .with_lean(lean);
        let device = Arc::new(Recorder {
            ends_after: Some(4),
            ..Recorder::default()
        });
        let own = OwnDevice::in_memory("doorbell", BASE, 4, device.clone());
        let own = own.with_interrupt(GSI, &device.interrupt);
        let attachments = Attachments::default().with_device(own);
        let ended = Vm::new(&config, attachments).unwrap().run().unwrap();
        assert_eq!(ended, ExitReason::PoweredOff, "{lean:?}");
        assert_eq!(device.accesses.lock().unwrap().len(), 4, "{lean:?}");
    }
}

#[test]
fn a_device_of_the_embedder_where_something_is_is_refused() {
    let kernel = common::kernel(&common::RESET);
    let config = VmConfig::default().with_kernel(kernel.path());
    let line = Interrupt::new();
    let device = || Arc::new(Recorder::default());
    for (own, said) in [
        (OwnDevice::in_memory("a", 0x1000, 4, device()), "are RAM"),
        (
            OwnDevice::in_memory("a", 0xfee0_0000, 4, device()),
            "reserved: local APIC",
        ),
        (OwnDevice::at_ports("a", 0x70, 1, device()), "MC146818"),
        (
            OwnDevice::at_ports("a", PORT, 1, device()).with_interrupt(24, &line),
            "interrupt line 24, and there are 0 to 23",
        ),
    ] {
        let attachments = Attachments::default().with_device(own);
        let error = Vm::new(&config, attachments).unwrap_err();
        assert_eq!(error.value().unwrap().0.to_string(), "device[0]");
        assert!(error.to_string().contains(said), "{error}");
    }
}
