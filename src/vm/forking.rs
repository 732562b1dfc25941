//! How a running machine comes to where it can be forked, and goes on from there.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use arch::{KvmIrqChip, KvmPlatform};

use crate::control::command::{CommandError, State};
use crate::control::forking::{DiskContent, ForkWish};
use crate::control::saving::DiskCopy;
use crate::fork::copies::Copies;
use crate::fork::forks::{Next, Stage};
use crate::fork::order::{Order, check_memory};
use crate::fork::outputs::Taken;
use crate::fork::report::ends;
use crate::fork::told::Told;
use crate::memory::{Backing, for_child};
use crate::snapshot::disk::{self, Copying};
use crate::snapshot::layout::MemoryLayout;
use crate::snapshot::load::{Inherited, Saved};
use crate::snapshot::memory::{Before, check_files, copy};
use crate::snapshot::save::Machine;
use crate::threads::patiently;
use crate::vm::engine::Running;
use crate::{Error, ForkedDisk};

fn host(source: io::Error) -> CommandError {
    CommandError::Host {
        command: "fork",
        source,
    }
}

impl<P: KvmPlatform> Running<P> {
    /// Brings the machine to where it can be forked; the main loop is left then. If disks are to be copied, that comes
    /// first.
    pub(super) fn fork(
        &mut self,
        wish: &ForkWish,
        files: Vec<OwnedFd>,
        state: State,
    ) -> Result<(), CommandError> {
        if !self.makes_machines {
            return Err(CommandError::NoNewMachine("fork"));
        }
        if !self.forks.taken {
            let cause = "the program that runs it takes no forks";
            return Err(CommandError::NotForked(cause.to_owned()));
        }
        check_memory(&self.config, self.shared.handled.is_some())?;
        let mut told = Told {
            begin: Instant::now(),
            goes_on: state == State::Running,
            copies: Vec::new(),
            answer: None,
        };
        let registry = &self.registry;
        let taken = Taken {
            images: &self.images,
            outputs: &self.outputs,
        };
        let share = |id: &str| registry.file(id);
        let order = Order::new(wish.clone(), files, &self.config, share, taken)?;
        let copies = order
            .has_copies()
            .then(|| self.copies(&order))
            .transpose()?;
        told.begin = Instant::now();
        if told.goes_on {
            self.quiesce();
        }
        let goes_on = told.goes_on;
        let begun = match copies {
            Some(copies) => {
                let handle = self.shared.handle.clone();
                let copies = Copies::new(copies, order, told, handle).map_err(host);
                copies.map(|copies| self.forks.stage = Stage::Copying(Box::new(copies)))
            }
            None => self.be_ready(order, told),
        };
        if begun.is_err() && goes_on {
            self.go_on();
        }
        begun
    }

    /// The disks that are copied to empty files.
    fn copies(&self, order: &Order) -> Result<Vec<Copying>, CommandError> {
        let wanted = order.disks.iter();
        let wanted: Vec<_> = wanted
            .filter(|disk| disk.told.content == DiskContent::Copy)
            .collect();
        let files: Vec<_> = wanted.iter().map(|disk| &disk.file.file).collect();
        check_files(&files, Before::Nothing).map_err(host)?;
        let named = |told: &ForkedDisk| DiskCopy {
            device: told.device.clone(),
            name: told.name.clone(),
        };
        let told: Vec<_> = wanted.iter().map(|disk| named(&disk.told)).collect();
        disk::check(&told).map_err(CommandError::NotForked)?;
        let mut copies = Vec::new();
        for (told, disk) in told.into_iter().zip(wanted) {
            let from = self.registry.file(&told.device)?.file;
            let to = disk.file.file.try_clone().map_err(host)?;
            copies.push(Copying::new(told, from, to).map_err(host)?.for_now());
        }
        Ok(copies)
    }

    /// The copies are there: the machine is to be forked, or goes on.
    pub(super) fn finish_copies(&mut self) {
        let over = matches!(&self.forks.stage, Stage::Copying(copies) if copies.is_over());
        if !over {
            return;
        }
        let Stage::Copying(copies) = std::mem::take(&mut self.forks.stage) else {
            return;
        };
        let (order, mut told, copied) = copies.finish();
        let goes_on = told.goes_on;
        let answer = told.answer.take();
        let ready = copied.map_err(host).and_then(|copied| {
            told.copies = copied;
            self.be_ready(order, told)
        });
        match (ready, &mut self.forks.stage) {
            (Ok(()), Stage::Next(next)) => next.told.answer = answer,
            (Ok(()), _) => {}
            (Err(error), _) => {
                if goes_on {
                    self.go_on();
                }
                if let Some(answer) = answer {
                    answer.send(Err(error));
                }
            }
        }
    }

    /// Takes the state of a machine that stands still.
    fn be_ready(&mut self, order: Order, told: Told) -> Result<(), CommandError> {
        // A vCPU that has ended the guest has an access that is not completed.
        let threads = self.threads.as_ref();
        let threads = threads.filter(|_| !self.shared.handle.has_ended());
        let threads = threads.ok_or(CommandError::Ended("fork"))?;
        let machine = Machine {
            threads,
            shared: &self.shared,
            chip: &self.chip,
            vm: &self.vm,
            registry: &self.registry,
            plan: &self.plan,
            config: &self.config,
            images: &self.images,
        };
        let (ends, wait) = ends(told.begin).map_err(host)?;
        let since = Instant::now();
        let layout = MemoryLayout::whole(&self.plan.ram, "inherited");
        let (mut parts, state) = machine.state(layout)?;
        order.take_over(&mut parts)?;
        let inherited = Inherited {
            since,
            chain: self.chain.inherited(),
            wait,
        };
        let backing = Backing::of(&self.config);
        let files = self.shared.handle.proc_files();
        let ram = for_child(&self.shared.ram, &self.plan, backing, |from, to| {
            copy(from, to, files)
        });
        let ram = ram.map_err(|error| CommandError::NotForked(error.chain()))?;
        self.forks.stage = Stage::Next(Box::new(Next {
            order,
            saved: Saved::inherited(parts, state, ram, inherited),
            told,
            ends,
        }));
        Ok(())
    }

    /// Ends every thread of the machine, which stands still.
    pub(super) fn park(&mut self) -> io::Result<()> {
        if let Some(threads) = &mut self.threads {
            threads.park()?;
        }
        self.registry.park();
        self.chip.park();
        Ok(())
    }

    /// And back. When a thread cannot be had, the VM ends.
    pub(super) fn unpark(&mut self) {
        let chip = patiently(|| self.chip.unpark(&self.vm));
        let chip = chip.map_err(Error::host(
            "cannot start the threads of the interrupt chip",
        ));
        let vcpus = self.threads.as_mut().map_or(Ok(()), |it| it.unpark());
        let back = chip.and(self.registry.unpark()).and(vcpus);
        if let Err(error) = back {
            self.shared.handle.end(Err(error));
        }
    }
}
