//! The forks of a machine, from the wish for one to their ends.

use arch::KvmPlatform;

use super::children::Children;
use super::copies::Copies;
use super::order::Order;
use super::report::Ends;
use super::told::Told;
use crate::control::saving::SavingStatus;
use crate::snapshot::load::Saved;

/// What a machine has to do with forks.
#[derive(Default)]
pub(crate) enum Stage<P: KvmPlatform> {
    /// None is on its way.
    #[default]
    None,
    /// Disks are copied for one.
    Copying(Box<Copies>),
    /// All is there, and the machine stands still: the main loop is left.
    Next(Box<Next<P>>),
}

/// The forks of a machine.
pub(crate) struct Forks<P: KvmPlatform> {
    /// Whoever runs the machine takes them.
    pub(crate) taken: bool,
    pub(crate) stage: Stage<P>,
    pub(crate) children: Children,
}

impl<P: KvmPlatform> Default for Forks<P> {
    fn default() -> Self {
        Self {
            taken: false,
            stage: Stage::None,
            children: Children::default(),
        }
    }
}

impl<P: KvmPlatform> Forks<P> {
    /// Whether the machine stands still for one.
    pub(crate) fn is_on_its_way(&self) -> bool {
        !matches!(self.stage, Stage::None)
    }

    /// Whether one can be made.
    pub(crate) fn is_next(&self) -> bool {
        matches!(self.stage, Stage::Next(_))
    }

    /// What is told of the one that is on its way.
    pub(crate) fn told(&mut self) -> Option<&mut Told> {
        match &mut self.stage {
            Stage::None => None,
            Stage::Copying(copies) => Some(&mut copies.told),
            Stage::Next(next) => Some(&mut next.told),
        }
    }

    /// How far the disks are copied, if they are.
    pub(crate) fn copying(&self) -> Option<SavingStatus> {
        match &self.stage {
            Stage::Copying(copies) => Some(copies.status()),
            Stage::None | Stage::Next(_) => None,
        }
    }

    /// The machine ends: nobody wants the one that is on its way.
    pub(crate) fn cancel(&mut self) {
        match std::mem::take(&mut self.stage) {
            Stage::Copying(copies) => copies.cancel(),
            // Whoever waits for it hears that the machine has ended.
            Stage::Next(_) | Stage::None => {}
        }
    }
}

/// A fork that can be made.
pub(crate) struct Next<P: KvmPlatform> {
    pub(crate) order: Order,
    pub(crate) saved: Saved<P>,
    pub(crate) told: Told,
    pub(crate) ends: Ends,
}
