//! What a user may say about a device: plain data that a command line or a file can hold.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

mod file;
#[cfg(test)]
mod tests;

/// Why a text does not describe a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// What has to be there is not.
    #[error("no {0}; write {1}")]
    Missing(&'static str, &'static str),
    /// An option that there is not.
    #[error("unknown option {0:?}; there are {1}")]
    Unknown(String, &'static str),
    /// A value that an option does not take.
    #[error("{0}={1:?}: {2}")]
    Value(&'static str, String, String),
}

/// Splits `first,key=value,flag`; what has no key in front has the key "". A comma too many is no
/// option.
fn options(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',')
        .enumerate()
        .filter(|(_, option)| !option.is_empty())
        .map(|(place, option)| match option.split_once('=') {
            Some(pair) => pair,
            None if place == 0 => ("", option),
            None => (option, ""),
        })
}

fn value<T: FromStr<Err: fmt::Display>>(key: &'static str, text: &str) -> Result<T, OptionError> {
    text.parse()
        .map_err(|error: T::Err| OptionError::Value(key, text.to_owned(), error.to_string()))
}

/// Checks a value that a text, a file or a program has given.
fn within<T: PartialOrd + fmt::Display>(
    key: &'static str,
    found: T,
    range: RangeInclusive<T>,
) -> Result<(), OptionError> {
    if range.contains(&found) {
        return Ok(());
    }
    let cause = format!("it is {} to {}", range.start(), range.end());
    Err(OptionError::Value(key, found.to_string(), cause))
}

/// A queue's size: a power of two.
fn queue_size(size: u16) -> Result<(), OptionError> {
    const KEY: &str = "queue-size";
    within(KEY, size, 2..=1024)?;
    if size.is_power_of_two() {
        Ok(())
    } else {
        let cause = "it is a power of two".to_owned();
        Err(OptionError::Value(KEY, size.to_string(), cause))
    }
}

fn on_or_off(key: &'static str, text: &str) -> Result<bool, OptionError> {
    match text {
        "" | "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(OptionError::Value(
            key,
            text.to_owned(),
            "it is on or off".to_owned(),
        )),
    }
}

/// A number with an optional unit `B`, `K`, `M`, `G` or `T` (powers of 1024); `plain` is the power of two
/// that a number without one counts.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str, plain: u32) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches("IB").trim_end_matches('B');
    let plain = if upper.ends_with('B') { 0 } else { plain };
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| Some((number.strip_suffix(*unit)?, *shift)))
        .unwrap_or((number, plain));
    let number: u64 = number
        .parse()
        .map_err(|_| "not a number; write 1024, 512M or 2G".to_owned())?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "more than the address space holds".to_owned())
}

/// How much of something a device may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes per second.
    #[serde(deserialize_with = "file::bytes")]
    pub bw: Option<u64>,
    /// Bytes that may go at once after a pause; without it, those of a second.
    #[serde(deserialize_with = "file::bytes")]
    pub bw_burst: Option<u64>,
    /// Requests (or packets) per second.
    #[serde(deserialize_with = "file::bytes")]
    pub iops: Option<u64>,
    /// Requests that may go at once after a pause; without it, those of a second.
    #[serde(deserialize_with = "file::bytes")]
    pub iops_burst: Option<u64>,
}

impl Limits {
    /// Takes an option if it is one of these.
    fn take(&mut self, key: &str, text: &str) -> Result<bool, OptionError> {
        let amount = |key| {
            let amount = parse_size(text, 0)
                .map_err(|cause| OptionError::Value(key, text.to_owned(), cause))?;
            Ok(Some(amount))
        };
        match key {
            "bw" => self.bw = amount("bw")?,
            "bw-burst" => self.bw_burst = amount("bw-burst")?,
            "iops" => self.iops = amount("iops")?,
            "iops-burst" => self.iops_burst = amount("iops-burst")?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Checks what is true of every device's limits.
    fn check(&self) -> Result<(), OptionError> {
        for (key, amount) in [
            ("bw", self.bw),
            ("bw-burst", self.bw_burst),
            ("iops", self.iops),
            ("iops-burst", self.iops_burst),
        ] {
            // Beyond that, a bucket's level would not fit; no device is as fast.
            if let Some(amount) = amount
                && !(1..=1 << 50).contains(&amount)
            {
                let cause = "it is 1 to 1024T".to_owned();
                return Err(OptionError::Value(key, amount.to_string(), cause));
            }
        }
        Ok(())
    }
}

/// How a disk's requests reach the host's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "sync" => Ok(Self::Sync),
            _ => Err("it is auto, io_uring or sync"),
        }
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
pub struct BlkConfig {
    /// A raw image or a block device.
    pub path: PathBuf,
    /// The guest may only read.
    pub read_only: bool,
    /// What the guest is told as serial number; 20 bytes at most.
    pub serial: String,
    /// How requests reach the host's kernel.
    pub engine: BlkEngine,
    /// Past the host's page cache.
    pub direct: bool,
    /// Number of queues.
    pub queues: u16,
    /// Entries of a queue, a power of two.
    pub queue_size: u16,
    /// The guest may give parts of the file back.
    pub discard: bool,
    /// How much the guest may read and write.
    pub limits: Limits,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            read_only: false,
            serial: String::new(),
            engine: BlkEngine::Auto,
            direct: false,
            queues: 1,
            queue_size: 256,
            discard: true,
            limits: Limits::default(),
        }
    }
}

/// The longest serial number of a disk (VIRTIO 1.3, 5.2.6).
const MAX_SERIAL: usize = 20;

impl BlkConfig {
    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        if self.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("file", "PATH or path=PATH[,ro]…"));
        }
        if self.serial.len() > MAX_SERIAL {
            let cause = format!("a serial number has {MAX_SERIAL} bytes at most");
            return Err(OptionError::Value("serial", self.serial.clone(), cause));
        }
        within("queues", self.queues, 1..=16)?;
        queue_size(self.queue_size)?;
        self.limits.check()
    }
}

impl FromStr for BlkConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut disk = Self::default();
        for (key, text) in options(text) {
            match key {
                "" | "path" => disk.path = text.into(),
                "ro" if text.is_empty() => disk.read_only = true,
                "serial" => text.clone_into(&mut disk.serial),
                "engine" => disk.engine = value("engine", text)?,
                "direct" => disk.direct = on_or_off("direct", text)?,
                "queues" => disk.queues = value("queues", text)?,
                "queue-size" => disk.queue_size = value("queue-size", text)?,
                "discard" => disk.discard = on_or_off("discard", text)?,
                _ if disk.limits.take(key, text)? => {}
                _ => {
                    return Err(OptionError::Unknown(
                        key.to_owned(),
                        "path=, ro, serial=, engine=, direct, queues=, queue-size=, discard=, bw=, \
                         bw-burst=, iops= and iops-burst=",
                    ));
                }
            }
        }
        disk.check()?;
        Ok(disk)
    }
}

/// A hardware address of a network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "it is six hexadecimal numbers, 02:00:00:00:00:01";
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(WRONG)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| WRONG)?;
        }
        if parts.next().is_some() {
            return Err(WRONG);
        }
        Self(mac).check()?;
        Ok(Self(mac))
    }
}

impl Mac {
    /// An address that many stations share is none for a device.
    fn check(self) -> Result<(), &'static str> {
        if self.0[0] & 1 != 0 || self.0 == [0; 6] {
            return Err("it is no address of one station: the first number has to be even");
        }
        Ok(())
    }
}

impl TryFrom<String> for Mac {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
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
pub struct NetConfig {
    /// The tap device of the host; created if there is none.
    pub tap: Option<String>,
    /// Instead, an open descriptor of a tap device.
    pub fd: Option<i32>,
    /// The guest's address; without it, a random one.
    pub mac: Option<Mac>,
    /// The largest packet, without the Ethernet header.
    pub mtu: Option<u16>,
    /// Pairs of queues.
    pub queues: u16,
    /// Entries of a queue, a power of two.
    pub queue_size: u16,
    /// How much may pass in each direction.
    pub limits: Limits,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            tap: None,
            fd: None,
            mac: None,
            mtu: None,
            queues: 1,
            queue_size: 256,
            limits: Limits::default(),
        }
    }
}

/// The longest name of a network device of the host (IFNAMSIZ without the end).
const MAX_TAP_NAME: usize = 15;

impl NetConfig {
    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        let wrong =
            |key, value: String, cause: &str| Err(OptionError::Value(key, value, cause.to_owned()));
        match (&self.tap, self.fd) {
            (None, None) => {
                return Err(OptionError::Missing("tap device", "NAME, tap=NAME or fd=N"));
            }
            (Some(name), Some(_)) => {
                let cause = "there is fd= already; write one of the two";
                return wrong("tap", name.clone(), cause);
            }
            (None, Some(fd)) => {
                within("fd", fd, 0..=i32::MAX)?;
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
            // What IPv4 asks for at least (RFC 791).
            within("mtu", mtu, 68..=u16::MAX)?;
        }
        within("queues", self.queues, 1..=8)?;
        queue_size(self.queue_size)?;
        self.limits.check()
    }
}

/// What Linux takes as a name (`dev_valid_name`), without `%`, which it would replace by a number.
fn tap_name(name: &str) -> Result<(), OptionError> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    let fits = (1..=MAX_TAP_NAME).contains(&name.len());
    if !fits || name.contains(strange) || [".", ".."].contains(&name) {
        let cause = format!(
            "a name has 1 to {MAX_TAP_NAME} bytes, no blank and no /, : or %; it is not . or .."
        );
        return Err(OptionError::Value("tap", name.to_owned(), cause));
    }
    Ok(())
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
        for (key, text) in options(text) {
            match key {
                "" | "tap" => net.tap = Some(text.to_owned()).filter(|name| !name.is_empty()),
                "fd" => net.fd = Some(value("fd", text)?),
                "mac" => net.mac = Some(value("mac", text)?),
                "mtu" => net.mtu = Some(value("mtu", text)?),
                "queues" => net.queues = value("queues", text)?,
                "queue-size" => net.queue_size = value("queue-size", text)?,
                _ if net.limits.take(key, text)? => {}
                _ => {
                    return Err(OptionError::Unknown(
                        key.to_owned(),
                        "tap=, fd=, mac=, mtu=, queues=, queue-size=, bw=, bw-burst=, iops= and \
                         iops-burst=",
                    ));
                }
            }
        }
        net.check()?;
        Ok(net)
    }
}

/// Sockets between host and guest: `cid=N,path=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "kebab-case", deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context identifier: 3 or more.
    pub cid: u32,
    /// The Unix socket that programs of the host connect to; where the guest connects to is the
    /// socket of that name with `_` and the port behind it.
    pub path: PathBuf,
}

impl FromStr for VsockConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (mut cid, mut path) = (None, None);
        for (key, text) in options(text) {
            match key {
                "cid" => cid = Some(value("cid", text)?),
                "path" => path = Some(text.into()),
                _ => {
                    let key = if key.is_empty() { text } else { key };
                    return Err(OptionError::Unknown(key.to_owned(), "cid= and path="));
                }
            }
        }
        let vsock = Self {
            cid: cid.ok_or(OptionError::Missing("cid", VSOCK_FORM))?,
            path: path.unwrap_or_default(),
        };
        vsock.check()?;
        Ok(vsock)
    }
}

const VSOCK_FORM: &str = "cid=N,path=SOCKET";

impl VsockConfig {
    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        // The numbers below are those of the hypervisor and the host, the last one of anybody.
        within("cid", self.cid, 3..=u32::MAX - 1)?;
        if self.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("path", VSOCK_FORM));
        }
        Ok(())
    }
}

/// A memory balloon: `[target=SIZE][,deflate-on-oom][,free-page-reporting]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    remote = "Self",
    rename_all = "kebab-case",
    deny_unknown_fields,
    default
)]
pub struct BalloonConfig {
    /// Bytes of RAM that the guest is left with; without it, all.
    #[serde(deserialize_with = "file::mib", serialize_with = "file::with_unit")]
    pub target: Option<u64>,
    /// The guest may take memory back before it runs out.
    pub deflate_on_oom: bool,
    /// The guest tells of pages that it has freed.
    pub free_page_reporting: bool,
}

impl FromStr for BalloonConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        const MIB: u32 = 20;
        let mut balloon = Self::default();
        for (key, text) in options(text) {
            // A flag may come first.
            let (key, text) = if key.is_empty() {
                (text, "")
            } else {
                (key, text)
            };
            match key {
                "target" => {
                    let target = parse_size(text, MIB)
                        .map_err(|cause| OptionError::Value("target", text.to_owned(), cause))?;
                    balloon.target = Some(target);
                }
                "deflate-on-oom" => balloon.deflate_on_oom = on_or_off("deflate-on-oom", text)?,
                "free-page-reporting" => {
                    balloon.free_page_reporting = on_or_off("free-page-reporting", text)?;
                }
                _ => {
                    return Err(OptionError::Unknown(
                        key.to_owned(),
                        "target=, deflate-on-oom and free-page-reporting",
                    ));
                }
            }
        }
        balloon.check()?;
        Ok(balloon)
    }
}

impl BalloonConfig {
    /// Checks every value, whoever gave it.
    ///
    /// # Errors
    /// Names the option and what it takes.
    pub fn check(&self) -> Result<(), OptionError> {
        if self.target == Some(0) {
            let cause = "the guest would be left with no memory; give what it may keep";
            return Err(OptionError::Value(
                "target",
                "0".to_owned(),
                cause.to_owned(),
            ));
        }
        Ok(())
    }
}
