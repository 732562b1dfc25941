//! Whether access control lists are a way to let one user in (acl(5)): somebody has to be able to set them, and the
//! file system to keep them.

use std::env;
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use rustix::io::Errno;

const TOOL: &str = "setfacl";
/// Where a list is kept (`XATTR_NAME_POSIX_ACL_ACCESS` of Linux, include/uapi/linux/xattr.h).
const ATTRIBUTE: &str = "system.posix_acl_access";
/// Where root's tools are, which a user's PATH may lack.
const FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Whether a file or folder can have a list, and this host the tool for it.
pub(super) fn usable(path: &Path) -> bool {
    has_tool(env::var_os("PATH").as_deref()) && keeps_lists(path)
}

fn has_tool(path: Option<&std::ffi::OsStr>) -> bool {
    let of_user = path.into_iter().flat_map(env::split_paths);
    let mut folders = of_user.chain(FOLDERS.map(PathBuf::from));
    folders.any(|folder| folder.join(TOOL).is_file())
}

fn keeps_lists(path: &Path) -> bool {
    let mut none: [u8; 0] = [];
    // No list yet is as good as one.
    !matches!(
        getxattr(path, ATTRIBUTE, &mut none),
        Err(Errno::OPNOTSUPP | Errno::NOSYS)
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_is_not_there_and_a_file_system_without_lists_are_no_cure() {
        let folder = tempfile::tempdir().unwrap();
        let path = env::join_paths([folder.path()]).unwrap();
        let by_default = has_tool(None);
        assert_eq!(has_tool(Some(&path)), by_default);
        std::fs::write(folder.path().join(TOOL), "").unwrap();
        assert!(has_tool(Some(&path)));
        // proc(5) has no extended attributes.
        assert!(!keeps_lists(Path::new("/proc/self/status")));
        assert!(!usable(Path::new("/proc/self/status")));
    }
}
