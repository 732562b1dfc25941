//! Opens what the user names and places it in guest memory.

use std::fs::File;
use std::io::Cursor;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ::devices::descriptor;
use arch::kernel::{FileReader, KernelHeader, KernelImage, LinuxVersion};
use arch::{AddressRange, BootError, GuestKernel, GuestRam, KernelPlacement, MachinePlan};
use vm_memory::{Bytes, GuestAddress};

use crate::{Error, VmConfig};

/// Alignment of the initrd, and of every other block we place.
const PAGE: u64 = 4096;

/// Opens a regular file; anything else (a directory, a FIFO that would block) is refused by name.
pub(crate) fn open(field: &'static str, path: &Path) -> Result<File, Error> {
    let refused = |source| Error::Refused {
        field: field.into(),
        value: path.display().to_string(),
        source,
        cure: "check the path and its permissions".to_owned(),
    };
    let mut options = File::options();
    // A FIFO must not block; a regular file does not care.
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let file = descriptor::open(path, &options).map_err(refused)?;
    let metadata = file.metadata().map_err(refused)?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() {
            "a directory"
        } else {
            "not a regular file"
        };
        return Err(Error::Config {
            field: field.into(),
            value: path.display().to_string(),
            cause: what.to_owned(),
            cure: "name the image file itself".to_owned(),
        });
    }
    Ok(file)
}

/// A kernel that was opened and is known.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What is loaded.
    pub(crate) image: KernelImage,
    pub(crate) header: KernelHeader,
    /// What it is in messages.
    pub(crate) name: String,
    /// What it is to the machine.
    pub(crate) guest: GuestKernel,
}

/// Where a kernel comes from, open: each start of the guest reads it anew.
#[derive(Debug)]
pub(crate) enum KernelSource {
    /// The file that the configuration names.
    File(PathBuf, File),
    /// One that is part of the program.
    BuiltIn(&'static [u8]),
}

impl KernelSource {
    pub(crate) fn open(config: &VmConfig, hello: Option<&'static [u8]>) -> Result<Self, Error> {
        match (&config.kernel, hello) {
            (Some(path), _) => Ok(Self::File(path.clone(), open("kernel", path)?)),
            (None, Some(bytes)) => Ok(Self::BuiltIn(bytes)),
            (None, None) => Err(Error::Config {
                field: "kernel".into(),
                value: String::new(),
                cause: "no kernel is named and this build has no built-in guest".to_owned(),
                cure: "give kernel=PATH, or build with the feature hello-guest".to_owned(),
            }),
        }
    }

    /// Its file, if it has one.
    #[cfg(feature = "snapshot")]
    pub(crate) fn file(&self) -> Option<&File> {
        match self {
            Self::File(_, file) => Some(file),
            Self::BuiltIn(_) => None,
        }
    }

    /// Reads it, unpacked to at most `limit` bytes.
    pub(crate) fn read(&self, limit: u64) -> Result<Kernel, Error> {
        match self {
            Self::File(path, file) => {
                let file = file
                    .try_clone()
                    .map_err(|error| kernel_error(path)(BootError::Read(error)))?;
                let image = unpacked(path, file, limit)?;
                let header = identify(&image).map_err(kernel_error(path))?;
                Ok(Kernel {
                    guest: linux(&image, &header),
                    image,
                    header,
                    name: path.display().to_string(),
                })
            }
            Self::BuiltIn(bytes) => {
                let image = KernelImage::Bytes(Cursor::new((*bytes).into()));
                let name = "(built-in)".to_owned();
                let header =
                    KernelHeader::identify(&image).map_err(kernel_error(Path::new(&name)))?;
                let guest = if crate::hello_guest() == Some(*bytes) {
                    GuestKernel::BuiltIn
                } else {
                    linux(&image, &header)
                };
                Ok(Kernel {
                    image,
                    header,
                    name,
                    guest,
                })
            }
        }
    }
}

/// The kernel, unpacked to at most as much as there is RAM: the file that the configuration names, or
/// the built-in guest.
pub(crate) fn kernel(config: &VmConfig, hello: Option<&'static [u8]>) -> Result<Kernel, Error> {
    KernelSource::open(config, hello)?.read(config.guest_memory.bytes())
}

/// What the configuration's kernel is to the machine; unknown, too, when it cannot be read, which
/// whoever loads it will say.
pub(crate) fn guest_kernel(config: &VmConfig) -> GuestKernel {
    kernel(config, crate::hello_guest()).map_or(GuestKernel::Unknown, |kernel| kernel.guest)
}

pub(crate) fn linux(image: &KernelImage, header: &KernelHeader) -> GuestKernel {
    header
        .linux_release(image)
        .and_then(|release| LinuxVersion::parse(&release))
        .map_or(GuestKernel::Unknown, GuestKernel::Linux)
}

/// Finds out what an image is that has been unpacked, as far as this build does.
pub(crate) fn identify(image: &KernelImage) -> Result<KernelHeader, BootError> {
    let found = KernelHeader::identify(image);
    #[cfg(not(feature = "packed-kernels"))]
    if let Err(BootError::WrongFile { cause, cure }) = &found
        && arch::kernel::foreign(image)?.is_some_and(|file| file.packed)
    {
        return Err(BootError::WrongFile {
            cause: format!("{cause}, and this build does not unpack"),
            cure: format!("{cure}, or build with the feature packed-kernels"),
        });
    }
    found
}

/// What is in a kernel's file, unpacked.
fn unpacked(path: &Path, file: File, limit: u64) -> Result<KernelImage, Error> {
    let image = KernelImage::File(file);
    #[cfg(feature = "packed-kernels")]
    let image = crate::kernel::unpack::unpack(image, limit).map_err(kernel_error(path))?;
    #[cfg(not(feature = "packed-kernels"))]
    let _ = (path, limit);
    Ok(image)
}

pub(crate) fn kernel_error(path: &Path) -> impl FnOnce(BootError) -> Error {
    move |source| Error::Boot {
        field: "kernel".into(),
        value: path.display().to_string(),
        source,
    }
}

/// Finds out whether a file is a kernel.
pub(crate) fn check_kernel(path: &Path, limit: u64) -> Result<(), Error> {
    let image = unpacked(path, open("kernel", path)?, limit)?;
    identify(&image).map_err(kernel_error(path))?;
    Ok(())
}

/// An initrd that was opened.
#[derive(Debug)]
pub(crate) struct Initrd {
    path: PathBuf,
    file: File,
    /// In bytes, at least 1.
    size: u64,
}

impl Initrd {
    /// The initrd of a configuration that names one.
    pub(crate) fn of(config: &VmConfig) -> Result<Option<Self>, Error> {
        config.initrd.as_deref().map(Self::open).transpose()
    }

    fn open(path: &Path) -> Result<Self, Error> {
        let file = open("initrd", path)?;
        let size = file
            .metadata()
            .map_err(|error| initrd_error(path)(BootError::Read(error)))?
            .len();
        if size == 0 {
            return Err(Error::Config {
                field: "initrd".into(),
                value: path.display().to_string(),
                cause: "the file is empty".to_owned(),
                cure: "make or copy it again, or leave initrd away".to_owned(),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What the user should know: it looks like something that Linux does not take as an initrd. The
    /// kernel decides, so this is no error.
    pub(crate) fn remark(&self) -> Option<String> {
        let image = KernelImage::File(self.file.try_clone().ok()?);
        let what = match arch::kernel::foreign(&image).ok()? {
            Some(found) if found.initrd => return None,
            Some(found) => found.name.to_owned(),
            None => {
                let kernel = KernelHeader::identify(&image).ok()?;
                format!("a kernel ({})", kernel.describe())
            }
        };
        Some(format!(
            "initrd={}: this looks like {what}; an initrd is a cpio archive, packed or not",
            self.path.display()
        ))
    }

    /// Where it goes: as high as the kernel allows.
    pub(crate) fn place(
        &self,
        kernel: &KernelPlacement,
        plan: &MachinePlan,
    ) -> Result<AddressRange, Error> {
        place(self.size, kernel, plan).map_err(initrd_error(&self.path))
    }

    /// Loads it there.
    pub(crate) fn load(
        &self,
        kernel: &KernelPlacement,
        plan: &MachinePlan,
        ram: &GuestRam,
    ) -> Result<AddressRange, Error> {
        let range = self.place(kernel, plan)?;
        let len = usize::try_from(self.size).unwrap_or(usize::MAX);
        let mut file = FileReader::new(&self.file);
        ram.read_exact_volatile_from(GuestAddress(range.base), &mut file, len)
            .map_err(|source| {
                initrd_error(&self.path)(BootError::Memory {
                    what: "the initrd",
                    source,
                })
            })?;
        Ok(range)
    }
}

fn initrd_error(path: &Path) -> impl Fn(BootError) -> Error {
    move |source| Error::Boot {
        field: "initrd".into(),
        value: path.display().to_string(),
        source,
    }
}

fn place(
    size: u64,
    kernel: &KernelPlacement,
    plan: &MachinePlan,
) -> Result<AddressRange, BootError> {
    let limit = kernel
        .initrd_limit
        .unwrap_or(u64::MAX)
        .min(plan.kernel_window.end());
    let lowest = kernel.range.end().max(plan.kernel_window.base);
    let base = limit.checked_sub(size).map(|base| base & !(PAGE - 1));
    match base {
        Some(base) if base >= lowest => Ok(AddressRange::new(base, size)),
        _ => Err(BootError::TooLarge {
            what: "the initrd",
            size,
            cause: format!(
                "{} bytes are free between the kernel's end at {lowest:#x} and {limit:#x}",
                limit.saturating_sub(lowest)
            ),
        }),
    }
}

#[cfg(test)]
mod tests {
    use arch::kernel::Protocol;

    use super::*;

    fn placed(size: u64, kernel_end: u64, limit: Option<u64>) -> Result<AddressRange, BootError> {
        let kernel = KernelPlacement {
            entry: 0x10_0000,
            range: AddressRange::new(0x10_0000, kernel_end - 0x10_0000),
            initrd_limit: limit,
            protocol: Protocol::Linux64,
            setup_header: Vec::new(),
        };
        let plan = MachinePlan {
            lean: None,
            arch: "test".into(),
            ram: vec![AddressRange::new(0, 64 << 20)],
            reserved: Vec::new(),
            kernel_window: AddressRange::new(1 << 20, 63 << 20),
            mmio_window: AddressRange::new(1 << 32, 1 << 20),
            devices: Vec::new(),
            pci: None,
            vcpus: 1,
            cmdline: String::new(),
            vmgenid: None,
            remarks: Vec::new(),
        };
        place(size, &kernel, &plan)
    }

    #[test]
    fn the_initrd_ends_below_the_limit_and_is_page_aligned() {
        let range = placed(5000, 2 << 20, None).unwrap();
        assert_eq!(range.base % PAGE, 0);
        assert!(range.end() <= 64 << 20);
        assert!(placed(5000, 2 << 20, Some(8 << 20)).unwrap().end() <= 8 << 20);
    }

    #[test]
    fn r42_an_initrd_that_does_not_fit_is_refused() {
        for (size, end, limit) in [
            (63 << 20, 2 << 20, None),
            (u64::MAX, 2 << 20, None),
            (4096, 64 << 20, None),
            (4096, 2 << 20, Some(1 << 20)),
        ] {
            assert!(placed(size, end, limit).is_err(), "{size} {end} {limit:?}");
        }
    }
}
