//! What only its platform can read of a saved machine, and whether a host has what the machine was promised.

use arch::{Difference, Platform};

use super::Snapshot;
use super::saved::{VCPUS, check_len, from_bytes};
use crate::Error;

/// The sections that a platform has written.
#[derive(Debug)]
pub(crate) struct PlatformState<P: Platform> {
    pub(crate) vcpus: Vec<P::VcpuState>,
    pub(crate) chip: P::ChipState,
    pub(crate) clock: P::ClockState,
}

impl Snapshot {
    /// What the machine was promised and a host has not, whose facts `host` holds: it can go on there if there is
    /// nothing, as far as that can be said without KVM. The platform then keeps what the machine was promised.
    ///
    /// # Errors
    /// When the platform cannot read what is saved: it is of another architecture, or damaged.
    pub fn differences<P: Platform>(&self, host: &mut P) -> Result<Vec<Difference>, Error> {
        self.judge(host).map(|(_, differences)| differences)
    }

    /// The same, with all that the platform has read.
    pub(crate) fn judge<P: Platform>(
        &self,
        host: &mut P,
    ) -> Result<(PlatformState<P>, Vec<Difference>), Error> {
        let parts = &self.parts;
        let refuse = |cause| self.refuse(cause);
        let count = usize::try_from(parts.plan.vcpus).unwrap_or(usize::MAX);
        check_len(VCPUS, parts.vcpus.len(), parts.plan.vcpus).map_err(refuse)?;
        let vcpus: Vec<P::VcpuState> = from_bytes(VCPUS, &parts.vcpus).map_err(refuse)?;
        if vcpus.len() != count {
            return Err(refuse("its vCPUs are not the machine's".to_owned()));
        }
        let state = PlatformState {
            vcpus,
            chip: from_bytes("chip", &parts.chip).map_err(refuse)?,
            clock: from_bytes("clock", &parts.clock).map_err(refuse)?,
        };
        let promise = from_bytes("promise", &parts.promise).map_err(refuse)?;
        Ok((state, host.keep(promise)))
    }
}
