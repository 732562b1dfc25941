//! Whether all that a saved machine had open as descriptors gets something else in its place: the numbers of another process
//! mean other files here.

use std::path::{Component, Path};

use vmm_reference::VmConfig;

use super::super::configuration::Configuration;
use super::super::start::{disk_id, net_id};
use crate::texts::StateFault;

/// # Errors
/// When the configuration that the API knows has no such device.
pub(super) fn check(known: &Configuration, config: &VmConfig) -> Result<(), StateFault> {
    let drives = known.drives.iter();
    let drives: Vec<_> = drives
        .map(|drive| disk_id(&drive.config.drive_id))
        .collect();
    let networks = known.networks.iter();
    let networks: Vec<_> = networks
        .map(|network| net_id(&network.config.iface_id))
        .collect();
    let has = |ids: &[String], id: &Option<String>| {
        id.as_ref()
            .is_some_and(|id| ids.iter().any(|own| own == id))
    };
    let mut disks = config.blk.iter();
    let mut nets = config.net.iter();
    let is_fine = disks.all(|disk| !is_descriptor(&disk.path) || has(&drives, &disk.id))
        && nets.all(|net| net.fd.is_none() || has(&networks, &net.id))
        && (known.vsock.is_some()
            || !config
                .vsock
                .as_ref()
                .is_some_and(|vsock| is_descriptor(&vsock.path)));
    if is_fine {
        return Ok(());
    }
    Err(StateFault::Wrong(
        "a device of it was an open descriptor, and nothing is said of what that was".to_owned(),
    ))
}

/// Whether a path may name what is open in this process.
fn is_descriptor(path: &Path) -> bool {
    let names = [
        "/proc",
        "/dev/fd",
        "/dev/stdin",
        "/dev/stdout",
        "/dev/stderr",
    ];
    names.iter().any(|name| path.starts_with(name))
        || path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_reference::{BlkConfig, NetConfig, VsockConfig};

    use super::super::super::disk::Drive;
    use super::*;
    use crate::api::bodies::{BlockDeviceConfig, CacheType};
    use crate::mmds::Mmds;

    #[test]
    fn a_descriptor_of_another_process_is_not_taken_for_one_of_this_one() {
        let config = BlockDeviceConfig {
            drive_id: "a".to_owned(),
            partuuid: None,
            is_root_device: false,
            cache_type: CacheType::Unsafe,
            is_read_only: None,
            path_on_host: Some("x".to_owned()),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        };
        let mmds = Mmds::new(0).unwrap();
        let mut known = Configuration::new(Arc::new(Mutex::new(mmds)));
        known.drives.push(Drive { config, file: None });
        let disk = |path: &str, id: &str| {
            let disk = BlkConfig::new(path).with_id(id);
            VmConfig::default().with_disk(disk)
        };
        let net = VmConfig::default().with_net(NetConfig::default().with_fd(5));
        let vsock = VmConfig::default().with_vsock(VsockConfig::new(3, "/dev/fd/5"));
        for (config, is_fine) in [
            (VmConfig::default(), true),
            (disk("/dev/fd/5", "block_a"), true),
            (disk("/dev/fd/5", "block_b"), false),
            (disk("/images/b", "block_b"), true),
            (disk("/proc/thread-self/fd/5", "block_b"), false),
            (disk("/x/../proc/self/fd/5", "block_b"), false),
            (net, false),
            (vsock, false),
        ] {
            assert_eq!(check(&known, &config).is_ok(), is_fine, "{config:?}");
        }
    }
}
