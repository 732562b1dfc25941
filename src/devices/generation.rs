//! The generation ID of a machine: what is written where the plan has it, and how the guest is told of it.

use std::io;
use std::sync::Arc;

use arch::{GenerationId, Gsi, GuestRam, MachinePlan};
use devices::AcpiPower;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::devices::lines::Lines;
use crate::random::random;
use crate::wake::eventfd;

/// Bytes of an ID.
const LEN: usize = 16;

/// The generation ID of a machine.
pub(crate) struct Generation {
    id: GenerationId,
    bell: Bell,
}

/// What tells the guest.
enum Bell {
    Event(Arc<AcpiPower>),
    Line(EventFd),
}

impl Generation {
    /// That of a plan, if it has one; `power` is what has the machine's ACPI events.
    pub(crate) fn new(
        plan: &MachinePlan,
        lines: &Lines<'_>,
        power: Option<Arc<AcpiPower>>,
    ) -> Result<Option<Self>, Error> {
        let Some(id) = plan.vmgenid else {
            return Ok(None);
        };
        let bell = match (id.irq, power) {
            (Some(gsi), _) => Bell::Line(line(gsi, lines)?),
            (None, Some(power)) => Bell::Event(power),
            (None, None) => {
                let cause = "the plan has no device for its event";
                let cause = io::Error::new(io::ErrorKind::InvalidData, cause);
                return Err(Error::host("cannot make the generation ID")(cause));
            }
        };
        Ok(Some(Self { id, bell }))
    }

    /// Writes an ID that no other machine has, and this one never had.
    pub(crate) fn renew(&self, ram: &GuestRam) -> Result<(), Error> {
        let place = GuestAddress(self.id.range.base);
        ram.write_slice(&random::<LEN>()?, place).map_err(|error| {
            Error::host("cannot write the generation ID to guest memory")(io::Error::other(error))
        })
    }

    /// Tells the guest of it.
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code))]
    pub(crate) fn tell(&self) {
        match &self.bell {
            Bell::Event(power) => power.tell_generation(),
            Bell::Line(line) => {
                // Nothing else writes to it, so there is room.
                let _ = line.write(1);
            }
        }
    }
}

fn line(gsi: Gsi, lines: &Lines<'_>) -> Result<EventFd, Error> {
    let event = eventfd()?;
    (lines.connect)(&event, gsi)?;
    Ok(event)
}
