//! The options whose values have parts, `key=value,flag`, from what takes them.

use vmm_reference::{
    BalloonConfig, BlkConfig, BlkEngine, Limits, NetConfig, VsockConfig, words_of,
};

/// An option or argument, and the keys of its value, with `=` behind those that take one.
pub(super) const PARTS: [(&str, &[&str]); 6] = [
    ("blk", BlkConfig::OPTIONS),
    ("net", NetConfig::OPTIONS),
    ("vsock", VsockConfig::OPTIONS),
    ("balloon", BalloonConfig::OPTIONS),
    ("rng-limits", Limits::OPTIONS),
    (LIMIT, Limits::OPTIONS),
];
/// The argument of `ctl PATH device ID limits`, by the name of its value.
pub(super) const LIMIT: &str = "LIMIT";
/// The options that say where a console goes, and what may stand there.
pub(super) const TARGETS: [&str; 2] = ["serial", "console"];
pub(super) const TARGET_WORDS: &str = "stdio null file=";

/// What may stand behind a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Files,
    Words(String),
    /// Something that cannot be listed.
    Other,
}

/// What may stand behind a key with `=`.
pub(super) fn value_of(key: &str) -> Value {
    match key {
        "path=" => Value::Files,
        "engine=" => Value::Words(words_of::<BlkEngine>().join(" ")),
        "discard=" | "lock=" => Value::Words("off".to_owned()),
        _ => Value::Other,
    }
}
