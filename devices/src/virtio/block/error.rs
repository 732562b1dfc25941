//! Why a disk cannot be opened, and what would help without harm: a cure never destroys anything, and never
//! asks for what was done already.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::acl;
use super::lock::Access;
use crate::config::BlkConfig;

/// Why a disk cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// There is no file of this name.
    #[error("there is no such file")]
    Missing {
        /// The file's.
        path: PathBuf,
    },
    /// A folder on the way to the file does not exist, or is no folder.
    #[error("there is no folder {}", folder.display())]
    NoFolder {
        /// The first one that is not there.
        folder: PathBuf,
    },
    /// A directory.
    #[error("it is a directory, no image")]
    Directory,
    /// Neither a regular file nor a block device.
    #[error("it is {0}: neither a regular file nor a block device")]
    Kind(&'static str),
    /// This user may not open it.
    #[error("no permission: {cause}")]
    Denied {
        /// Whose it is, and its mode.
        cause: String,
        /// What would help.
        cure: String,
    },
    /// It cannot be written where it is, and was to be.
    #[error("{0}")]
    ReadOnly(&'static str),
    /// An open file came that cannot be used as this disk.
    #[error("the file is not open for reading{}", if *read_only { "" } else { " and writing" })]
    NotOpenFor {
        /// The disk is read-only.
        read_only: bool,
    },
    /// It has the attribute "immutable" or "append-only".
    #[error("it is immutable or append-only (chattr)")]
    Immutable {
        /// The file's.
        path: PathBuf,
    },
    /// Another program, or another disk of this one, has it open for writing, or this one wants to.
    #[error("it is in use as a disk already{by}")]
    InUse {
        /// ` by process 1234 (qemu-img)`, or nothing when that is not known.
        by: String,
        /// Others only read it, and this one wants to write.
        readers_only: bool,
        /// The file's.
        path: PathBuf,
    },
    /// A program that runs, or a swap file in use.
    #[error("it is in use as swap, or a running program")]
    TextBusy,
    /// The host has no io_uring, or forbids it.
    #[error("io_uring is refused: {reason}")]
    Uring {
        /// By what.
        reason: String,
    },
    /// Two descriptors that are to be one file are not.
    #[error("the descriptor for direct I/O is of another file")]
    Another,
    /// Two descriptors are one opening of a file, which has direct I/O or not as a whole.
    #[error("it was opened once for two descriptors, or for direct I/O both times")]
    OpenedOnce,
    /// The file system has no direct I/O.
    #[error("its file system refuses direct I/O")]
    Direct,
    /// No more descriptors.
    #[error("too many open files in {0}")]
    TooManyFiles(&'static str),
    /// The host refused something else.
    #[error(transparent)]
    Open(io::Error),
}

impl From<io::Error> for BlockError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE) => Self::TooManyFiles("this process"),
            Some(libc::ENFILE) => Self::TooManyFiles("the whole host"),
            _ => Self::Open(error),
        }
    }
}

/// With the kind that the host gave, or would give.
impl From<BlockError> for io::Error {
    fn from(error: BlockError) -> Self {
        use io::ErrorKind as Kind;
        let kind = match &error {
            BlockError::Open(_) | BlockError::TooManyFiles(_) => Kind::Other,
            BlockError::Missing { .. } | BlockError::NoFolder { .. } => Kind::NotFound,
            BlockError::Directory => Kind::IsADirectory,
            BlockError::Denied { .. }
            | BlockError::Immutable { .. }
            | BlockError::NotOpenFor { .. } => Kind::PermissionDenied,
            BlockError::ReadOnly(_) => Kind::ReadOnlyFilesystem,
            BlockError::InUse { .. } => Kind::ResourceBusy,
            BlockError::TextBusy => Kind::ExecutableFileBusy,
            BlockError::Kind(_) | BlockError::Another | BlockError::OpenedOnce => {
                Kind::InvalidInput
            }
            BlockError::Uring { .. } | BlockError::Direct => Kind::Unsupported,
        };
        match error {
            BlockError::Open(error) => error,
            error => Self::new(kind, error),
        }
    }
}

impl BlockError {
    /// Opening the file of a disk failed.
    pub(super) fn of_open(config: &BlkConfig, error: io::Error) -> Self {
        let path = &config.path;
        // What kind of file it is says more than the error that this kind gives.
        if let Ok(found) = fs::metadata(path)
            && let Err(kind) = check_kind(found.file_type())
        {
            return kind;
        }
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => missing(path),
            Some(libc::EROFS) => Self::ReadOnly("its file system is mounted read-only"),
            Some(libc::EACCES | libc::EPERM) => denied(config, error),
            Some(libc::ETXTBSY) => Self::TextBusy,
            Some(libc::EINVAL) if config.direct => Self::Direct,
            _ => error.into(),
        }
    }

    /// One line that says what to do about it.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Self::Missing { path } if path.starts_with("/dev") => {
                "check the name: `lsblk` lists the block devices that there are".to_owned()
            }
            Self::Missing { path } => format!(
                "check the name, or make an image: `truncate -s 10G {}`",
                shell(path)
            ),
            Self::NoFolder { folder } => format!(
                "check the path, or make the folder: `mkdir -p {}`",
                shell(folder)
            ),
            Self::Directory => {
                "name a raw image or a block device; a directory is shared otherwise, for instance as \
                 an image: `mke2fs -d DIRECTORY NEW.img 1G`"
                    .to_owned()
            }
            Self::Kind(_) => "name a raw image or a block device (`lsblk` lists them)".to_owned(),
            Self::Denied { cure, .. } => cure.clone(),
            Self::ReadOnly(_) => {
                "add ,ro, or name an image that can be written (a copy elsewhere)".to_owned()
            }
            Self::NotOpenFor { .. } => {
                "open the file for what the disk does, and pass that descriptor".to_owned()
            }
            Self::Immutable { path } => format!(
                "add ,ro, or take the attribute away: `sudo chattr -i -a {}`",
                shell(path)
            ),
            Self::InUse {
                readers_only: true,
                by,
                ..
            } => format!("add ,ro to read along with it, or wait until it is released{by}"),
            Self::InUse { by, .. } if by.contains("this process") => {
                "give each disk an image of its own; only read-only disks can share one".to_owned()
            }
            Self::InUse { by, path, .. } if by.is_empty() => format!(
                "end the program that has it (`sudo lsof {}` names it), or give this VM an image of \
                 its own",
                shell(path)
            ),
            Self::InUse { .. } => {
                "end that program first, or give this VM an image of its own".to_owned()
            }
            Self::TextBusy => "name a file that nothing else uses".to_owned(),
            Self::Uring { .. } => {
                "use engine=auto or engine=sync, which do without; or allow io_uring".to_owned()
            }
            Self::Another | Self::OpenedOnce => {
                "open the image twice, each time for the same access, and without direct I/O"
                    .to_owned()
            }
            Self::Direct => {
                "leave direct away, or keep the image on a file system with direct I/O (ext4, XFS, \
                 btrfs)"
                    .to_owned()
            }
            Self::TooManyFiles("this process") => {
                "raise the limit of open files (`ulimit -n 4096`)".to_owned()
            }
            Self::TooManyFiles(_) => {
                "raise the host's limit (`sudo sysctl fs.file-max`), or end programs".to_owned()
            }
            Self::Open(_) => {
                "name a raw image or a block device that this user can open".to_owned()
            }
        }
    }
}

/// That a file is of a kind that can be a disk.
pub(super) fn check_kind(kind: fs::FileType) -> Result<(), BlockError> {
    Err(if kind.is_file() || kind.is_block_device() {
        return Ok(());
    } else if kind.is_dir() {
        BlockError::Directory
    } else if kind.is_fifo() {
        BlockError::Kind("a FIFO")
    } else if kind.is_char_device() {
        BlockError::Kind("a character device")
    } else if kind.is_socket() {
        BlockError::Kind("a socket")
    } else {
        BlockError::Kind("a file of an unknown kind")
    })
}

fn missing(path: &Path) -> BlockError {
    // The outermost that is not there.
    let folders = path.ancestors().skip(1);
    let folders = folders.filter(|folder| !folder.as_os_str().is_empty());
    match folders.filter(|folder| !folder.is_dir()).last() {
        Some(folder) => BlockError::NoFolder {
            folder: folder.to_owned(),
        },
        None => BlockError::Missing {
            path: path.to_owned(),
        },
    }
}

fn denied(config: &BlkConfig, error: io::Error) -> BlockError {
    let path = &config.path;
    let user = rustix::process::geteuid().as_raw();
    let Ok(found) = fs::metadata(path) else {
        return closed_folder(path, user).unwrap_or(BlockError::Open(error));
    };
    let eperm = error.raw_os_error() == Some(libc::EPERM);
    if !config.read_only && found.file_type().is_block_device() && is_read_only_device(path) {
        return READ_ONLY_DEVICE;
    }
    if eperm && found.is_file() && !config.read_only {
        return BlockError::Immutable { path: path.clone() };
    }
    if eperm || user == 0 {
        // Not the mode's doing: that would be EACCES, and never root's.
        return BlockError::Denied {
            cause: format!("{error}, whatever its mode"),
            cure: format!(
                "look for what else forbids it: a container's list of devices (`--device {}`), \
                 AppArmor, SELinux, a network file system",
                shell(path)
            ),
        };
    }
    let what = if config.read_only { "read" } else { "write" };
    let group = name("/etc/group", found.gid());
    let mode = found.mode();
    let cause = format!(
        "it belongs to {}:{group} with mode {:04o}, and user {} may not {what} it",
        name("/etc/passwd", found.uid()),
        mode & 0o7777,
        name("/etc/passwd", user),
    );
    let needed = if config.read_only { 0o040 } else { 0o060 };
    let rights = if config.read_only { "r" } else { "rw" };
    let mut cure = if found.uid() == user {
        // Rights of others do not count for the owner, whatever a list of them says.
        format!(
            "give yourself the right: `chmod u+{rights} {}`",
            shell(path)
        )
    } else if mode & needed == needed && found.gid() != 0 {
        // Whoever is in root's group may more than this.
        format!("join its group (`sudo usermod -aG {group} $USER`, then log in again)")
    } else if acl::usable(path) {
        format!(
            "give yourself the right: `sudo setfacl -m u:$USER:{rights} {}`",
            shell(path)
        )
    } else {
        format!(
            "give this VM a copy of your own: `sudo install -m 0600 -o $USER {} COPY.img`, or ask {} for the right",
            shell(path),
            name("/etc/passwd", found.uid())
        )
    };
    if !config.read_only && fs::File::open(path).is_ok() {
        cure.push_str("; or add ,ro, since reading is allowed");
    }
    BlockError::Denied { cause, cure }
}

/// A folder on the way that may not be searched.
fn closed_folder(path: &Path, user: u32) -> Option<BlockError> {
    // The innermost one that can be seen is the one that shows nothing of itself.
    let folders = path.ancestors().skip(1);
    let (folder, found) = folders
        .map(|folder| {
            if folder.as_os_str().is_empty() {
                Path::new(".")
            } else {
                folder
            }
        })
        .find_map(|folder| Some((folder, fs::metadata(folder).ok()?)))?;
    Some(BlockError::Denied {
        cause: format!(
            "the folder {} belongs to {}:{} with mode {:04o}, and user {} may not enter it",
            folder.display(),
            name("/etc/passwd", found.uid()),
            name("/etc/group", found.gid()),
            found.mode() & 0o7777,
            name("/etc/passwd", user),
        ),
        cure: if acl::usable(folder) {
            format!(
                "let yourself in: `sudo setfacl -m u:$USER:x {}`, or move the image",
                shell(folder)
            )
        } else {
            format!(
                "move the image to a folder that this user may enter, or let everybody through: `sudo chmod o+x {}`",
                shell(folder)
            )
        },
    })
}

/// For a block device that is to be written.
pub(super) const READ_ONLY_DEVICE: BlockError =
    BlockError::ReadOnly("the block device is read-only");

fn is_read_only_device(path: &Path) -> bool {
    fs::File::open(path).is_ok_and(|file| super::sys::is_read_only_device(&file))
}

/// The name of a user or a group in /etc/passwd or /etc/group; its number if there is none.
fn name(list: &str, id: u32) -> String {
    let list = fs::read_to_string(list).unwrap_or_default();
    let id = id.to_string();
    let name = list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.to_owned())
    });
    name.unwrap_or(id)
}

/// A path as a shell takes it.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Why io_uring is refused.
pub(super) fn uring_reason(error: &io::Error) -> String {
    let switch = (!crate::sealed::is_sealed())
        .then(|| fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok());
    let switch = switch.flatten().unwrap_or_default();
    match (error.raw_os_error(), switch.trim()) {
        (Some(libc::EPERM), "2") => "by the sysctl kernel.io_uring_disabled=2".to_owned(),
        (Some(libc::EPERM), "1") => {
            "by the sysctl kernel.io_uring_disabled=1, to all but root and the \
                                     group of kernel.io_uring_group"
                .to_owned()
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "by a filter of system calls (seccomp), as containers have it".to_owned()
        }
        (Some(libc::ENOSYS), _) => {
            "this kernel has none (CONFIG_IO_URING), or a filter of system calls hides it"
                .to_owned()
        }
        (Some(libc::ENOMEM), _) => {
            "no memory, or the limit of locked memory is too small (`ulimit -l`)".to_owned()
        }
        _ => error.to_string(),
    }
}

/// That others have the disk, as far as that can be found out.
pub(super) fn in_use(file: &fs::File, config: &BlkConfig, access: Access) -> BlockError {
    let holders = crate::virtio::holder::of_lock(file);
    // Whether reading along would be allowed.
    let readers_only = access == Access::Write
        && super::lock::try_lock(file, Access::Read)
            .is_ok_and(|outcome| outcome != super::lock::Outcome::Refused);
    if readers_only {
        super::lock::unlock(file, Access::Read);
    }
    BlockError::InUse {
        by: crate::virtio::holder::by(&holders),
        readers_only,
        path: config.path.clone(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
