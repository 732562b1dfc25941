//! What a kernel image is, once it is identified: what its header says, and what follows for whoever boots it.

use crate::BootError;

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

impl BootError {
    /// The kernel's format is left out of this program; `feature` is the cargo feature that has it.
    #[must_use]
    pub fn not_built_in(kernel: &KernelHeader, feature: &str) -> Self {
        Self::Kernel(format!(
            "{}: this program was built without the cargo feature {feature:?}",
            kernel.describe()
        ))
    }
}

/// The machine a flat image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageMachine {
    /// 64-bit Arm.
    Arm64,
    /// 64-bit RISC-V.
    Riscv64,
}

/// What is known of a machine with flat images.
struct Machine {
    /// Its name in Linux' own sources.
    name: &'static str,
    /// Its name as `uname -m` gives it.
    architecture: &'static str,
    /// The magic number at offset 56.
    magic: &'static [u8; 4],
}

impl ImageMachine {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::Arm64, Self::Riscv64];

    fn facts(self) -> Machine {
        let (name, architecture, magic) = match self {
            Self::Arm64 => ("arm64", "aarch64", b"ARM\x64"),
            Self::Riscv64 => ("riscv64", "riscv64", b"RSC\x05"),
        };
        Machine {
            name,
            architecture,
            magic,
        }
    }

    /// The name that Linux' own sources use.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The number by which the header names the machine, at offset 56.
    #[must_use]
    pub fn magic(self) -> &'static [u8; 4] {
        self.facts().magic
    }

    /// The architecture, as `uname -m` names it.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        self.facts().architecture
    }
}
