//! What to do when the host's kernel refuses something, by its error number.

use rustix::process::{Resource, getrlimit};

/// A page of guest memory that KVM does not get.
pub(crate) const LOST_MEMORY: &str = "if the VM was restored, its file of memory was cut, or that file's disk fails: \
     restore it again, from a whole copy. With reserved huge pages, look at how many this host has left";
/// No userfaultfd for faults of the kernel's own accesses, of which KVM's are.
#[cfg(feature = "snapshot")]
pub(crate) const USERFAULTFD: &str = "let your user read and write /dev/userfaultfd (Linux 6.1 or newer), run as root, or set the \
     sysctl vm.unprivileged_userfaultfd to 1; or restore with memory=lazy";
/// The process that brings the pages of a restored VM.
#[cfg(feature = "snapshot")]
pub(crate) const HANDLER: &str = "restore the VM again, with a handler of page faults that listens on the socket before, answers \
     each fault, and keeps its end of the socket open as long as the VM lives; or with memory=lazy";
/// The limit of threads and processes is reached.
pub(crate) const PROCESSES: &str = "raise the limit of threads and processes (`ulimit -u`, TasksMax= of systemd, the pids \
     controller of the cgroup), or ask for fewer vCPUs and devices";
/// As [`PROCESSES`], where there is a limit of the address space, which a thread's stack may not fit into: the
/// kernel's answer is the same.
const PROCESSES_OR_SPACE: &str = "raise the limit of the address space (`ulimit -v`, LimitAS= of systemd), which is set and \
     which a thread's stack has to fit into; if that is not it, the limit of threads and processes (`ulimit -u`, \
     TasksMax= of systemd)";
/// KVM had to interpret an instruction and could not.
pub(crate) const EMULATION: &str = "KVM interprets a guest's instruction where it accesses a device, and on hosts that do not \
     run a guest's kernel natively all of its kernel's; it does not know this one. \
     `vmm-reference doctor` checks which kind of host this is";
const FILES: &str =
    "raise the limit of open files (ulimit -n); each vCPU takes one, each queue of a device two";
const ALL_FILES: &str =
    "all of the host's processes together have too many files open: raise fs.file-max (sysctl)";
const MEMORY: &str = "end other programs of the host, or raise what limits this one: the address space (`ulimit -v`), the \
     memory of its cgroup or container";

/// The cure for an operation of KVM, named as the KVM API documentation does.
pub(crate) fn of_kvm(operation: &str, errno: i32) -> Option<&'static str> {
    match (operation, errno) {
        ("KVM_CREATE_VM", libc::EBUSY) => Some(
            "another hypervisor (VirtualBox, VMware) has the processor's virtualization extension: end its VMs, \
             or unload its module (`lsmod | grep -e vbox -e vmmon`)",
        ),
        ("KVM_CREATE_VM", libc::EIO) => Some(
            "the processor could not switch its virtualization extension on: look into the kernel's log \
             (`dmesg | grep -i kvm`) and at the firmware's settings",
        ),
        (_, libc::ENOSPC) => Some(
            "the room that KVM has for this in one VM is used up: ask for fewer devices or queues",
        ),
        _ => of_host(errno),
    }
}

/// The cure for any other operation.
pub(crate) fn of_host(errno: i32) -> Option<&'static str> {
    match errno {
        libc::EMFILE => Some(FILES),
        libc::ENFILE => Some(ALL_FILES),
        libc::ENOMEM => Some(MEMORY),
        libc::EAGAIN if getrlimit(Resource::As).current.is_some() => Some(PROCESSES_OR_SPACE),
        libc::EAGAIN => Some(PROCESSES),
        libc::ENOSPC => {
            Some("there is no room left on the disk that it is on: free some, or name another one")
        }
        libc::EDQUOT => Some("your quota on that disk is used up: free some room, or use another"),
        libc::EPERM | libc::ENOSYS => Some(
            "something forbids it, such as a container's seccomp profile or a security module (`dmesg` may say \
             which): allow it there",
        ),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;

    use arch::KvmError;
    use kvm_ioctls::Error as Errno;

    use crate::Error;

    fn of_kvm(operation: &'static str, errno: i32) -> Error {
        KvmError::of(operation)(Errno::new(errno)).into()
    }

    #[test]
    fn r72_what_the_kernel_refuses_has_a_cure_that_fits() {
        let host = |errno| Error::host("cannot")(io::Error::from_raw_os_error(errno));
        for (error, text) in [
            (of_kvm("KVM_CREATE_VM", libc::EBUSY), "VirtualBox"),
            (of_kvm("KVM_CREATE_VCPU", libc::EMFILE), "ulimit -n"),
            (of_kvm("KVM_CREATE_VM", libc::ENFILE), "fs.file-max"),
            (of_kvm("KVM_CREATE_VM", libc::ENOMEM), "cgroup"),
            (of_kvm("KVM_IOEVENTFD", libc::ENOSPC), "fewer devices"),
            (host(libc::EAGAIN), "ulimit -u"),
            (host(libc::EMFILE), "ulimit -n"),
            (host(libc::ENOMEM), "ulimit -v"),
            (host(libc::ENOSPC), "free some"),
            (host(libc::EPERM), "seccomp"),
        ] {
            let cure = error.cure().unwrap_or_default();
            assert!(cure.contains(text), "{error}: {cure}");
        }
        // Only there it means that.
        assert_eq!(of_kvm("KVM_CREATE_VCPU", libc::EBUSY).cure(), None);
    }
}
