//! Which files have which part of RAM: one that has all of it, and above it layers with what changed since.

use std::fs::File;
use std::io;
use std::ops::Range;

use arch::{AddressRange, MachinePlan};
use serde::{Deserialize, Serialize};

use super::ranges::{self, Ranges, total};
use crate::memory::image::Part;

/// The smallest page that hosts have, and the largest one, in bytes.
pub(super) const PAGE: u64 = 4096;
const LARGEST_PAGE: u64 = 64 << 10;
/// The longest name of a file in bytes, where it is not less.
const LONGEST_NAME: usize = 255;
/// The most layers of a chain.
const MOST_LAYERS: usize = 64;
/// The most runs of all of its layers. Each may be a mapping of a restored machine, and cut the one below it; with what a
/// guest gives back (`devices/src/virtio/release.rs`) these are fewer than a process may have (vm.max_map_count, 65530 by
/// default).
const MOST_RUNS: usize = 12_000;
/// What a further layer may use up of the runs that are left.
const SHARE: usize = 4;
/// With fewer a chain ends.
const FEWEST_RUNS: usize = 64;

/// Where files have which part of RAM. Places in RAM are counted as if its regions lay one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemoryLayout {
    pub(crate) regions: Vec<AddressRange>,
    /// The page size of the host in bytes, of which all runs are multiples.
    pub(crate) page: u64,
    /// The first one is whole; each other one stands above those before it.
    pub(crate) layers: Vec<Layer>,
}

/// A part of RAM in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer {
    /// The file's name, beside the state.
    pub(crate) file: String,
    /// The places in RAM that it has, one after the other in the file.
    pub(crate) runs: Ranges,
}

impl Layer {
    /// How long the file is.
    pub(crate) fn len(&self) -> u64 {
        total(&self.runs)
    }
}

impl MemoryLayout {
    /// That of a machine whose RAM is in one file.
    pub(crate) fn whole(regions: &[AddressRange], file: &str) -> Self {
        let len = regions.iter().map(|range| range.len).sum();
        Self {
            regions: regions.to_vec(),
            page: rustix::param::page_size() as u64,
            layers: vec![Layer {
                file: file.to_owned(),
                runs: std::iter::once(0..len).collect(),
            }],
        }
    }

    /// The same with a layer more, which has these runs and maybe what lies between them; `None` when that would be too
    /// much for a chain.
    pub(crate) fn above(&self, file: &str, runs: Ranges) -> Option<Self> {
        let used: usize = self.layers.iter().map(|layer| layer.runs.len()).sum();
        let most = MOST_RUNS.saturating_sub(used) / SHARE;
        if self.layers.len() >= MOST_LAYERS || most < FEWEST_RUNS {
            return None;
        }
        let mut more = self.clone();
        // The host may be another one by now. What is a multiple of a larger page is one of a smaller.
        more.page = more.page.min(rustix::param::page_size() as u64);
        more.layers.push(Layer {
            file: file.to_owned(),
            runs: ranges::at_most(runs, most),
        });
        Some(more)
    }

    /// Bytes of RAM.
    pub(crate) fn len(&self) -> u64 {
        self.regions.iter().map(|range| range.len).sum()
    }

    /// The last layer.
    pub(crate) fn last(&self) -> Option<&Layer> {
        self.layers.last()
    }

    /// Whether it is that of a machine.
    pub(crate) fn check(&self, plan: &MachinePlan) -> Result<(), String> {
        if self.regions != plan.ram {
            return Err("its memory is not the machine's".to_owned());
        }
        let mut end = 0_u64;
        let mut len = 0;
        for range in &plan.ram {
            let is_whole = range.base.is_multiple_of(PAGE) && range.len.is_multiple_of(PAGE);
            let next = range.base.checked_add(range.len);
            end = next
                .filter(|_| is_whole && range.len > 0 && range.base >= end)
                .ok_or("its memory cannot be a machine's")?;
            len += range.len;
        }
        if !(self.page.is_power_of_two() && (PAGE..=LARGEST_PAGE).contains(&self.page)) {
            return Err(format!("its pages of {} bytes are no host's", self.page));
        }
        let runs: usize = self.layers.iter().map(|layer| layer.runs.len()).sum();
        if self.layers.len() > MOST_LAYERS || runs > MOST_RUNS {
            return Err("its memory is in too many pieces".to_owned());
        }
        for layer in &self.layers {
            check_name(&layer.file)?;
            self.check_runs(&layer.runs, len)?;
        }
        let mut names: Vec<_> = self.layers.iter().map(|layer| &layer.file).collect();
        names.sort_unstable();
        if names
            .windows(2)
            .any(|pair| matches!(pair, [one, next] if one == next))
        {
            return Err("two layers of its memory are the same file".to_owned());
        }
        match self.layers.first() {
            Some(first) if matches!(&first.runs[..], [run] if *run == (0..len)) => Ok(()),
            _ => Err("its first layer of memory is not whole".to_owned()),
        }
    }

    fn check_runs(&self, runs: &[Range<u64>], len: u64) -> Result<(), String> {
        let mut end = 0;
        for run in runs {
            let is_aligned =
                [run.start, run.end].map(|at| at == len || at.is_multiple_of(self.page));
            if is_aligned != [true; 2] || run.is_empty() || run.start < end || run.end > len {
                return Err(format!(
                    "a layer of its memory has no run from {:#x} to {:#x}",
                    run.start, run.end
                ));
            }
            end = run.end;
        }
        Ok(())
    }

    /// Whether its files are as long as they have to be.
    pub(crate) fn check_files(&self, files: &[File]) -> io::Result<()> {
        let wrong = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if files.len() != self.layers.len() {
            return wrong(format!(
                "the machine's memory is in {} files, and {} are given",
                self.layers.len(),
                files.len()
            ));
        }
        for (layer, file) in self.layers.iter().zip(files) {
            let found = file.metadata()?;
            if !found.is_file() || found.len() != layer.len() {
                return wrong(format!(
                    "{} has {} bytes, and the machine's memory {}",
                    layer.file.escape_debug(),
                    found.len(),
                    layer.len()
                ));
            }
        }
        Ok(())
    }

    /// All of RAM: which file has what.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = Vec::new();
        for (file, layer) in self.layers.iter().enumerate() {
            let mut place = 0;
            let layer = layer.runs.iter().map(|run| {
                let part = Part {
                    at: run.start,
                    len: run.end - run.start,
                    file,
                    place,
                };
                place += part.len;
                part
            });
            parts = over(parts, layer);
        }
        parts
    }

    /// The regions of RAM, with their places in it.
    pub(crate) fn regions(&self) -> impl Iterator<Item = (AddressRange, u64)> {
        let mut next = 0;
        self.regions.iter().map(move |range| {
            let offset = next;
            next += range.len;
            (*range, offset)
        })
    }
}

/// A file beside the state, and another one.
fn check_name(file: &str) -> Result<(), String> {
    match file {
        "" | "." | ".." | "state" => Err("its file of memory has no name of its own".to_owned()),
        name if name.contains('/') => Err("its file of memory is not beside it".to_owned()),
        name if name.len() > LONGEST_NAME || name.contains(char::is_control) => {
            Err("its file of memory has a name that no file of ours has".to_owned())
        }
        _ => Ok(()),
    }
}

/// Parts with others above them.
fn over(below: Vec<Part>, above: impl Iterator<Item = Part>) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut above = above.peekable();
    // The end of the last one.
    let mut covered = 0;
    for part in below {
        // Those that begin before its end.
        while let Some(upper) = above.next_if(|upper| upper.at < part.end()) {
            parts.extend(part.cut(covered, upper.at));
            covered = upper.end();
            parts.push(upper);
        }
        parts.extend(part.cut(covered, part.end()));
    }
    parts.extend(above);
    parts
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
