//! How often requests come, and fail before they ask for something.

use crate::http::Method;
use crate::metrics;

/// Where a request is counted: the group, and the keys of its number and of its failures.
type Names = Option<(&'static str, &'static str, Option<&'static str>)>;

/// Paths with the keys of their requests, and with those of their failures.
const PATHS: &[(&str, &str, &str)] = &[
    ("actions", "actions_count", "actions_fails"),
    ("boot-source", "boot_source_count", "boot_source_fails"),
    ("cpu-config", "cpu_cfg_count", "cpu_cfg_fails"),
    ("drives", "drive_count", "drive_fails"),
    ("hotplug", "hotplug_memory_count", "hotplug_memory_fails"),
    ("logger", "logger_count", "logger_fails"),
    ("machine-config", "machine_cfg_count", "machine_cfg_fails"),
    ("metrics", "metrics_count", "metrics_fails"),
    ("mmds", "mmds_count", "mmds_fails"),
    ("network-interfaces", "network_count", "network_fails"),
    ("pmem", "pmem_count", "pmem_fails"),
    ("serial", "serial_count", "serial_fails"),
    ("vsock", "vsock_count", "vsock_fails"),
];

pub(super) fn counters(method: Method, path: &str) -> Names {
    let known = PATHS.iter().find(|(known, ..)| *known == path);
    match (method, path) {
        (Method::Get, "") => Some(("get_api_requests", "instance_info_count", None)),
        (Method::Get, "version") => Some(("get_api_requests", "vmm_version_count", None)),
        (Method::Get, _) => known.map(|(_, count, _)| ("get_api_requests", *count, None)),
        (Method::Put, _) => {
            known.map(|(_, count, fails)| ("put_api_requests", *count, Some(*fails)))
        }
        (Method::Patch, _) => {
            known.map(|(_, count, fails)| ("patch_api_requests", *count, Some(*fails)))
        }
        (Method::Delete, _) => None,
    }
}

pub(super) fn count(names: Names) {
    if let Some((group, key, _)) = names {
        metrics::count(group, key);
    }
}

pub(super) fn count_failure(names: Names) {
    if let Some((group, _, Some(key))) = names {
        metrics::count(group, key);
    }
}
