//! Why there is no network device, and what would help.

use std::io;

/// Why there is no network device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The tap device cannot be opened or created.
    #[error("{cause}")]
    Tap {
        /// Why.
        cause: String,
        /// What would help.
        cure: String,
    },
    /// The descriptor given cannot be used.
    #[error("{0}")]
    Fd(String),
    /// The driver might never offer buffers for a frame.
    #[error("an MTU of {0} is too much for queues of {1} entries")]
    Mtu(u16, u16),
    /// The host refused something else.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl NetError {
    pub(super) fn of_tap(name: &str, queues: u16, is_new: bool, error: io::Error) -> Self {
        let many = if queues > 1 { " multi_queue" } else { "" };
        let create = format!(
            "run `sudo ip tuntap add {name} mode tap user $USER{many} && sudo ip link set {name} up`"
        );
        let (cause, cure) = match error.raw_os_error() {
            Some(libc::EPERM) if is_new => (
                "there is no such tap device, and creating one needs CAP_NET_ADMIN".to_owned(),
                create,
            ),
            Some(libc::EPERM) => (
                "the tap device belongs to another user".to_owned(),
                format!("run `sudo ip tuntap del {name} mode tap`, then {create}"),
            ),
            Some(libc::EBUSY) => (
                "the tap device is in use by another program".to_owned(),
                "choose another name".to_owned(),
            ),
            Some(libc::EINVAL) if !is_new => (
                format!("there is one, but no tap device for {queues} queues"),
                format!("run `sudo ip link del {name}`, then {create}"),
            ),
            Some(libc::ENOENT) => (
                "there is no /dev/net/tun".to_owned(),
                "run `sudo modprobe tun`".to_owned(),
            ),
            Some(libc::EACCES) => (
                "/dev/net/tun may not be opened".to_owned(),
                "run `sudo chmod 666 /dev/net/tun`, as distributions have it".to_owned(),
            ),
            _ => (error.to_string(), create),
        };
        Self::Tap { cause, cure }
    }

    /// One line that says what to do about it.
    #[must_use]
    pub fn cure(&self) -> &str {
        match self {
            Self::Tap { cure, .. } => cure,
            Self::Fd(_) => "give the number of an open tap device with IFF_NO_PI and IFF_VNET_HDR",
            Self::Mtu(..) => "give queue-size=128, or a smaller mtu",
            Self::Host(_) => "see the cause",
        }
    }
}
