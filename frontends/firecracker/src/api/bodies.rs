//! The bodies of requests, and of answers that are made of the same. Names and types of fields, and the names of the
//! types, are what the messages of serde_json are made of, which clients know; so they are Firecracker's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use vmm_reference::Mac;

use super::template::CustomCpuTemplate;
use crate::mmds::config::MmdsConfig;

/// `PUT /boot-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSourceConfig {
    pub(crate) kernel_image_path: String,
    pub(crate) initrd_path: Option<String>,
    pub(crate) boot_args: Option<String>,
}

/// Pages of guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HugePageConfig {
    #[default]
    None,
    Transparent,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

/// Masks of CPU features by the names of processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum StaticCpuTemplate {
    #[cfg(target_arch = "x86_64")]
    C3,
    #[cfg(target_arch = "x86_64")]
    T2,
    #[cfg(target_arch = "x86_64")]
    T2S,
    #[default]
    None,
    #[cfg(target_arch = "x86_64")]
    T2CL,
    #[cfg(target_arch = "x86_64")]
    T2A,
    #[cfg(not(target_arch = "x86_64"))]
    V1N1,
}

impl fmt::Display for StaticCpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// `PUT` and `GET /machine-config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: usize,
    #[serde(default)]
    pub(crate) smt: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_template: Option<StaticCpuTemplate>,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: HugePageConfig,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePageConfig::None,
        }
    }
}

/// `PATCH /machine-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfigUpdate {
    #[serde(default)]
    pub(crate) vcpu_count: Option<u8>,
    #[serde(default)]
    pub(crate) mem_size_mib: Option<usize>,
    #[serde(default)]
    pub(crate) smt: Option<bool>,
    #[serde(default)]
    pub(crate) cpu_template: Option<StaticCpuTemplate>,
    #[serde(default)]
    pub(crate) track_dirty_pages: Option<bool>,
    #[serde(default)]
    pub(crate) huge_pages: Option<HugePageConfig>,
}

impl From<MachineConfig> for MachineConfigUpdate {
    fn from(config: MachineConfig) -> Self {
        Self {
            vcpu_count: Some(config.vcpu_count),
            mem_size_mib: Some(config.mem_size_mib),
            smt: Some(config.smt),
            cpu_template: config.cpu_template,
            track_dirty_pages: Some(config.track_dirty_pages),
            huge_pages: Some(config.huge_pages),
        }
    }
}

/// How much of something may pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenBucketConfig {
    pub(crate) size: u64,
    pub(crate) one_time_burst: Option<u64>,
    /// In milliseconds.
    pub(crate) refill_time: u64,
}

/// How many bytes and requests may pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiterConfig {
    pub(crate) bandwidth: Option<TokenBucketConfig>,
    pub(crate) ops: Option<TokenBucketConfig>,
}

/// Whether a guest's flushes reach the file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

/// How requests reach the host's kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FileEngineType {
    Async,
    #[default]
    Sync,
}

/// `PUT /drives/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockDeviceConfig {
    pub(crate) drive_id: String,
    pub(crate) partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(default)]
    pub(crate) cache_type: CacheType,
    pub(crate) is_read_only: Option<bool>,
    pub(crate) path_on_host: Option<String>,
    pub(crate) rate_limiter: Option<RateLimiterConfig>,
    pub(crate) io_engine: Option<FileEngineType>,
    pub(crate) socket: Option<String>,
}

/// `PATCH /drives/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BlockDeviceUpdateConfig {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: Option<String>,
    pub(crate) rate_limiter: Option<RateLimiterConfig>,
}

/// `PUT /network-interfaces/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkInterfaceConfig {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
    #[serde(default, deserialize_with = "mac")]
    pub(crate) guest_mac: Option<Mac>,
    pub(crate) mtu: Option<u16>,
    pub(crate) rx_rate_limiter: Option<RateLimiterConfig>,
    pub(crate) tx_rate_limiter: Option<RateLimiterConfig>,
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Mac>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    let mac = text.map(|text| text.parse()).transpose();
    mac.map_err(|_| D::Error::custom("The provided MAC address is invalid."))
}

/// `PATCH /network-interfaces/ID`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetworkInterfaceUpdateConfig {
    pub(crate) iface_id: String,
    pub(crate) rx_rate_limiter: Option<RateLimiterConfig>,
    pub(crate) tx_rate_limiter: Option<RateLimiterConfig>,
}

/// `PUT /vsock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VsockDeviceConfig {
    #[serde(default, skip_serializing)]
    pub(crate) vsock_id: Option<String>,
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: String,
}

/// `PUT` and `GET /balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonDeviceConfig {
    pub(crate) amount_mib: u32,
    pub(crate) deflate_on_oom: bool,
    #[serde(default)]
    pub(crate) stats_polling_interval_s: u16,
    #[serde(default)]
    pub(crate) free_page_hinting: bool,
    #[serde(default)]
    pub(crate) free_page_reporting: bool,
}

/// `PATCH /balloon`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonUpdateConfig {
    pub(crate) amount_mib: u32,
}

/// `PATCH /balloon/statistics`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BalloonUpdateStatsConfig {
    pub(crate) stats_polling_interval_s: u16,
}

/// `PATCH /balloon/hinting/start`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct StartHintingCmd {
    #[serde(default = "yes")]
    pub(crate) acknowledge_on_stop: bool,
}

fn yes() -> bool {
    true
}

impl Default for StartHintingCmd {
    fn default() -> Self {
        Self {
            acknowledge_on_stop: true,
        }
    }
}

/// `PUT /entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntropyDeviceConfig {
    pub(crate) rate_limiter: Option<RateLimiterConfig>,
}

/// `PUT /serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialConfig {
    pub(crate) serial_out_path: Option<PathBuf>,
    pub(crate) rate_limiter: Option<TokenBucketConfig>,
}

/// `PUT /logger`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoggerConfig {
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) level: Option<LevelFilter>,
    pub(crate) show_level: Option<bool>,
    pub(crate) show_log_origin: Option<bool>,
    pub(crate) module: Option<String>,
}

/// A level of the log, in letters of any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct LevelFilter(pub(crate) &'static str);

impl LevelFilter {
    const ALL: [(&'static str, log::LevelFilter); 6] = [
        ("Off", log::LevelFilter::Off),
        ("Trace", log::LevelFilter::Trace),
        ("Debug", log::LevelFilter::Debug),
        ("Info", log::LevelFilter::Info),
        ("Warn", log::LevelFilter::Warn),
        ("Error", log::LevelFilter::Error),
    ];

    /// The level of this name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = match text {
            text if text.eq_ignore_ascii_case("warning") => "Warn",
            text => text,
        };
        let mut all = Self::ALL.iter();
        all.find(|(name, _)| name.eq_ignore_ascii_case(text))
            .map(|(name, _)| Self(name))
    }

    /// What the log calls it.
    pub(crate) fn level(self) -> log::LevelFilter {
        let mut all = Self::ALL.iter();
        all.find(|(name, _)| *name == self.0)
            .map_or(log::LevelFilter::Info, |(_, level)| *level)
    }
}

impl<'de> Deserialize<'de> for LevelFilter {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom("Invalid LevelFilter"))
    }
}

/// `PUT /metrics`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MetricsConfig {
    pub(crate) metrics_path: PathBuf,
    #[serde(default)]
    pub(crate) emit_id: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) properties: Option<BTreeMap<String, String>>,
}

/// What `PUT /actions` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

/// `PUT /actions`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ActionBody {
    pub(crate) action_type: ActionType,
}

/// What `PATCH /vm` can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum VmState {
    Paused,
    Resumed,
}

/// `PATCH /vm`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vm {
    pub(crate) state: VmState,
}

/// A CPU template in a configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum CustomCpuTemplateOrPath {
    Path(PathBuf),
    Template(CustomCpuTemplate),
}

/// A configuration file. Other keys are none of ours, and pass.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct VmmConfig {
    pub(crate) balloon: Option<BalloonDeviceConfig>,
    pub(crate) drives: Vec<BlockDeviceConfig>,
    pub(crate) boot_source: BootSourceConfig,
    pub(crate) cpu_config: Option<CustomCpuTemplateOrPath>,
    pub(crate) logger: Option<LoggerConfig>,
    pub(crate) machine_config: Option<MachineConfig>,
    pub(crate) metrics: Option<MetricsConfig>,
    pub(crate) mmds_config: Option<MmdsConfig>,
    #[serde(default)]
    pub(crate) network_interfaces: Vec<NetworkInterfaceConfig>,
    pub(crate) vsock: Option<VsockDeviceConfig>,
    pub(crate) entropy: Option<EntropyDeviceConfig>,
    #[serde(default)]
    pub(crate) pmem: Vec<serde_json::Value>,
    pub(crate) memory_hotplug: Option<serde_json::Value>,
}
