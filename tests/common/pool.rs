//! Huge pages for a test: as root it may fill the host's pool for a while.

#![allow(clippy::unwrap_used)]

use std::fs::{File, read_to_string, write};

use rustix::fs::{FlockOperation, flock};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Pages of 2 MiB that are free while this lives. Tests that want some wait for each other.
#[derive(Debug)]
pub(crate) struct HugePagePool {
    /// Its lock ends with it.
    _lock: File,
    /// What the pool had, if it was changed.
    before: Option<u64>,
}

impl HugePagePool {
    /// So many free pages, and no more; `None`, loudly, where that cannot be.
    pub(crate) fn with(pages: u64) -> Option<Self> {
        let skip = |why: &str| -> Option<Self> {
            eprintln!("SKIPPED: {pages} huge pages of 2 MiB are needed: {why}");
            None
        };
        let Ok(lock) = File::open(format!("{POOL}/nr_hugepages")) else {
            return skip("this host has none");
        };
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut pool = Self {
            _lock: lock,
            before: None,
        };
        let before = count("nr_hugepages");
        let used = before - Self::free();
        if write(format!("{POOL}/nr_hugepages"), (used + pages).to_string()).is_err() {
            return skip("only root can add some");
        }
        pool.before = Some(before);
        if Self::free() != pages {
            return skip("the kernel finds no more");
        }
        Some(pool)
    }

    /// Pages that nobody has or was promised.
    pub(crate) fn free() -> u64 {
        count("free_hugepages") - count("resv_hugepages")
    }
}

impl Drop for HugePagePool {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = write(format!("{POOL}/nr_hugepages"), before.to_string());
        }
    }
}

fn count(name: &str) -> u64 {
    let text = read_to_string(format!("{POOL}/{name}")).unwrap();
    text.trim().parse().unwrap()
}
