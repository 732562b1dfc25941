//! What of a device is another one in a machine that goes on: `id=blk0,path=FILE`. Everything else is as it was.

use std::path::PathBuf;
use std::str::FromStr;

use super::error::OptionError;
use super::ranges;
use super::tap::tap_name;
use super::text::{First, number, options};

/// Another file behind a disk, or the same one as it is by now: `id=ID,path=FILE`, `id=ID,changed=ok`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlkReplacement {
    /// The disk.
    pub id: String,
    /// The file.
    pub path: Option<PathBuf>,
    /// The file may have changed since the machine was saved.
    pub changed: bool,
}

/// A copy of a disk's file, made when the machine is saved: `id=ID,copy=FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlkCopy {
    /// The disk.
    pub id: String,
    /// The new file.
    pub path: PathBuf,
}

/// Another tap device: `id=ID,tap=NAME` or `id=ID,fd=N`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetReplacement {
    /// The network device.
    pub id: String,
    /// The tap device of the host.
    pub tap: Option<String>,
    /// Instead, an open descriptor of a tap device.
    pub fd: Option<i32>,
}

/// Another socket of a vsock device: `path=SOCKET`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VsockReplacement {
    /// The Unix socket that programs of the host connect to.
    pub path: PathBuf,
}

const BLK: &str = "id=ID,path=FILE or id=ID,changed=ok";
const COPY: &str = "id=ID,copy=FILE";
const NET: &str = "id=ID,tap=NAME or id=ID,fd=N";

impl BlkReplacement {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &["id=", "path=", "changed="];
}

impl BlkCopy {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &["id=", "copy="];
}

impl NetReplacement {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &["id=", "tap=", "fd="];
}

impl VsockReplacement {
    /// The options that its text may have.
    pub const OPTIONS: &'static [&'static str] = &["path="];

    /// The socket at this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl FromStr for BlkReplacement {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let mut new = Self::default();
        for (key, text) in options(text, First::Option, Self::OPTIONS)? {
            match key {
                "id" => new.id = text.into_owned(),
                "path" => new.path = Some(PathBuf::from(&*text)),
                _ if text == "ok" => new.changed = true,
                _ => {
                    let cause = "it is ok, or not there".to_owned();
                    return Err(OptionError::Value("changed", text.into_owned(), cause));
                }
            }
        }
        if new.id.is_empty() {
            return Err(OptionError::Missing("id", BLK));
        }
        if new.path.is_none() && !new.changed {
            return Err(OptionError::Missing("file", BLK));
        }
        Ok(new)
    }
}

impl FromStr for BlkCopy {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (mut id, mut path) = (String::new(), PathBuf::new());
        for (key, text) in options(text, First::Option, Self::OPTIONS)? {
            match key {
                "id" => id = text.into_owned(),
                _ => path = PathBuf::from(&*text),
            }
        }
        if id.is_empty() {
            return Err(OptionError::Missing("id", COPY));
        }
        if path.as_os_str().is_empty() {
            return Err(OptionError::Missing("file", COPY));
        }
        Ok(Self { id, path })
    }
}

impl FromStr for NetReplacement {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let (mut id, mut tap, mut fd) = (None, None, None);
        for (key, text) in options(text, First::Option, Self::OPTIONS)? {
            match key {
                "id" => id = Some(text.into_owned()),
                "tap" => tap = Some(text.into_owned()),
                _ => fd = Some(number(key, &text, &ranges::FD)?),
            }
        }
        match (&tap, fd) {
            (Some(name), None) => tap_name(name)?,
            (None, Some(_)) => {}
            _ => return Err(OptionError::Missing("tap device", NET)),
        }
        let id = id.ok_or(OptionError::Missing("id", NET))?;
        Ok(Self { id, tap, fd })
    }
}

impl FromStr for VsockReplacement {
    type Err = OptionError;

    fn from_str(text: &str) -> Result<Self, OptionError> {
        let found = options(text, First::Option, Self::OPTIONS)?;
        let (_, path) = found
            .first()
            .ok_or(OptionError::Missing("socket", "path=SOCKET"))?;
        let path = PathBuf::from(&**path);
        Ok(Self { path })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_another_one_is_said_with_the_device() {
        let blk: BlkReplacement = "id=a,path=/b=c,changed=ok".parse().unwrap();
        let expected = BlkReplacement {
            id: "a".to_owned(),
            path: Some("/b=c".into()),
            changed: true,
        };
        assert_eq!(blk, expected);
        let copy: BlkCopy = "id=a,copy=\"/b,c\"".parse().unwrap();
        assert_eq!((&*copy.id, copy.path), ("a", PathBuf::from("/b,c")));
        let net: NetReplacement = "id=n,fd=3".parse().unwrap();
        assert_eq!((&*net.id, net.tap, net.fd), ("n", None, Some(3)));
        let vsock: VsockReplacement = "path=/v".parse().unwrap();
        assert_eq!(vsock.path, PathBuf::from("/v"));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let blk = |text: &str| text.parse::<BlkReplacement>().unwrap_err().to_string();
        assert!(blk("path=/a").contains("id=ID,path=FILE"));
        assert!(blk("id=a").contains("id=ID,path=FILE"));
        assert!(blk("/a").contains("changed"));
        assert!(blk("id=a,changed=yes").contains("it is ok"));
        assert!(blk("id=a,queues=2").contains("queues"));
        let copy = |text: &str| text.parse::<BlkCopy>().unwrap_err().to_string();
        for wrong in ["copy=/a", "id=a"] {
            assert!(copy(wrong).contains("id=ID,copy=FILE"), "{wrong}");
        }
        assert!(copy("id=a,path=/a").contains("copy"));
        let net = |text: &str| text.parse::<NetReplacement>().unwrap_err().to_string();
        for wrong in [
            "id=a",
            "tap=t",
            "id=a,tap=t,fd=3",
            "id=a,tap=a/b",
            "id=a,fd=x",
        ] {
            assert!(!net(wrong).is_empty());
        }
        assert!("".parse::<VsockReplacement>().is_err());
    }
}
