//! Why /dev/kvm does not open, and what helps on this host.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Gid, getegid, geteuid, getgroups};

const KVM: &str = "/dev/kvm";
/// The group that distributions give /dev/kvm to.
const GROUP: &str = "kvm";

/// What helps against an error of opening /dev/kvm.
pub(super) fn cure(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => missing(&Surroundings::of_this_host()).to_owned(),
        Some(libc::ENODEV | libc::ENXIO) => format!("{LOAD}; {KVM} itself is there"),
        Some(libc::EACCES) => match Access::of_this_process() {
            Some(access) => access.cure(),
            None => format!("let your user read and write {KVM}"),
        },
        Some(libc::EPERM) => format!(
            "the rules for devices of this container or service forbid it: start it with \
             `--device {KVM}`, or DeviceAllow={KVM} in a unit of systemd"
        ),
        Some(errno) => crate::cures::of_host(errno)
            .unwrap_or("run `vmm-reference doctor` for what is missing")
            .to_owned(),
        None => "run `vmm-reference doctor` for what is missing".to_owned(),
    }
}

const LOAD: &str = "load the KVM module (kvm-intel, kvm-amd) and enable virtualization in the firmware; in a VM, \
     enable nested virtualization";

/// What decides why there is no /dev/kvm.
#[derive(Debug)]
struct Surroundings {
    container: bool,
    kvm_is_loaded: bool,
}

impl Surroundings {
    fn of_this_host() -> Self {
        let exists = |path: &str| Path::new(path).exists();
        Self {
            // Docker, podman, and systemd's convention for all others.
            container: exists("/.dockerenv")
                || exists("/run/.containerenv")
                || exists("/run/systemd/container")
                || std::env::var_os("container").is_some(),
            kvm_is_loaded: exists("/sys/class/misc/kvm"),
        }
    }
}

fn missing(here: &Surroundings) -> &'static str {
    match here {
        Surroundings {
            container: true, ..
        } => {
            "this is a container: start it with `--device /dev/kvm`, on a host that has /dev/kvm (if it has \
             none: load its KVM module, enable virtualization in the firmware)"
        }
        Surroundings {
            kvm_is_loaded: true,
            ..
        } => {
            "KVM is loaded and only its file is missing, as in a chroot: bind the host's /dev/kvm there \
             (`mount --bind`), or make it as root (`mknod /dev/kvm c 10 232`)"
        }
        _ => LOAD,
    }
}

/// Whose /dev/kvm is, and who wants to open it.
#[derive(Debug)]
struct Access {
    owner: String,
    group: Name,
    /// The permission bits.
    mode: u32,
    /// Whether this process has the file's group.
    has_group: bool,
    /// The user's name, or number where it has none.
    user: String,
    /// Whether the user is a member of that group by /etc/group.
    is_member: bool,
    /// Whether there is a group for KVM at all.
    kvm_group_exists: bool,
}

#[derive(Debug)]
struct Name {
    id: u32,
    text: String,
}

impl Access {
    fn of_this_process() -> Option<Self> {
        let file = fs::metadata(KVM).ok()?;
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let uid = geteuid().as_raw();
        let user = name_of(&passwd, uid);
        let gid = Gid::from_raw(file.gid());
        let has_group = getegid() == gid || getgroups().is_ok_and(|groups| groups.contains(&gid));
        let group = name_of(&groups, file.gid());
        Some(Self {
            owner: name_of(&passwd, file.uid()),
            mode: file.mode() & 0o7777,
            has_group,
            is_member: members_of(&groups, &group).any(|member| member == user),
            kvm_group_exists: entry(&groups, GROUP).is_some(),
            group: Name {
                id: file.gid(),
                text: group,
            },
            user,
        })
    }

    fn cure(&self) -> String {
        let Self {
            owner,
            mode,
            user,
            group: Name { id, text: group },
            ..
        } = self;
        let is = format!("it belongs to {owner}:{group} with mode {mode:04o}");
        if mode & 0o060 == 0o060 && *id != 0 {
            return if self.has_group {
                format!(
                    "{is}, which lets {user} in: look for an access control list (a `+` behind the mode in \
                     `ls -l {KVM}`) and for a security module (`dmesg`)"
                )
            } else if self.is_member {
                format!(
                    "{is}, and {user} is in that group, but this session began before: log in again, or \
                     start a shell with `newgrp {group}`"
                )
            } else {
                format!(
                    "{is}: add {user} to that group (`sudo usermod -aG {group} {user}`), then log in again"
                )
            };
        }
        // Nobody but root may: the file's group is not there for this.
        if self.kvm_group_exists {
            format!(
                "{is}, so only {owner} may: give it to the group {GROUP} (`sudo chgrp {GROUP} {KVM} && sudo \
                 chmod 0660 {KVM}`), add {user} to it (`sudo usermod -aG {GROUP} {user}`) and log in again"
            )
        } else {
            format!(
                "{is}, so only {owner} may, and there is no group {GROUP}: make one (`sudo groupadd --system \
                 {GROUP}`), give it the file (`sudo chgrp {GROUP} {KVM} && sudo chmod 0660 {KVM}`), add {user} to it \
                 (`sudo usermod -aG {GROUP} {user}`) and log in again; or run as {owner}"
            )
        }
    }
}

/// The fields of an entry of /etc/passwd or /etc/group.
fn entry<'a>(table: &'a str, name: &str) -> Option<Vec<&'a str>> {
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
}

/// The name of a number in either table: the third field is the number.
fn name_of(table: &str, id: u32) -> String {
    let number = id.to_string();
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&number.as_str()))
        .and_then(|fields| fields.first().map(|&name| name.to_owned()))
        .unwrap_or(number)
}

fn members_of<'a>(groups: &'a str, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let fields = entry(groups, name).unwrap_or_default();
    let members = fields.get(3).copied().unwrap_or_default();
    members.split(',').filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kvm(group: (u32, &str), mode: u32) -> Access {
        Access {
            owner: "root".to_owned(),
            group: Name {
                id: group.0,
                text: group.1.to_owned(),
            },
            mode,
            has_group: false,
            user: "ann".to_owned(),
            is_member: false,
            kvm_group_exists: true,
        }
    }

    fn says(access: &Access, texts: &[&str], not: &str) {
        let cure = access.cure();
        for text in texts {
            assert!(cure.contains(text), "{text}: {cure}");
        }
        assert!(!cure.contains(not), "{not}: {cure}");
    }

    #[test]
    fn who_is_not_in_the_group_is_told_to_join_it() {
        let access = kvm((104, "kvm"), 0o660);
        says(
            &access,
            &["root:kvm with mode 0660", "usermod -aG kvm ann"],
            "chmod",
        );
        // Whatever the group's name is.
        says(
            &kvm((7, "virt"), 0o660),
            &["root:virt", "usermod -aG virt ann"],
            "kvm ann",
        );
    }

    #[test]
    fn who_joined_after_the_log_in_is_told_to_log_in_again() {
        let access = Access {
            is_member: true,
            ..kvm((104, "kvm"), 0o660)
        };
        says(&access, &["log in again", "newgrp kvm"], "usermod");
    }

    #[test]
    fn a_device_of_root_alone_is_not_cured_by_a_group() {
        says(
            &kvm((0, "root"), 0o600),
            &["root:root with mode 0600", "chgrp kvm", "chmod 0660"],
            "usermod -aG root",
        );
        // Nor is one that its group may only read.
        says(
            &kvm((104, "kvm"), 0o640),
            &["root:kvm with mode 0640", "chmod 0660"],
            "newgrp",
        );
        let alone = Access {
            kvm_group_exists: false,
            ..kvm((0, "root"), 0o600)
        };
        says(
            &alone,
            &["groupadd --system kvm", "usermod -aG kvm ann"],
            "setfacl",
        );
    }

    #[test]
    fn who_should_get_in_is_told_where_else_to_look() {
        let access = Access {
            has_group: true,
            ..kvm((104, "kvm"), 0o660)
        };
        says(&access, &["a `+` behind the mode", "dmesg"], "usermod");
    }

    #[test]
    fn a_missing_device_is_cured_where_it_is_missing() {
        let here = |container, kvm_is_loaded| {
            missing(&Surroundings {
                container,
                kvm_is_loaded,
            })
        };
        assert!(here(true, false).contains("--device /dev/kvm"));
        assert!(here(true, true).contains("--device /dev/kvm"));
        assert!(here(false, true).contains("mknod"));
        assert!(here(false, false).contains("load the KVM module"));
        let device_rules = cure(&io::Error::from_raw_os_error(libc::EPERM));
        assert!(device_rules.contains("--device /dev/kvm"));
        assert!(cure(&io::Error::from_raw_os_error(libc::ENODEV)).contains("module"));
        assert!(cure(&io::Error::from_raw_os_error(libc::EMFILE)).contains("ulimit -n"));
    }

    #[test]
    fn names_come_from_the_tables() {
        let groups = "root:x:0:\nkvm:x:104:ann,bob\nbroken\n";
        assert_eq!(name_of(groups, 104), "kvm");
        assert_eq!(name_of(groups, 5), "5");
        assert_eq!(
            members_of(groups, "kvm").collect::<Vec<_>>(),
            ["ann", "bob"]
        );
        assert_eq!(members_of(groups, "root").count(), 0);
        assert_eq!(members_of(groups, "none").count(), 0);
    }
}
