//! The contract suite on the riscv64 backend, on any host.

use arch::kernel::Protocol;
use arch_riscv64::Riscv64;

arch::platform_contract!(Riscv64::typical(), [Protocol::DeviceTree]);
