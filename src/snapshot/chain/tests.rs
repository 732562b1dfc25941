//! Machines without a VM: RAM that is written to, given back, saved and mapped again, in any order.

use std::fs::File;
use std::os::unix::fs::FileExt;

use arch::MachinePlan;
use rustix::mm::{Advice, ProtFlags, madvise, mmap_anonymous};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, map_image};
use crate::snapshot::memory::{self, Content};
use crate::snapshot::progress::Progress;
use crate::snapshot::sparse::Data;

const PAGE: u64 = 4096;
const MIB: u32 = 16;
const PAGES: u64 = (MIB as u64) << 8;

/// Numbers that are the same in each run (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// Files with names, as a folder has them.
#[derive(Default)]
struct Published {
    id: String,
    layout: Option<MemoryLayout>,
    files: Vec<(String, File)>,
}

impl Published {
    fn image(&self) -> MemoryImage {
        let layout = self.layout.as_ref().unwrap();
        let find = |name: &str| {
            let mut files = self.files.iter();
            let (_, file) = files.find(|(other, _)| *other == *name).unwrap();
            file.try_clone().unwrap()
        };
        let files: Vec<_> = layout
            .layers
            .iter()
            .map(|layer| find(&layer.file))
            .collect();
        layout.check_files(&files).unwrap();
        MemoryImage {
            files,
            parts: layout.parts(),
        }
    }
}

struct Trial {
    plan: MachinePlan,
    ram: GuestRam,
    chain: Chain,
    is_restored: bool,
    published: Published,
    numbers: Numbers,
    count: u64,
    /// How many layers each machine had that was saved.
    layers: Vec<usize>,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let planner = crate::planner(crate::ARCHITECTURES[0]).unwrap();
        let config = crate::VmConfig::default().with_memory_mib(MIB);
        let plan = planner.plan(&config.machine().unwrap()).unwrap();
        Self {
            ram: map_image(&plan, Backing::default(), None).unwrap(),
            plan,
            chain: Chain::default(),
            is_restored: false,
            published: Published::default(),
            numbers: Numbers(seed),
            count: 0,
            layers: Vec::new(),
        }
    }

    /// The address of a page, often of one that was taken before. There is one region.
    fn page(&mut self) -> u64 {
        let most = [PAGES, 100, 100][usize::try_from(self.numbers.below(3)).unwrap()];
        self.plan.ram[0].base + self.numbers.below(most) * PAGE
    }

    fn changes(&mut self) {
        for _ in 0..self.numbers.below(20) {
            let page = GuestAddress(self.page());
            let place = page.0 + 8 * self.numbers.below(512);
            match self.numbers.below(8) {
                0 => {
                    // Sometimes so much that the kernel takes page tables away.
                    let len = 1 + self.numbers.below(4) + self.numbers.below(20) / 19 * 1200;
                    self.gives_back(page, len);
                }
                1 => {
                    let _: u8 = self.ram.read_obj(page).unwrap();
                }
                // Zeros again.
                2 => self.ram.write_slice(&[0; 4096], page).unwrap(),
                // As the kernel does it for a device.
                3 => {
                    let mut file = tempfile::tempfile().unwrap();
                    file.write_all_at(&[9; 4096], 0).unwrap();
                    self.ram
                        .read_exact_volatile_from(page, &mut file, 4096)
                        .unwrap();
                }
                _ => {
                    let value = self.numbers.below(u64::MAX);
                    self.ram.write_obj(value, GuestAddress(place)).unwrap();
                }
            }
        }
    }

    /// As a balloon does it.
    fn gives_back(&mut self, page: GuestAddress, len: u64) {
        let end = self.plan.ram[0].base + PAGES * PAGE;
        let len = usize::try_from((len * PAGE).min(end - page.0)).unwrap();
        let place = self.ram.get_host_address(page).unwrap();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range is RAM, which nobody else uses.
        unsafe {
            if self.is_restored {
                mmap_anonymous(place.cast(), len, access, flags).unwrap();
            } else {
                madvise(place.cast(), len, Advice::LinuxDontNeed).unwrap();
            }
        }
    }

    fn saves(&mut self) {
        self.count += 1;
        let name = format!("memory-{}", self.count);
        let whole = MemoryLayout::whole(&self.plan.ram, &name);
        let since = self.published.id.clone();
        let form = match self.numbers.below(8) {
            0 => SavedForm::InPlace,
            _ => SavedForm::Layer,
        };
        let files = ProcFiles::open();
        let next = self
            .chain
            .next(&self.ram, &since, &whole, form, &files)
            .unwrap();
        next.layout.check(&self.plan).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let before = tempfile::tempfile().unwrap();
        if form == SavedForm::InPlace && self.published.layout.is_some() {
            memory::merge(&self.published.image(), &before).unwrap();
        }
        let origin = self.chain.origin().unwrap();
        let content = Content {
            ram: &self.ram,
            layout: &next.layout,
            origin: origin.map(|origin| &**origin),
            present: &Present::look(&files),
        };
        let progress = Progress::default();
        match form {
            SavedForm::Layer => {
                content.write(&next.runs, &file, &progress).unwrap();
            }
            // Onto what it changed since, at once or later.
            SavedForm::InPlace if self.numbers.below(2) == 0 => {
                content
                    .write_in_place(&next.runs, &before, &progress)
                    .unwrap();
                file = before;
            }
            SavedForm::InPlace | SavedForm::Replace => {
                content
                    .write_in_place(&next.runs, &file, &progress)
                    .unwrap();
                before.set_len(PAGES * PAGE).unwrap();
                for run in Data::of(&file, 0..PAGES * PAGE) {
                    let run = run.unwrap();
                    let mut bytes = vec![0; usize::try_from(run.end - run.start).unwrap()];
                    file.read_exact_at(&mut bytes, run.start).unwrap();
                    before.write_all_at(&bytes, run.start).unwrap();
                }
                file = before;
            }
        }
        let layout = next.layout.clone();
        if self.numbers.below(6) == 0 {
            // The disk is full.
            return;
        }
        self.chain.saved(&self.ram, &name, next).unwrap();
        if self.numbers.below(6) == 0 {
            // Whoever asked for it was killed.
            return;
        }
        self.layers.push(layout.layers.len());
        self.published.id.clone_from(&name);
        self.published.layout = Some(layout);
        self.published.files.push((name, file));
        self.is_all();
    }

    /// What was published is what RAM is.
    fn is_all(&mut self) {
        // Not each time: it touches every page.
        if self.numbers.below(3) > 0 {
            return;
        }
        let merged = tempfile::tempfile().unwrap();
        memory::merge(&self.published.image(), &merged).unwrap();
        let len = usize::try_from(PAGES * PAGE).unwrap();
        let (mut file, mut ram) = (vec![0; len], vec![0; len]);
        merged.read_exact_at(&mut file, 0).unwrap();
        let base = GuestAddress(self.plan.ram[0].base);
        self.ram.read_slice(&mut ram, base).unwrap();
        let pages = file.chunks(4096).zip(ram.chunks(4096));
        let differ = (0..).zip(pages).filter(|(_, (one, other))| one != other);
        let differ: Vec<u32> = differ.map(|(page, _)| page).collect();
        assert!(differ.is_empty(), "{differ:?}, machine {}", self.count);
    }

    fn is_restored(&mut self) {
        let image = self.published.image();
        self.ram = map_image(&self.plan, Backing::default(), Some(&image)).unwrap();
        self.is_restored = true;
        self.chain = Chain::new(Some(Origin {
            base: Base {
                id: self.published.id.clone(),
                layout: self.published.layout.clone().unwrap(),
                runs: Vec::new(),
            },
            image: image.into(),
        }));
        self.is_all();
        // And where memory is no file.
        let ram = map_image(&self.plan, Backing::default(), None).unwrap();
        let layout = self.published.layout.as_ref().unwrap();
        memory::read(&ram, layout, &self.published.image()).unwrap();
        for page in (0..PAGES).map(|page| GuestAddress(self.plan.ram[0].base + page * PAGE)) {
            let (mut one, mut other) = ([0; 4096], [0; 4096]);
            ram.read_slice(&mut one, page).unwrap();
            self.ram.read_slice(&mut other, page).unwrap();
            assert!(one == other, "{page:?}");
        }
    }
}

#[test]
fn r46_layers_are_what_memory_is_whatever_happens_to_it() {
    let ram = Trial::new(1).ram;
    if let Err(error) = Tracker::new(&ram, &ProcFiles::open()) {
        eprintln!("SKIPPED: {error}");
        assert!(std::env::var_os("CI").is_none(), "{error}");
        return;
    }
    for seed in 1..=4 {
        let mut trial = Trial::new(seed * 0x9e37_79b9);
        for _ in 0..60 {
            trial.changes();
            trial.saves();
            if trial.published.layout.is_some() && trial.numbers.below(9) == 0 {
                trial.is_restored();
            }
            if trial.numbers.below(20) == 0 {
                trial.chain.forget();
            }
        }
        // It is layers that were tried.
        let layers = trial.layers.iter().filter(|layers| **layers > 1).count();
        assert!(layers > 20, "{:?}", trial.layers);
    }
}
