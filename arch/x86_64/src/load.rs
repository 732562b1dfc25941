//! Where a kernel goes and how it is entered, decided before anything is copied.
//!
//! Nothing in a header is trusted: whatever comes out of here lies in the kernel window.

use arch::kernel::{BzImage, Elf, KernelHeader, Protocol, Segment};
use arch::{AddressRange, BootError, KernelPlacement};

/// `xloadflags` bit 0 (XLF_KERNEL_64): there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1 << 0;
/// The 64-bit entry's offset from the load address (Documentation/arch/x86/boot.rst).
const ENTRY_64_OFFSET: u64 = 0x200;

/// Places a kernel in `window`.
///
/// # Errors
/// When it does not fit there, or has no entry that this backend can use.
pub fn place(header: &KernelHeader, window: AddressRange) -> Result<KernelPlacement, BootError> {
    match header {
        KernelHeader::BzImage(image) => place_bzimage(image, window),
        KernelHeader::Elf(elf) => place_elf(elf, window),
        other => Err(other.refused("x86_64")),
    }
}

fn kernel_error(text: String) -> BootError {
    BootError::Kernel(text)
}

/// The address is `runtime_start` of boot.rst: a relocatable kernel is never run below its
/// preferred address, so it is not loaded there either.
fn place_bzimage(image: &BzImage, window: AddressRange) -> Result<KernelPlacement, BootError> {
    if image.xloadflags & XLF_KERNEL_64 == 0 {
        let text = "bzImage without a 64-bit entry: build it with CONFIG_X86_64";
        return Err(kernel_error(text.to_owned()));
    }
    if image.kernel_size <= ENTRY_64_OFFSET {
        let text = "the bzImage ends before its 64-bit entry";
        return Err(kernel_error(text.to_owned()));
    }
    let size = image.init_size.max(image.kernel_size);
    let base = if image.relocatable {
        let lowest = image.pref_address.max(window.base);
        lowest.checked_next_multiple_of(image.alignment.max(1))
    } else {
        Some(image.pref_address)
    };
    let range = base.map(|base| AddressRange::new(base, size));
    let range = fits(range, size, window)?;
    Ok(KernelPlacement {
        entry: range.base.saturating_add(ENTRY_64_OFFSET),
        range,
        initrd_limit: Some(image.initrd_addr_max.saturating_add(1)),
        protocol: Protocol::Linux64,
        setup_header: image.header.clone(),
    })
}

/// An ELF kernel goes where its segments say; its PVH entry, where it has one, is the one that
/// says what it expects.
fn place_elf(elf: &Elf, window: AddressRange) -> Result<KernelPlacement, BootError> {
    let mut all: Option<AddressRange> = None;
    for segment in &elf.segments {
        let range = AddressRange::new(segment.address, segment.memory_size);
        let range = fits(segment_range(segment), range.len, window)?;
        all = Some(all.map_or(range, |all| {
            let base = all.base.min(range.base);
            AddressRange::new(base, all.end().max(range.end()).saturating_sub(base))
        }));
    }
    let range = all.ok_or_else(|| kernel_error("the ELF kernel has no segments".to_owned()))?;
    let (entry, protocol) = match elf.pvh_entry {
        Some(entry) => (entry, Protocol::Pvh),
        None => (elf.entry, Protocol::Linux64),
    };
    let inside = |segment: &Segment| {
        segment_range(segment).is_some_and(|range| range.contains(&AddressRange::new(entry, 1)))
    };
    if !elf.segments.iter().any(inside) {
        let text = format!("the entry point {entry:#x} lies outside the ELF kernel's segments");
        return Err(kernel_error(text));
    }
    Ok(KernelPlacement {
        entry,
        range,
        initrd_limit: None,
        protocol,
        setup_header: Vec::new(),
    })
}

/// What a segment covers in memory; `None` when that wraps or the file has more than that.
fn segment_range(segment: &Segment) -> Option<AddressRange> {
    segment.address.checked_add(segment.memory_size)?;
    (segment.file_size <= segment.memory_size)
        .then(|| AddressRange::new(segment.address, segment.memory_size))
}

fn fits(
    range: Option<AddressRange>,
    size: u64,
    window: AddressRange,
) -> Result<AddressRange, BootError> {
    let place = range.map_or_else(
        || "an impossible address".to_owned(),
        |r| format!("{:#x}", r.base),
    );
    range
        .filter(|range| range.base.checked_add(size).is_some() && window.contains(range))
        .ok_or_else(|| BootError::TooLarge {
            what: "the kernel",
            size,
            cause: format!(
                "it has to be at {place}, and RAM for kernels is {:#x} to {:#x}",
                window.base,
                window.end(),
            ),
        })
}

#[cfg(test)]
mod tests;
