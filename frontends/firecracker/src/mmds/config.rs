//! Who reaches the service, and how.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the service is when nobody says so.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// How guests ask.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "MmdsVersion")]
pub enum Version {
    /// With or without a token.
    #[default]
    V1,
    /// With a token.
    V2,
}

/// `PUT /mmds/config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmdsConfig {
    /// How guests ask.
    #[serde(default)]
    pub version: Version,
    /// The ids of network devices whose guest reaches the service.
    pub network_interfaces: Vec<String>,
    /// Where it is.
    pub ipv4_address: Option<Ipv4Addr>,
    /// Answers have the form of EC2's service, whatever a guest asks for.
    #[serde(default)]
    pub imds_compat: bool,
}

impl MmdsConfig {
    /// Where the service is.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.ipv4_address.unwrap_or(ADDRESS)
    }

    /// Whether a service may be there: RFC 3927 keeps the first and the last 256 addresses of its network back.
    pub(crate) fn has_legal_address(&self) -> bool {
        matches!(self.address().octets(), [169, 254, 1..=254, _])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_in_the_network_for_links() {
        for (address, legal) in [
            ([169, 254, 169, 254], true),
            ([169, 254, 1, 0], true),
            ([169, 254, 0, 9], false),
            ([169, 254, 255, 9], false),
            ([10, 0, 0, 1], false),
        ] {
            let config = MmdsConfig {
                version: Version::V2,
                network_interfaces: Vec::new(),
                ipv4_address: Some(address.into()),
                imds_compat: false,
            };
            assert_eq!(config.has_legal_address(), legal, "{address:?}");
        }
    }
}
