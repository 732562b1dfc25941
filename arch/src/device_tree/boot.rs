//! How a kernel that is entered with a device tree comes into guest memory, and the tree.

use vm_memory::{Bytes, GuestAddress};

use super::board::DEVICE_TREE;
use crate::kernel::{KernelHeader, Protocol};
use crate::{
    ARGUMENTS, AddressRange, BootError, BootInfo, BootRequest, GuestRam, KernelPlacement,
    MachinePlan, Placed, Platform,
};

/// Places a flat Image; see [`Platform::place_kernel`].
///
/// # Errors
/// When the kernel does not fit the plan's window, or is for another machine.
pub fn place_kernel(
    header: &KernelHeader,
    plan: &MachinePlan,
) -> Result<KernelPlacement, BootError> {
    match header {
        KernelHeader::Image(image) if header.architecture() == Some(&*plan.arch) => {
            image.place(plan.kernel_window)
        }
        other => Err(other.refused(&plan.arch)),
    }
}

/// Writes a tree to guest RAM and says how the kernel is entered with it: its address is the first
/// argument.
///
/// # Errors
/// When the kernel is entered otherwise, the tree is larger than its place, or the command line longer
/// than `cmdline_size` bytes.
pub fn hand_over<P: Platform>(
    tree: &[u8],
    request: &BootRequest<'_, P>,
    cmdline_size: u64,
    ram: &GuestRam,
) -> Result<BootInfo, BootError> {
    let protocol = request.kernel.protocol;
    if protocol != Protocol::DeviceTree {
        return Err(BootError::Kernel(format!(
            "{} boots kernels that are entered with a device tree only",
            request.plan.arch
        )));
    }
    let size = request.plan.cmdline.len() as u64;
    if size > cmdline_size {
        let limit = cmdline_size;
        return Err(BootError::CmdlineTooLong { size, limit });
    }
    let what = "the device tree";
    let range = AddressRange::new(DEVICE_TREE.base, tree.len() as u64);
    if !DEVICE_TREE.contains(&range) {
        return Err(BootError::TooLarge {
            what,
            size: range.len,
            cause: format!("{} bytes are set aside for it", DEVICE_TREE.len),
        });
    }
    ram.write_slice(tree, GuestAddress(range.base))
        .map_err(|source| BootError::Memory { what, source })?;
    let mut arguments = [0; ARGUMENTS];
    if let Some(first) = arguments.first_mut() {
        *first = range.base;
    }
    Ok(BootInfo {
        entry: request.kernel.entry,
        arguments,
        protocol,
        placed: vec![Placed { name: what, range }],
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::{FlatImage, ImageMachine};

    const WINDOW: AddressRange = AddressRange::new(0x8020_0000, 62 << 20);

    fn image() -> FlatImage {
        FlatImage {
            machine: ImageMachine::Arm64,
            text_offset: 0,
            entry_offset: 0,
            file_size: 8 << 20,
            memory_size: 10 << 20,
        }
    }

    fn place_it(image: FlatImage, arch: &'static str) -> Result<KernelPlacement, BootError> {
        let plan = MachinePlan {
            arch: arch.into(),
            ram: Vec::new(),
            reserved: Vec::new(),
            kernel_window: WINDOW,
            mmio_window: WINDOW,
            devices: Vec::new(),
            pci: None,
            vcpus: 1,
            lean: None,
            cmdline: String::new(),
            vmgenid: None,
            remarks: Vec::new(),
        };
        place_kernel(&KernelHeader::Image(image), &plan)
    }

    #[test]
    fn an_image_goes_to_the_window_and_keeps_its_offsets() {
        for (text_offset, entry_offset) in [(0, 0), (0x1_0000, 0), (0x8_0000, 0x40)] {
            let kernel = place_it(
                FlatImage {
                    text_offset,
                    entry_offset,
                    ..image()
                },
                "aarch64",
            );
            let kernel = kernel.unwrap();
            let base = WINDOW.base + text_offset;
            assert_eq!(kernel.entry, base + entry_offset);
            assert_eq!(kernel.range, AddressRange::new(base, 10 << 20));
        }
        // Those of riscv64 may ask for the first 2 MiB.
        let riscv = FlatImage {
            machine: ImageMachine::Riscv64,
            text_offset: 0x20_0000,
            ..image()
        };
        assert_eq!(place_it(riscv, "riscv64").unwrap().entry, WINDOW.base);
    }

    #[test]
    fn r42_an_image_that_does_not_fit_is_refused() {
        for (memory_size, entry_offset) in [(WINDOW.len + 1, 0), (u64::MAX, 0), (1 << 20, u64::MAX)]
        {
            let image = FlatImage {
                memory_size,
                file_size: 1,
                entry_offset,
                ..image()
            };
            assert!(place_it(image, "aarch64").is_err(), "{memory_size:#x}");
        }
    }

    #[test]
    fn kernels_for_other_machines_are_named() {
        for (machine, arch, text) in [
            (ImageMachine::Riscv64, "aarch64", "riscv64 Image: aarch64"),
            (ImageMachine::Arm64, "riscv64", "arm64 Image: riscv64"),
        ] {
            let error = place_it(FlatImage { machine, ..image() }, arch).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
