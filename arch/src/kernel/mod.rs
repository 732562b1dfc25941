//! Kernel images: what a file is, where its parts must go and how it is entered.
//!
//! [`KernelHeader::identify`] knows every format on every host, so a kernel for another
//! architecture is named as such. It reads hostile input: every length is checked against the
//! image and every loop is bounded.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Cursor};
use std::os::unix::fs::FileExt;

use crate::BootError;

mod bzimage;
mod elf;
mod foreign;
mod image;
mod linux;
#[cfg(test)]
mod tests;

pub use foreign::{ForeignFile, foreign};
pub use image::ImageMachine;
pub use linux::{BANNER, LinuxVersion};

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The x86 64-bit Linux boot protocol: long mode, zero page in RSI.
    Linux64,
    /// The x86 PVH protocol: 32-bit protected mode, `hvm_start_info` in EBX.
    Pvh,
    /// The arm64 and riscv Image protocol: device tree in a register.
    DeviceTree,
}

impl Protocol {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux64 => "64-bit Linux",
            Self::Pvh => "PVH",
            Self::DeviceTree => "device tree",
        }
    }
}

/// A kernel image that can be read at any offset.
#[derive(Debug)]
pub enum KernelImage {
    /// A file on the host.
    File(File),
    /// An image in memory: the built-in guest, or what was unpacked.
    Bytes(Cursor<Cow<'static, [u8]>>),
}

impl KernelImage {
    /// Its size in bytes.
    ///
    /// # Errors
    /// When the file's metadata cannot be read.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Bytes(bytes) => Ok(bytes.get_ref().len() as u64),
        }
    }

    /// Fills `buffer` from `offset` on; short images are an error.
    ///
    /// # Errors
    /// `UnexpectedEof` when the image ends before the buffer is full.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buffer, offset),
            Self::Bytes(bytes) => {
                let part = usize::try_from(offset)
                    .ok()
                    .and_then(|start| bytes.get_ref().get(start..)?.get(..buffer.len()));
                buffer.copy_from_slice(part.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }
}

/// One loadable piece of an ELF kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the image.
    pub offset: u64,
    /// Bytes in the image.
    pub file_size: u64,
    /// Guest physical address.
    pub address: u64,
    /// Bytes in memory; the rest after `file_size` is zero.
    pub memory_size: u64,
}

/// An x86 bzImage, from its setup header (Linux Documentation/arch/x86/boot.rst).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BzImage {
    /// Boot protocol version, for example 0x020f.
    pub version: u16,
    /// Bytes of real-mode code before the protected-mode kernel: `(setup_sects + 1) * 512`.
    pub setup_size: u64,
    /// Bytes of the protected-mode kernel in the image.
    pub kernel_size: u64,
    /// Memory the kernel needs from its load address on before it reads the memory map.
    pub init_size: u64,
    /// The address the kernel prefers.
    pub pref_address: u64,
    /// Whether it may be loaded elsewhere.
    pub relocatable: bool,
    /// The alignment it needs when relocated.
    pub alignment: u64,
    /// The longest command line, without the final zero.
    pub cmdline_size: u64,
    /// The highest address an initrd may occupy.
    pub initrd_addr_max: u64,
    /// Flags of protocol 2.12: bit 0 64-bit entry, bit 1 may be loaded above 4 GiB.
    pub xloadflags: u16,
    /// The setup header from offset 0x1f1 on, to be copied to the zero page.
    pub header: Vec<u8>,
}

/// An x86_64 ELF kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Entry point for the 64-bit protocol.
    pub entry: u64,
    /// Entry point of the PVH note, when it has one.
    pub pvh_entry: Option<u64>,
    /// The PT_LOAD segments, in ascending order of address, not overlapping.
    pub segments: Vec<Segment>,
}

/// A flat image: loaded as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlatImage {
    /// The machine it is for.
    pub machine: ImageMachine,
    /// Its offset from a 2 MiB boundary.
    pub text_offset: u64,
    /// The first instruction's offset from its first byte.
    pub entry_offset: u64,
    /// Bytes in the image.
    pub file_size: u64,
    /// Memory it occupies from its first byte on, BSS included.
    pub memory_size: u64,
}

/// What a kernel image is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelHeader {
    /// An x86 bzImage.
    BzImage(BzImage),
    /// An x86_64 ELF kernel.
    Elf(Elf),
    /// A flat Image.
    Image(FlatImage),
    /// A kernel in a format that is not booted.
    Other {
        /// What it is ("arm64 ELF").
        name: String,
        /// The architecture it is for, as `uname -m` names it, where that is known.
        architecture: Option<&'static str>,
    },
}

impl KernelHeader {
    /// Finds out what an image is, by content.
    ///
    /// # Errors
    /// [`BootError::WrongFile`] and [`BootError::Kernel`] say why it is no kernel; [`BootError::Read`] when
    /// reading failed.
    pub fn identify(image: &KernelImage) -> Result<Self, BootError> {
        let image = Reader::new(image)?;
        if image.size == 0 {
            return Err(BootError::WrongFile {
                cause: "the file is empty".to_owned(),
                cure: "copy, download or build it again".to_owned(),
            });
        }
        let start = image.prefix(PREFIX)?;
        let magic = |offset: usize, bytes: &[u8]| {
            start
                .get(offset..)
                .is_some_and(|rest| rest.starts_with(bytes))
        };
        if magic(0, b"\x7fELF") {
            return elf::parse(&image, &start);
        }
        if magic(0x1fe, &[0x55, 0xaa]) && magic(0x202, b"HdrS") {
            return bzimage::parse(&image, &start);
        }
        if let Some(machine) = image::machine(&start) {
            return image::parse(&image, &start, machine);
        }
        match foreign::find(&image, &start)? {
            Some(found) => Err(found.refused()),
            None => Err(BootError::WrongFile {
                cause: "no known kernel format (bzImage, ELF, Image)".to_owned(),
                cure: "give a kernel; `file FILE` may tell what this is".to_owned(),
            }),
        }
    }

    /// The architecture it is for, as `uname -m` names it; `None` where the format does not say.
    #[must_use]
    pub fn architecture(&self) -> Option<&'static str> {
        match self {
            Self::BzImage(_) | Self::Elf(_) => Some("x86_64"),
            Self::Image(image) => Some(image.machine.architecture()),
            Self::Other { architecture, .. } => *architecture,
        }
    }

    /// How it can be entered, the best way first, and where: a guest physical address, when it is
    /// loaded where it prefers; of a flat Image, from a 2 MiB boundary on.
    #[must_use]
    pub fn entries(&self) -> Vec<(Protocol, u64)> {
        match self {
            Self::BzImage(image) => image
                .entry_64()
                .map(|entry| (Protocol::Linux64, entry))
                .into_iter()
                .collect(),
            Self::Elf(elf) => elf
                .pvh_entry
                .map(|entry| (Protocol::Pvh, entry))
                .into_iter()
                .chain(elf.entry_64().map(|entry| (Protocol::Linux64, entry)))
                .collect(),
            Self::Image(image) => {
                let entry = image.text_offset.saturating_add(image.entry_offset);
                vec![(Protocol::DeviceTree, entry)]
            }
            Self::Other { .. } => Vec::new(),
        }
    }

    /// The error for a machine, named as `uname -m` does, that does not boot such a kernel.
    #[must_use]
    pub fn refused(&self, machine: &str) -> BootError {
        let cure = match self.architecture() {
            Some(found) if found != machine => {
                format!("give a kernel for {machine}, or run this one on a host that is {found}")
            }
            Some(_) => {
                "give the flat Image (arch/*/boot/Image in the kernel's build; of an ELF file, \
                        objcopy -O binary FILE IMAGE)"
                    .to_owned()
            }
            None => format!("give a kernel for {machine}"),
        };
        BootError::WrongFile {
            cause: format!("{}: {machine} machines do not boot this", self.describe()),
            cure,
        }
    }

    /// The format in words, for messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::BzImage(image) => {
                let (major, minor) = (image.version >> 8, image.version & 0xff);
                format!("x86_64 bzImage, boot protocol {major}.{minor:02}")
            }
            Self::Elf(Elf {
                pvh_entry: Some(_), ..
            }) => "x86_64 ELF with a PVH entry".to_owned(),
            Self::Elf(_) => "x86_64 ELF".to_owned(),
            Self::Image(image) => format!("{} Image", image.machine.name()),
            Self::Other { name, .. } => name.clone(),
        }
    }
}

/// The bytes at an image's start that tell its format.
const PREFIX: u64 = 1024;

fn fail<T>(why: impl Into<String>) -> Result<T, BootError> {
    Err(BootError::Kernel(why.into()))
}

/// An image and its size, which no read may exceed.
#[derive(Debug)]
struct Reader<'a> {
    image: &'a KernelImage,
    size: u64,
}

impl<'a> Reader<'a> {
    fn new(image: &'a KernelImage) -> Result<Self, BootError> {
        Ok(Self {
            image,
            size: image.size().map_err(BootError::Read)?,
        })
    }

    /// The first `len` bytes, or all there are.
    fn prefix(&self, len: u64) -> Result<Vec<u8>, BootError> {
        self.read(0, self.size.min(len))
    }

    /// `len` bytes from `offset` on. The caller bounds `len`.
    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, BootError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => {}
            _ => {
                return fail(format!(
                    "truncated: {len} bytes at offset {offset:#x} are missing"
                ));
            }
        }
        let len = usize::try_from(len).map_err(|_| BootError::Kernel("too large".to_owned()))?;
        let mut bytes = vec![0; len];
        self.image
            .read_exact_at(&mut bytes, offset)
            .map_err(BootError::Read)?;
        Ok(bytes)
    }
}

/// A little-endian field; `None` beyond the end.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    field(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    field(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    field(bytes, offset).map(u64::from_le_bytes)
}
