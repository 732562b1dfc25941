//! What a kernel file says about itself, and what it lacks to boot on this host.

use std::collections::BTreeMap;
use std::path::Path;

use arch::kernel::{BANNER, KernelHeader, KernelImage};
use arch::{BootError, GuestKernel};
use serde::Serialize;

use crate::Error;
use crate::kernel::{MAX_UNPACKED, image};

/// No version text is longer.
const MAX_VERSION: usize = 256;
/// The configuration that is built in with CONFIG_IKCONFIG (Linux kernel/configs.c).
#[cfg(feature = "packed-kernels")]
const CONFIG_START: &[u8] = b"IKCFG_ST";
#[cfg(feature = "packed-kernels")]
const MAX_CONFIG: u64 = 4 << 20;
/// What our machines are made of.
#[cfg(feature = "packed-kernels")]
const OPTIONS: [&str; 9] = [
    "ACPI",
    "SERIAL_8250_CONSOLE",
    "SERIAL_AMBA_PL011_CONSOLE",
    "VIRTIO_BLK",
    "VIRTIO_CONSOLE",
    "VIRTIO_MMIO",
    "VIRTIO_MMIO_CMDLINE_DEVICES",
    "VIRTIO_NET",
    "VIRTIO_PCI",
];

/// A kernel file, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct KernelReport {
    /// The format in words.
    pub format: String,
    /// As `uname -m` names it.
    pub architecture: Option<&'static str>,
    /// What it is to a machine.
    #[serde(skip)]
    pub guest: GuestKernel,
    /// The version text.
    pub version: Option<String>,
    /// How the kernel is packed, from the outside in.
    pub compression: Vec<String>,
    /// Bytes of the file.
    #[serde(rename = "file_size_bytes")]
    pub file_size: u64,
    /// Bytes of guest memory that it takes before it looks for more.
    #[serde(rename = "memory_size_bytes")]
    pub memory_size: Option<u64>,
    /// The guest physical address that it wants; for flat Images, from a 2 MiB boundary on.
    pub load_address: Option<u64>,
    /// How and where it can be entered: guest physical addresses, for flat Images as above.
    pub entries: Vec<(&'static str, u64)>,
    /// The longest kernel command line, in bytes.
    #[serde(rename = "cmdline_limit_bytes")]
    pub cmdline_limit: Option<u64>,
    /// The kernel's own configuration, where it carries it: `y`, `m`, `n` for what matters here.
    pub options: BTreeMap<&'static str, String>,
    /// Why it does not boot on this host; none: it should.
    pub problems: Vec<String>,
    /// What else is good to know.
    pub notes: Vec<String>,
}

/// Looks into a kernel file; nothing is loaded.
///
/// # Errors
/// Names the file that cannot be read, is no kernel, or is damaged.
pub fn inspect(path: &Path) -> Result<KernelReport, Error> {
    let file = image::open("kernel", path)?;
    look(KernelImage::File(file)).map_err(image::kernel_error(path))
}

fn look(file: KernelImage) -> Result<KernelReport, BootError> {
    let file_size = file.size().map_err(BootError::Read)?;
    #[cfg_attr(not(feature = "packed-kernels"), allow(unused_mut))]
    let mut compression = Vec::new();
    #[cfg(not(feature = "packed-kernels"))]
    let image = file;
    #[cfg(feature = "packed-kernels")]
    let image = {
        compression.extend(crate::kernel::unpack::packing(&file, 0)?.map(str::to_owned));
        crate::kernel::unpack::unpack(file, MAX_UNPACKED)?
    };
    let header = image::identify(&image)?;
    let size = image.size().map_err(BootError::Read)?.min(MAX_UNPACKED);
    let mut report = KernelReport {
        format: header.describe(),
        architecture: header.architecture(),
        guest: image::linux(&image, &header),
        version: None,
        compression: Vec::new(),
        file_size,
        memory_size: None,
        load_address: None,
        entries: Vec::new(),
        cmdline_limit: None,
        options: BTreeMap::new(),
        problems: Vec::new(),
        notes: Vec::new(),
    };
    for (protocol, address) in header.entries() {
        report.entries.push((protocol.name(), address));
    }
    // The part that holds the kernel itself, and the kernel as it runs.
    let mut kernel = Vec::new();
    match &header {
        KernelHeader::BzImage(found) => {
            report.memory_size = Some(found.init_size);
            report.load_address = Some(found.pref_address);
            report.cmdline_limit = Some(found.cmdline_size);
            let at = found.version_offset().unwrap_or(u64::MAX);
            let len = found.setup_size.saturating_sub(at).min(MAX_VERSION as u64);
            report.version = line(&read(&image, at.min(size), len)?);
            #[cfg(feature = "packed-kernels")]
            if let Some((offset, size)) = found.payload() {
                compression
                    .extend(crate::kernel::unpack::packing(&image, offset)?.map(str::to_owned));
                match crate::kernel::unpack::unpack_part(&image, offset, size, MAX_UNPACKED) {
                    Ok(Some(bytes)) => kernel = bytes,
                    Ok(None) => report.notes.push(
                        "its inner compression is not known here (the kernel unpacks itself), so \
                         its configuration was not looked for"
                            .to_owned(),
                    ),
                    // It may unpack what we do not.
                    Err(error) => report.notes.push(format!(
                        "the kernel inside, which unpacks itself, cannot be looked into: {error}"
                    )),
                }
            }
            if report.entries.is_empty() {
                report.problems.push(
                    "it has no 64-bit entry: it is a 32-bit kernel, or older than boot protocol 2.12"
                        .to_owned(),
                );
            }
        }
        KernelHeader::Elf(found) => {
            let first = found.segments.first().map(|segment| segment.address);
            let last = found.segments.last();
            let end = last.map(|last| last.address.saturating_add(last.memory_size));
            report.memory_size = first.zip(end).map(|(start, end)| end.saturating_sub(start));
            report.load_address = first;
            kernel = read(&image, 0, size)?;
            if found.pvh_entry.is_none() {
                report.notes.push(
                    "it has no PVH note (CONFIG_PVH) and is entered as a 64-bit Linux kernel"
                        .to_owned(),
                );
            }
        }
        KernelHeader::Image(found) => {
            report.memory_size = Some(found.memory_size);
            report.load_address = Some(found.text_offset);
            kernel = read(&image, 0, size)?;
        }
        other => {
            let what = format!("{} does not boot as it is", other.describe());
            report.problems.push(what);
        }
    }
    report.compression = compression;
    if let Some(found) = report.architecture
        && found != std::env::consts::ARCH
    {
        let here = std::env::consts::ARCH;
        report
            .problems
            .insert(0, format!("it is for {found}, and this host is {here}"));
    }
    if report.version.is_none() {
        let mut banners = find(&kernel, BANNER).filter_map(|text| line(text.get(BANNER.len()..)?));
        // The format of another text begins alike.
        report.version = banners.find(|text| text.starts_with(|c: char| c.is_ascii_digit()));
    }
    #[cfg(feature = "packed-kernels")]
    if let Err(error) = options(&kernel, &mut report) {
        let note = format!("the configuration that it carries cannot be read: {error}");
        report.notes.push(note);
    }
    Ok(report)
}

fn read(image: &KernelImage, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    image
        .read_exact_at(&mut bytes, offset)
        .map_err(BootError::Read)?;
    Ok(bytes)
}

/// The printable text up to the end of a line or a zero.
fn line(bytes: &[u8]) -> Option<String> {
    let known = bytes.get(..MAX_VERSION).unwrap_or(bytes);
    let text = known
        .split(|byte| *byte == 0 || *byte == b'\n')
        .next()
        .filter(|text| !text.is_empty())?;
    let printable = text.iter().all(|byte| (b' '..=b'~').contains(byte));
    printable.then(|| String::from_utf8_lossy(text).trim().to_owned())
}

/// What begins with `pattern`, to the end, wherever that is.
fn find<'a>(bytes: &'a [u8], pattern: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    let first = pattern.first().copied().unwrap_or_default();
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let at = rest.iter().position(|byte| *byte == first)?;
            let here = rest.get(at..)?;
            rest = here.get(1..)?;
            if here.starts_with(pattern) {
                return Some(here);
            }
        }
    })
}

/// Reads the configuration that the kernel carries, if it does.
#[cfg(feature = "packed-kernels")]
fn options(kernel: &[u8], report: &mut KernelReport) -> Result<(), BootError> {
    let gzip = |text: &[u8]| text.starts_with(&[0x1f, 0x8b]);
    let packed = find(kernel, CONFIG_START)
        .filter_map(|found| found.get(CONFIG_START.len()..))
        .find(|rest| gzip(rest));
    let Some(packed) = packed else {
        return Ok(());
    };
    // A copy of a part, which has to be unpacked from an image.
    let most = usize::try_from(MAX_CONFIG).unwrap_or(usize::MAX);
    let packed = packed.get(..most).unwrap_or(packed);
    let size = packed.len() as u64;
    let image = KernelImage::Bytes(std::io::Cursor::new(packed.to_vec().into()));
    let text = crate::kernel::unpack::unpack_part(&image, 0, size, MAX_CONFIG)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let value = |option: &str| {
        text.lines()
            .filter_map(|line| line.strip_prefix("CONFIG_")?.split_once('='))
            .find_map(|(name, value)| (name == option).then(|| value.to_owned()))
            .unwrap_or_else(|| "n".to_owned())
    };
    report.options = OPTIONS
        .iter()
        .map(|option| (*option, value(option)))
        .collect();
    let is = |option: &str, expected: &str| {
        report
            .options
            .get(option)
            .is_some_and(|value| value == expected)
    };
    let mut notes = Vec::new();
    if is("SERIAL_8250_CONSOLE", "n") && is("SERIAL_AMBA_PL011_CONSOLE", "n") {
        notes.push("it prints nothing on a serial console (CONFIG_SERIAL_*_CONSOLE)".to_owned());
    }
    for (option, what) in [
        ("VIRTIO_MMIO", "any virtio device"),
        ("VIRTIO_BLK", "disks"),
        ("VIRTIO_NET", "network devices"),
    ] {
        if is(option, "n") {
            notes.push(format!("it does not know {what} (CONFIG_{option})"));
        } else if is(option, "m") {
            notes.push(format!(
                "the driver for {what} is a module: an initrd has to load it (CONFIG_{option}=m)"
            ));
        }
    }
    report.notes.extend(notes);
    Ok(())
}

#[cfg(all(test, feature = "packed-kernels"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{Cursor, Write};

    use arch::kernel::ImageMachine;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    /// Packed as Linux' build does it.
    fn lz4_legacy(data: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(data);
        let size = u32::try_from(block.len()).unwrap().to_le_bytes();
        [&[2, 0x21, 0x4c, 0x18][..], &size, &block].concat()
    }

    fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn report(image: Vec<u8>) -> KernelReport {
        look(KernelImage::Bytes(Cursor::new(image.into()))).unwrap()
    }

    /// A flat Image that carries a version and a configuration.
    fn flat(magic: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 4096];
        put(&mut image, 8, &0x1_0000u64.to_le_bytes());
        put(&mut image, 16, &0x20_0000u64.to_le_bytes());
        put(&mut image, 56, magic);
        image.extend(b"\0Linux version %s (%s)\nLinux version 6.12.1 (me@here)\n\0");
        image.extend(CONFIG_START);
        image.extend(gzip(
            b"# CONFIG_VIRTIO_NET is not set\nCONFIG_VIRTIO_MMIO=y\nCONFIG_VIRTIO_BLK=m\n",
        ));
        image.extend(b"IKCFG_ED");
        image
    }

    #[test]
    fn a_kernel_tells_its_version_and_its_configuration() {
        for machine in ImageMachine::ALL {
            let (magic, architecture) = (machine.magic(), machine.name());
            let plain = report(flat(magic));
            assert_eq!(plain.format, format!("{architecture} Image"));
            assert_eq!(plain.version.as_deref(), Some("6.12.1 (me@here)"));
            assert_eq!(plain.entries, [("device tree", 0x1_0000)]);
            assert_eq!(plain.memory_size, Some(0x20_0000));
            assert_eq!(plain.options["VIRTIO_MMIO"], "y");
            assert_eq!(plain.options["VIRTIO_NET"], "n");
            let notes = plain.notes.join("\n");
            for note in [
                "CONFIG_SERIAL_*",
                "network devices (CONFIG_VIRTIO_NET)",
                "VIRTIO_BLK=m",
            ] {
                assert!(notes.contains(note), "{note}: {notes}");
            }
            let packed = report(gzip(&flat(magic)));
            assert_eq!(packed.compression, ["gzip"]);
            assert_eq!(
                (packed.version, packed.options),
                (plain.version, plain.options)
            );
            let here = plain.architecture == Some(std::env::consts::ARCH);
            assert_eq!(plain.problems.is_empty(), here, "{:?}", plain.problems);
        }
    }

    /// A bzImage around a packed kernel.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 5 * 512];
        put(&mut image, 0x1f1, &[4]);
        put(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
        put(&mut image, 0x202, b"HdrS\x0f\x02");
        put(&mut image, 0x20e, &0x200u16.to_le_bytes());
        put(&mut image, 0x211, &[1]);
        put(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
        put(&mut image, 0x234, &[1, 0, 1]);
        put(&mut image, 0x238, &2047u32.to_le_bytes());
        let size = u32::try_from(payload.len()).unwrap();
        put(&mut image, 0x24c, &size.to_le_bytes());
        put(&mut image, 0x258, &0x100_0000u64.to_le_bytes());
        put(&mut image, 0x400, b"6.1.0 (me@here) #1\0");
        image.extend(payload);
        image
    }

    #[test]
    fn a_bzimage_is_looked_into() {
        let found = report(bzimage(&gzip(&flat(b"none"))));
        assert_eq!(found.version.as_deref(), Some("6.1.0 (me@here) #1"));
        assert_eq!(
            (found.load_address, found.cmdline_limit),
            (Some(0x100_0000), Some(2047))
        );
        assert_eq!(found.entries, [("64-bit Linux", 0x100_0200)]);
        assert_eq!(found.compression, ["gzip"]);
        assert_eq!(found.options["VIRTIO_BLK"], "m");

        let lz4 = [&lz4_legacy(&flat(b"none"))[..], &[1, 2, 3, 0]].concat();
        for payload in [lz4, b"\xfd7zXZ\0and so on".to_vec()] {
            let damaged = report(bzimage(&payload));
            let note = damaged.notes.join("\n");
            assert!(note.contains("cannot be looked into: the "), "{note}");
        }
        let lz4 = lz4_legacy(&flat(b"none"));
        let size = u32::try_from(flat(b"none").len()).unwrap().to_le_bytes();
        let found = report(bzimage(&[&lz4[..], &size].concat()));
        assert_eq!(found.compression, ["lz4"]);
        assert_eq!(found.options["VIRTIO_BLK"], "m");

        let unknown = report(bzimage(b"BZh9 and so on"));
        assert_eq!(unknown.compression, ["bzip2"]);
        assert!(unknown.options.is_empty());
        assert!(unknown.notes[0].contains("inner compression"));

        let mut old = bzimage(b"");
        put(&mut old, 0x206, &0x0208u16.to_le_bytes());
        old.extend([0; 64]);
        assert!(report(old).problems.join("").contains("no 64-bit entry"));
    }

    #[test]
    fn r28_a_damaged_configuration_is_a_note() {
        let mut image = flat(b"ARM\x64");
        let at = image.len() - 30;
        image.truncate(at);
        let found = report(image);
        assert!(
            found.notes.join("").contains("cannot be read"),
            "{:?}",
            found.notes
        );
    }
}
