//! Forks of machines in a program of one's own.

#![allow(clippy::unwrap_used)]

mod common;

use std::thread;

use vmm_reference::{
    Command, CommandError, Console, ExitReason, ForkWish, Machine, Ran, State, Vm, VmConfig,
    VmHandle,
};

fn spinning() -> (tempfile::NamedTempFile, Vm) {
    let spin = common::kernel(&[0xeb, 0xfe]);
    let config = VmConfig::default()
        .with_kernel(spin.path())
        .with_memory_mib(32);
    let vm = Vm::new(&config, Console::null()).unwrap();
    (spin, vm)
}

/// Asks for a fork from another thread, and then for the end.
fn ask(handle: VmHandle) -> thread::JoinHandle<Result<vmm_reference::Reply, CommandError>> {
    thread::spawn(move || {
        let answer = loop {
            match handle.command(Command::Fork(ForkWish::default())) {
                Err(CommandError::State {
                    state: State::Created,
                    ..
                }) => thread::yield_now(),
                answer => break answer,
            }
        };
        // It goes on.
        handle.command(Command::Pause {}).unwrap();
        handle.command(Command::Resume {}).unwrap();
        handle.request_stop();
        answer
    })
}

#[test]
fn a_program_that_takes_no_forks_is_asked_for_none() {
    let (_kernel, vm) = spinning();
    let asked = ask(vm.handle());
    assert_eq!(vm.run().unwrap(), ExitReason::Stopped);
    let refused = asked.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("takes no forks"), "{refused}");
}

#[test]
fn a_machine_goes_on_without_a_fork() {
    let (_kernel, vm) = spinning();
    let asked = ask(Machine::handle(&vm));
    let Ran::Fork(parked) = vm.run_until_fork().unwrap() else {
        panic!("it has ended")
    };
    let Ran::Ended(reason) = parked.go_on().unwrap() else {
        panic!("another fork")
    };
    assert_eq!(reason, ExitReason::Stopped);
    let refused = asked.join().unwrap().unwrap_err().to_string();
    assert!(refused.contains("made none"), "{refused}");
}

/// This test itself is a thread, beside others.
#[test]
fn a_process_with_threads_is_not_forked() {
    let (_kernel, vm) = spinning();
    let asked = ask(vm.handle());
    let Ran::Fork(parked) = vm.run_until_fork().unwrap() else {
        panic!("it has ended")
    };
    // SAFETY: there is no child, which is what is tested.
    let vmm_reference::Forking::Parent(parked) = (unsafe { parked.fork(&[], || ()) }) else {
        std::process::abort()
    };
    let Ran::Ended(reason) = parked.go_on().unwrap() else {
        panic!("another fork")
    };
    assert_eq!(reason, ExitReason::Stopped);
    let CommandError::Host { source, .. } = asked.join().unwrap().unwrap_err() else {
        panic!("another error")
    };
    assert!(source.to_string().contains("other threads"), "{source}");
}
