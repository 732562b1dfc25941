//! Memory in one file, whichever pages are written.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_reference::{
    Attachments, BusDevice, DiskCopy, HugePages, Outcome, OwnDevice, SavedForm, SavedMemory,
};

use super::*;

const NOTE: &str = "{\"for\": \"whoever restores it\"}";
const MEMORY: u64 = 32 << 20;

/// A device of the embedder's own that begins anew with each machine.
#[derive(Debug)]
struct Forgetful;

impl BusDevice for Forgetful {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, _: &[u8]) -> Outcome {
        Outcome::Continue
    }
}

fn attachments(console: Console) -> Attachments {
    let device = OwnDevice::at_ports("forgetful", 0x500, 4, Arc::new(Forgetful));
    Attachments::from(console).with_device(device.without_state())
}

fn save(
    folder: &Folder,
    handle: &vmm_reference::VmHandle,
    since: Option<&str>,
    memory: &File,
) -> Result<Snapshot, CommandError> {
    save_as(
        folder,
        handle,
        since,
        memory,
        SavedForm::InPlace,
        Vec::new(),
    )
}

fn save_as(
    folder: &Folder,
    handle: &vmm_reference::VmHandle,
    since: Option<&str>,
    memory: &File,
    form: SavedForm,
    copies: Vec<DiskCopy>,
) -> Result<Snapshot, CommandError> {
    let command = Command::Snapshot {
        memory: "memory".to_owned(),
        since: since.map(str::to_owned),
        copies,
        form,
        note: Some(NOTE.to_owned()),
    };
    let state = folder.create("state");
    let mut files = vec![state.into(), memory.try_clone().unwrap().into()];
    if command.descriptors() > files.len() {
        files.push(folder.create("copy").into());
    }
    handle.command_with(command, files)?;
    Ok(Snapshot::read("state", folder.open("state")).unwrap())
}

/// Whatever was written, the file is all of memory then, and the state names nothing else.
#[test]
fn what_changed_goes_to_its_place_in_a_file_with_what_it_changed_since() {
    let kernel = common::kernel(SCATTER);
    let config = config().with_kernel(kernel.path());
    let folder = Folder::new();
    let mut running = Running::new(|console| Vm::new(&config, attachments(console)).unwrap());
    running.print(20);
    running.handle.command(Command::Pause {}).unwrap();
    let memory = folder.create("memory");
    let first = save(&folder, &running.handle, Some(""), &memory);
    let first = match first {
        Err(CommandError::NotSaved(cause)) if cause.contains("does not tell what changes") => {
            eprintln!("SKIPPED: {cause}");
            assert!(std::env::var_os("CI").is_none(), "{cause}");
            return;
        }
        first => first.unwrap(),
    };
    assert_eq!(first.note(), Some(NOTE));
    assert_eq!(first.memory_files(), ["memory"]);
    running.handle.command(Command::Resume {}).unwrap();
    running.print(20);
    running.handle.command(Command::Pause {}).unwrap();
    // Into an empty file: what did not change is a hole.
    let alone = folder.create("alone");
    let second = save(&folder, &running.handle, Some(first.id()), &alone).unwrap();
    let found = alone.metadata().unwrap();
    assert_eq!(found.len(), MEMORY);
    assert!(
        (1..MEMORY / 2).contains(&(found.blocks() * 512)),
        "{found:?}"
    );
    // Onto the other file, and all of it: the same.
    let third = save(&folder, &running.handle, Some(first.id()), &memory);
    assert!(third.is_ok(), "{third:?}");
    let whole = folder.create("whole");
    let all = save(&folder, &running.handle, None, &whole).unwrap();
    assert_ne!(second.id(), all.id());
    let [merged, whole_bytes] = ["memory", "whole"].map(|name| {
        let mut bytes = vec![0; usize::try_from(MEMORY).unwrap()];
        folder.open(name).read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    assert!(merged == whole_bytes);
    running.stop();
    // It goes on, also with other pages.
    for pages in [HugePages::Off, HugePages::Transparent] {
        let mut snapshot = Snapshot::read("state", folder.open("state")).unwrap();
        snapshot.set_huge_pages(pages);
        assert_eq!(snapshot.config().huge_pages, pages);
        let memory = vec![folder.open("memory")];
        let mut restored =
            Running::new(|console| Vm::restore(snapshot, memory, attachments(console)).unwrap());
        restored.print(20);
        restored.stop();
    }
}

#[test]
fn a_file_of_another_length_is_refused_and_left_as_it_is() {
    let kernel = common::kernel(SCATTER);
    let config = config().with_kernel(kernel.path());
    let folder = Folder::new();
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    for len in [1, MEMORY - 4096, MEMORY + 1] {
        let memory = folder.create("memory");
        memory.set_len(len).unwrap();
        let refused = save(&folder, &running.handle, None, &memory).unwrap_err();
        let Some(cause) = std::error::Error::source(&refused) else {
            panic!("{refused}");
        };
        let cause = cause.to_string();
        assert!(cause.contains("empty or as long as that"), "{cause}");
        assert_eq!(memory.metadata().unwrap().len(), len);
    }
    running.stop();
}

#[test]
fn what_a_file_has_that_is_to_be_replaced_is_gone_when_the_machine_can_be_saved_and_not_before() {
    let kernel = common::kernel(SCATTER);
    let config = config().with_kernel(kernel.path());
    let folder = Folder::new();
    let mut running = Running::new(|console| Vm::new(&config, console).unwrap());
    running.print(20);
    running.handle.command(Command::Pause {}).unwrap();
    for len in [6, MEMORY - 4096, MEMORY, MEMORY + 4096] {
        let memory = folder.create("memory");
        memory.set_len(len).unwrap();
        memory.write_all_at(b"before", 0).unwrap();
        let replace = |copies| {
            let form = SavedForm::Replace;
            save_as(&folder, &running.handle, None, &memory, form, copies)
        };
        let copy = DiskCopy {
            device: "nowhere".to_owned(),
            name: "/copy".to_owned(),
        };
        let refused = replace(vec![copy]).unwrap_err().to_string();
        assert!(refused.contains("nowhere"), "{refused}");
        let mut bytes = [0; 6];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes, memory.metadata().unwrap().len()), (b"before", len));
        replace(Vec::new()).unwrap();
        memory.read_exact_at(&mut bytes, 0).unwrap();
        assert_ne!(&bytes, b"before");
        assert_eq!(memory.metadata().unwrap().len(), MEMORY);
    }
    running.stop();
    // Not under a machine that reads it.
    let snapshot = Snapshot::read("state", folder.open("state")).unwrap();
    let files = vec![folder.open("memory")];
    let restored = Running::new(|console| Vm::restore(snapshot, files, console).unwrap());
    let memory = File::options()
        .read(true)
        .write(true)
        .open(folder.0.path().join("memory"))
        .unwrap();
    let form = SavedForm::Replace;
    let refused = save_as(&folder, &restored.handle, None, &memory, form, Vec::new()).unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("its memory is mapped to"), "{cause}");
    assert_eq!(memory.metadata().unwrap().len(), MEMORY);
    restored.stop();
}

#[test]
fn memory_is_written_over_no_disk_and_no_kernel_of_the_machine() {
    let folder = Folder::new();
    let path = |name: &str| folder.0.path().join(name);
    fs::copy(common::kernel(SCATTER).path(), path("kernel")).unwrap();
    for name in ["disk", "initrd"] {
        // One as long as RAM could be taken for an earlier one.
        folder.create(name).set_len(MEMORY).unwrap();
    }
    folder.create("initrd").set_len(4096).unwrap();
    let config = config()
        .with_kernel(path("kernel"))
        .with_initrd(path("initrd"))
        .with_disk(vmm_reference::BlkConfig::new(path("disk")));
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    running.handle.command(Command::Pause {}).unwrap();
    for (name, form, cause) in [
        ("disk", SavedForm::Replace, "is one of its disks"),
        ("disk", SavedForm::InPlace, "is one of its disks"),
        ("kernel", SavedForm::Replace, "is its kernel or initrd"),
        ("initrd", SavedForm::Replace, "is its kernel or initrd"),
    ] {
        // Whatever it is called.
        let _ = fs::remove_file(path("memory"));
        fs::hard_link(path(name), path("memory")).unwrap();
        let before = fs::read(path(name)).unwrap();
        let memory = File::options().read(true).write(true).open(path("memory"));
        let memory = memory.unwrap();
        let refused = save_as(&folder, &running.handle, None, &memory, form, Vec::new());
        let refused = refused.unwrap_err();
        let source = std::error::Error::source(&refused).unwrap().to_string();
        assert!(source.contains(cause), "{name} {form:?}: {source}");
        assert!(before == fs::read(path(name)).unwrap(), "{name} {form:?}");
    }
    running.stop();
}

#[test]
fn a_file_that_another_process_may_bring_memory_from_is_not_emptied() {
    if !common::faults::may_handle() {
        return;
    }
    let kernel = common::kernel(SCATTER);
    let config = config().with_kernel(kernel.path());
    let folder = Folder::new();
    let running = Running::new(|console| Vm::new(&config, console).unwrap());
    running.handle.command(Command::Pause {}).unwrap();
    let memory = folder.create("memory");
    save(&folder, &running.handle, None, &memory).unwrap();
    running.stop();
    let snapshot = Snapshot::read("state", folder.open("state")).unwrap();
    let socket = folder.0.path().join("faults");
    let handler = common::faults::listen(&socket, folder.open("memory"), |mut handler| {
        handler.serve(u64::MAX);
    });
    let source = SavedMemory::Uffd(UnixStream::connect(socket).unwrap());
    let restored = Running::new(|console| Vm::restore(snapshot, source, console).unwrap());
    restored.handle.command(Command::Pause {}).unwrap();
    let replace = |file: &File| {
        let form = SavedForm::Replace;
        save_as(&folder, &restored.handle, None, file, form, Vec::new())
    };
    let refused = replace(&memory).unwrap_err().to_string();
    assert!(refused.contains("brought by another process"), "{refused}");
    assert_eq!(memory.metadata().unwrap().len(), MEMORY);
    assert!(replace(&folder.create("empty")).is_ok());
    restored.stop();
    handler.join().unwrap();
}
