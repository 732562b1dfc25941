//! The contract suite on the x86_64 backend, on any host.

use arch::kernel::Protocol;
use arch_x86_64::X86_64;

arch::platform_contract!(X86_64::typical(), [Protocol::Linux64, Protocol::Pvh]);
