//! Where a kernel goes, decided before anything is copied.
//!
//! Nothing in a header is trusted: whatever comes out of here lies in the kernel window.

use arch::kernel::{FlatImage, ImageMachine, KernelHeader};
use arch::{AddressRange, BootError, LoadedKernel};

/// Places a kernel in `window`.
///
/// # Errors
/// When it does not fit there, or is for another machine.
pub fn place(header: &KernelHeader, window: AddressRange) -> Result<LoadedKernel, BootError> {
    match header {
        KernelHeader::Image(
            image @ FlatImage {
                machine: ImageMachine::Riscv64,
                ..
            },
        ) => image.place(window),
        other => Err(other.refused("riscv64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_for_other_machines_are_named() {
        let image = |machine| {
            KernelHeader::Image(FlatImage {
                machine,
                text_offset: 0x20_0000,
                file_size: 8 << 20,
                memory_size: 10 << 20,
            })
        };
        let window = AddressRange::new(0x8020_0000, 62 << 20);
        let error = place(&image(ImageMachine::Arm64), window).unwrap_err();
        assert!(
            error.to_string().contains("arm64 Image: a riscv64"),
            "{error}"
        );
        let kernel = place(&image(ImageMachine::Riscv64), window).unwrap();
        assert_eq!(kernel.entry, window.base);
    }
}
