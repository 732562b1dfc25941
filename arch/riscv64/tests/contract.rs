//! The contract suite on the riscv64 backend, on any host.

use arch::kernel::Protocol;
use arch_riscv64::Riscv64;

arch::platform_contract!(Riscv64::typical(), [Protocol::DeviceTree]);

/// The least that a host with the interrupt architecture has.
mod least {
    use super::{Protocol, Riscv64};

    fn host() -> Riscv64 {
        Riscv64 {
            gpa_bits: 41,
            extensions: ["i", "m", "a", "ssaia"].map(str::to_owned).to_vec(),
            satp_mode: 0,
            cache_blocks: [0; 3],
            identities: 63,
            ..Riscv64::typical()
        }
    }

    arch::platform_contract!(host(), [Protocol::DeviceTree]);
}
