//! Kernel images: what a file is, where its parts must go and how it is entered.
//!
//! [`KernelHeader::identify`] knows every format on every host, so a kernel for another
//! architecture is named as such. It reads hostile input: every length is checked against the
//! image and every loop is bounded.

use crate::BootError;

mod at;
mod bzimage;
mod elf;
mod foreign;
mod header;
mod image;
mod linux;
mod reader;
#[cfg(test)]
mod tests;

pub use at::FileReader;
pub use foreign::{ForeignFile, foreign};
pub use header::{BzImage, Elf, FlatImage, ImageMachine, KernelHeader, Protocol, Segment};
pub use linux::{BANNER, LinuxVersion};
pub use reader::KernelImage;

use reader::{PREFIX, Reader};

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
}
