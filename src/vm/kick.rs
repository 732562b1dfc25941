//! Gets a vCPU out of KVM_RUN.
//!
//! Storing `immediate_exit` first and signalling second leaves no gap: whether the vCPU is about
//! to enter the guest, in it, or on its way out, KVM_RUN returns EINTR. The no-op handler of one
//! real-time signal is the only process-wide state of this library.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The signal that interrupts KVM_RUN.
pub(crate) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the no-op handler, once per process; when that fails, the next VM tries again.
pub(crate) fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

    static INSTALLED: Mutex<bool> = Mutex::new(false);
    once(&INSTALLED, || {
        register_signal_handler(kick_signal(), nothing).map_err(io::Error::from)
    })
}

/// Does what has to succeed once.
fn once(done: &Mutex<bool>, act: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
    if !*done {
        act()?;
        *done = true;
    }
    Ok(())
}

/// A second mapping of a vCPU's `kvm_run`, so that another thread can set `immediate_exit`.
#[derive(Debug)]
pub(crate) struct Kicker {
    run: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only accessed atomically, and only its `immediate_exit` byte.
unsafe impl Send for Kicker {}
// SAFETY: as above.
unsafe impl Sync for Kicker {}

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

    /// Makes this and every later KVM_RUN return at once, until [`Self::clear`]; the caller then sends
    /// [`kick_signal`].
    pub(crate) fn request_exit(&self) {
        self.immediate_exit().store(1, Ordering::SeqCst);
    }

    /// The vCPU's thread has seen the request. It then looks at what it was about: the other way round a request
    /// that comes in between would be lost.
    pub(crate) fn clear(&self) {
        self.immediate_exit().store(0, Ordering::SeqCst);
    }

    /// Neither this mapping nor that of `vcpu` itself, which is the same one, is inherited by processes that this one makes:
    /// they would keep the vCPU, which is of no use to them.
    #[cfg(feature = "snapshot")]
    pub(crate) fn keep_from_children(&self, vcpu: &mut VcpuFd, len: usize) -> io::Result<()> {
        let own = std::ptr::from_mut(vcpu.get_kvm_run());
        for (place, len) in [(self.run.as_ptr(), self.len), (own.cast(), len)] {
            // SAFETY: both are live mappings of `kvm_run` of that size; the advice changes nothing about their content.
            let advised = unsafe { libc::madvise(place.cast(), len, libc::MADV_DONTFORK) };
            if advised < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte lies inside the mapping, which lives as long as `self`; KVM only reads it, and
        // everybody else accesses it here.
        unsafe { AtomicU8::from_ptr(self.run.as_ptr().add(offset)) }
    }
}

impl Drop for Kicker {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly the mapping made in `new`.
        unsafe { libc::munmap(self.run.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_again_and_what_succeeded_is_not() {
        let done = Mutex::new(false);
        assert!(once(&done, || Err(io::ErrorKind::OutOfMemory.into())).is_err());
        let mut calls = 0;
        for _ in 0..3 {
            assert!(
                once(&done, || {
                    calls += 1;
                    Ok(())
                })
                .is_ok()
            );
        }
        assert_eq!(calls, 1);
    }
}
