//! The folder that becomes the program's root: `BASE/PROGRAM/ID/root`.
//!
//! A client may have filled it before, and it may belong to the jail's user, who is hostile. So whatever is made,
//! written or given away in there is reached by descriptors, step by step and without following links; and it is root's
//! while that lasts, so that nobody exchanges what is about to be given away (R4, R5). Where an ordinary user is maker and
//! jailed in one, there is nothing to give away, and what is made is made without following links all the same.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chmodat, chownat, fchmod, fchown,
    fstat, ftruncate, makedev, mkdirat, mknodat, openat, openat2,
};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::UnshareFlags;

use crate::error::{JailerError, Result, on, step};
use crate::rootless::Rights;
use crate::sys::unshare;

/// Devices of the program: folder, name, major and minor number (Documentation/admin-guide/devices.txt).
const KVM: (u32, u32) = (10, 232);
const TUN: (u32, u32) = (10, 200);
const URANDOM: (u32, u32) = (1, 9);
/// The major number of those whose minor one is in /proc/misc.
const MISC: u32 = 10;

const LEFT: &str = ": a jail of this --id was there before and has not been cleared away";

/// The program that is jailed.
#[derive(Debug)]
pub(crate) struct Program {
    file: File,
    path: PathBuf,
    pub(crate) name: OsString,
}

impl Program {
    /// Opens it once; its name is that of the file, and not that of a link to it.
    pub(crate) fn open(given: &Path) -> Result<Self> {
        let path = canonical(given)?;
        let kind = fs::metadata(&path).map_err(on("look at", &path))?;
        let name = path
            .file_name()
            .filter(|_| kind.is_file())
            .map(OsStr::to_owned);
        let Some(name) = name else {
            return Err(JailerError::NotAFile(path));
        };
        // What a FIFO would wait for, if it became one.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(&path);
        let file = file.map_err(|source| JailerError::Open {
            path: path.clone(),
            source,
        })?;
        let is_file = file.metadata().map_err(on("look at", &path))?.is_file();
        if !is_file {
            return Err(JailerError::NotAFile(path));
        }
        Ok(Self { file, path, name })
    }
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|source| JailerError::Canonicalize {
            path: path.to_owned(),
            source,
        })
}

/// Where jails are, without links.
pub(crate) fn base(given: &Path) -> Result<PathBuf> {
    let path = canonical(given)?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(JailerError::NotADirectory(path))
    }
}

/// From here on what is mounted by this process is seen by it and its children alone; what is mounted outside is seen
/// in the jail, as clients expect.
pub(crate) fn own_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS).map_err(step("get a namespace of mounts"))?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|errno| JailerError::Step {
        what: "change the propagation of mounts",
        source: errno.into(),
        cure: if errno == Errno::INVAL {
            ": the root is no mount; start the jailer outside of a chroot"
        } else {
            ""
        },
    })
}

/// The root of a jail, before it is entered.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    user: (Uid, Gid),
    rights: Rights,
}

impl Root {
    /// Makes the folders that are not there.
    pub(crate) fn make(
        base: &Path,
        program: &Program,
        id: &str,
        (uid, gid): (u32, u32),
        rights: Rights,
    ) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // It was found without links a moment ago: there is none now either, anywhere on the way.
        let opened = openat2(CWD, base, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let mut fd = opened.map_err(|errno| JailerError::Open {
            path: base.to_owned(),
            source: errno.into(),
        })?;
        let mut path = base.to_owned();
        for name in [program.name.as_os_str(), OsStr::new(id), OsStr::new("root")] {
            path.push(name);
            fd = folder(fd.as_fd(), name, &path, Mode::from_raw_mode(0o755))?;
        }
        Ok(Self {
            fd,
            path,
            user: (Uid::from_raw(uid), Gid::from_raw(gid)),
            rights,
        })
    }

    /// Copies the program. A copy shares no memory with other machines, and may lie on another file system.
    pub(crate) fn copy(&self, program: &Program) -> Result<()> {
        let path = self.path.join(&program.name);
        let open = |errno: Errno| JailerError::Open {
            path: path.clone(),
            source: errno.into(),
        };
        // Not emptied before it is known what it is. The kernel refuses one that runs.
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(&self.fd, &program.name, flags, Mode::RWXU).map_err(open)?;
        let there = fstat(&fd).map_err(on("look at", &path))?;
        if FileType::from_raw_mode(there.st_mode) != FileType::RegularFile {
            return Err(JailerError::NotAFile(path));
        }
        // It is somewhere else too, where it is not the jail's.
        if there.st_nlink > 1 {
            return Err(JailerError::HardLink(path));
        }
        ftruncate(&fd, 0).map_err(on("empty", &path))?;
        let mode = program
            .file
            .metadata()
            .map_err(on("look at", &program.path))?
            .mode();
        let mut copy = File::from(fd);
        std::io::copy(&mut &program.file, &mut copy).map_err(on("copy the program to", &path))?;
        let (uid, gid) = self.user;
        fchown(&copy, Some(uid), Some(gid)).map_err(on("change the owner of", &path))?;
        // No set-user-ID.
        fchmod(&copy, Mode::from_raw_mode(mode & 0o777)).map_err(on("change the mode of", &path))
    }

    /// Makes the folders and devices, and gives all of it to the jail's user.
    pub(crate) fn furnish(&self) -> Result<()> {
        self.take(&self.fd, &self.path)?;
        let furnished = self.make_devices();
        // Whether or not there are devices: the user had it before, if there was one.
        let given = self.give(&self.fd, &self.path);
        furnished.and(given)
    }

    fn make_devices(&self) -> Result<()> {
        let below = |above: &OwnedFd, name: &str, path: &str| {
            let path = self.path.join(path);
            let fd = folder(above.as_fd(), OsStr::new(name), &path, Mode::RWXU)?;
            self.take(&fd, &path)?;
            Ok((fd, path))
        };
        let (run, run_path) = below(&self.fd, "run", "run")?;
        self.give(&run, &run_path)?;
        let (dev, dev_path) = below(&self.fd, "dev", "dev")?;
        let (net, net_path) = below(&dev, "net", "dev/net")?;
        self.device(&net, "tun", "/dev/net/tun", TUN)?;
        self.device(&dev, "kvm", "/dev/kvm", KVM)?;
        if let Err(error) = self.device(&dev, "urandom", "/dev/urandom", URANDOM) {
            eprintln!("Warning: {error}");
        }
        if let Some(minor) = userfaultfd() {
            self.device(&dev, "userfaultfd", "/dev/userfaultfd", (MISC, minor))?;
        }
        self.give(&net, &net_path)?;
        self.give(&dev, &dev_path)
    }

    fn device(
        &self,
        folder: &OwnedFd,
        name: &str,
        path: &str,
        (major, minor): (u32, u32),
    ) -> Result<()> {
        let mode = Mode::RUSR | Mode::WUSR;
        if self.rights != Rights::Root {
            return bind_device(folder, name, path, mode);
        }
        mknodat(
            folder,
            name,
            FileType::CharacterDevice,
            mode,
            makedev(major, minor),
        )
        .map_err(|errno| JailerError::Path {
            what: "make the device inside the jail,",
            path: path.into(),
            source: errno.into(),
            cure: match errno {
                Errno::EXIST => LEFT,
                Errno::PERM => ": this needs CAP_MKNOD, outside of user namespaces",
                _ => "",
            },
        })?;
        // The folder is root's: it still is what was just made. Its mode is not what the umask has left of it.
        chmodat(folder, name, mode, AtFlags::empty()).map_err(on("change the mode of", path))?;
        let (uid, gid) = self.user;
        chownat(
            folder,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(on("change the owner of", path))
    }

    /// Nobody but its maker makes, removes or renames anything in there from now on.
    fn take(&self, fd: &OwnedFd, path: &Path) -> Result<()> {
        let (uid, gid) = self.rights.maker();
        fchown(fd, Some(uid), Some(gid)).map_err(on("change the owner of", path))?;
        fchmod(fd, Mode::RWXU).map_err(on("change the mode of", path))
    }

    fn give(&self, fd: &OwnedFd, path: &Path) -> Result<()> {
        let (uid, gid) = self.user;
        fchown(fd, Some(uid), Some(gid)).map_err(on("change the owner of", path))
    }

    /// Makes it the root of this process. Nothing of the old one can be reached afterwards.
    pub(crate) fn enter(self) -> Result<()> {
        let Self { fd, path, .. } = self;
        let there = fstat(&fd).map_err(on("look at", &path))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE
            | OpenTreeFlags::AT_EMPTY_PATH;
        // A mount, as pivot_root(2) wants it, with what clients have mounted below.
        let tree = open_tree(&fd, "", flags).map_err(on("bind", &path))?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &fd, "", flags).map_err(on("mount", &path))?;
        fchdir(&tree).map_err(on("change into", &path))?;
        // The old root lies over the new one then, and `.` is what lies there (pivot_root(2), NOTES).
        pivot_root(".", ".").map_err(|errno| JailerError::Step {
            what: "pivot root",
            source: errno.into(),
            cure: if errno == Errno::INVAL {
                ": an initramfs or a chroot cannot be left; start the jailer from a mounted root"
            } else {
                ""
            },
        })?;
        unmount(".", UnmountFlags::DETACH).map_err(step("unmount the old root"))?;
        chdir("/").map_err(step("change into the new root"))?;
        // Whatever the calls above said: the root is the jail, and nothing is mounted over it.
        for path in ["/", "/..", "."] {
            let now = fs::metadata(path).map_err(step("look at the new root"))?;
            if (now.dev(), now.ino()) != (there.st_dev, there.st_ino) {
                return Err(step("leave the old root")(Errno::BUSY));
            }
        }
        Ok(())
    }
}

/// Opens a folder below another one, and makes it if it is not there. A link is no folder.
fn folder(above: BorrowedFd<'_>, name: &OsStr, path: &Path, mode: Mode) -> Result<OwnedFd> {
    match mkdirat(above, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(on("create directory", path)(errno)),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty()).map_err(|errno| JailerError::Path {
        what: "open directory",
        path: path.to_owned(),
        source: errno.into(),
        cure: match errno {
            Errno::LOOP | Errno::NOTDIR => ": it has to be a folder, and no link to one",
            _ => "",
        },
    })
}

/// Mounts the host's device on a new file of that name, if there is such a device.
fn bind_device(folder: &OwnedFd, name: &str, path: &str, mode: Mode) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let device = match open_tree(CWD, path, flags) {
        Ok(device) => device,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(on("bind the device", path)(errno)),
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat(folder, name, flags, mode).map_err(|errno| JailerError::Path {
        what: "make a place inside the jail for the device",
        path: path.into(),
        source: errno.into(),
        cure: if errno == Errno::EXIST { LEFT } else { "" },
    })?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&device, "", &place, "", flags).map_err(on("mount the device", path))
}

/// The minor number of the device for page faults, where the host has it.
fn userfaultfd() -> Option<u32> {
    let text = fs::read_to_string("/proc/misc").ok()?;
    let mut lines = text.lines().filter_map(|line| line.trim().split_once(' '));
    lines
        .find(|(_, name)| *name == "userfaultfd")?
        .0
        .parse()
        .ok()
}
