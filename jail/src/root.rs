//! An empty root that cannot be written, with folders for sockets bound into it.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use crate::error::Refusal;

/// A folder that stays reachable under its path.
#[derive(Debug)]
pub(crate) struct Folder {
    /// An absolute path without `..`, outside and inside.
    pub(crate) path: PathBuf,
    /// The folder itself; in a namespace of its own it is a mount that nobody else has.
    pub(crate) fd: OwnedFd,
}

impl Folder {
    /// Opens it once: what its path leads to later does not matter. `bound`: to be bound into a new root.
    pub(crate) fn open(path: &Path, bound: bool) -> Result<Self, Refusal> {
        let is_plain = path.is_absolute()
            && path
                .components()
                .all(|part| part != std::path::Component::ParentDir);
        if !is_plain {
            return Err(Refusal::of("use a path that is not absolute, or has `..`")(
                Errno::INVAL,
            ));
        }
        let fd = if bound {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            open_tree(CWD, path, flags).map_err(|errno| {
                // What lies below a mount, the kernel does not let a namespace uncover.
                let cure = (errno == Errno::INVAL).then_some("something is mounted below it");
                Refusal::of("bind it")(errno).with_cure(cure)
            })?
        } else {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            openat(CWD, path, flags, Mode::empty()).map_err(Refusal::of("open it"))?
        };
        let kind = fstat(&fd).map_err(Refusal::of("look at it"))?.st_mode;
        if FileType::from_raw_mode(kind) != FileType::Directory {
            return Err(Refusal::of("use it")(Errno::NOTDIR));
        }
        Ok(Self {
            path: path.to_owned(),
            fd,
        })
    }
}

/// What nobody may do in a sandbox's files.
const PLAIN: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// Makes the process' root an empty file system that cannot be written. It has to have a namespace of mounts of its
/// own, and no directory open from outside. After an error its root is what it was.
/// `new`: one that [`make`] has made.
pub(crate) fn enter(folders: &[Folder], new: Option<OwnedFd>) -> Result<(), Refusal> {
    let new = new.map_or_else(make, Ok)?;
    attach(&new)?;
    let id = fstat(&new).map_err(Refusal::of("look at the new root"))?;
    let entered = fill_and_enter(&new, folders);
    if entered.is_err() {
        // The working directory is the new root already.
        let _ = chdir("/");
        return entered;
    }
    // Whatever the calls above said: the root is the new one, and nothing is mounted over it.
    for path in ["/", "/..", "."] {
        let there = fs::metadata(path).map_err(Refusal::of("look at the root"))?;
        if (there.dev(), there.ino()) != (id.st_dev, id.st_ino) {
            return Err(Refusal::of("leave the old root")(Errno::BUSY));
        }
    }
    Ok(())
}

/// A new file system in memory, mounted nowhere. Nothing in here allocates, or sets errno: see [`crate::ahead`].
pub(crate) fn make() -> Result<OwnedFd, Refusal> {
    let fs =
        fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(Refusal::of("make a new root"))?;
    let set = |key: &str, value: &str| {
        fsconfig_set_string(&fs, key, value).map_err(Refusal::of("size the new root"))
    };
    // A page of its smallest unit; names of folders and what leads to them.
    set("size", "4k")?;
    set("nr_inodes", "256")?;
    set("mode", "0555")?;
    fsconfig_create(&fs).map_err(Refusal::of("make a new root"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(Refusal::of("make a mount of the new root"))
}

/// Mounts it over `/`. A path from the root does not lead into it: that begins below.
fn attach(new: &OwnedFd) -> Result<(), Refusal> {
    // What happens to mounts in here stays in here, and pivot_root(2) wants it.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|errno| {
        // In a chroot(2) of a plain folder.
        let cure = (errno == Errno::INVAL).then_some(
            "the root is no mount of its own: bind it over itself before, mount --bind DIR DIR",
        );
        Refusal::of("make the mounts private")(errno).with_cure(cure)
    })?;
    move_mount(new, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(Refusal::of("mount the new root"))
}

fn fill_and_enter(new: &OwnedFd, folders: &[Folder]) -> Result<(), Refusal> {
    fchdir(new).map_err(Refusal::of("go to the new root"))?;
    for Folder { path, fd } in folders {
        let inside = Path::new(".").join(path.strip_prefix("/").unwrap_or(path));
        fs::create_dir_all(&inside).map_err(Refusal::of("make a folder in the new root"))?;
        move_mount(
            fd,
            "",
            CWD,
            &inside,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(Refusal::of("bind a folder into the new root"))?;
        // A mount that cannot be written outside cannot be made writable: it keeps that.
        let flags = MountFlags::BIND | PLAIN;
        let plain = mount_remount(&inside, flags, "")
            .or_else(|_| mount_remount(&inside, flags | MountFlags::RDONLY, ""));
        plain.map_err(Refusal::of("take devices and programs from a folder"))?;
    }
    match pivot_root(".", ".") {
        // The old root lies over the new one then, and `.` is what lies there (pivot_root(2), NOTES).
        Ok(()) => unmount(".", UnmountFlags::DETACH).map_err(Refusal::of("leave the old root"))?,
        // The root is an initramfs, or a chroot: what is mounted over it becomes the root, and what is below cannot
        // be reached any more without CAP_SYS_CHROOT or a directory from outside.
        Err(Errno::INVAL) => chroot(".").map_err(Refusal::of("enter the new root"))?,
        Err(errno) => return Err(Refusal::of("change the root")(errno)),
    }
    chdir("/").map_err(Refusal::of("go to the root"))?;
    let flags = MountFlags::BIND | PLAIN | MountFlags::RDONLY;
    mount_remount("/", flags, "").map_err(Refusal::of("make the root read-only"))
}
