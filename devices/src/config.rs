//! What a user may say about a device: plain data that a command line or a file can hold.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

/// A number with an optional unit `K`, `M`, `G` or `T` (powers of 1024); `plain` is the power of two
/// that a number without one counts.
///
/// # Errors
/// Says what is wrong with the text.
pub fn parse_size(text: &str, plain: u32) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches("IB").trim_end_matches('B');
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
    pub bw: Option<u64>,
    /// Bytes that may go at once after a pause; without it, those of a second.
    pub bw_burst: Option<u64>,
    /// Requests (or packets) per second.
    pub iops: Option<u64>,
    /// Requests that may go at once after a pause; without it, those of a second.
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
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
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
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct BalloonConfig {
    /// Bytes of RAM that the guest is left with; without it, all.
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_described_in_full() {
        let disk: BlkConfig = "path=a.img,ro,serial=x=y,engine=sync,direct,queues=4,queue-size=64,\
            discard=off,bw=10M,iops=500,iops-burst=1K"
            .parse()
            .unwrap();
        assert_eq!(
            disk,
            BlkConfig {
                path: "a.img".into(),
                read_only: true,
                serial: "x=y".into(),
                engine: BlkEngine::Sync,
                direct: true,
                queues: 4,
                queue_size: 64,
                discard: false,
                limits: Limits {
                    bw: Some(10 << 20),
                    bw_burst: None,
                    iops: Some(500),
                    iops_burst: Some(1024),
                },
            }
        );
        assert_eq!("b".parse::<BlkConfig>().unwrap().path, PathBuf::from("b"));
    }

    #[test]
    fn a_comma_too_many_is_no_option() {
        for (text, read_only) in [
            ("a.img,", false),
            ("a.img,,ro", true),
            (",path=a.img", false),
        ] {
            let disk: BlkConfig = text.parse().unwrap();
            assert_eq!((disk.path, disk.read_only), ("a.img".into(), read_only));
        }
        assert_eq!(
            "vm0,".parse::<NetConfig>().unwrap().tap.as_deref(),
            Some("vm0")
        );
    }

    #[test]
    fn what_a_program_gives_has_the_same_limits() {
        let disk = |change: fn(&mut BlkConfig)| {
            let mut disk: BlkConfig = "a".parse().unwrap();
            change(&mut disk);
            disk.check().unwrap_err().to_string()
        };
        assert!(disk(|disk| disk.path = PathBuf::new()).contains("PATH"));
        assert!(disk(|disk| disk.queues = 17).contains("1 to 16"));
        assert!(disk(|disk| disk.queue_size = 3).contains("power of two"));
        assert!(disk(|disk| disk.limits.bw_burst = Some(0)).contains("bw-burst"));
        assert!(disk(|disk| disk.serial = "x".repeat(21)).contains("20 bytes"));
        let net = |change: fn(&mut NetConfig)| {
            let mut net: NetConfig = "vm0".parse().unwrap();
            change(&mut net);
            net.check().unwrap_err().to_string()
        };
        assert!(net(|net| (net.tap, net.fd) = (None, Some(-1))).contains("fd=\"-1\""));
        assert!(net(|net| net.tap = Some(String::new())).contains("1 to 15 bytes"));
        assert!(net(|net| net.mac = Some(Mac([1, 0, 0, 0, 0, 0]))).contains("even"));
        assert!(net(|net| net.mtu = Some(67)).contains("68 to"));
        assert!(net(|net| net.limits.iops = Some(u64::MAX)).contains("1024T"));
    }

    #[test]
    fn a_network_device_is_a_tap_or_a_descriptor() {
        let net: NetConfig = "tap=vm0,mac=02:00:00:00:00:0a,mtu=9000,queues=2,queue-size=512,bw=1M"
            .parse()
            .unwrap();
        assert_eq!(net.tap.as_deref(), Some("vm0"));
        assert_eq!(net.mac.unwrap().to_string(), "02:00:00:00:00:0a");
        assert_eq!((net.mtu, net.queues, net.queue_size), (Some(9000), 2, 512));
        assert_eq!(net.limits.bw, Some(1 << 20));
        assert_eq!("fd=7".parse::<NetConfig>().unwrap().fd, Some(7));
        for (text, named) in [
            ("", "NAME"),
            ("a-name-that-is-too-long", "15 bytes"),
            ("a b", "no blank"),
            ("vm%d", "no /, : or %"),
            ("vm:0", "no /, : or %"),
            (".", "not . or .."),
            ("tap=..", "not . or .."),
            ("fd=-1", "0 to"),
            ("vm0,bw-burst=0", "bw-burst"),
            ("vm0,fd=3", "one of the two"),
            ("fd=3,queues=2", "one pair"),
            ("vm0,mac=1:2:3:4:5:6", "six hexadecimal"),
            ("vm0,mac=01:00:00:00:00:00", "even"),
            ("vm0,mtu=20", "68 to"),
            ("vm0,ro", "unknown option \"ro\""),
        ] {
            let error = text.parse::<NetConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn sockets_have_a_number_and_a_path() {
        let vsock: VsockConfig = "cid=3,path=/tmp/v".parse().unwrap();
        assert_eq!((vsock.cid, vsock.path), (3, PathBuf::from("/tmp/v")));
        for (text, named) in [
            ("", "no cid"),
            ("cid=2,path=x", "3 to 4294967294"),
            ("cid=4294967295,path=x", "3 to"),
            ("cid=7", "no path"),
            ("cid=7,path=", "no path"),
            ("x,cid=7", "unknown option \"x\""),
        ] {
            let error = text.parse::<VsockConfig>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_balloon_may_say_nothing() {
        let parse = |text: &str| text.parse::<BalloonConfig>();
        assert_eq!(parse("").unwrap(), BalloonConfig::default());
        let balloon = parse("deflate-on-oom,target=64,free-page-reporting").unwrap();
        assert_eq!(balloon.target, Some(64 << 20));
        assert!(balloon.deflate_on_oom && balloon.free_page_reporting);
        assert!(parse("size=1").is_err());
        let nothing = parse("target=0").unwrap_err().to_string();
        assert!(nothing.contains("left with no memory"), "{nothing}");
    }

    #[test]
    fn a_wrong_option_is_named_with_what_would_be_right() {
        for (text, named) in [
            ("", "PATH"),
            ("ro", ""),
            ("path=", "PATH"),
            ("a,wo", "wo"),
            ("a,queues=0", "1 to 16"),
            ("a,queues=x", "queues=\"x\""),
            ("a,queue-size=100", "power of two"),
            ("a,queue-size=2048", "2 to 1024"),
            ("a,engine=fast", "io_uring"),
            ("a,discard=maybe", "on or off"),
            ("a,serial=123456789012345678901", "20 bytes"),
            ("a,bw=0", "1 to"),
            ("a,iops=many", "not a number"),
        ] {
            match text.parse::<BlkConfig>() {
                Ok(_) => assert_eq!(text, "ro", "a file may have that name"),
                Err(error) => assert!(error.to_string().contains(named), "{text}: {error}"),
            }
        }
    }
}
