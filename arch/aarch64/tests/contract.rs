//! The contract suite on the aarch64 backend, on any host.

use arch::kernel::Protocol;
use arch_aarch64::Aarch64;

arch::platform_contract!(Aarch64::typical(), [Protocol::DeviceTree]);
