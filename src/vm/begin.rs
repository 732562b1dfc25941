//! With what a machine begins: a kernel, or the state of a machine that was saved.

use arch::{GuestRam, KvmPlatform, MachinePlan};

#[cfg(feature = "snapshot")]
use crate::control::handle::VmHandle;
use crate::kernel::image::{Initrd, Kernel};
use crate::memory::{self, Backing};
#[cfg(feature = "snapshot")]
use crate::snapshot::handler::Handled;
#[cfg(feature = "snapshot")]
pub(crate) use crate::snapshot::{chain::Chain, load::Saved};
use crate::timeline::{Milestone, Timeline};
use crate::vm::empty::Empty;
use crate::vm::opening::Images;
use crate::vm::story::Story;
use crate::{Error, VmConfig};

/// A saved machine, of which this build knows nothing.
#[cfg(not(feature = "snapshot"))]
pub(crate) struct Saved<P>(std::convert::Infallible, std::marker::PhantomData<P>);

/// And what a machine knows of those.
#[cfg(not(feature = "snapshot"))]
#[derive(Debug, Default)]
pub(crate) struct Chain {}

#[cfg(not(feature = "snapshot"))]
impl<P> Saved<P> {
    fn plan(&self) -> &MachinePlan {
        match self.0 {}
    }

    fn has_ram(&self) -> bool {
        match self.0 {}
    }

    fn map(&self, _: Backing) -> Result<GuestRam, Error> {
        match self.0 {}
    }

    fn chain(self) -> Chain {
        match self.0 {}
    }

    fn load(&mut self, _: &Empty<'_, P>) -> Result<(), Error>
    where
        P: KvmPlatform,
    {
        match self.0 {}
    }
}

/// With what a machine begins.
pub(crate) enum Begin<'a, P: KvmPlatform> {
    Kernel(Box<Kernel>, Option<&'a Initrd>),
    Saved(Box<Saved<P>>),
}

impl<'a, P: KvmPlatform> Begin<'a, P> {
    /// Whether its RAM is there already.
    pub(crate) fn has_ram(&self) -> bool {
        match self {
            Self::Kernel(..) => false,
            Self::Saved(saved) => saved.has_ram(),
        }
    }

    /// RAM, as it is at first.
    pub(crate) fn map(&self, plan: &MachinePlan, backing: Backing) -> Result<GuestRam, Error> {
        match self {
            Self::Kernel(..) => memory::map_ram(plan, backing),
            Self::Saved(saved) => saved.map(backing),
        }
    }

    /// Has another process bring the content of RAM, if one shall. From now on there may be further threads.
    #[cfg(feature = "snapshot")]
    pub(crate) fn hand_over(
        &self,
        ram: &GuestRam,
        handle: &VmHandle,
    ) -> Result<Option<Handled>, Error> {
        match self {
            Self::Kernel(..) => Ok(None),
            Self::Saved(saved) => saved.hand_over(ram, handle),
        }
    }

    /// The machine that begins so. `images` are there unless `saved` is.
    pub(crate) fn new(
        platform: &P,
        config: &VmConfig,
        saved: Option<Box<Saved<P>>>,
        images: Option<&'a Images>,
        story: &Story,
    ) -> Result<(MachinePlan, Self), Error> {
        let images = match (saved, images) {
            (Some(saved), _) => {
                let mut plan = saved.plan().clone();
                // They were about another host.
                plan.remarks.clear();
                return Ok((plan, Self::Saved(saved)));
            }
            (None, Some(images)) => images,
            (None, None) => {
                let lost = std::io::ErrorKind::NotFound.into();
                return Err(Error::host("there is no kernel to begin with")(lost));
            }
        };
        let kernel = images.kernel.read(config.guest_memory.bytes())?;
        story.kernel(&kernel);
        let mut plan = platform.setup_memory_layout(&config.machine_for(kernel.guest)?)?;
        config.name_devices(&mut plan);
        let initrd = images.initrd.as_ref();
        plan.remarks.extend(initrd.and_then(Initrd::remark));
        Ok((plan, Self::Kernel(Box::new(kernel), initrd)))
    }

    /// Puts it into a machine; gives what that knows of saved ones.
    pub(crate) fn load(
        self,
        machine: &Empty<'_, P>,
        config: &VmConfig,
        story: &Story,
        timeline: &Timeline,
    ) -> Result<Chain, Error> {
        match self {
            Self::Kernel(kernel, initrd) => {
                let initrd = initrd.zip(config.initrd.as_deref());
                machine.boot(*kernel, initrd, story, timeline)?;
                Ok(Chain::default())
            }
            Self::Saved(mut saved) => {
                saved.load(machine)?;
                timeline.reach(Milestone::Loaded);
                Ok(saved.chain())
            }
        }
    }
}
