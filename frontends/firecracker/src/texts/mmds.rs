//! What a guest is told by the metadata service, and a client of the API about it.

use std::ops::RangeInclusive;

pub(crate) const INVALID_REQUEST: &str = "Invalid request.";
pub(crate) const INVALID_URI: &str = "Invalid URI.";
pub(crate) const INVALID_TOKEN: &str = "MMDS token not valid.";
pub(crate) const NO_TOKEN: &str = "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token.";
pub(crate) const NO_TTL: &str = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime.";
pub(crate) const NOT_ALLOWED: &str = "Not allowed HTTP method.";
pub(crate) const WRONG_TYPE: &str = "Cannot retrieve value. The value has an unsupported type.";

/// There is nothing at a path.
pub(crate) fn not_found(path: &str) -> String {
    format!("Resource not found: {path}.")
}

/// A token is asked for on behalf of somebody else.
pub(crate) fn forwarded(header: &str) -> String {
    format!("Invalid header. Reason: Unsupported header name. Key: {header}")
}

/// A header has a value that it cannot have.
pub(crate) fn bad_header_value(header: &str, value: &str) -> String {
    format!("Invalid header. Reason: Invalid value. Key:{header}; Value:{value}")
}

/// A token may not hold so long, or so short.
pub(crate) fn wrong_ttl(seconds: u32, legal: &RangeInclusive<u32>) -> String {
    format!(
        "Invalid time to live value provided for token: {seconds}. Please provide a value between {} and {}.",
        legal.start(),
        legal.end()
    )
}

pub(crate) const NOT_INITIALIZED: &str = "The MMDS data store is not initialized.";
pub(crate) const TOO_LARGE: &str = "The MMDS patch request doesn't fit.";
pub(crate) const NO_INTERFACE: &str =
    "The list of network interface IDs that allow forwarding MMDS requests is empty.";
pub(crate) const UNKNOWN_INTERFACE: &str = "The list of network interface IDs provided contains at least one ID that does not correspond to any existing network interface.";
pub(crate) const WRONG_ADDRESS: &str = "The MMDS IPv4 address is not link local.";
/// How guests ask is told without a version, or with the old one.
pub(crate) const V1_DEPRECATED: &str = "PUT /mmds/config: V1 is deprecated. Use V2 instead.";
