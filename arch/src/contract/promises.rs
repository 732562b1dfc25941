//! What machines are promised of their host.

use super::machines::{MIB, config, plan};
use crate::{ConfigPath, FeatureBits, PlanError, Platform};

/// A machine that was saved can go on on the host that it was made on, where it would be made the same again.
///
/// # Panics
/// When the platform misses anything of its own promise, or would plan another machine afterwards.
pub fn a_host_keeps_its_own_promise<P: Platform>(mut platform: P) {
    let Some(promise) = platform.promise() else {
        return;
    };
    let config = config(256 * MIB, 2);
    let before = plan(&platform, &config);
    let differences = platform.keep(promise.clone());
    assert_eq!(differences, []);
    assert_eq!(platform.promise(), Some(promise));
    assert_eq!(plan(&platform, &config), before);
}

/// What a platform's processors have no register for is refused by its name, and nothing is changed.
///
/// # Panics
/// When a change is taken that means nothing, or nothing is a change.
pub fn features_without_a_register_are_refused_by_name<P: Platform>(mut platform: P) {
    let before = platform.promise();
    assert_eq!(platform.show_features(&[]), Ok(()));
    let unknown = FeatureBits::of("a register of nothing");
    match platform.show_features(&[unknown]) {
        Err(PlanError::Config { field, value, .. }) => {
            assert_eq!(field, ConfigPath::from("features").item(0));
            assert!(value.starts_with("a register of nothing"), "{value}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(platform.promise(), before);
}
