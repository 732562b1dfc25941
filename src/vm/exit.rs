//! Decodes an exit from the mapped `kvm_run` (Linux Documentation/virt/kvm/api.rst, section 5).
//!
//! kvm-ioctls' own exit type hides the element size of string I/O and the suberror of an internal
//! error, so this module reads the structure itself. It is unsafe because KVM's unions are.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_IN, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
    KVM_EXIT_SYSTEM_EVENT, kvm_run,
};
use kvm_ioctls::VcpuFd;

/// Why a vCPU left the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit<'a> {
    /// The guest reads `data.len() / size` elements from a port.
    PortIn {
        port: u16,
        size: usize,
        data: &'a mut [u8],
    },
    /// The guest writes `data.len() / size` elements to a port.
    PortOut {
        port: u16,
        size: usize,
        data: &'a [u8],
    },
    /// The guest reads memory that is not RAM.
    MmioRead { address: u64, data: &'a mut [u8] },
    /// The guest writes memory that is not RAM.
    MmioWrite { address: u64, data: &'a [u8] },
    /// KVM has nothing to report, or the guest halted without an in-kernel interrupt chip.
    Nothing,
    /// A triple fault.
    Shutdown,
    /// Power-off, reset or crash, as the platform firmware interface reports it.
    SystemEvent(u32),
    /// The hardware refused to enter the guest.
    FailEntry(u64),
    /// KVM could not go on.
    InternalError(u32),
    /// An exit this VMM does not enable.
    Unknown(u32),
}

/// Decodes the exit of a KVM_RUN that has just returned without an error. `mapped` is
/// KVM_GET_VCPU_MMAP_SIZE; `quiet` are the architecture's own exits with nothing to do
/// ([`arch::KvmPlatform::QUIET_EXITS`]).
pub(crate) fn decode<'a>(vcpu: &'a mut VcpuFd, mapped: usize, quiet: &[u32]) -> Exit<'a> {
    let run = vcpu.get_kvm_run();
    let start: *mut kvm_run = run;
    match run.exit_reason {
        KVM_EXIT_IO => {
            // SAFETY: the exit reason says that `io` is the active field.
            let io = unsafe { run.__bindgen_anon_1.io };
            let size = usize::from(io.size.max(1));
            let len = size.saturating_mul(io.count as usize);
            let offset = usize::try_from(io.data_offset).unwrap_or(usize::MAX);
            if offset.checked_add(len).is_none_or(|end| end > mapped) {
                return Exit::Unknown(KVM_EXIT_IO);
            }
            // SAFETY: the range lies inside the mapping of `mapped` bytes at `start`, which lives
            // as long as the borrow of the vCPU; KVM touches it only during KVM_RUN.
            let data =
                unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().add(offset), len) };
            let port = io.port;
            if u32::from(io.direction) == KVM_EXIT_IO_IN {
                Exit::PortIn { port, size, data }
            } else {
                Exit::PortOut { port, size, data }
            }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: the exit reason says that `mmio` is the active field.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = (mmio.len as usize).min(mmio.data.len());
            let (address, data) = (mmio.phys_addr, &mut mmio.data[..len]);
            if mmio.is_write == 0 {
                Exit::MmioRead { address, data }
            } else {
                Exit::MmioWrite { address, data }
            }
        }
        KVM_EXIT_HLT | KVM_EXIT_INTR | KVM_EXIT_IRQ_WINDOW_OPEN => Exit::Nothing,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_SYSTEM_EVENT => {
            // SAFETY: the exit reason says that `system_event` is the active field.
            Exit::SystemEvent(unsafe { run.__bindgen_anon_1.system_event.type_ })
        }
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says that `fail_entry` is the active field.
            Exit::FailEntry(unsafe {
                run.__bindgen_anon_1
                    .fail_entry
                    .hardware_entry_failure_reason
            })
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: the exit reason says that `internal` is the active field.
            Exit::InternalError(unsafe { run.__bindgen_anon_1.internal.suberror })
        }
        other if quiet.contains(&other) => Exit::Nothing,
        other => Exit::Unknown(other),
    }
}
