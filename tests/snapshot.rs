//! Machines that are saved, and go on in another one.

#![allow(clippy::unwrap_used)]
#![cfg(target_arch = "x86_64")]

mod common;
mod snapshot_layers;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;
use vmm_reference::arch::DeviceKind;
use vmm_reference::{
    Attachments, BusDevice, Command, CommandError, Console, EscapeKeys, ExitReason, Lean,
    MemoryBacking, OnReboot, Outcome, OwnDevice, Reply, Snapshot, State, Transport, Vm, VmConfig,
    VmHandle,
};

/// `inc bl; mov al, bl; mov dx, 0x3f8; out dx, al; mov ecx, 200; loop .; jmp`: prints 1, 2, 3 and so on, for ever.
const COUNT: &[u8] = &[
    0xfe, 0xc3, 0x88, 0xd8, 0x66, 0xba, 0xf8, 0x03, 0xee, 0xb9, 200, 0, 0, 0, 0xe2, 0xfe, 0xeb,
    0xee,
];

/// Prints lines for ever: what the register of ACPI's events has, and the 16 bytes of the generation ID, each half of a
/// byte as a letter from A on.
const GENERATION: &[u8] = &[
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, 0x0a, 0xee, // mov al, 10; out dx, al
    0x66, 0xba, 0x03, 0x06, 0xec, // mov dx, 0x603; in al, dx
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0x04, 0x41, 0xee, // add al, 'A'; out dx, al
    0xbe, 0xf0, 0xff, 0x0d, 0x00, // mov esi, 0xdfff0
    0x8a, 0x06, 0xc0, 0xe8, 0x04, // next: mov al, [rsi]; shr al, 4
    0x04, 0x41, 0xee, // add al, 'A'; out dx, al
    0x8a, 0x06, 0x24, 0x0f, // mov al, [rsi]; and al, 15
    0x04, 0x41, 0xee, // add al, 'A'; out dx, al
    0xff, 0xc6, 0x81, 0xfe, 0x00, 0x00, 0x0e, 0x00, // inc esi; cmp esi, 0xe0000
    0x75, 0xe7, 0xeb, 0xcd, // jne next; jmp to the first instruction
];

/// A VM without devices that cannot be saved.
fn config() -> VmConfig {
    VmConfig::default()
        .without_rng()
        .with_transport(Transport::Mmio)
        .with_memory_mib(32)
}

struct Running {
    handle: VmHandle,
    thread: JoinHandle<Result<ExitReason, vmm_reference::Error>>,
    printed: File,
}

impl Running {
    fn new(make: impl FnOnce(Console) -> Vm) -> Self {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let vm = make(Console::from_fds(None, Some(writer), EscapeKeys::Off));
        let handle = vm.handle();
        let thread = thread::spawn(move || vm.run());
        let running = Self {
            handle,
            thread,
            printed: reader.into(),
        };
        while running.state() == State::Created {
            thread::yield_now();
        }
        running
    }

    fn state(&self) -> State {
        match self.handle.command(Command::Status {}).unwrap() {
            Reply::Status(status) => status.state,
            other => panic!("{other:?}"),
        }
    }

    fn print(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.printed.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Ends it; gives all that it printed since the last look.
    fn stop(mut self) -> Vec<u8> {
        let _ = self.handle.command(Command::Stop {});
        self.thread.join().unwrap().unwrap();
        let mut bytes = Vec::new();
        self.printed.read_to_end(&mut bytes).unwrap();
        bytes
    }
}

/// A folder for saved machines.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn create(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let path = self.0.path().join(name);
        // A restored machine has the file of its memory mapped: that one keeps its content.
        let _ = fs::remove_file(&path);
        options.open(path).unwrap()
    }

    fn save(&self, handle: &VmHandle) -> Result<Reply, CommandError> {
        let files: Vec<OwnedFd> = vec![self.create("state").into(), self.create("memory").into()];
        let memory = "memory".to_owned();
        let since = None;
        handle.command_with(
            Command::Snapshot {
                memory,
                since,
                copies: vec![],
                form: vmm_reference::SavedForm::Layer,
                note: None,
            },
            files,
        )
    }

    fn open(&self, name: &str) -> File {
        File::open(self.0.path().join(name)).unwrap()
    }

    fn restore(&self, console: Console) -> Result<Vm, vmm_reference::Error> {
        let snapshot = Snapshot::read("state", self.open("state"))?;
        let names = snapshot.memory_files();
        let memory: Vec<_> = names.into_iter().map(|name| self.open(name)).collect();
        Vm::restore(snapshot, memory, console)
    }
}

/// All numbers in a row, from the first one on.
fn in_a_row(bytes: &[u8]) {
    for pair in bytes.windows(2) {
        assert_eq!(pair[1], pair[0].wrapping_add(1), "{bytes:?}");
    }
}

#[test]
fn a_guest_goes_on_where_it_was_over_generations() {
    let kernel = common::kernel(COUNT);
    for (lean, backing) in [
        (Lean::Off, MemoryBacking::Anonymous),
        (Lean::On, MemoryBacking::Shared),
    ] {
        let folder = Folder::new();
        let config = config()
            .with_kernel(kernel.path())
            .with_lean(lean)
            .with_memory_backing(backing);
        let mut running = Running::new(|console| Vm::new(&config, console).unwrap());
        let mut all = running.print(100);
        for generation in 0..5 {
            // Of a guest that runs, and of one that stands still.
            let pauses = generation % 2 == 0;
            if pauses {
                running.handle.command(Command::Pause {}).unwrap();
            }
            let Reply::Snapshot(written) = folder.save(&running.handle).unwrap() else {
                panic!();
            };
            assert!(written.memory_bytes > 0 && written.memory_bytes < 1 << 20);
            assert_eq!(running.state() == State::Paused, pauses);
            if !pauses {
                // What is printed from here on is not in the saved machine; so it is stopped at once.
                running.handle.command(Command::Pause {}).unwrap();
                folder.save(&running.handle).unwrap();
            }
            all.extend(running.stop());
            running = Running::new(|console| folder.restore(console).unwrap());
            all.extend(running.print(100));
        }
        all.extend(running.stop());
        assert!(all.len() > 600);
        in_a_row(&all);
    }
}

#[test]
fn a_restored_machine_may_begin_paused_and_has_no_kernel() {
    let kernel = common::kernel(COUNT);
    let folder = Folder::new();
    let config = config()
        .with_kernel(kernel.path())
        .with_vcpus(2)
        .with_on_reboot(OnReboot::Restart);
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    folder.save(&running.handle).unwrap();
    running.stop();
    kernel.close().unwrap();
    let running = Running::new(|console| {
        let vm = folder.restore(console).unwrap();
        vm.handle().command(Command::Pause {}).unwrap();
        vm
    });
    assert_eq!(running.state(), State::Paused);
    running.handle.command(Command::Resume {}).unwrap();
    let refused = running.handle.command(Command::Reset {}).unwrap_err();
    assert!(refused.to_string().contains("no kernel"), "{refused}");
    in_a_row(&running.stop());
}

/// Whole lines of [`GENERATION`]; the first one may be the rest of one.
fn lines(printed: &[u8]) -> Vec<(u8, String)> {
    let text = String::from_utf8(printed.to_vec()).unwrap();
    let whole = text.lines().filter(|line| line.len() == 33);
    whole
        .map(|line| (line.as_bytes()[0], line[1..].to_owned()))
        .collect()
}

#[test]
fn each_restored_machine_has_a_generation_id_of_its_own_and_is_told() {
    const ZEROS: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let kernel = common::kernel(GENERATION);
    for (vmgenid, lean) in [(true, Lean::Off), (true, Lean::On), (false, Lean::On)] {
        let mut config = config().with_kernel(kernel.path()).with_lean(lean);
        config.vmgenid = vmgenid;
        let folder = Folder::new();
        let mut running = Running::new(|console| {
            let vm = Vm::new(&config, console).unwrap();
            // Where the guest looks.
            let at = vm.plan().vmgenid.map(|id| id.range.base);
            assert_eq!(at, vmgenid.then_some(0xd_fff0));
            let power = vm.plan().device(DeviceKind::AcpiPower).unwrap();
            assert_eq!(power.range.base, 0x600);
            vm
        });
        let printed = running.print(200);
        folder.save(&running.handle).unwrap();
        running.stop();
        let before = lines(&printed);
        assert!(before.iter().all(|line| *line == before[0]), "{before:?}");
        let mut ids = vec![before[0].1.clone()];
        for _ in 0..2 {
            let mut running = Running::new(|console| folder.restore(console).unwrap());
            let printed = running.print(400);
            running.stop();
            let lines = lines(&printed);
            // Read once, the event is gone.
            let told = lines.iter().filter(|(events, _)| *events == b'C').count();
            assert_eq!(told, usize::from(vmgenid), "{lines:?}");
            ids.push(lines.last().unwrap().1.clone());
        }
        if vmgenid {
            assert!(!ids.iter().any(|id| id == ZEROS));
            ids.sort();
            ids.dedup();
            assert_eq!(ids.len(), 3, "{ids:?}");
        } else {
            assert_eq!(ids, [ZEROS; 3]);
        }
    }
}

/// A device that says nothing of its state.
#[derive(Debug)]
struct Mute;

impl BusDevice for Mute {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) -> Outcome {
        Outcome::Continue
    }
}

#[test]
fn what_cannot_be_saved_is_refused_by_name_before_anything_is_written() {
    let kernel = common::kernel(COUNT);
    let folder = Folder::new();
    let config = config().with_kernel(kernel.path());
    let mut running = Running::new(|console| {
        let device = OwnDevice::at_ports("mute", 0x500, 4, Arc::new(Mute));
        Vm::new(&config, Attachments::from(console).with_device(device)).unwrap()
    });
    let refused = folder.save(&running.handle).unwrap_err().to_string();
    let cause = "the embedder's device at 0x500 is not known how to save";
    assert!(refused.contains(cause), "{refused}");
    assert_eq!(running.state(), State::Running);
    for name in ["state", "memory"] {
        assert_eq!(folder.open(name).metadata().unwrap().len(), 0);
    }
    // It goes on.
    running.print(1000);
    running.stop();
}

#[test]
fn files_that_are_not_empty_or_have_no_name_are_refused() {
    let kernel = common::kernel(COUNT);
    let folder = Folder::new();
    let config = config().with_kernel(kernel.path());
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    let save = |memory: &str, ram: File| {
        let files: Vec<OwnedFd> = vec![folder.create("state").into(), ram.into()];
        let memory = memory.to_owned();
        let since = None;
        let command = Command::Snapshot {
            memory,
            since,
            copies: vec![],
            form: vmm_reference::SavedForm::Layer,
            note: None,
        };
        running.handle.command_with(command, files).unwrap_err()
    };
    for name in ["", "..", "a/b", "state"] {
        let refused = save(name, folder.create("memory")).to_string();
        assert!(refused.contains("its file of memory"), "{refused}");
    }
    fs::write(folder.0.path().join("full"), "precious").unwrap();
    let full = OpenOptions::new()
        .read(true)
        .write(true)
        .open(folder.0.path().join("full"));
    let refused = save("full", full.unwrap());
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("no empty regular file"), "{source}");
    assert_eq!(fs::read(folder.0.path().join("full")).unwrap(), b"precious");
    let twice = folder.create("memory");
    let files = vec![twice.try_clone().unwrap().into(), twice.into()];
    let (memory, since) = ("m".to_owned(), None);
    let command = Command::Snapshot {
        memory,
        since,
        copies: vec![],
        form: vmm_reference::SavedForm::Layer,
        note: None,
    };
    let refused = running.handle.command_with(command, files).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(
        source.contains("two files for it are the same one"),
        "{source}"
    );
    // A pipe that nobody reads keeps nobody waiting.
    let (_reader, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let files = vec![pipe, folder.create("memory").into()];
    let (memory, since) = ("m".to_owned(), None);
    let command = Command::Snapshot {
        memory,
        since,
        copies: vec![],
        form: vmm_reference::SavedForm::Layer,
        note: None,
    };
    let refused = running.handle.command_with(command, files).unwrap_err();
    assert!(matches!(refused, CommandError::Host { .. }), "{refused}");
    let refused = running.handle.command(Command::Snapshot {
        memory: "m".to_owned(),
        since: None,
        copies: vec![],
        form: vmm_reference::SavedForm::Layer,
        note: None,
    });
    assert!(matches!(refused, Err(CommandError::Descriptors { .. })));
    running.stop();
}

#[test]
fn a_damaged_or_foreign_state_is_refused() {
    let kernel = common::kernel(COUNT);
    let folder = Folder::new();
    let config = config().with_kernel(kernel.path());
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    folder.save(&running.handle).unwrap();
    running.stop();
    let mut state = Vec::new();
    folder.open("state").read_to_end(&mut state).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(folder.0.path().join("state"), bytes).unwrap();
        let error = folder.restore(Console::null()).unwrap_err();
        (
            error.to_string(),
            error.cure().unwrap_or_default().to_owned(),
        )
    };
    let mut damaged = state.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    for (bytes, cause) in [
        (&b""[..], "it is no saved machine"),
        (b"\x7fELF", "it is no saved machine"),
        (&state[..100], "it is damaged"),
        (
            &damaged,
            "it is damaged: the checksum of the section clock is wrong",
        ),
    ] {
        let (text, cure) = refused(bytes);
        assert!(
            text.starts_with("snapshot=state: ") && text.contains(cause),
            "{text}"
        );
        assert!(cure.contains("save the machine again"), "{cure}");
    }
    // The memory of another machine.
    fs::write(folder.0.path().join("state"), &state).unwrap();
    folder.create("memory").set_len(4096).unwrap();
    let error = folder.restore(Console::null()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("memory has 4096 bytes"), "{source}");
}
