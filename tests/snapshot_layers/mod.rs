//! Machines of which only what changed is saved.

mod in_place;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use vmm_reference::{
    Command, CommandError, Console, HugePages, MemoryBacking, Reply, Snapshot, Vm, VmConfig,
    Written,
};

use crate::{Folder, Running, common, config};

/// Writes to other pages each time, over and over, and prints a dot then.
const SCATTER: &[u8] = &[
    0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 2 MiB
    0x89, 0xfe, // start: mov esi, edi
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, // add edi, 4 KiB
    0x81, 0xe7, 0xff, 0xff, 0x2f, 0x00, // and edi, 3 MiB - 1
    0xff, 0x06, // next: inc dword [rsi]
    0x81, 0xc6, 0x00, 0x00, 0x10, 0x00, // add esi, 1 MiB
    0x81, 0xfe, 0x00, 0x00, 0xe0, 0x01, // cmp esi, 30 MiB
    0x72, 0xf0, // jb next
    0xb9, 0xd0, 0x07, 0x00, 0x00, // mov ecx, 2000
    0xe2, 0xfe, // loop, so that it takes long to get everywhere
    0x66, 0xba, 0xf8, 0x03, 0xb0, 0x2e, 0xee, // mov dx, 0x3f8; mov al, '.'; out dx, al
    0xeb, 0xd2, // jmp start
];

/// A folder whose memory is in several files.
struct Layers {
    folder: Folder,
    /// How many machines were saved.
    count: u32,
}

impl Layers {
    fn new() -> Self {
        Self {
            folder: Folder::new(),
            count: 0,
        }
    }

    /// Saves a machine without publishing it.
    fn write(
        &mut self,
        handle: &vmm_reference::VmHandle,
        since: &str,
    ) -> Result<Written, CommandError> {
        self.count += 1;
        let memory = format!("memory-{}", self.count);
        let files: Vec<OwnedFd> = vec![
            self.folder.create("new").into(),
            self.folder.create(&memory).into(),
        ];
        let since = Some(since.to_owned());
        let reply = handle.command_with(
            Command::Snapshot {
                memory,
                since,
                copies: vec![],
                form: vmm_reference::SavedForm::Layer,
                note: None,
            },
            files,
        )?;
        match reply {
            Reply::Snapshot(written) => Ok(written),
            other => panic!("{other:?}"),
        }
    }

    fn publish(&self) {
        let path = |name| self.folder.0.path().join(name);
        fs::rename(path("new"), path("state")).unwrap();
    }

    fn read(&self) -> (Snapshot, Vec<File>) {
        let snapshot = Snapshot::read("state", self.folder.open("state")).unwrap();
        let names = snapshot.memory_files();
        let files = names.iter().map(|name| self.folder.open(name)).collect();
        (snapshot, files)
    }

    fn id(&self) -> String {
        self.read().0.id().to_owned()
    }

    /// Saves and publishes it; gives the number of its layers and the bytes of the last one.
    fn save(&mut self, running: &Running) -> (u32, u64) {
        let exists = self.folder.0.path().join("state").exists();
        let since = if exists { self.id() } else { String::new() };
        let written = self.write(&running.handle, &since).unwrap();
        self.publish();
        (written.layers, written.memory_bytes)
    }

    /// All of RAM that the layers have.
    fn merged(&self) -> Vec<u8> {
        let (snapshot, memory) = self.read();
        let files = ["merged-state", "merged"].map(|name| self.folder.create(name));
        let [state, ram] = &files;
        snapshot.merge(memory, "merged", [state, ram]).unwrap();
        let merged = Snapshot::read("merged", self.folder.open("merged-state")).unwrap();
        assert_eq!(merged.memory_files(), ["merged"]);
        assert_ne!(merged.id(), snapshot.id());
        all(&self.folder.open("merged"))
    }

    /// What is in the layers is what the whole machine is, which stands still.
    fn is_all(&self, running: &Running) {
        let whole = Folder::new();
        whole.save(&running.handle).unwrap();
        let (merged, whole) = (self.merged(), all(&whole.open("memory")));
        assert_eq!(merged.len(), whole.len());
        let pages = merged.chunks(4096).zip(whole.chunks(4096));
        let differ = (0..).zip(pages).filter(|(_, (one, other))| one != other);
        let differ: Vec<u32> = differ.map(|(page, _)| page).collect();
        assert!(differ.is_empty(), "{differ:?}");
    }
}

fn all(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Lets it write something, whatever it has printed already.
fn runs(running: &mut Running) {
    thread::sleep(Duration::from_millis(20));
    running.print(3);
}

fn pause(running: &Running) {
    running.handle.command(Command::Pause {}).unwrap();
}

fn start(config: &VmConfig) -> Running {
    Running::new(|console| Vm::new(config, console).unwrap())
}

/// Nothing where the kernel does not tell what changes.
fn is_told() -> bool {
    let kernel = common::kernel(SCATTER);
    let running = start(&config().with_kernel(kernel.path()));
    let told = Layers::new().write(&running.handle, "");
    running.stop();
    if let Err(error) = &told {
        eprintln!("SKIPPED: {error}");
        assert!(std::env::var_os("CI").is_none(), "{error}");
    }
    told.is_ok()
}

#[test]
fn r46_no_page_is_missed_over_generations() {
    if !is_told() {
        return;
    }
    let kernel = common::kernel(SCATTER);
    for pages in [HugePages::Off, HugePages::Transparent] {
        let config = config().with_kernel(kernel.path()).with_huge_pages(pages);
        let mut layers = Layers::new();
        let mut running = start(&config);
        running.print(3);
        assert_eq!(layers.save(&running).0, 1);
        let (mut expected, mut total) = (1, 0);
        for generation in 0..3 {
            for step in 0..3 {
                runs(&mut running);
                if step == 1 {
                    // One that nobody publishes: the next one has what changed since the one before.
                    let id = layers.id();
                    let lost = layers.write(&running.handle, &id).unwrap();
                    assert_eq!(lost.layers, expected + 1);
                    runs(&mut running);
                }
                // Of a guest that runs too.
                if step == 2 {
                    pause(&running);
                }
                let (count, bytes) = layers.save(&running);
                expected += 1;
                // The memory of a restored machine is known when it is these files.
                if pages == HugePages::Transparent && generation > 0 && step == 0 {
                    expected = 1;
                }
                assert_eq!(count, expected, "{generation} {step} {pages}");
                assert!(count == 1 || bytes < 24 << 20, "{bytes}");
                total += bytes;
            }
            layers.is_all(&running);
            running.stop();
            running = Running::new(|console| {
                let (snapshot, memory) = layers.read();
                Vm::restore(snapshot, memory, console).unwrap()
            });
        }
        assert!(total > 1 << 20, "{total}");
        runs(&mut running);
        // All of it, of a machine that is mapped to several files.
        pause(&running);
        let whole = Folder::new();
        whole.save(&running.handle).unwrap();
        layers.save(&running);
        assert_eq!(layers.merged(), all(&whole.open("memory")));
        running.stop();
    }
}

#[test]
fn what_the_vm_does_not_know_is_saved_as_a_whole() {
    if !is_told() {
        return;
    }
    let kernel = common::kernel(SCATTER);
    let mut running = start(&config().with_kernel(kernel.path()));
    let (mut one, mut other) = (Layers::new(), Layers::new());
    running.print(3);
    let saved = |layers: &mut Layers| layers.save(&running).0;
    assert_eq!(saved(&mut one), 1);
    assert_eq!(saved(&mut one), 2);
    // Another folder, and back.
    assert_eq!(saved(&mut other), 1);
    assert_eq!(saved(&mut other), 2);
    assert_eq!(saved(&mut one), 1);
    assert_eq!(saved(&mut one), 2);
    // All of it, after which nothing is remembered.
    one.folder.save(&running.handle).unwrap();
    assert_eq!(saved(&mut one), 1);
    assert_eq!(saved(&mut one), 2);
    // What was merged is another machine.
    one.merged();
    let path = |name| one.folder.0.path().join(name);
    fs::rename(path("merged-state"), path("state")).unwrap();
    assert_eq!(saved(&mut one), 1);
    // One that stands still changes nothing.
    pause(&running);
    saved(&mut one);
    let (layers, bytes) = one.save(&running);
    assert_eq!((layers, bytes), (3, 0));
    one.is_all(&running);
    running.stop();
}

#[test]
fn memory_whose_changes_are_not_told_is_refused_by_name() {
    let kernel = common::kernel(SCATTER);
    let config = config()
        .with_kernel(kernel.path())
        .with_memory_backing(MemoryBacking::Shared);
    let running = start(&config);
    let refused = Layers::new()
        .write(&running.handle, "")
        .unwrap_err()
        .to_string();
    assert!(refused.contains("memory-backing=shared"), "{refused}");
    assert!(refused.contains("save all of it instead"), "{refused}");
    Folder::new().save(&running.handle).unwrap();
    running.stop();
}

#[test]
fn r27_files_of_other_lengths_are_refused() {
    if !is_told() {
        return;
    }
    let kernel = common::kernel(SCATTER);
    let mut running = start(&config().with_kernel(kernel.path()));
    let mut layers = Layers::new();
    layers.save(&running);
    // What it printed may be older.
    runs(&mut running);
    while layers.save(&running).1 == 0 {
        runs(&mut running);
    }
    running.stop();
    let refused = |memory: Vec<File>| {
        let (snapshot, _) = layers.read();
        let error = Vm::restore(snapshot, memory, Console::null()).unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    let (_, mut files) = layers.read();
    files.reverse();
    assert!(refused(files).contains("memory-1 has "));
    let (_, mut files) = layers.read();
    files.pop();
    let said = refused(files);
    let count = layers.count;
    let expected = format!("is in {count} files, and {} are given", count - 1);
    assert!(said.contains(&expected), "{said}");
    let last = format!("memory-{count}");
    let path = layers.folder.0.path().join(&last);
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
    let (_, files) = layers.read();
    assert!(refused(files).contains(&format!("{last} has ")));
}
