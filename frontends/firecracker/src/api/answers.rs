//! The bodies of answers, with their fields in their order.

use serde::Serialize;

use super::bodies::{
    BalloonDeviceConfig, BlockDeviceConfig, BootSourceConfig, EntropyDeviceConfig, MachineConfig,
    NetworkInterfaceConfig, VsockDeviceConfig,
};
use crate::mmds::config::MmdsConfig;

/// `GET /balloon/hinting/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct HintingStatus {
    pub(crate) host_cmd: u32,
    pub(crate) guest_cmd: Option<u32>,
}

/// `GET /balloon/statistics`; what the guest has not told is not there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BalloonStats {
    pub(crate) target_pages: u32,
    pub(crate) actual_pages: u32,
    pub(crate) target_mib: u32,
    pub(crate) actual_mib: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swap_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) major_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) minor_faults: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) free_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) total_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) available_memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk_caches: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hugetlb_allocations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hugetlb_failures: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) oom_kill: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alloc_stall: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) async_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) direct_scan: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) async_reclaim: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) direct_reclaim: Option<u64>,
}

/// `PUT /snapshot/fork`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ForkedInfo {
    pub(crate) pid: u32,
    pub(crate) still_us: u64,
    pub(crate) ready_us: u64,
}

/// `GET /`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct InstanceInfo<'a> {
    pub(crate) id: &'a str,
    pub(crate) state: &'a str,
    pub(crate) vmm_version: &'a str,
    pub(crate) app_name: &'a str,
}

/// `GET /version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Version<'a> {
    pub(crate) firecracker_version: &'a str,
}

/// `GET /vm/config`. What is not told is null.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct FullConfig<'a> {
    pub(crate) balloon: Option<&'a BalloonDeviceConfig>,
    pub(crate) drives: Vec<BlockDeviceConfig>,
    pub(crate) boot_source: BootSourceConfig,
    pub(crate) cpu_config: Option<()>,
    pub(crate) logger: Option<()>,
    pub(crate) machine_config: &'a MachineConfig,
    pub(crate) metrics: Option<()>,
    pub(crate) mmds_config: Option<MmdsConfig>,
    pub(crate) network_interfaces: Vec<&'a NetworkInterfaceConfig>,
    pub(crate) vsock: Option<VsockDeviceConfig>,
    pub(crate) entropy: Option<&'a EntropyDeviceConfig>,
    pub(crate) pmem: Vec<()>,
    pub(crate) memory_hotplug: Option<()>,
}
