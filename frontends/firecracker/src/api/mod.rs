//! The API: which request asks for what.

pub(crate) mod answers;
pub(crate) mod bodies;
mod paths;
pub(crate) mod service;
pub(crate) mod snapshots;
pub(crate) mod template;

use serde::de::DeserializeOwned;
use serde_json::Value;

use self::bodies::{
    ActionBody, ActionType, BalloonDeviceConfig, BalloonUpdateConfig, BalloonUpdateStatsConfig,
    BlockDeviceConfig, BlockDeviceUpdateConfig, BootSourceConfig, EntropyDeviceConfig,
    LoggerConfig, MachineConfig, MachineConfigUpdate, MetricsConfig, NetworkInterfaceConfig,
    NetworkInterfaceUpdateConfig, SerialConfig, StartHintingCmd, Vm, VmState, VsockDeviceConfig,
};
use self::snapshots::{CreateSnapshotParams, ForkParams, LoadSnapshotParams};
use self::template::CustomCpuTemplate;
use crate::http::{Method, Request};
use crate::mmds::config::{MmdsConfig, Version};
use crate::texts::mmds::V1_DEPRECATED;

/// What a request asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    GetInfo,
    GetVersion,
    GetFullConfig,
    GetMachineConfig,
    GetBalloon,
    GetBalloonStatistics,
    GetHintingStatus,
    SetBootSource(BootSourceConfig),
    SetMachineConfig(MachineConfigUpdate),
    SetCpuConfig(CustomCpuTemplate),
    SetDrive(BlockDeviceConfig),
    SetNetwork(NetworkInterfaceConfig),
    SetVsock(VsockDeviceConfig),
    SetBalloon(BalloonDeviceConfig),
    SetEntropy(EntropyDeviceConfig),
    SetSerial(SerialConfig),
    SetMmdsConfig(MmdsConfig),
    GetMmds,
    PutMmds(Value),
    PatchMmds(Value),
    SetLogger(LoggerConfig),
    SetMetrics(MetricsConfig),
    UpdateDrive(BlockDeviceUpdateConfig),
    UpdateNetwork(NetworkInterfaceUpdateConfig),
    UpdateBalloon(BalloonUpdateConfig),
    UpdateBalloonStatistics(BalloonUpdateStatsConfig),
    StartHinting(StartHintingCmd),
    StopHinting,
    CreateSnapshot(CreateSnapshotParams),
    LoadSnapshot(Box<LoadSnapshotParams>),
    Fork(Box<ForkParams>),
    Start,
    FlushMetrics,
    SendCtrlAltDel,
    Pause,
    Resume,
    /// A device is to be taken out of a running machine.
    Unplug,
    /// What this version has not.
    Missing(&'static str),
}

/// A request that is understood.
#[derive(Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) action: Action,
    /// What of it is deprecated.
    pub(crate) deprecated: Option<&'static str>,
}

impl From<Action> for Asked {
    fn from(action: Action) -> Self {
        Self {
            action,
            deprecated: None,
        }
    }
}

/// Why a request asks for nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("The ID cannot be empty.")]
    NoId,
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    WrongId,
    #[error("The id from the path does not match the id from the body!")]
    OtherDrive,
    #[error("The id from the path [{0}] does not match the id from the body [{1}]!")]
    OtherNetwork(String, String),
    #[error("{0}")]
    Body(&'static str),
    #[error("Unrecognized {0} request path `{1}`.")]
    Part(&'static str, String),
    #[error("Missing snapshot operation type.")]
    NoOperation,
    #[error("Invalid request method and/or path: {} {path}.", .method.name())]
    Path { method: Method, path: String },
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
}

const PMEM: &str = "there are no pmem devices";
const MEMORY_HOTPLUG: &str = "there is no memory hot-plug";

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, RequestError> {
    Ok(serde_json::from_slice(body)?)
}

/// Finds out what a request asks for.
pub(crate) fn route(request: &Request) -> Result<Asked, RequestError> {
    let path = request.path.trim_start_matches('/');
    let mut parts = path.split_terminator('/');
    let first = parts.next().unwrap_or_default();
    let second = parts.next();
    let third = parts.next();
    let names = paths::counters(request.method, first);
    paths::count(names);
    let asked = match (request.method, &request.body) {
        (Method::Get, None) => get(first, second, third),
        (Method::Put, Some(body)) => put(first, second, body),
        (Method::Patch, body) => patch(first, second, third, body.as_deref()),
        (Method::Delete, None) => delete(first, second),
        (Method::Get, Some(_)) => Err(RequestError::Body("GET request cannot have a body.")),
        (Method::Put, None) => Err(RequestError::Body("Empty PUT request.")),
        (Method::Delete, Some(_)) => Err(RequestError::Body("Empty Delete request.")),
    };
    if asked.is_err() {
        paths::count_failure(names);
    }
    asked
}

/// What is at none of the paths that there are.
fn nowhere(method: Method, path: &str) -> RequestError {
    RequestError::Path {
        method,
        path: path.to_owned(),
    }
}

fn get(first: &str, second: Option<&str>, third: Option<&str>) -> Result<Asked, RequestError> {
    let action = match (first, second) {
        ("", _) => Action::GetInfo,
        ("version", _) => Action::GetVersion,
        ("vm", Some("config")) => Action::GetFullConfig,
        ("machine-config", _) => Action::GetMachineConfig,
        ("balloon", None) => Action::GetBalloon,
        ("balloon", Some("statistics")) => Action::GetBalloonStatistics,
        ("balloon", Some("hinting")) => match third {
            Some("status") => Action::GetHintingStatus,
            other => return Err(hinting("GET", other)),
        },
        ("balloon", Some(other)) => return Err(RequestError::Part("GET", other.to_owned())),
        ("mmds", _) => Action::GetMmds,
        ("hotplug", Some("memory")) => Action::Missing(MEMORY_HOTPLUG),
        _ => return Err(nowhere(Method::Get, first)),
    };
    Ok(action.into())
}

fn hinting(method: &'static str, part: Option<&str>) -> RequestError {
    RequestError::Part(method, format!("/hinting/{}", part.unwrap_or_default()))
}

fn put(first: &str, second: Option<&str>, body: &[u8]) -> Result<Asked, RequestError> {
    let action = match first {
        "actions" => match json::<ActionBody>(body)?.action_type {
            ActionType::InstanceStart => Action::Start,
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        },
        "balloon" => Action::SetBalloon(json(body)?),
        "boot-source" => Action::SetBootSource(json(body)?),
        "cpu-config" => Action::SetCpuConfig(json(body)?),
        "drives" => {
            let id = checked_id(second)?;
            let drive: BlockDeviceConfig = json(body)?;
            if drive.drive_id != id {
                return Err(RequestError::OtherDrive);
            }
            Action::SetDrive(drive)
        }
        "network-interfaces" => {
            let id = checked_id(second)?;
            let network: NetworkInterfaceConfig = json(body)?;
            if network.iface_id != id {
                return Err(RequestError::OtherNetwork(id.to_owned(), network.iface_id));
            }
            Action::SetNetwork(network)
        }
        "logger" => Action::SetLogger(json(body)?),
        "metrics" => Action::SetMetrics(json(body)?),
        "serial" => Action::SetSerial(json(body)?),
        "entropy" => Action::SetEntropy(json(body)?),
        "machine-config" => {
            let config: MachineConfig = json(body)?;
            let deprecated = config.cpu_template.is_some();
            return Ok(Asked {
                action: Action::SetMachineConfig(config.into()),
                deprecated: deprecated
                    .then_some("PUT /machine-config: cpu_template field is deprecated."),
            });
        }
        "vsock" => {
            let vsock: VsockDeviceConfig = json(body)?;
            let deprecated = vsock.vsock_id.is_some();
            return Ok(Asked {
                action: Action::SetVsock(vsock),
                deprecated: deprecated.then_some("PUT /vsock: vsock_id field is deprecated."),
            });
        }
        "snapshot" => match second {
            Some("create") => Action::CreateSnapshot(json(body)?),
            Some("fork") => Action::Fork(Box::new(json(body)?)),
            Some("load") => {
                let (params, deprecated) = LoadSnapshotParams::read(body)?;
                return Ok(Asked {
                    action: Action::LoadSnapshot(Box::new(params)),
                    deprecated: deprecated.then_some(
                        "PUT /snapshot/load: mem_file_path and enable_diff_snapshots fields are deprecated.",
                    ),
                });
            }
            Some(other) => return Err(nowhere(Method::Put, &format!("/snapshot/{other}"))),
            None => return Err(RequestError::NoOperation),
        },
        "mmds" => match second {
            None => Action::PutMmds(json(body)?),
            Some("config") => {
                let config: MmdsConfig = json(body)?;
                let deprecated = config.version == Version::V1;
                return Ok(Asked {
                    action: Action::SetMmdsConfig(config),
                    deprecated: deprecated.then_some(V1_DEPRECATED),
                });
            }
            Some(other) => return Err(RequestError::Part("PUT", other.to_owned())),
        },
        "pmem" => Action::Missing(PMEM),
        "hotplug" if second == Some("memory") => Action::Missing(MEMORY_HOTPLUG),
        _ => return Err(nowhere(Method::Put, first)),
    };
    Ok(action.into())
}

fn patch(
    first: &str,
    second: Option<&str>,
    third: Option<&str>,
    body: Option<&[u8]>,
) -> Result<Asked, RequestError> {
    const EMPTY: RequestError = RequestError::Body("Empty PATCH request.");
    let action = match (first, second, body) {
        ("balloon", Some("hinting"), body) => match (third, body) {
            (Some("start"), None) => Action::StartHinting(StartHintingCmd::default()),
            (Some("start"), Some(body)) => Action::StartHinting(json(body)?),
            (Some("stop"), _) => Action::StopHinting,
            (other, _) => return Err(hinting("PATCH", other)),
        },
        (_, _, None) => return Err(EMPTY),
        ("balloon", Some("statistics"), Some(body)) => Action::UpdateBalloonStatistics(json(body)?),
        ("balloon", _, Some(body)) => Action::UpdateBalloon(json(body)?),
        ("drives", id, Some(body)) => {
            let id = checked_id(id)?;
            let drive: BlockDeviceUpdateConfig = json(body)?;
            if drive.drive_id != id {
                return Err(RequestError::OtherDrive);
            }
            Action::UpdateDrive(drive)
        }
        ("network-interfaces", id, Some(body)) => {
            let id = checked_id(id)?;
            let network: NetworkInterfaceUpdateConfig = json(body)?;
            if network.iface_id != id {
                return Err(RequestError::OtherNetwork(id.to_owned(), network.iface_id));
            }
            Action::UpdateNetwork(network)
        }
        ("machine-config", _, Some(body)) => {
            let config: MachineConfigUpdate = json(body)?;
            if config == MachineConfigUpdate::default() {
                return Err(EMPTY);
            }
            let deprecated = config.cpu_template.is_some();
            return Ok(Asked {
                action: Action::SetMachineConfig(config),
                deprecated: deprecated
                    .then_some("PATCH /machine-config: cpu_template field is deprecated."),
            });
        }
        ("vm", _, Some(body)) => match json::<Vm>(body)?.state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        },
        ("mmds", _, Some(body)) => Action::PatchMmds(json(body)?),
        ("pmem", _, Some(_)) => Action::Missing(PMEM),
        ("hotplug", Some("memory"), Some(_)) => Action::Missing(MEMORY_HOTPLUG),
        _ => return Err(nowhere(Method::Patch, first)),
    };
    Ok(action.into())
}

fn delete(first: &str, second: Option<&str>) -> Result<Asked, RequestError> {
    let action = match first {
        "drives" | "network-interfaces" => Action::Unplug,
        "pmem" => Action::Missing(PMEM),
        _ => return Err(nowhere(Method::Delete, first)),
    };
    checked_id(second)?;
    Ok(action.into())
}

/// The id in a path.
fn checked_id(id: Option<&str>) -> Result<&str, RequestError> {
    let id = id.filter(|id| !id.is_empty()).ok_or(RequestError::NoId)?;
    let known = |letter: char| letter == '_' || letter.is_ascii_alphanumeric();
    if !id.chars().all(known) {
        return Err(RequestError::WrongId);
    }
    Ok(id)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
