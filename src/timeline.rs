//! When the start of a VM reached its milestones.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// A point in the start of a VM. The first ones are reached in this order, what the guest does in
/// any order or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Milestone {
    /// [`Machine::new`](crate::Machine::new) was called.
    Begun,
    /// /dev/kvm is open and has said what the host offers.
    Probed,
    /// The machine is planned; the kernel's file is open, unpacked and known.
    Planned,
    /// The VM is created, guest RAM is mapped and KVM knows it.
    Memory,
    /// The interrupt chip and the vCPUs are created.
    Vcpus,
    /// The devices are made: files, taps and sockets are open.
    Devices,
    /// Kernel and initrd are in guest RAM.
    Loaded,
    /// Tables and registers are written: the machine can run.
    Built,
    /// The first vCPU enters the guest.
    Entered,
    /// The guest has printed, on any console.
    Output,
    /// The guest has sent a request to a disk.
    DiskRequest,
    /// The guest starts its init, as a Linux kernel says on its console unless it is `quiet`.
    Init,
}

impl Milestone {
    /// All, in order.
    pub const ALL: [Self; 12] = [
        Self::Begun,
        Self::Probed,
        Self::Planned,
        Self::Memory,
        Self::Vcpus,
        Self::Devices,
        Self::Loaded,
        Self::Built,
        Self::Entered,
        Self::Output,
        Self::DiskRequest,
        Self::Init,
    ];
}

/// In a log.
impl fmt::Display for Milestone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Begun => "the beginning",
            Self::Probed => "the host is known",
            Self::Planned => "the machine is planned",
            Self::Memory => "guest memory is there",
            Self::Vcpus => "the vCPUs are there",
            Self::Devices => "the devices are there",
            Self::Loaded => "the kernel is loaded",
            Self::Built => "the machine can run",
            Self::Entered => "the guest runs",
            Self::Output => "first output of the guest",
            Self::DiskRequest => "first disk request",
            Self::Init => "the guest starts its init",
        })
    }
}

/// The milestones of a VM and when each was first reached. A clone refers to the same VM.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Arc<[OnceLock<Instant>; Milestone::ALL.len()]>);

impl Timeline {
    /// When a milestone was reached, if it was.
    #[must_use]
    pub fn at(&self, milestone: Milestone) -> Option<Instant> {
        self.0.get(milestone as usize)?.get().copied()
    }

    /// It is reached now, if it was not before.
    pub(crate) fn reach(&self, milestone: Milestone) {
        let Some(point) = self.0.get(milestone as usize) else {
            return;
        };
        point.get_or_init(|| {
            let now = Instant::now();
            let begun = self.at(Milestone::Begun).unwrap_or(now);
            let micros = now.duration_since(begun).as_micros();
            let (ms, rest) = (micros / 1000, micros % 1000);
            log::debug!("reached: {milestone}, after {ms}.{rest:03} ms");
            now
        });
    }
}

/// Output in which the start of init is looked for; a kernel says it early or not at all.
const LOOKED_AT: usize = 1 << 20;
/// How a Linux kernel says it, after the program's name (`run_init_process` of init/main.c).
const INIT: &[u8] = b" as init process";

/// Looks at what a guest prints.
#[derive(Debug)]
pub(crate) struct OutputWatch {
    timeline: Timeline,
    /// The end of what was seen, as far as it may be the start of what is looked for.
    recent: Vec<u8>,
    left: usize,
}

impl OutputWatch {
    pub(crate) fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            recent: Vec::new(),
            left: LOOKED_AT,
        }
    }

    pub(crate) fn see(&mut self, output: &[u8]) {
        if self.left == 0 || output.is_empty() {
            return;
        }
        self.timeline.reach(Milestone::Output);
        self.left = self.left.saturating_sub(output.len());
        self.recent.extend_from_slice(output);
        if self.recent.windows(INIT.len()).any(|window| window == INIT) {
            self.timeline.reach(Milestone::Init);
            self.left = 0;
        }
        let old = self.recent.len().saturating_sub(INIT.len() - 1);
        self.recent.drain(..old);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_milestone_is_reached_once() {
        let timeline = Timeline::default();
        assert_eq!(timeline.at(Milestone::Begun), None);
        timeline.reach(Milestone::Begun);
        let first = timeline.at(Milestone::Begun).unwrap();
        timeline.clone().reach(Milestone::Begun);
        assert_eq!(timeline.at(Milestone::Begun), Some(first));
        for (place, milestone) in Milestone::ALL.into_iter().enumerate() {
            assert_eq!(milestone as usize, place);
            timeline.reach(milestone);
            assert!(timeline.at(milestone) >= Some(first));
        }
    }

    #[test]
    fn init_is_found_however_the_output_is_cut() {
        let text = b"\r\n[    0.5] Run /sbin/init as as init process\r\n";
        for size in 1..=text.len() {
            let timeline = Timeline::default();
            let mut watch = OutputWatch::new(timeline.clone());
            watch.see(b"");
            assert_eq!(timeline.at(Milestone::Output), None);
            for part in text.chunks(size) {
                assert_eq!(timeline.at(Milestone::Init), None);
                watch.see(part);
                if timeline.at(Milestone::Init).is_some() {
                    break;
                }
            }
            assert!(timeline.at(Milestone::Output).is_some());
            assert!(timeline.at(Milestone::Init).is_some(), "parts of {size}");
        }
    }

    #[test]
    fn a_guest_that_prints_for_ever_is_not_looked_at_for_ever() {
        let timeline = Timeline::default();
        let mut watch = OutputWatch::new(timeline.clone());
        for _ in 0..LOOKED_AT / 4096 {
            watch.see(&[b' '; 4096]);
        }
        watch.see(INIT);
        assert_eq!(timeline.at(Milestone::Init), None);
        assert!(watch.recent.capacity() < 3 * 4096);
    }
}
