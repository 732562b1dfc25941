//! The contract suite: what every backend must satisfy, on every host.
//!
//! [`platform_contract!`](crate::platform_contract) turns each check into a test. The checks panic,
//! as tests do, and name the plan that broke them.

mod boot;
mod configuration;
mod kernels;
mod machines;
mod plans;
mod promises;
mod trees;

pub use boot::{boot_information_is_placed_well, every_vcpu_can_be_configured};
pub use configuration::{bad_values_are_refused_by_name, the_configuration_is_in_the_plan};
pub use kernels::kernels_have_their_place;
pub use plans::plans_hold_over_all_sizes;
pub use promises::{a_host_keeps_its_own_promise, features_without_a_register_are_refused_by_name};
pub use trees::{decompiled, device_trees_are_read_without_a_remark};

/// Runs the contract suite on a platform: `platform_contract!(X86_64::typical(),
/// [Protocol::Pvh])`. The second argument lists the boot protocols that its kernels use.
#[macro_export]
macro_rules! platform_contract {
    ($platform:expr, $protocols:expr) => {
        #[test]
        fn contract_features_without_a_register_are_refused_by_name() {
            $crate::contract::features_without_a_register_are_refused_by_name($platform);
        }

        #[test]
        fn contract_plans_hold_over_all_sizes() {
            $crate::contract::plans_hold_over_all_sizes(&$platform);
        }

        #[test]
        fn contract_the_configuration_is_in_the_plan() {
            $crate::contract::the_configuration_is_in_the_plan(&$platform);
        }

        #[test]
        fn contract_bad_values_are_refused_by_name() {
            $crate::contract::bad_values_are_refused_by_name(&$platform);
        }

        #[test]
        fn contract_kernels_have_their_place() {
            $crate::contract::kernels_have_their_place(&$platform, &$protocols);
        }

        #[test]
        fn contract_boot_information_is_placed_well() {
            $crate::contract::boot_information_is_placed_well(&$platform, &$protocols);
        }

        #[test]
        fn contract_device_trees_are_read_without_a_remark() {
            $crate::contract::device_trees_are_read_without_a_remark(&$platform, &$protocols);
        }

        #[test]
        fn contract_every_vcpu_can_be_configured() {
            $crate::contract::every_vcpu_can_be_configured(&$platform, &$protocols);
        }

        #[test]
        fn contract_a_host_keeps_its_own_promise() {
            $crate::contract::a_host_keeps_its_own_promise($platform);
        }
    };
}
