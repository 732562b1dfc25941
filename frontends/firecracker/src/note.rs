//! What a saved machine keeps of the API's configuration, beside the library's own.

use serde::{Deserialize, Serialize};

use crate::api::bodies::{
    BalloonDeviceConfig, BlockDeviceConfig, EntropyDeviceConfig, MachineConfig,
    NetworkInterfaceConfig, VsockDeviceConfig,
};
use crate::mmds::MmdsConfig;

/// A configuration, as its client has said it. What a later version adds may be missing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Note {
    /// By this name the file of memory knows that it belongs to the state.
    #[serde(default)]
    pub(crate) memory: String,
    pub(crate) machine: MachineConfig,
    pub(crate) drives: Vec<BlockDeviceConfig>,
    pub(crate) networks: Vec<NetworkInterfaceConfig>,
    pub(crate) vsock: Option<VsockDeviceConfig>,
    pub(crate) balloon: Option<BalloonDeviceConfig>,
    pub(crate) entropy: Option<EntropyDeviceConfig>,
    /// Who reaches the metadata service. The data are the process', and go with it.
    #[serde(default)]
    pub(crate) mmds: Option<MmdsConfig>,
    pub(crate) boot_timer: bool,
}

impl Note {
    pub(crate) fn text(&self) -> String {
        // Such values cannot fail to become JSON.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// One of a saved machine, if a front end like this has written it.
    pub(crate) fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}
