//! The host's caches, as facts, and how the device tree describes them.
//!
//! An Arm processor tells a guest the shape of its caches, not who shares them. The nodes follow
//! the Devicetree Specification 0.4, 3.8.1 and 3.9.

use arch::VcpuId;
use serde::{Deserialize, Serialize};
use vm_fdt::{Error, FdtWriter};

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Data.
    Data,
    /// Instructions.
    Instruction,
    /// Both.
    Unified,
}

/// One cache as processor 0 has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Its distance from the processor, from 1.
    pub level: u8,
    /// What it holds.
    pub kind: Kind,
    /// Size in bytes.
    pub size: u32,
    /// Line size in bytes.
    pub line: u32,
    /// Number of sets.
    pub sets: u32,
    /// Whether other processors use it too.
    pub shared: bool,
}

/// The most levels that are described.
const MAX_LEVEL: u8 = 4;
/// Handles of the outer caches: one block per level, an own cache of vCPU n at n, a shared one at 0.
const FIRST_HANDLE: u32 = 0x1_0000;

/// The caches beyond the first level, from the nearest on, without gaps.
fn outer(caches: &[Cache]) -> impl Iterator<Item = &Cache> {
    (2..=MAX_LEVEL).map_while(|level| {
        caches
            .iter()
            .find(|cache| cache.level == level && cache.kind == Kind::Unified)
    })
}

fn handle(cache: &Cache, id: VcpuId) -> u32 {
    let owner = if cache.shared { 0 } else { id };
    FIRST_HANDLE * u32::from(cache.level) + owner
}

fn properties(fdt: &mut FdtWriter, prefix: &str, cache: &Cache) -> Result<(), Error> {
    for (name, value) in [
        ("cache-size", cache.size),
        ("cache-line-size", cache.line),
        ("cache-sets", cache.sets),
    ] {
        fdt.property_u32(&format!("{prefix}{name}"), value)?;
    }
    Ok(())
}

/// Describes the first level in the node of a vCPU, and points to the next.
pub(crate) fn describe_own(fdt: &mut FdtWriter, caches: &[Cache], id: VcpuId) -> Result<(), Error> {
    for cache in caches.iter().filter(|cache| cache.level == 1) {
        let prefix = match cache.kind {
            Kind::Data => "d-",
            Kind::Instruction => "i-",
            Kind::Unified => "",
        };
        properties(fdt, prefix, cache)?;
    }
    match outer(caches).next() {
        Some(next) => fdt.property_u32("next-level-cache", handle(next, id)),
        None => Ok(()),
    }
}

/// Describes the outer levels, once for everyone who shares them.
pub(crate) fn describe_outer(
    fdt: &mut FdtWriter,
    caches: &[Cache],
    vcpus: u32,
) -> Result<(), Error> {
    let levels: Vec<_> = outer(caches).collect();
    for (place, cache) in levels.iter().enumerate() {
        let next = levels.get(place + 1);
        let owners = if cache.shared { 1 } else { vcpus };
        for id in 0..owners {
            let node = fdt.begin_node(&format!("l{}-cache{id}", cache.level))?;
            fdt.property_string("compatible", "cache")?;
            fdt.property_u32("cache-level", cache.level.into())?;
            fdt.property_null("cache-unified")?;
            properties(fdt, "", cache)?;
            if let Some(next) = next {
                fdt.property_u32("next-level-cache", handle(next, id))?;
            }
            fdt.property_phandle(handle(cache, id))?;
            fdt.end_node(node)?;
        }
    }
    Ok(())
}

/// The caches of an invented, typical server: two levels of its own, a third that all share.
pub(crate) fn typical() -> Vec<Cache> {
    let cache = |level, kind, size, sets, shared| Cache {
        level,
        kind,
        size,
        line: 64,
        sets,
        shared,
    };
    vec![
        cache(1, Kind::Data, 64 << 10, 256, false),
        cache(1, Kind::Instruction, 64 << 10, 256, false),
        cache(2, Kind::Unified, 1 << 20, 2048, false),
        cache(3, Kind::Unified, 32 << 20, 32768, true),
    ]
}

/// A cache from the files that Linux has of it (Documentation/ABI/testing/sysfs-devices-system-cpu).
/// `None` where one is missing or makes no sense.
pub fn parse(read: impl Fn(&str) -> Option<String>) -> Option<Cache> {
    let number = |name| read(name)?.trim().parse::<u32>().ok();
    let kind = match read("type")?.trim() {
        "Data" => Kind::Data,
        "Instruction" => Kind::Instruction,
        "Unified" => Kind::Unified,
        _ => return None,
    };
    let size = read("size")?;
    let size = size.trim().strip_suffix('K')?.parse::<u32>().ok()?;
    let sharers = read("shared_cpu_list")?;
    Some(Cache {
        level: u8::try_from(number("level")?).ok()?,
        kind,
        size: size.checked_mul(1024)?,
        line: number("coherency_line_size")?,
        sets: number("number_of_sets")?,
        shared: sharers.trim().contains([',', '-']),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> Option<String> {
        let text = match name {
            "level" => "2\n",
            "type" => "Unified\n",
            "size" => "1024K\n",
            "coherency_line_size" => "64\n",
            "number_of_sets" => "2048\n",
            "shared_cpu_list" => "0-3\n",
            _ => return None,
        };
        Some(text.to_owned())
    }

    #[test]
    fn linux_files_become_a_cache() {
        let cache = parse(file).unwrap();
        assert_eq!((cache.level, cache.kind), (2, Kind::Unified));
        assert_eq!((cache.size, cache.line, cache.sets), (1 << 20, 64, 2048));
        assert!(cache.shared);
        // A file that is missing: nothing is known, and nothing is made up.
        for missing in ["level", "type", "size", "number_of_sets", "shared_cpu_list"] {
            let without = |name: &str| file(name).filter(|_| name != missing);
            assert_eq!(parse(without), None, "{missing}");
        }
    }

    #[test]
    fn levels_are_described_up_to_the_first_gap() {
        let mut caches = typical();
        assert_eq!(outer(&caches).count(), 2);
        caches.retain(|cache| cache.level != 2);
        assert_eq!(outer(&caches).count(), 0);
    }
}
