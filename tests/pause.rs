//! A running machine that is asked for something: pause, resume, reset, the end, at any time.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Read;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use vmm_reference::{
    BlkConfig, Command, CommandError, Console, EscapeKeys, ExitReason, Metrics, OnReboot, Reply,
    State, Status, Vm, VmConfig, VmHandle, VsockConfig,
};

/// Spins.
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Halts for ever: `hlt; jmp`.
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Reads COM1's line status for ever: `mov dx, 0x3fd; in al, dx; jmp`.
const READ: &[u8] = &[0x66, 0xba, 0xfd, 0x03, 0xec, 0xeb, 0xfd];
/// Reads a port for ever in accesses of 65536 bytes: `mov edi, 0x200000; mov ecx, 0x10000; mov dx, 0x3fd;
/// rep insb; jmp`.
const READ_STRING: &[u8] = &[
    0xbf, 0, 0, 0x20, 0, 0xb9, 0, 0, 1, 0, 0x66, 0xba, 0xfd, 0x03, 0xf3, 0x6c, 0xeb, 0xee,
];
/// Reads memory that is not RAM for ever: `mov ebx, 0xfed40000; mov eax, [rbx]; jmp`.
const READ_MEMORY: &[u8] = &[0xbb, 0, 0, 0xd4, 0xfe, 0x8b, 0x03, 0xeb, 0xfc];

/// Waits for the power button, and powers off: `mov dx, 0x603; in al, dx; test al, 1; jz to in; mov dx, 0x600;
/// mov al, 0x34; out dx, al; hlt`.
const HEED_BUTTON: &[u8] = &[
    0x66, 0xba, 0x03, 0x06, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee,
    0xf4,
];

struct Machine {
    handle: VmHandle,
    thread: JoinHandle<Result<ExitReason, vmm_reference::Error>>,
}

impl Machine {
    fn start(code: &[u8], vcpus: u32) -> Self {
        Self::with(code, Console::null(), |config| config.with_vcpus(vcpus))
    }

    fn with(code: &[u8], console: Console, config: impl FnOnce(VmConfig) -> VmConfig) -> Self {
        let kernel = common::kernel(code);
        let config = config(VmConfig::default().with_kernel(kernel.path()));
        let vm = Vm::new(&config, console).unwrap();
        let handle = vm.handle();
        // All is open by now, and no path is needed again.
        kernel.close().unwrap();
        let thread = thread::spawn(move || vm.run());
        let machine = Self { handle, thread };
        while machine.state() == State::Created {
            thread::yield_now();
        }
        machine
    }

    fn status(&self) -> Status {
        match self.handle.command(Command::Status {}).unwrap() {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn state(&self) -> State {
        self.status().state
    }

    fn metrics(&self) -> Metrics {
        match self.handle.command(Command::Metrics {}).unwrap() {
            Reply::Metrics(metrics) => metrics,
            other => panic!("{other:?}"),
        }
    }

    /// What the guest has had from the VMM so far.
    fn accesses(&self) -> u64 {
        let exits = self.metrics().exits;
        exits.port_reads + exits.port_writes + exits.mmio_reads + exits.mmio_writes
    }

    fn done(&self, command: Command) -> State {
        match self.handle.command(command).unwrap() {
            Reply::Done { state } => state,
            other => panic!("{other:?}"),
        }
    }

    fn pause(&self) {
        assert_eq!(self.done(Command::Pause {}), State::Paused);
        assert_eq!(self.state(), State::Paused);
    }

    fn resume(&self) {
        assert_eq!(self.done(Command::Resume {}), State::Running);
    }

    fn stop(self) {
        assert_eq!(self.done(Command::Stop {}), State::Ended);
        assert_eq!(self.thread.join().unwrap().unwrap(), ExitReason::Stopped);
        assert!(matches!(
            self.handle.command(Command::Pause {}),
            Err(CommandError::State {
                state: State::Ended,
                ..
            })
        ));
    }
}

#[test]
fn a_vcpu_has_processor_time_while_it_runs_and_none_while_it_stands_still() {
    let machine = Machine::start(SPIN, 2);
    let cpu = |metrics: Metrics| {
        let ids: Vec<_> = metrics.vcpus.iter().map(|vcpu| vcpu.id).collect();
        assert_eq!(ids, [0, 1]);
        metrics.vcpus[0].cpu_us
    };
    let mut before = 0;
    for _ in 0..3 {
        while cpu(machine.metrics()) < before + 10_000 {
            thread::yield_now();
        }
        machine.pause();
        before = cpu(machine.metrics());
        let paused = machine.metrics();
        // It may have been on its way to sleep.
        assert!(cpu(paused.clone()) < before + 5000);
        assert!(paused.resident_bytes > 0);
        assert!(
            paused.vcpus[0].exits >= paused.pauses,
            "each pause is a kick"
        );
        machine.resume();
    }
    machine.stop();
}

#[test]
fn a_machine_stands_still_whatever_its_vcpus_do() {
    for (what, code) in [
        ("spins", SPIN),
        ("halts", HALT),
        ("reads a port", READ),
        ("reads strings", READ_STRING),
        ("reads memory", READ_MEMORY),
    ] {
        // Those beyond the first wait for their start-up.
        for vcpus in [1, 4, 32] {
            let machine = Machine::start(code, vcpus);
            assert_eq!(machine.status().vcpus, vcpus);
            for _ in 0..20 {
                machine.pause();
                let before = machine.accesses();
                // Twice changes nothing.
                machine.pause();
                assert_eq!(machine.accesses(), before, "{what}, {vcpus} vCPUs");
                machine.resume();
                machine.resume();
            }
            assert_eq!(machine.metrics().pauses, 20);
            machine.pause();
            machine.stop();
        }
    }
}

#[test]
fn what_a_machine_has_done_is_told_after_its_end_too() {
    let machine = Machine::start(READ, 1);
    while machine.accesses() == 0 {
        thread::yield_now();
    }
    machine.pause();
    let before = machine.accesses();
    assert_eq!(machine.done(Command::Stop {}), State::Ended);
    assert_eq!(machine.thread.join().unwrap().unwrap(), ExitReason::Stopped);
    let Ok(Reply::Metrics(metrics)) = machine.handle.command(Command::Metrics {}) else {
        panic!("no metrics");
    };
    assert_eq!(metrics.exits.port_reads, before);
    assert_eq!((metrics.vcpus.len(), metrics.pauses), (1, 1));
}

#[test]
fn ctrl_alt_del_is_the_power_button_of_a_guest_without_a_keyboard() {
    for keyboard in [false, true] {
        let machine = Machine::with(HEED_BUTTON, Console::null(), |mut config| {
            config.keyboard = keyboard;
            config
        });
        machine.pause();
        let refused = machine.handle.command(Command::CtrlAltDel {}).unwrap_err();
        assert!(refused.to_string().contains("is paused"), "{refused}");
        machine.resume();
        assert_eq!(machine.done(Command::CtrlAltDel {}), State::Running);
        let end = machine.thread.join().unwrap().unwrap();
        assert_eq!(end, ExitReason::PoweredOff);
    }
}

#[test]
fn the_vcpus_of_a_paused_machine_can_be_looked_at() {
    // `inc rax; jmp`
    let machine = Machine::start(&[0x48, 0xff, 0xc0, 0xeb, 0xfb], 4);
    let registers = || match machine.handle.command(Command::Registers {}) {
        Ok(Reply::Registers { vcpus }) => Ok(vcpus),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error),
    };
    let mut before = None;
    for _ in 0..3 {
        let refused = registers().unwrap_err().to_string();
        assert!(
            refused.contains("while the machine is running"),
            "{refused}"
        );
        machine.pause();
        let found = registers().unwrap();
        assert_eq!(found, registers().unwrap());
        let ids: Vec<_> = found.iter().map(|vcpu| vcpu.id).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
        let line = found[0].report.lines().find(|line| line.contains("rax"));
        let line = line.unwrap().to_owned();
        assert_ne!(before.replace(line.clone()), Some(line));
        machine.resume();
        thread::sleep(Duration::from_millis(20));
    }
    machine.stop();
}

#[test]
fn what_was_resumed_goes_on() {
    let machine = Machine::start(READ, 1);
    for _ in 0..20 {
        machine.pause();
        let before = machine.accesses();
        machine.resume();
        while machine.accesses() == before {
            thread::yield_now();
        }
    }
    machine.stop();
}

#[test]
fn no_access_is_lost_or_repeated_by_pauses() {
    const BYTES: u32 = 30_000;
    // mov ecx, BYTES; mov dx, 0x3f8; l: mov eax, ecx; out dx, al; loop l
    let mut code = vec![0xb9];
    code.extend(BYTES.to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03, 0x89, 0xc8, 0xee, 0xe2, 0xfb]);
    code.extend(common::RESET);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        File::from(reader).read_to_end(&mut bytes).unwrap();
        bytes
    });
    let console = Console::from_fds(None, Some(writer), EscapeKeys::Off);
    let machine = Machine::with(&code, console, |config| config);
    let mut pauses = 0;
    while machine.handle.command(Command::Pause {}).is_ok() {
        pauses += 1;
        if machine.handle.command(Command::Resume {}).is_err() {
            break;
        }
    }
    assert_eq!(machine.thread.join().unwrap().unwrap(), ExitReason::Reset);
    assert!(pauses > 1, "{pauses}");
    let expected: Vec<_> = (1..=BYTES).rev().map(|n| n.to_le_bytes()[0]).collect();
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_machine_may_begin_paused_and_ends_before_it_runs() {
    let kernel = common::kernel(READ);
    let config = VmConfig::default().with_kernel(kernel.path());
    let vm = Vm::new(&config, Console::null()).unwrap();
    let handle = vm.handle();
    assert!(matches!(
        handle.command(Command::Reset {}),
        Err(CommandError::State {
            state: State::Created,
            ..
        })
    ));
    handle.command(Command::Pause {}).unwrap();
    let thread = thread::spawn(move || vm.run());
    let machine = Machine { handle, thread };
    while machine.state() == State::Created {
        thread::yield_now();
    }
    assert_eq!(machine.state(), State::Paused);
    assert_eq!(machine.accesses(), 0);
    machine.resume();
    while machine.accesses() == 0 {
        thread::yield_now();
    }
    machine.stop();

    let vm = Vm::new(&config, Console::null()).unwrap();
    vm.handle().command(Command::Stop {}).unwrap();
    assert_eq!(vm.run().unwrap(), ExitReason::Stopped);
}

#[test]
fn a_reset_starts_the_machine_again() {
    for on_reboot in [OnReboot::Exit, OnReboot::Restart] {
        let machine = Machine::with(READ, Console::null(), |config| {
            config.with_on_reboot(on_reboot)
        });
        for times in 1..4 {
            machine.done(Command::Reset {});
            while machine.status().restarts < times {
                thread::yield_now();
            }
            let before = machine.accesses();
            while machine.accesses() == before {
                thread::yield_now();
            }
        }
        machine.pause();
        assert!(matches!(
            machine.handle.command(Command::Reset {}),
            Err(CommandError::State {
                state: State::Paused,
                ..
            })
        ));
        machine.stop();
    }
}

#[test]
fn a_machine_that_is_to_be_the_only_one_is_started_again_by_its_guest_alone() {
    let kernel = common::kernel(&common::RESET);
    let config = VmConfig::default()
        .with_kernel(kernel.path())
        .with_on_reboot(OnReboot::Restart);
    let mut vm = Vm::new(&config, Console::null()).unwrap();
    vm.without_new_machines();
    let handle = vm.handle();
    let thread = thread::spawn(move || vm.run());
    let machine = Machine { handle, thread };
    for times in 1..4 {
        while machine.state() != State::Running || machine.status().restarts < times {
            thread::yield_now();
        }
        let refused = machine.handle.command(Command::Reset {}).unwrap_err();
        assert!(matches!(refused, CommandError::NoNewMachine("reset")));
        #[cfg(feature = "snapshot")]
        {
            let fork = Command::Fork(vmm_reference::ForkWish::default());
            let refused = machine.handle.command(fork).unwrap_err();
            assert!(matches!(refused, CommandError::NoNewMachine("fork")));
        }
    }
    machine.stop();
    // Without the guest's resets there is none at all.
    let config = config.with_on_reboot(OnReboot::Exit);
    let mut vm = Vm::new(&config, Console::null()).unwrap();
    vm.without_new_machines();
    assert_eq!(vm.run().unwrap(), ExitReason::Reset);
}

#[test]
fn a_restart_opens_nothing_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("initrd"), [0; 5000]).unwrap();
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    let disk = BlkConfig::new(path("disk"));
    let sockets = VsockConfig::new(3, path("vsock"));
    let machine = Machine::with(READ, Console::file(&path("log")).unwrap(), |config| {
        config
            .with_initrd(path("initrd"))
            .with_disk(disk)
            .with_vsock(sockets)
    });
    std::fs::rename(folder.path(), folder.path().with_extension("moved")).unwrap();
    for times in 1..4 {
        machine.done(Command::Reset {});
        while machine.status().restarts < times {
            thread::yield_now();
        }
    }
    let devices = machine.status().devices;
    assert!(devices.iter().all(|device| device.state == "idle"));
    machine.stop();
    std::fs::remove_dir_all(folder.path().with_extension("moved")).unwrap();
}

#[test]
fn commands_of_many_threads_are_all_answered() {
    let machine = Machine::start(READ, 2);
    thread::scope(|scope| {
        for _ in 0..8 {
            let handle = machine.handle.clone();
            scope.spawn(move || {
                for command in [
                    Command::Pause {},
                    Command::Status {},
                    Command::Metrics {},
                    Command::Resume {},
                ] {
                    handle.command(command).unwrap();
                }
            });
        }
    });
    machine.resume();
    machine.stop();
}
