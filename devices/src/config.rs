//! What a user may say about a device: plain data that a command line or a file can hold.

use std::fmt;
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

/// Splits `first,key=value,flag`; what has no key in front has the key "".
fn options(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(',')
        .enumerate()
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

fn number<T>(
    key: &'static str,
    text: &str,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, OptionError>
where
    T: FromStr<Err: fmt::Display> + PartialOrd + fmt::Display,
{
    let found: T = value(key, text)?;
    if range.contains(&found) {
        return Ok(found);
    }
    let cause = format!("it is {} to {}", range.start(), range.end());
    Err(OptionError::Value(key, text.to_owned(), cause))
}

/// A queue's size: a power of two.
fn queue_size(text: &str) -> Result<u16, OptionError> {
    let size: u16 = number("queue-size", text, 2..=1024)?;
    if size.is_power_of_two() {
        Ok(size)
    } else {
        let cause = "it is a power of two".to_owned();
        Err(OptionError::Value("queue-size", text.to_owned(), cause))
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
        let amount = |key, plain: &str| {
            let amount = parse_size(plain, 0)
                .map_err(|cause| OptionError::Value(key, plain.to_owned(), cause))?;
            // Beyond that, a bucket's level would not fit; no device is as fast.
            if (1..=1 << 50).contains(&amount) {
                return Ok(Some(amount));
            }
            let cause = "it is 1 to 1024T".to_owned();
            Err(OptionError::Value(key, plain.to_owned(), cause))
        };
        match key {
            "bw" => self.bw = amount("bw", text)?,
            "bw-burst" => self.bw_burst = amount("bw-burst", text)?,
            "iops" => self.iops = amount("iops", text)?,
            "iops-burst" => self.iops_burst = amount("iops-burst", text)?,
            _ => return Ok(false),
        }
        Ok(true)
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

impl FromStr for BlkConfig {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut disk = Self::default();
        for (key, text) in options(text) {
            match key {
                "" | "path" => disk.path = text.into(),
                "ro" if text.is_empty() => disk.read_only = true,
                "serial" if text.len() <= MAX_SERIAL => text.clone_into(&mut disk.serial),
                "serial" => {
                    let cause = format!("a serial number has {MAX_SERIAL} bytes at most");
                    return Err(OptionError::Value("serial", text.to_owned(), cause));
                }
                "engine" => disk.engine = value("engine", text)?,
                "direct" => disk.direct = on_or_off("direct", text)?,
                "queues" => disk.queues = number("queues", text, 1..=16)?,
                "queue-size" => disk.queue_size = queue_size(text)?,
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
        if disk.path.as_os_str().is_empty() {
            return Err(OptionError::Missing("file", "PATH or path=PATH[,ro]…"));
        }
        Ok(disk)
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
