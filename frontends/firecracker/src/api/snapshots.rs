//! The bodies of `/snapshot/create`, `/snapshot/load` and `/snapshot/fork`; names as in `bodies.rs`.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::Error;

use super::bodies::HugePageConfig;

/// What of the memory is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum SnapshotType {
    /// What changed.
    Diff,
    #[default]
    Full,
}

/// `PUT /snapshot/create`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshotParams {
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}

/// Who has the content of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum MemBackendType {
    /// A file.
    File,
    /// A process behind a socket.
    Uffd,
}

/// Where the content of memory is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemBackendConfig {
    pub(crate) backend_path: PathBuf,
    pub(crate) backend_type: MemBackendType,
}

/// Another tap device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct NetworkOverride {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

/// Another socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct VsockOverride {
    pub(crate) uds_path: String,
}

/// Another file behind a disk.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct DriveOverride {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: String,
}

/// The pages of a restored guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum RestoreHugePages {
    /// As they were.
    #[default]
    Snapshot,
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

impl RestoreHugePages {
    /// Those that take the place of the saved machine's.
    pub(crate) fn other(self) -> Option<HugePageConfig> {
        match self {
            Self::Snapshot => None,
            Self::None => Some(HugePageConfig::None),
            Self::Transparent => Some(HugePageConfig::Transparent),
            Self::Hugetlbfs2M => Some(HugePageConfig::Hugetlbfs2M),
        }
    }
}

/// `PUT /snapshot/load`, as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadSnapshotConfig {
    snapshot_path: PathBuf,
    mem_file_path: Option<PathBuf>,
    mem_backend: Option<MemBackendConfig>,
    #[serde(default)]
    enable_diff_snapshots: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    resume_vm: bool,
    #[serde(default)]
    network_overrides: Vec<NetworkOverride>,
    vsock_override: Option<VsockOverride>,
    #[serde(default)]
    drive_overrides: Vec<DriveOverride>,
    #[serde(default)]
    clock_realtime: bool,
    #[serde(default)]
    huge_pages: RestoreHugePages,
}

/// `PUT /snapshot/fork`, which is ours.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForkParams {
    pub(crate) api_sock: PathBuf,
    pub(crate) id: Option<String>,
    #[serde(default)]
    pub(crate) resume_vm: bool,
    /// Files that have what the disks have.
    #[serde(default)]
    pub(crate) drive_overrides: Vec<DriveOverride>,
    /// New files, which become copies of the disks.
    #[serde(default)]
    pub(crate) drive_copies: Vec<DriveOverride>,
    #[serde(default)]
    pub(crate) network_overrides: Vec<NetworkOverride>,
    pub(crate) vsock_override: Option<VsockOverride>,
    pub(crate) serial_out_path: Option<PathBuf>,
    pub(crate) metrics_path: Option<PathBuf>,
}

/// What `PUT /snapshot/load` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadSnapshotParams {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_backend: MemBackendConfig,
    pub(crate) track_dirty_pages: bool,
    pub(crate) resume_vm: bool,
    pub(crate) network_overrides: Vec<NetworkOverride>,
    pub(crate) vsock_override: Option<VsockOverride>,
    pub(crate) drive_overrides: Vec<DriveOverride>,
    pub(crate) clock_realtime: bool,
    pub(crate) huge_pages: RestoreHugePages,
}

const TOO_MANY: &str =
    "too many fields: either `mem_backend` or `mem_file_path` exclusively is required";
const MISSING: &str = "missing field: either `mem_backend` or `mem_file_path` is required";

impl LoadSnapshotParams {
    /// Reads a body, and says whether it has a deprecated field.
    pub(crate) fn read(body: &[u8]) -> serde_json::Result<(Self, bool)> {
        let config: LoadSnapshotConfig = serde_json::from_slice(body)?;
        let is_deprecated = config.mem_file_path.is_some() || config.enable_diff_snapshots;
        let mem_backend = match (config.mem_backend, config.mem_file_path) {
            (Some(_), Some(_)) => return Err(serde_json::Error::custom(TOO_MANY)),
            (None, None) => return Err(serde_json::Error::custom(MISSING)),
            (Some(backend), None) => backend,
            (None, Some(backend_path)) => MemBackendConfig {
                backend_path,
                backend_type: MemBackendType::File,
            },
        };
        let params = Self {
            snapshot_path: config.snapshot_path,
            mem_backend,
            track_dirty_pages: config.track_dirty_pages || config.enable_diff_snapshots,
            resume_vm: config.resume_vm,
            network_overrides: config.network_overrides,
            vsock_override: config.vsock_override,
            drive_overrides: config.drive_overrides,
            clock_realtime: config.clock_realtime,
            huge_pages: config.huge_pages,
        };
        Ok((params, is_deprecated))
    }
}
