//! The floor: a thread that reads a file with io_uring and does nothing else.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};

use crate::case::{Case, Places, Sample};
use crate::measure::{Cpu, Result};

/// The places that the guest reads too.
struct Walk {
    places: Places,
    slots: u64,
    state: u64,
}

impl Walk {
    fn next(&mut self) -> u64 {
        match self.places {
            Places::Sequential => self.state += 1,
            Places::Random => {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
            }
        }
        self.state % self.slots
    }
}

/// Reads as a case says.
pub(crate) fn run(case: &Case, path: &Path) -> Result<Sample> {
    let file = File::open(path)?;
    let mut walk = Walk {
        places: case.places,
        slots: file.metadata()?.len() / u64::from(case.len),
        state: 0x9e37_79b9_7f4a_7c15,
    };
    let mut ring = IoUring::new(case.depth.next_power_of_two())?;
    ring.submitter().register_files(&[file.as_raw_fd()])?;
    let buffers: Vec<_> = (0..case.depth)
        .map(|_| vec![0; case.len as usize])
        .collect();
    // Never freed: nothing that is in flight after an error can do harm.
    let buffers = buffers.leak();
    // The first tenth warms up.
    read(&mut ring, buffers, case, case.count / 10, &mut walk)?;
    let task = Path::new("/proc/thread-self");
    let (start, cpu) = (Instant::now(), Cpu::of(task)?);
    read(&mut ring, buffers, case, case.count, &mut walk)?;
    // The time of a running thread is brought up to date when it stops.
    let elapsed = start.elapsed();
    std::thread::yield_now();
    let (cpu, waited) = Cpu::of(task)?.since(cpu);
    Ok(Sample {
        seconds: elapsed.as_secs_f64(),
        cpu,
        waited,
        ..Sample::default()
    })
}

fn read(
    ring: &mut IoUring,
    buffers: &mut [Vec<u8>],
    case: &Case,
    count: u32,
    walk: &mut Walk,
) -> Result<()> {
    let mut free: Vec<u32> = (0..case.depth).collect();
    let (mut begun, mut ended) = (0, 0);
    while ended < count {
        while begun < count
            && let Some(slot) = free.pop()
        {
            let buffer = &mut buffers[slot as usize];
            let entry = opcode::Read::new(Fixed(0), buffer.as_mut_ptr(), case.len)
                .offset(walk.next() * u64::from(case.len))
                .build()
                .user_data(slot.into());
            // SAFETY: the buffer is not used until the read has ended, and is never freed; the file is
            // registered.
            unsafe { ring.submission().push(&entry)? };
            begun += 1;
        }
        ring.submit_and_wait(1)?;
        for entry in ring.completion() {
            let moved = u32::try_from(entry.result());
            if moved != Ok(case.len) {
                return Err(format!("a read of the floor gave {}", entry.result()).into());
            }
            free.push(u32::try_from(entry.user_data())?);
            ended += 1;
        }
    }
    Ok(())
}
