//! What a user may say about a device: plain data that a command line or a file can hold.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

mod adjust;
mod balloon;
mod builders;
mod error;
mod file;
mod form;
mod id;
mod limits;
mod mac;
mod ranges;
mod rate;
mod replacement;
mod tap;
mod text;
mod words;

#[cfg(test)]
mod tests;

use self::id::check_id;
use self::tap::tap_name;
use self::text::{number, on_or_off, value, within};

pub use self::adjust::{Direction, LimitsChange};
pub use self::balloon::BalloonConfig;
pub(crate) use self::balloon::check_stats_interval;
pub use self::error::OptionError;
pub(crate) use self::file::stats_interval;
pub use self::file::{Size, size_with_unit, whole_number};
pub use self::limits::Limits;
pub use self::limits::table as limits_table;
pub use self::mac::Mac;
pub use self::rate::Rate;
pub use self::replacement::{BlkCopy, BlkReplacement, NetReplacement, VsockReplacement};
pub use self::text::{First, options, parse_size};
pub use self::words::{one_of, with_text, word, words_of};

/// Checks the number of entries of a queue.
fn queue_size(size: u16) -> Result<(), OptionError> {
    parse_queue_size(&size.to_string()).map(drop)
}

fn parse_queue_size(text: &str) -> Result<u16, OptionError> {
    const KEY: &str = "queue-size";
    let range = &ranges::QUEUE_SIZE;
    let wrong = || {
        let cause = format!("it is a power of two, {}", text::in_words(range));
        OptionError::Value(KEY, text.to_owned(), cause)
    };
    match number(KEY, text, range) {
        Ok(size) if u16::is_power_of_two(size) => Ok(size),
        _ => Err(wrong()),
    }
}

/// How a disk's requests reach the host's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BlkEngine {
    /// io_uring where the host allows it.
    #[default]
    Auto,
    /// io_uring: one submission for many requests.
    IoUring,
    /// A system call for each request, which the device waits for.
    Sync,
}

impl FromStr for BlkEngine {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        words::parse_word(text)
    }
}

/// A disk: `PATH` or `path=PATH[,option…]`.
///
/// ```
/// use devices::config::BlkConfig;
///
/// let disk: BlkConfig = "path=root.img,ro".parse().unwrap();
/// assert!(disk.read_only && disk.path.ends_with("root.img"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    remote = "Self",
    rename_all = "kebab-case",
    deny_unknown_fields,
    default
)]
#[non_exhaustive]
pub struct BlkConfig {
    /// What commands call it; without it, `blk` and how many disks come before it.
    #[serde(deserialize_with = "id::in_file")]
    pub id: Option<String>,
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
    /// What the guest is told as serial number; 20 bytes at most.
    pub serial: String,
    /// How requests reach the host's kernel.
    #[serde(deserialize_with = "word")]
    pub engine: BlkEngine,
    /// Past the host's page cache.
    pub direct: bool,
    /// Number of queues.
    #[serde(deserialize_with = "file::blk_queues")]
    pub queues: u16,
    /// Entries of a queue, a power of two.
    #[serde(deserialize_with = "file::queue_size")]
    pub queue_size: u16,
    /// The guest may give parts of the file back.
    pub discard: bool,
    /// Nobody else may write to the file, nor read it where the guest writes.
    pub lock: bool,
    /// How much the guest may read and write.
    #[serde(deserialize_with = "limits::table")]
    pub limits: Limits,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            id: None,
            path: PathBuf::new(),
            read_only: false,
            serial: String::new(),
            engine: BlkEngine::Auto,
            direct: false,
            queues: 1,
            queue_size: 256,
            discard: true,
            lock: true,
            limits: Limits::default(),
        }
    }
}

/// The longest serial number of a disk (VIRTIO 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;

impl BlkConfig {
    /// The options that its text may have, with `=` behind those that take a value.
    pub const OPTIONS: &'static [&'static str] = &[
        "path=",
        "id=",
        "ro",
        "serial=",
        "engine=",
        "direct",
        "queues=",
        "queue-size=",
        "discard=",
        "lock=",
        "bw=",
        "bw-burst=",
        "bw-refill=",
        "bw-once=",
        "iops=",
        "iops-burst=",
        "iops-refill=",
        "iops-once=",
    ];

    /// How many queues the device has.
    #[must_use]
    pub fn queue_count(&self) -> u32 {
        self.queues.max(1).into()
    }

    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        if self.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("file", "PATH or path=PATH[,ro]…"));
        }
        check_id(self.id.as_deref())?;
        if self.serial.len() > MAX_SERIAL {
            let cause = format!("a serial number has {MAX_SERIAL} bytes at most");
            return Err(OptionError::Value("serial", self.serial.clone(), cause));
        }
        within("queues", self.queues, &ranges::BLK_QUEUES)?;
        queue_size(self.queue_size)?;
        self.limits.check()
    }
}

impl FromStr for BlkConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut disk = Self::default();
        for (key, text) in options(text, First::Path("path"), Self::OPTIONS)? {
            let text = &*text;
            match key {
                "path" => disk.path = text.into(),
                "id" => disk.id = Some(text.to_owned()),
                "ro" => disk.read_only = on_or_off(key, text)?,
                "serial" => text.clone_into(&mut disk.serial),
                "engine" => disk.engine = value(key, text)?,
                "direct" => disk.direct = on_or_off(key, text)?,
                "queues" => disk.queues = number(key, text, &ranges::BLK_QUEUES)?,
                "queue-size" => disk.queue_size = parse_queue_size(text)?,
                "discard" => disk.discard = on_or_off(key, text)?,
                "lock" => disk.lock = on_or_off(key, text)?,
                _ => drop(disk.limits.take(&Limits::KEYS, key, text)?),
            }
        }
        disk.check()?;
        Ok(disk)
    }
}

/// A network device: `NAME`, or `tap=NAME[,option…]`, or `fd=N[,option…]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    remote = "Self",
    rename_all = "kebab-case",
    deny_unknown_fields,
    default
)]
#[non_exhaustive]
pub struct NetConfig {
    /// What commands call it; without it, `net` and how many network devices come before it.
    #[serde(deserialize_with = "id::in_file")]
    pub id: Option<String>,
    /// The tap device of the host; created if there is none.
    pub tap: Option<String>,
    /// Instead, an open descriptor of a tap device.
    #[serde(deserialize_with = "file::fd")]
    pub fd: Option<i32>,
    /// The guest's address; without it, a random one.
    pub mac: Option<Mac>,
    /// The largest packet, without the Ethernet header, in bytes.
    #[serde(deserialize_with = "file::mtu")]
    pub mtu: Option<u16>,
    /// Pairs of queues.
    #[serde(deserialize_with = "file::net_queues")]
    pub queues: u16,
    /// Entries of a queue, a power of two.
    #[serde(deserialize_with = "file::queue_size")]
    pub queue_size: u16,
    /// How much may pass in each direction.
    #[serde(deserialize_with = "limits::table")]
    pub limits: Limits,
    /// Instead, for frames to the guest.
    #[serde(deserialize_with = "limits::optional_table")]
    pub rx_limits: Option<Limits>,
    /// Instead, for frames from the guest.
    #[serde(deserialize_with = "limits::optional_table")]
    pub tx_limits: Option<Limits>,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            id: None,
            tap: None,
            fd: None,
            mac: None,
            mtu: None,
            queues: 1,
            queue_size: 256,
            limits: Limits::default(),
            rx_limits: None,
            tx_limits: None,
        }
    }
}

impl NetConfig {
    /// The options that its text may have, with `=` behind those that take a value.
    pub const OPTIONS: &'static [&'static str] = &[
        "tap=",
        "fd=",
        "id=",
        "mac=",
        "mtu=",
        "queues=",
        "queue-size=",
        "bw=",
        "bw-burst=",
        "bw-refill=",
        "bw-once=",
        "iops=",
        "iops-burst=",
        "iops-refill=",
        "iops-once=",
        "rx-bw=",
        "rx-bw-burst=",
        "rx-bw-refill=",
        "rx-bw-once=",
        "rx-iops=",
        "rx-iops-burst=",
        "rx-iops-refill=",
        "rx-iops-once=",
        "tx-bw=",
        "tx-bw-burst=",
        "tx-bw-refill=",
        "tx-bw-once=",
        "tx-iops=",
        "tx-iops-burst=",
        "tx-iops-refill=",
        "tx-iops-once=",
    ];

    /// How many queues the device has: pairs, and one for control.
    #[must_use]
    pub fn queue_count(&self) -> u32 {
        2 * u32::from(self.queues.max(1)) + 1
    }

    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        let wrong =
            |key, value: String, cause: &str| Err(OptionError::Value(key, value, cause.to_owned()));
        check_id(self.id.as_deref())?;
        match (&self.tap, self.fd) {
            (None, None) => {
                return Err(OptionError::Missing("tap device", "NAME, tap=NAME or fd=N"));
            }
            (Some(name), Some(_)) => {
                let cause = "there is fd= already; write one of the two";
                return wrong("tap", name.clone(), cause);
            }
            (None, Some(fd)) => {
                within("fd", fd, &ranges::FD)?;
                if self.queues > 1 {
                    let cause = "a descriptor is one pair of queues";
                    return wrong("queues", self.queues.to_string(), cause);
                }
            }
            (Some(name), None) => tap_name(name)?,
        }
        if let Some(mac) = self.mac
            && let Err(cause) = mac.check()
        {
            return wrong("mac", mac.to_string(), cause);
        }
        if let Some(mtu) = self.mtu {
            within("mtu", mtu, &ranges::MTU)?;
        }
        within("queues", self.queues, &ranges::NET_QUEUES)?;
        queue_size(self.queue_size)?;
        self.limits.check()?;
        for (limits, keys) in [
            (&self.rx_limits, &Limits::RX_KEYS),
            (&self.tx_limits, &Limits::TX_KEYS),
        ] {
            limits.iter().try_for_each(|limits| limits.check_as(keys))?;
        }
        Ok(())
    }

    fn take_limit(&mut self, key: &str, text: &str) -> Result<(), OptionError> {
        for (limits, keys) in [
            (&mut self.rx_limits, &Limits::RX_KEYS),
            (&mut self.tx_limits, &Limits::TX_KEYS),
        ] {
            let mut found = limits.unwrap_or_default();
            if found.take(keys, key, text)? {
                *limits = Some(found);
            }
        }
        self.limits.take(&Limits::KEYS, key, text).map(drop)
    }
}

impl fmt::Display for NetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.fd, &self.tap) {
            (Some(fd), _) => write!(f, "fd={fd}"),
            (None, name) => f.write_str(name.as_deref().unwrap_or_default()),
        }
    }
}

impl FromStr for NetConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut net = Self::default();
        for (key, text) in options(text, First::Name("tap"), Self::OPTIONS)? {
            let text = &*text;
            match key {
                "tap" => net.tap = Some(text.to_owned()).filter(|name| !name.is_empty()),
                "id" => net.id = Some(text.to_owned()),
                "fd" => net.fd = Some(number(key, text, &ranges::FD)?),
                "mac" => net.mac = Some(value(key, text)?),
                "mtu" => net.mtu = Some(number(key, text, &ranges::MTU)?),
                "queues" => net.queues = number(key, text, &ranges::NET_QUEUES)?,
                "queue-size" => net.queue_size = parse_queue_size(text)?,
                _ => net.take_limit(key, text)?,
            }
        }
        net.check()?;
        Ok(net)
    }
}

/// Sockets between host and guest: `cid=N,path=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub struct VsockConfig {
    /// What commands call it; without it, `vsock0`.
    #[serde(default, deserialize_with = "id::in_file")]
    pub id: Option<String>,
    /// The guest's context identifier: 3 to 4294967294, since VIRTIO reserves the others. It means nothing outside of
    /// this VM: several may have the same.
    #[serde(deserialize_with = "file::cid")]
    pub cid: u32,
    /// The Unix socket that programs of the host connect to; where the guest connects to is the
    /// socket of that name with `_` and the port behind it.
    pub path: PathBuf,
}

impl FromStr for VsockConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (mut id, mut cid, mut path) = (None, None, None);
        for (key, text) in options(text, First::Option, Self::OPTIONS)? {
            match key {
                "id" => id = Some(text.into_owned()),
                "cid" => cid = Some(number(key, &text, &ranges::CID)?),
                _ => path = Some(PathBuf::from(&*text)),
            }
        }
        let vsock = Self {
            id,
            cid: cid.ok_or(OptionError::Missing("cid", VSOCK_FORM))?,
            path: path.unwrap_or_default(),
        };
        vsock.check()?;
        Ok(vsock)
    }
}

const VSOCK_FORM: &str = "cid=N,path=SOCKET";

impl VsockConfig {
    /// The options that its text may have, with `=` behind those that take a value.
    pub const OPTIONS: &'static [&'static str] = &["cid=", "id=", "path="];

    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        check_id(self.id.as_deref())?;
        if !ranges::CID.contains(&self.cid) {
            // A guest could not tell itself, or everybody, from the host.
            let cause = "it is 3 to 4294967294: the others are the hypervisor's, the guest's own, the host's and \
                         everybody's (VIRTIO 1.3, 5.10.4); a front end whose clients give such a number may give the \
                         guest any other, since no VM sees another's";
            let (cid, cause) = (self.cid.to_string(), cause.to_owned());
            return Err(OptionError::Value("cid", cid, cause));
        }
        if self.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("path", VSOCK_FORM));
        }
        Ok(())
    }
}
