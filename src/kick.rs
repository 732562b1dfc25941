//! Gets a vCPU out of KVM_RUN.
//!
//! Storing `immediate_exit` first and signalling second leaves no gap: whether the vCPU is about
//! to enter the guest, in it, or on its way out, KVM_RUN returns EINTR. The no-op handler of one
//! real-time signal is the only process-wide state of this library.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The signal that interrupts KVM_RUN.
pub(crate) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the no-op handler, once per process.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    static INSTALL: Once = Once::new();
    let mut result = Ok(());
    INSTALL.call_once(|| result = register_signal_handler(kick_signal(), nothing));
    result.map_err(io::Error::from)
}

/// A second mapping of a vCPU's `kvm_run`, so that another thread can set `immediate_exit`.
#[derive(Debug)]
pub(crate) struct Kicker {
    run: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only accessed atomically, and only its `immediate_exit` byte.
unsafe impl Send for Kicker {}

impl Kicker {
    /// Maps `kvm_run` of `vcpu`; `len` is KVM_GET_VCPU_MMAP_SIZE.
    pub(crate) fn new(vcpu: &VcpuFd, len: usize) -> io::Result<Self> {
        // SAFETY: a new shared mapping at an address the kernel chooses; the result is checked.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let run = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { run, len })
    }

    /// Makes this and every later KVM_RUN return at once; the caller then sends [`kick_signal`].
    pub(crate) fn request_exit(&self) {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`; KVM and the
        // vCPU thread only read it.
        let byte = unsafe { AtomicU8::from_ptr(self.run.as_ptr().add(offset)) };
        byte.store(1, Ordering::Release);
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly the mapping made in `new`.
        unsafe { libc::munmap(self.run.as_ptr().cast(), self.len) };
    }
}
