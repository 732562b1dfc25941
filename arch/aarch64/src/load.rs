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
                machine: ImageMachine::Arm64,
                ..
            },
        ) => image.place(window),
        other => Err(other.refused("aarch64")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: AddressRange = AddressRange::new(0x8020_0000, 62 << 20);

    fn image() -> FlatImage {
        FlatImage {
            machine: ImageMachine::Arm64,
            text_offset: 0,
            file_size: 8 << 20,
            memory_size: 10 << 20,
        }
    }

    fn place_it(image: FlatImage) -> Result<LoadedKernel, BootError> {
        place(&KernelHeader::Image(image), WINDOW)
    }

    #[test]
    fn an_image_goes_to_the_window_and_keeps_its_text_offset() {
        for text_offset in [0, 0x1_0000, 0x8_0000] {
            let kernel = place_it(FlatImage {
                text_offset,
                ..image()
            })
            .unwrap();
            assert_eq!(kernel.entry, WINDOW.base + text_offset);
            assert_eq!(kernel.range, AddressRange::new(kernel.entry, 10 << 20));
        }
    }

    #[test]
    fn r42_an_image_that_does_not_fit_is_refused() {
        for memory_size in [WINDOW.len + 1, u64::MAX] {
            let error = place_it(FlatImage {
                memory_size,
                ..image()
            })
            .unwrap_err();
            assert!(error.to_string().contains("does not fit"), "{error}");
        }
    }

    #[test]
    fn kernels_for_other_machines_are_named() {
        let machine = ImageMachine::Riscv64;
        let error = place_it(FlatImage { machine, ..image() }).unwrap_err();
        assert!(
            error.to_string().contains("riscv64 Image: an aarch64"),
            "{error}"
        );
    }
}
