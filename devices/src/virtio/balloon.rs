//! The memory balloon (VIRTIO 1.3, 5.5): memory that the guest does without goes back to the host.
//!
//! The guest is asked to give up so many pages, and names them; pages that it has freed it may
//! report at any time. In both cases the host may take them at once.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::GuestAddress;

use super::release::release;
use super::{Chain, ConfigSpace, Event, GuestRam, Monitor, QueueError, Queues, Ring, VirtioDevice};
use crate::config::{BalloonConfig, OptionError, size_with_unit};
use crate::metrics::Operation;
use crate::{Change, ChangeError, Rare};

/// Feature bits (5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Where the configuration has the number of pages that the driver has given (5.5.4).
const ACTUAL_AT: usize = 4;
const QUEUE_SIZE: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Without statistics and hints, which are not offered, the next number is that of reports.
const REPORTING: usize = 2;
/// The unit of every number in this device, whatever the guest's own pages are.
const PAGE_SHIFT: u32 = 12;
/// The most bytes of page numbers of one request; Linux sends 1 KiB.
const MOST: usize = 4 << 10;
/// Requests before other events have their turn: each page may be a system call.
const TURN: usize = 8;

/// A balloon.
#[derive(Debug)]
pub struct Balloon {
    /// Bytes of the guest's RAM.
    ram: u64,
    deflate_on_oom: bool,
    reporting: bool,
    config: Arc<ConfigSpace>,
    chain: Chain,
    numbers: Vec<u8>,
    errors: Rare,
    monitor: Arc<Monitor>,
    /// By queue.
    counts: [Arc<Operation>; 3],
}

impl Balloon {
    /// A balloon in a machine with `ram` bytes of RAM, of which the guest is left with the target.
    #[must_use]
    pub fn new(config: &BalloonConfig, ram: u64) -> Self {
        let pages = wanted(ram, config.target.unwrap_or(ram));
        // How many pages it shall have, and how many it has, which the driver tells.
        let mut space = pages.to_le_bytes().to_vec();
        let mut monitor = Monitor::default();
        let counts = ["inflate", "deflate", "report"].map(|name| monitor.operation(name));
        space.extend([0; 4]);
        Self {
            ram,
            deflate_on_oom: config.deflate_on_oom,
            reporting: config.free_page_reporting,
            config: Arc::new(ConfigSpace::new(space, 4..8)),
            chain: Chain::default(),
            numbers: Vec::new(),
            errors: Rare::default(),
            monitor: Arc::new(monitor),
            counts,
        }
    }

    /// Other bytes of RAM that the guest is left with.
    fn leave(&self, target: u64, queues: Option<&Queues>) -> Result<(), ChangeError> {
        if target > self.ram {
            let cause = format!("the guest has {} of memory", size_with_unit(self.ram));
            let target = size_with_unit(target);
            return Err(OptionError::Value("target", target, cause).into());
        }
        self.config
            .update(0, &wanted(self.ram, target).to_le_bytes());
        if let Some(queues) = queues {
            queues.config_changed();
        }
        Ok(())
    }

    /// Gives the pages of a chain of page numbers back, runs of them at once.
    fn inflate(&mut self, ring: &Ring) -> Result<(), QueueError> {
        let ram = ring.ram();
        let len = self.chain.readable_len().min(MOST as u64);
        self.numbers.resize(usize::try_from(len).unwrap_or(MOST), 0);
        self.chain.read(ram, &mut self.numbers)?;
        let mut run = 0..0u64;
        let (numbers, _) = self.numbers.as_chunks::<4>();
        for number in numbers
            .iter()
            .map(|bytes| u64::from(u32::from_le_bytes(*bytes)))
        {
            if number == run.end {
                run.end += 1;
            } else if ring.is_stopping() {
                return Ok(());
            } else {
                self.release(ram, run.start << PAGE_SHIFT, run.end - run.start);
                run = number..number + 1;
            }
        }
        self.release(ram, run.start << PAGE_SHIFT, run.end - run.start);
        Ok(())
    }

    fn release(&self, ram: &GuestRam, address: u64, pages: u64) {
        let len = usize::try_from(pages << PAGE_SHIFT).unwrap_or(0);
        if let Err(error) = release(ram, GuestAddress(address), len)
            && let Some(times) = self.errors.again()
        {
            log::warn!("memory could not be given back, {times} times so far: {error}");
        }
    }
}

/// Pages in the balloon of a guest that is left with `target` bytes.
fn wanted(ram: u64, target: u64) -> u32 {
    u32::try_from(ram.saturating_sub(target) >> PAGE_SHIFT).unwrap_or(u32::MAX)
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "virtio-balloon"
    }

    fn features(&self) -> u64 {
        let mut features = 0;
        if self.deflate_on_oom {
            features |= 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM;
        }
        if self.reporting {
            features |= 1 << VIRTIO_BALLOON_F_REPORTING;
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; if self.reporting { 3 } else { 2 }]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn monitor(&self) -> Arc<Monitor> {
        Arc::clone(&self.monitor)
    }

    fn serve(&mut self, event: Event, queues: &mut Queues) -> Result<bool, QueueError> {
        let Event::Queue(queue) = event else {
            return Ok(false);
        };
        let Some(ring) = queues.ring(queue) else {
            return Ok(false);
        };
        let mut more = true;
        for _ in 0..TURN {
            more = ring.pop(&mut self.chain)?;
            if !more {
                break;
            }
            match queue {
                INFLATE => self.inflate(ring)?,
                // Whatever is touched again is there again.
                DEFLATE => {}
                REPORTING => {
                    for buffer in self.chain.writable() {
                        if ring.is_stopping() {
                            break;
                        }
                        let pages = u64::from(buffer.len) >> PAGE_SHIFT;
                        self.release(ring.ram(), buffer.address.0, pages);
                    }
                }
                _ => {}
            }
            if let Some(operation) = self.counts.get(queue) {
                operation.succeed(0);
            }
            ring.complete(self.chain.head(), 0)?;
        }
        queues.publish()?;
        Ok(more)
    }

    fn change(&mut self, change: &Change, queues: Option<&Queues>) -> Result<(), ChangeError> {
        match change {
            Change::Target(target) => self.leave(*target, queues),
            _ => Err(ChangeError::Foreign),
        }
    }

    /// The next driver begins with no page.
    fn stop(&mut self) {
        self.config.update(ACTUAL_AT, &[0; 4]);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::virtio::testing::{DATA, Driver, RAM, queues, ram};

    /// Where the tests look for what is given back.
    const VICTIM: u64 = 0x4_0000;

    struct Bench {
        device: Balloon,
        queues: Queues,
        ram: GuestRam,
    }

    fn bench() -> Bench {
        let ram = ram();
        ram.write_slice(&[1; 0x1_0000], GuestAddress(VICTIM))
            .unwrap();
        let config = BalloonConfig {
            id: None,
            target: Some(RAM as u64 / 2),
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        Bench {
            device: Balloon::new(&config, RAM as u64),
            queues: queues(&ram, 3),
            ram,
        }
    }

    impl Bench {
        /// Which of the first pages still have their content.
        fn kept(&self) -> Vec<bool> {
            let page = |page: u64| {
                let address = GuestAddress(VICTIM + (page << PAGE_SHIFT));
                self.ram.read_obj::<u8>(address).unwrap() == 1
            };
            (0..8).map(page).collect()
        }

        fn inflate(&mut self, numbers: &[u32]) {
            let mut driver = Driver::of_queue(&self.ram, INFLATE);
            // Every run of the test begins with rings that are new.
            self.queues = queues(&self.ram, 3);
            driver.put(0x2000, [0u16; 2]);
            driver.put(0x3000, [0u16; 2]);
            for (place, number) in (0u64..).zip(numbers) {
                driver.put(DATA + 4 * place, *number);
            }
            let len = u32::try_from(4 * numbers.len()).unwrap();
            driver.request(&[(DATA, len, false)]);
            let used = driver.serve(&mut self.device, &mut self.queues);
            assert_eq!(used, [(0, 0)]);
        }
    }

    #[test]
    fn the_guest_is_asked_for_what_is_above_the_target() {
        let bench = bench();
        let mut pages = [0; 4];
        bench.device.config().read(0, &mut pages);
        assert_eq!(u32::from_le_bytes(pages) as usize, (RAM / 2) >> PAGE_SHIFT);
        bench.device.config().write(0, &[9; 8]);
        bench.device.config().read(0, &mut pages);
        assert_ne!(pages, [9; 4], "the driver writes only what it has");
    }

    #[test]
    fn pages_that_the_guest_names_are_given_back() {
        let mut bench = bench();
        let first = u32::try_from(VICTIM >> PAGE_SHIFT).unwrap();
        bench.inflate(&[first + 1, first + 2, first + 5]);
        let kept = [true, false, false, true, true, false, true, true];
        assert_eq!(bench.kept(), kept);
        assert_eq!(
            bench.device.monitor().read().operations["inflate"].requests,
            1
        );
    }

    #[test]
    fn r20_pages_beyond_ram_are_no_pages() {
        let mut bench = bench();
        bench.inflate(&[u32::MAX, 0x100, 0xff_ffff, u32::MAX - 1]);
        bench.inflate(&[]);
        assert_eq!(bench.kept(), [true; 8]);
    }

    #[test]
    fn reported_ranges_are_given_back_as_far_as_they_are_whole_pages() {
        let mut bench = bench();
        let mut driver = Driver::of_queue(&bench.ram, REPORTING);
        driver.request(&[
            (VICTIM, 0x2000, true),
            (VICTIM + 0x3100, 0x1000, true),
            (VICTIM + 0x5000, 0x1fff, true),
            (VICTIM + 0x7000, 0, true),
        ]);
        driver.serve(&mut bench.device, &mut bench.queues);
        let kept = [false, false, true, true, true, false, true, true];
        assert_eq!(bench.kept(), kept);
    }
}
