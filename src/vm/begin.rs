//! With what a machine begins: a kernel, or the state of a machine that was saved.

use arch::{KvmPlatform, MachinePlan};

use crate::kernel::image::{Initrd, Kernel};
#[cfg(feature = "snapshot")]
pub(crate) use crate::snapshot::load::Saved;
use crate::timeline::{Milestone, Timeline};
use crate::vm::empty::Empty;
use crate::vm::opening::Images;
use crate::vm::story::Story;
use crate::{Error, VmConfig};

/// A saved machine, of which this build knows nothing.
#[cfg(not(feature = "snapshot"))]
pub(crate) struct Saved<P>(std::convert::Infallible, std::marker::PhantomData<P>);

#[cfg(not(feature = "snapshot"))]
impl<P> Saved<P> {
    fn plan(&self) -> &MachinePlan {
        match self.0 {}
    }

    fn content(&self) -> &std::fs::File {
        match self.0 {}
    }

    fn load(&self, _: &Empty<'_, P>) -> Result<(), Error>
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
    /// What RAM has at first, if it is not zeros.
    pub(crate) fn content(&self) -> Option<&std::fs::File> {
        match self {
            Self::Kernel(..) => None,
            Self::Saved(saved) => Some(saved.content()),
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

    /// Puts it into a machine.
    pub(crate) fn load(
        self,
        machine: &Empty<'_, P>,
        config: &VmConfig,
        story: &Story,
        timeline: &Timeline,
    ) -> Result<(), Error> {
        match self {
            Self::Kernel(kernel, initrd) => {
                let initrd = initrd.zip(config.initrd.as_deref());
                machine.boot(*kernel, initrd, story, timeline)
            }
            Self::Saved(saved) => {
                saved.load(machine)?;
                timeline.reach(Milestone::Loaded);
                Ok(())
            }
        }
    }
}
