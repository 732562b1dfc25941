//! Writes and reads a disk at random, past the page cache, from several threads, and knows what each
//! block must hold.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Random, Result};

const BLOCK: usize = 4096;
/// Blocks of the largest request.
const MOST: usize = 64;
const THREADS: u64 = 4;
/// Blocks that each thread uses.
const AREA: u64 = 2048;

/// Direct I/O wants this alignment.
#[repr(align(4096))]
struct Buffer([u8; MOST * BLOCK]);

/// What a block holds after it was written so many times.
fn content(block: u64, times: u64, bytes: &mut [u8]) {
    Random::new(block << 32 | times).fill(bytes);
}

pub(crate) fn verify(device: &str, seconds: u64) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(device)
    };
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let file = open()?;
            Ok(thread::spawn(move || area(&file, number, end)))
        })
        .collect::<Result<_>>()?;
    let mut requests = 0;
    for thread in threads {
        let done = thread.join().map_err(|_| "a thread panicked")?;
        requests += done?;
    }
    Ok(format!("verified {device} with {requests} requests"))
}

/// One thread's part of the disk.
fn area(file: &File, number: u64, end: Instant) -> std::result::Result<u64, String> {
    let mut times = vec![0u64; usize::try_from(AREA).unwrap_or(0)];
    let mut random = Random::new(number + 1);
    let mut buffer = Box::new(Buffer([0; MOST * BLOCK]));
    let mut expected = vec![0; BLOCK];
    let mut requests = 0;
    // Once more over everything at the end.
    let mut last_pass = (0..AREA).step_by(MOST);
    loop {
        let going_on = Instant::now() < end;
        let (first, count, write) = if going_on {
            let count = 1 + random.next() % MOST as u64;
            (
                random.next() % (AREA - count),
                count,
                random.next().is_multiple_of(2),
            )
        } else {
            match last_pass.next() {
                Some(first) => (first, MOST as u64, false),
                None => return Ok(requests),
            }
        };
        let len = usize::try_from(count).unwrap_or(MOST) * BLOCK;
        let offset = (number * AREA + first) * BLOCK as u64;
        let bytes = &mut buffer.0[..len];
        let area = &mut times[usize::try_from(first).unwrap_or(0)..];
        if write {
            for (block, (times, bytes)) in
                (first..).zip(area.iter_mut().zip(bytes.chunks_mut(BLOCK)))
            {
                *times += 1;
                content(number * AREA + block, *times, bytes);
            }
            file.write_all_at(bytes, offset)
                .map_err(|error| format!("writing at {offset}: {error}"))?;
            if random.next().is_multiple_of(64) {
                file.sync_data().map_err(|error| error.to_string())?;
            }
        } else {
            file.read_exact_at(bytes, offset)
                .map_err(|error| format!("reading at {offset}: {error}"))?;
            for (block, (times, bytes)) in (first..).zip(area.iter().zip(bytes.chunks(BLOCK))) {
                if *times == 0 {
                    // Never written: anything may be there.
                    continue;
                }
                content(number * AREA + block, *times, &mut expected);
                if bytes != expected {
                    return Err(format!(
                        "block {block} of area {number} holds something else"
                    ));
                }
            }
        }
        requests += 1;
    }
}
