//! Why there is no network device, and what would help without harm: no cure takes an interface away that
//! somebody may need.

use std::io;

/// Why there is no network device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The name is that of another kind of network interface.
    #[error("there is a network interface of this name, which is {kind} and no tap device")]
    NotTap {
        /// The name given.
        name: String,
        /// What it is instead.
        kind: String,
    },
    /// The tap device was made for one queue, or for several.
    #[error("the tap device is made for {}, and queues={wanted} is asked for",
        if *.has_many { "several queues (multi_queue)" } else { "one queue" })]
    Queues {
        /// The tap's name.
        name: String,
        /// Pairs of queues that were asked for.
        wanted: u16,
        /// The tap is made for several queues.
        has_many: bool,
    },
    /// All queues that a tap can have are taken.
    #[error("the tap device has no queue left for this VM")]
    NoQueueLeft,
    /// The tap device was made for another user or group.
    #[error("the tap device belongs to another user or group")]
    Owner {
        /// The tap's name.
        name: String,
        /// More than one pair of queues was asked for.
        many: bool,
    },
    /// There is no tap device of this name, and this process may not create one.
    #[error("there is no such tap device, and creating one needs CAP_NET_ADMIN")]
    NoRights {
        /// The name given.
        name: String,
        /// More than one pair of queues was asked for.
        many: bool,
    },
    /// Another program uses the tap device.
    #[error("the tap device is in use{by}")]
    Busy {
        /// The tap's name.
        name: String,
        /// ` by process 1234 (qemu)`, or nothing when that is not known.
        by: String,
    },
    /// The host offers no tap devices.
    #[error("there is no /dev/net/tun")]
    NoTun,
    /// `/dev/net/tun` cannot be opened.
    #[error("/dev/net/tun may not be opened: {0}")]
    TunDenied(io::Error),
    /// No more descriptors.
    #[error("too many open files")]
    TooManyFiles,
    /// The name cannot be one of a network interface.
    #[error("no name of a network interface: it has 1 to 15 bytes, and no blank, / or :")]
    Name,
    /// The descriptor given cannot be used.
    #[error("{0}")]
    Fd(String),
    /// The driver might never offer buffers for a frame.
    #[error("an MTU of {0} is too much for queues of {1} entries")]
    Mtu(u16, u16),
    /// The host refused something else.
    #[error(transparent)]
    Host(io::Error),
}

impl From<io::Error> for NetError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => Self::TooManyFiles,
            _ => Self::Host(error),
        }
    }
}

/// With the kind that the host gave, or would give.
impl From<NetError> for io::Error {
    fn from(error: NetError) -> Self {
        use io::ErrorKind as Kind;
        let kind = match &error {
            NetError::NoTun => Kind::NotFound,
            NetError::Owner { .. } | NetError::NoRights { .. } => Kind::PermissionDenied,
            NetError::TunDenied(error) => error.kind(),
            NetError::Busy { .. } | NetError::NoQueueLeft => Kind::ResourceBusy,
            NetError::NotTap { .. }
            | NetError::Queues { .. }
            | NetError::Name
            | NetError::Fd(_)
            | NetError::Mtu(..) => Kind::InvalidInput,
            NetError::TooManyFiles | NetError::Host(_) => Kind::Other,
        };
        match error {
            NetError::Host(error) => error,
            error => Self::new(kind, error),
        }
    }
}

impl NetError {
    /// `/dev/net/tun` could not be opened.
    pub(super) fn of_tun(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Self::NoTun,
            Some(libc::EACCES | libc::EPERM) => Self::TunDenied(error),
            _ => error.into(),
        }
    }

    /// One line that says what to do about it.
    #[must_use]
    pub fn cure(&self) -> String {
        match self {
            Self::NotTap { name, .. } => format!(
                "choose another name, for instance {new}: `{create}`",
                new = another(name),
                create = create(&another(name), false)
            ),
            Self::Queues {
                name,
                has_many: false,
                ..
            } => format!(
                "give queues=1, or make another one: `{}`",
                create(&another(name), true)
            ),
            Self::Queues { name, .. } => format!(
                "give queues=2 or more, or make another one: `{}`",
                create(&another(name), false)
            ),
            Self::NoQueueLeft => "give fewer queues, or another tap device".to_owned(),
            Self::Owner { name, many } => format!(
                "be the user or in the group that `ip tuntap` shows for {name}, or make another one: \
                 `{}`",
                create(&another(name), *many)
            ),
            Self::NoRights { name, many } => format!("run `{}`", create(name, *many)),
            Self::Busy { name, .. } => format!(
                "end the program that has it, or give each VM a tap device of its own: `{}`",
                create(&another(name), false)
            ),
            Self::NoTun => {
                "run `sudo modprobe tun`; a container gets it with `--device /dev/net/tun`"
                    .to_owned()
            }
            Self::TunDenied(error) if error.raw_os_error() == Some(libc::EPERM) => {
                "a container gets it with `--device /dev/net/tun` and `--cap-add NET_ADMIN`"
                    .to_owned()
            }
            Self::TunDenied(_) => {
                "run `sudo chmod 666 /dev/net/tun`, as distributions have it: a tap device is its \
                 owner's all the same"
                    .to_owned()
            }
            Self::TooManyFiles => "raise the limit of open files (`ulimit -n 4096`)".to_owned(),
            Self::Name => "give a shorter name, such as vm0".to_owned(),
            Self::Fd(_) => {
                "give the number of an open tap device with IFF_NO_PI and IFF_VNET_HDR".to_owned()
            }
            Self::Mtu(..) => "give queue-size=128, or a smaller mtu".to_owned(),
            Self::Host(_) => "see the cause".to_owned(),
        }
    }
}

/// The commands that make a tap device for this user.
fn create(name: &str, many: bool) -> String {
    let many = if many { " multi_queue" } else { "" };
    format!("sudo ip tuntap add {name} mode tap user $USER{many} && sudo ip link set {name} up")
}

/// A name that is not this one.
fn another(name: &str) -> String {
    /// A name has 15 bytes.
    const KEPT: usize = 11;
    let kept: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(KEPT)
        .collect();
    format!("{kept}-tap")
}
