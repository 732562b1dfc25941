//! Files that are no kernels, by content: what people name by mistake, and what to do instead.
//!
//! The cures name `FILE` for the file that was given; none of them changes it.

use super::reader::{KernelImage, PREFIX, Reader};
use crate::BootError;

/// A kind of file that is no kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForeignFile {
    /// What it is, with an article.
    pub name: &'static str,
    /// How to come to a kernel from there.
    pub cure: &'static str,
    /// Whether Linux takes such a file as an initrd (init/initramfs.c, init/do_mounts_rd.c).
    pub initrd: bool,
    /// Whether it is packed data, which may be anything.
    pub packed: bool,
}

impl ForeignFile {
    /// The error of giving it as a kernel.
    #[must_use]
    pub fn refused(&self) -> BootError {
        BootError::WrongFile {
            cause: format!("the file is {}", self.name),
            cure: self.cure.to_owned(),
        }
    }
}

/// Bytes that a kind of file has at some offset.
struct Magic(u64, &'static [u8], ForeignFile);

const fn other(offset: u64, magic: &'static [u8], name: &'static str, cure: &'static str) -> Magic {
    let file = ForeignFile {
        name,
        cure,
        initrd: false,
        packed: false,
    };
    Magic(offset, magic, file)
}

const fn initrd(
    offset: u64,
    magic: &'static [u8],
    name: &'static str,
    cure: &'static str,
) -> Magic {
    let Magic(offset, magic, mut file) = other(offset, magic, name, cure);
    file.initrd = true;
    Magic(offset, magic, file)
}

const fn packed(magic: &'static [u8], name: &'static str, cure: &'static str) -> Magic {
    let Magic(offset, magic, mut file) = initrd(0, magic, name, cure);
    file.packed = true;
    Magic(offset, magic, file)
}

const CPIO: &str = "give it as initrd=FILE, and the kernel as kernel=KERNEL";
const DISK: &str = "give it as blk=FILE; the kernel is a file of its own, in /boot of most systems";
const CONVERT: &str = "the kernel is a file of its own, in /boot of most systems; as a disk it has to be raw \
                       (qemu-img convert -O raw FILE DISK, then blk=DISK)";
const UNPACK_ARCHIVE: &str = "unpack it and give the kernel inside";

const KNOWN: [Magic; 42] = [
    packed(
        b"\x1f\x8b",
        "packed with gzip",
        "unpack it (gzip -dc FILE > KERNEL)",
    ),
    packed(
        b"\x28\xb5\x2f\xfd",
        "packed with zstd",
        "unpack it (zstd -dc FILE > KERNEL)",
    ),
    packed(
        b"\xfd7zXZ\0",
        "packed with xz",
        "unpack it (xz -dc FILE > KERNEL)",
    ),
    packed(
        b"\x02\x21\x4c\x18",
        "packed with lz4",
        "unpack it (lz4 -dc FILE > KERNEL)",
    ),
    packed(
        b"\x04\x22\x4d\x18",
        "packed with lz4",
        "unpack it (lz4 -dc FILE > KERNEL)",
    ),
    packed(
        b"\x89LZO\0\r\n\x1a\n",
        "packed with lzop",
        "unpack it (lzop -dc FILE > KERNEL)",
    ),
    packed(
        b"BZh",
        "packed with bzip2",
        "unpack it (bzip2 -dc FILE > KERNEL)",
    ),
    packed(
        b"\x5d\0\0",
        "packed with lzma",
        "unpack it (xz --format=lzma -dc FILE > KERNEL)",
    ),
    other(
        4,
        b"zimg",
        "a compressed EFI image (zboot)",
        "give the kernel that it was made from (arch/*/boot/Image in the kernel's build)",
    ),
    other(
        0,
        b"!<arch>\ndebian-binary",
        "a Debian package",
        "unpack it (dpkg-deb -x FILE FOLDER) and give FOLDER/boot/vmlinuz-*",
    ),
    other(
        0,
        b"!<arch>\n",
        "an archive of object files",
        "give the kernel that was linked from it",
    ),
    other(
        0,
        b"\xed\xab\xee\xdb",
        "an RPM package",
        "unpack it (rpm2cpio FILE | cpio -idm) and give lib/modules/*/vmlinuz",
    ),
    other(257, b"ustar", "a tar archive", UNPACK_ARCHIVE),
    other(0, b"PK\x03\x04", "a zip archive", UNPACK_ARCHIVE),
    other(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK_ARCHIVE),
    initrd(0, b"070701", "a cpio archive, as initrds are", CPIO),
    initrd(0, b"070702", "a cpio archive, as initrds are", CPIO),
    other(
        0,
        b"070707",
        "a cpio archive of the old kind",
        UNPACK_ARCHIVE,
    ),
    other(0, b"QFI\xfb", "a qcow2 disk image", CONVERT),
    other(0, b"KDMV", "a VMDK disk image", CONVERT),
    other(
        0,
        b"# Disk DescriptorFile",
        "the description of a VMDK disk image",
        CONVERT,
    ),
    other(0, b"vhdxfile", "a VHDX disk image", CONVERT),
    other(0, b"conectix", "a VHD disk image", CONVERT),
    other(64, b"\x7f\x10\xda\xbe", "a VDI disk image", CONVERT),
    other(
        512,
        b"EFI PART",
        "a disk image with a GPT partition table",
        DISK,
    ),
    other(
        4096,
        b"EFI PART",
        "a disk image with a GPT partition table",
        DISK,
    ),
    other(0x8001, b"CD001", "an ISO 9660 image (a CD)", DISK),
    initrd(0, b"hsqs", "a squashfs file system", DISK),
    initrd(1080, b"\x53\xef", "an ext2, ext3 or ext4 file system", DISK),
    other(0, b"XFSB", "an XFS file system", DISK),
    other(0x1_0040, b"_BHRfS_M", "a btrfs file system", DISK),
    other(
        0,
        b"\x27\x05\x19\x56",
        "an image for U-Boot",
        "take the kernel out (dumpimage -p 0 -o KERNEL FILE)",
    ),
    other(
        0,
        b"\xd0\x0d\xfe\xed",
        "a device tree, or an image for U-Boot in the form of one",
        "give the kernel alone: the guest's device tree is made by the VMM",
    ),
    other(
        0,
        b"ANDROID!",
        "an Android boot image",
        "take kernel and initrd out (unpack_bootimg --boot_img FILE)",
    ),
    other(0, b"#!", "a script", "give the kernel itself"),
    other(
        0,
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file that it stands for",
        "fetch the file (git lfs pull)",
    ),
    other(
        0,
        b"<!DOCTYPE",
        "an HTML page",
        "download the kernel itself",
    ),
    other(
        0,
        b"<!doctype",
        "an HTML page",
        "download the kernel itself",
    ),
    other(0, b"<html", "an HTML page", "download the kernel itself"),
    other(0, b"<?xml", "an XML document", "download the kernel itself"),
    other(
        0,
        b"MZ",
        "an EFI program without a Linux boot header",
        "give the kernel that it was made from",
    ),
    // Last: many a file has these two bytes there.
    other(510, b"\x55\xaa", "a disk image, or a boot sector", DISK),
];

/// A unified kernel image: an EFI program that has a kernel as one of its sections.
const UNIFIED: ForeignFile = ForeignFile {
    name: "a unified kernel image",
    cure: "take kernel and initrd out (objcopy -O binary -j .linux FILE KERNEL, then the same with .initrd) and \
           give both",
    initrd: false,
    packed: false,
};

/// Finds out whether a file is something else than a kernel.
///
/// # Errors
/// When it cannot be read.
pub fn foreign(image: &KernelImage) -> Result<Option<ForeignFile>, BootError> {
    let image = Reader::new(image)?;
    let start = image.prefix(PREFIX)?;
    find(&image, &start)
}

/// The same for a file whose first bytes are read already.
pub(super) fn find(image: &Reader<'_>, start: &[u8]) -> Result<Option<ForeignFile>, BootError> {
    if start.starts_with(b"MZ") && start.windows(8).any(|bytes| bytes == b".linux\0\0") {
        return Ok(Some(UNIFIED));
    }
    for Magic(offset, magic, file) in &KNOWN {
        let len = magic.len() as u64;
        if offset + len > image.size {
            continue;
        }
        let near = usize::try_from(*offset).ok().and_then(|at| start.get(at..));
        let found = match near.and_then(|bytes| bytes.get(..magic.len())) {
            Some(bytes) => bytes == *magic,
            None => image.read(*offset, len)? == *magic,
        };
        if found {
            return Ok(Some(*file));
        }
    }
    Ok(None)
}
