//! A VM becomes two, in two processes.

use std::error::Error;
use std::thread;
use std::time::Duration;

use vmm_reference::{
    Command, Console, ForkWish, Forking, Ran, State, Status, Vm, VmConfig, VmHandle,
};

fn main() -> Result<(), Box<dyn Error>> {
    let kernel = std::env::args_os()
        .nth(1)
        .ok_or("name a kernel that runs for a while")?;
    let config = VmConfig::default().with_kernel(kernel);
    let vm = Vm::new(&config, Console::null())?;
    let handle = vm.handle();
    let asking = thread::spawn({
        let handle = handle.clone();
        move || ask(&handle)
    });
    let Ran::Fork(parked) = vm.run_until_fork()? else {
        return Err("it ended before it was forked".into());
    };
    // The machine has no thread now, and this program must not have one either.
    let asked = asking
        .join()
        .map_err(|_| "the thread that asks has panicked")?;
    // SAFETY: in the child nothing is used that owns a descriptor: the handle and the answer are forgotten.
    match unsafe { parked.fork(&[], || ()) } {
        Forking::Parent(parked) => {
            // What came of it is told while the machine goes on.
            let telling = thread::spawn(move || {
                println!("parent: {:?}", asked?.wait()?);
                handle.request_stop();
                Ok::<_, vmm_reference::CommandError>(())
            });
            let ran = parked.go_on()?;
            telling
                .join()
                .map_err(|_| "the thread that tells has panicked")??;
            match ran {
                Ran::Ended(reason) => println!("parent: {reason}"),
                Ran::Fork(_) => return Err("nobody has asked for another fork".into()),
            }
        }
        Forking::Child(fork) => {
            std::mem::forget((asked, handle));
            let vm = fork.build(Console::null())?;
            let handle = vm.handle();
            let ending = thread::spawn(move || {
                // It runs until somebody ends it.
                thread::sleep(Duration::from_millis(100));
                handle.request_stop();
            });
            println!("fork: {}", vm.run()?);
            ending
                .join()
                .map_err(|_| "the thread that ends it has panicked")?;
        }
    }
    Ok(())
}

/// Asks for a fork once the guest runs, and does not wait for it.
fn ask(handle: &VmHandle) -> Result<vmm_reference::Pending, vmm_reference::CommandError> {
    while let vmm_reference::Reply::Status(Status {
        state: State::Created,
        ..
    }) = handle.command(Command::Status {})?
    {
        thread::sleep(Duration::from_millis(1));
    }
    handle.start_command(Command::Fork(ForkWish::default()), Vec::new())
}
