//! What is wrong with a device's text or values, by the option that it is.

/// Why a text does not describe a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionError {
    /// What has to be there is not.
    #[error("no {0}; write {1}")]
    Missing(&'static str, &'static str),
    /// An option that there is not.
    #[error("unknown option {0:?}; there are {1}")]
    Unknown(String, String),
    /// Nothing where an option has to be.
    #[error("nothing stands between two commas, or at one end; leave the comma away")]
    Empty,
    /// An option that is there already.
    #[error("{0} is given twice; write it once")]
    Twice(&'static str),
    /// A value that an option does not take.
    #[error("{0}={1:?}: {2}")]
    Value(&'static str, String, String),
}

impl OptionError {
    /// Which value of a device's configuration is wrong: its keys with dots between them, as in a file
    /// (`limits.bw` where a text has `bw`). `None` when it is no value that is wrong.
    #[must_use]
    pub fn path(&self) -> Option<&'static str> {
        match self {
            Self::Value(key, ..) => Some(path_of_limit(key).unwrap_or(key)),
            _ => None,
        }
    }
}

/// Where a file has the option of this name, if it is one of the limits.
fn path_of_limit(option: &str) -> Option<&'static str> {
    Some(match option {
        "bw" => "limits.bw",
        "bw-burst" => "limits.bw-burst",
        "bw-refill" => "limits.bw-refill",
        "bw-once" => "limits.bw-once",
        "iops" => "limits.iops",
        "iops-burst" => "limits.iops-burst",
        "iops-refill" => "limits.iops-refill",
        "iops-once" => "limits.iops-once",
        "rx-bw" => "rx-limits.bw",
        "rx-bw-burst" => "rx-limits.bw-burst",
        "rx-bw-refill" => "rx-limits.bw-refill",
        "rx-bw-once" => "rx-limits.bw-once",
        "rx-iops" => "rx-limits.iops",
        "rx-iops-burst" => "rx-limits.iops-burst",
        "rx-iops-refill" => "rx-limits.iops-refill",
        "rx-iops-once" => "rx-limits.iops-once",
        "tx-bw" => "tx-limits.bw",
        "tx-bw-burst" => "tx-limits.bw-burst",
        "tx-bw-refill" => "tx-limits.bw-refill",
        "tx-bw-once" => "tx-limits.bw-once",
        "tx-iops" => "tx-limits.iops",
        "tx-iops-burst" => "tx-limits.iops-burst",
        "tx-iops-refill" => "tx-limits.iops-refill",
        "tx-iops-once" => "tx-limits.iops-once",
        _ => return None,
    })
}
