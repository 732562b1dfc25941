//! A hostile driver of a disk on a PCI bus: any accesses to configuration space, ports and BAR, of all
//! widths, and any content of memory. Never a panic, and after a reset the disk serves.
#![no_main]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};

use devices::Message;
use devices::config::{BlkConfig, BlkEngine};
use devices::pci::{MsiSink, PciFunction, PciHost};
use devices::virtio::{Block, GuestRam, VirtioPci};
use devices::{Bus, BusEntry, Threads};
use libfuzzer_sys::fuzz_target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::retry_on_intr;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const DISK: u64 = 64 << 10;
const RAM: usize = 64 << 10;
/// A longer input says nothing new.
const ACCESSES: usize = 256;

/// The machine's addresses: what the two bytes of an access can reach of each.
const ECAM: u64 = 0x1000_0000;
const PORTS: u64 = 0x2000_0000;
const WINDOW: u64 = 0x4000_0000;
/// The disk is in the first slot behind the bridge, its BAR at the start of the window.
const SLOT: u8 = 1;
const CONFIG: u64 = ECAM + 0x8000;
const COMMAND: u64 = CONFIG + 0x04;
const BAR0: u64 = CONFIG + 0x10;
/// Parts of the BAR.
const NOTIFY: u64 = WINDOW + 0x3000;
const TABLE: u64 = WINDOW + 0x4000;
/// Where the last driver has its rings.
const RINGS: u64 = 0x1000;

/// Keeps the first message, and refuses some.
#[derive(Default)]
struct Sink {
    first: Arc<Mutex<Option<EventFd>>>,
    refused: bool,
}

impl MsiSink for Sink {
    fn set(&mut self, vector: u16, event: &EventFd, message: Message) -> io::Result<()> {
        self.refused |= message.address % 2 == 1;
        if vector == 0 {
            *self.first.lock().expect("nobody panics") = Some(event.try_clone()?);
        }
        Ok(())
    }

    fn commit(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.refused) {
            true => Err(io::Error::other("refused")),
            false => Ok(()),
        }
    }
}

/// Ends at the end of the input.
fn access(bus: &Bus, ram: &GuestRam, input: &mut &[u8]) -> Option<()> {
    let (&[how, low, high], rest) = input.split_first_chunk()?;
    *input = rest;
    let offset = u64::from(u16::from_le_bytes([low, high]));
    let mut data = [0; 8];
    let data = &mut data[..1 << (how >> 3 & 3)];
    let is_write = how & 4 != 0;
    if is_write {
        let (written, rest) = input.split_at_checked(data.len())?;
        data.copy_from_slice(written);
        *input = rest;
    }
    let address = match how & 3 {
        0 => ECAM + offset,
        1 => PORTS + offset % 8,
        2 => WINDOW + offset,
        _ => {
            // Beyond RAM there is nothing.
            let _ = ram.write_slice(data, GuestAddress(offset));
            return Some(());
        }
    };
    if is_write {
        let _ = bus.write(address, data);
    } else {
        bus.read(address, data);
    }
    Some(())
}

/// A driver that keeps to the rules, from a reset to a request.
/// `message` is the first one.
fn works(bus: &Bus, ram: &GuestRam, message: &Mutex<Option<EventFd>>) {
    let put = |address: u64, data: &[u8]| {
        let _ = bus.write(address, data);
    };
    put(COMMAND, &[0, 0]);
    put(BAR0, &u32::try_from(WINDOW).expect("32 bits").to_le_bytes());
    put(COMMAND, &[6, 0]);
    put(WINDOW + 0x14, &[0]);
    let mut link = [0x34];
    loop {
        bus.read(CONFIG + u64::from(link[0]), &mut link);
        let mut id = [0];
        bus.read(CONFIG + u64::from(link[0]), &mut id);
        if id == [0x11] {
            break;
        }
        link[0] += 1;
    }
    put(CONFIG + u64::from(link[0]) + 2, &0x8000u16.to_le_bytes());
    for (entry, address) in [(0, 0xfee0_0000u32), (16, 0xfee0_1000)] {
        put(TABLE + entry, &address.to_le_bytes());
        put(TABLE + entry + 4, &[0; 8]);
        put(TABLE + entry + 12, &[0; 4]);
    }
    put(WINDOW + 0x14, &[3]);
    for (half, features) in [(0u32, 0u32), (1, 1)] {
        put(WINDOW + 0x08, &half.to_le_bytes());
        put(WINDOW + 0x0c, &features.to_le_bytes());
    }
    put(WINDOW + 0x14, &[11]);
    put(WINDOW + 0x16, &[0, 0]);
    put(WINDOW + 0x18, &[4, 0]);
    put(WINDOW + 0x1a, &[0, 0]);
    for (field, place) in [(0x20, RINGS), (0x28, RINGS + 0x100), (0x30, RINGS + 0x200)] {
        put(WINDOW + field, &place.to_le_bytes());
    }
    put(WINDOW + 0x1c, &[1, 0]);
    // A read of the first sector: header, data, status; then the rings, with one chain.
    let memory = |address: u64, words: &[u32]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write_slice(&bytes, GuestAddress(address)).expect("RAM");
    };
    memory(RINGS, &[0x2000, 0, 16, 0x1_0001]);
    memory(RINGS + 16, &[0x3000, 0, 512, 0x2_0003]);
    memory(RINGS + 32, &[0x4000, 0, 1, 2]);
    memory(RINGS + 0x100, &[0x1_0000, 0]);
    memory(RINGS + 0x200, &[0; 3]);
    memory(0x2000, &[0; 4]);
    // What came before the reset may have been told of.
    if let Some(event) = &*message.lock().expect("nobody panics") {
        let _ = event.read();
    }
    put(WINDOW + 0x14, &[15]);
    put(NOTIFY, &[0, 0]);
    let event = message.lock().expect("nobody panics").take();
    let event = event.expect("the first message is told to the host");
    // SAFETY: the event stays open meanwhile.
    let source = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let mut ready = [PollFd::new(&source, PollFlags::IN)];
    let patience = Timespec {
        tv_sec: 10,
        tv_nsec: 0,
    };
    // libFuzzer's alarm interrupts.
    let come = retry_on_intr(|| poll(&mut ready, Some(&patience)));
    assert_eq!(come, Ok(1), "no message comes");
    let used: u32 = ram.read_obj(GuestAddress(RINGS + 0x200)).expect("RAM");
    assert_eq!(used >> 16, 1, "one chain came back");
}

fuzz_target!(|data: &[u8]| {
    let disk = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a memfd"));
    disk.set_len(DISK).expect("memory for the disk");
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
    let config = BlkConfig::new(path).with_engine(BlkEngine::Sync);
    let block = Block::open(&config).expect("a disk");
    let ram = GuestRam::from_ranges(&[(GuestAddress(0), RAM)]).expect("RAM");
    let sink = Sink::default();
    let message = Arc::clone(&sink.first);
    let function = VirtioPci::new(
        Box::new(block),
        ram.clone(),
        u32::try_from(WINDOW).expect("32 bits"),
        Box::new(sink),
        Box::new(|_, _, _| Ok(())),
        &Threads::default(),
    );
    let function: Arc<dyn PciFunction> = Arc::new(function.expect("a function"));
    let host = PciHost::new([(SLOT, function)]);
    let entries = [
        (ECAM, 1 << 20, host.ecam()),
        (PORTS, 8, host.ports()),
        (WINDOW, 1 << 20, host.window(WINDOW)),
    ];
    let entries = entries.map(|(base, len, device)| BusEntry { base, len, device });
    let bus = Bus::new(entries.into()).expect("a bus");
    let mut input = data;
    for _ in 0..ACCESSES {
        if access(&bus, &ram, &mut input).is_none() {
            break;
        }
    }
    works(&bus, &ram, &message);
    assert_eq!(disk.metadata().expect("a size").len(), DISK);
});
