//! The memory functions that the compiler calls by name (`core`'s documentation, "How to use the core
//! library"): targets with a C library take them from there, and this guest has none.
//!
//! A byte at a time, which is enough for a guest that copies next to nothing. The accesses are volatile,
//! or the compiler would make each of these loops a call of itself.

use core::ffi::{c_int, c_void};

/// Copies forward.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    for at in 0..len {
        // SAFETY: as the caller promises.
        unsafe { copy_byte(to, from, at) };
    }
    to
}

/// Copies in the order that keeps what overlaps.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, len: usize) -> *mut c_void {
    if to.cast_const() <= from {
        // SAFETY: as the caller promises.
        return unsafe { memcpy(to, from, len) };
    }
    for at in (0..len).rev() {
        // SAFETY: as the caller promises.
        unsafe { copy_byte(to, from, at) };
    }
    to
}

/// Fills with the lowest byte of `value`.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memset(to: *mut c_void, value: c_int, len: usize) -> *mut c_void {
    for at in 0..len {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<u8>().add(at).write_volatile(value as u8) };
    }
    to
}

/// The difference of the first bytes that differ, or 0.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn memcmp(one: *const c_void, other: *const c_void, len: usize) -> c_int {
    for at in 0..len {
        // SAFETY: as the caller promises.
        let (one, other) = unsafe {
            (
                one.cast::<u8>().add(at).read_volatile(),
                other.cast::<u8>().add(at).read_volatile(),
            )
        };
        if one != other {
            return c_int::from(one) - c_int::from(other);
        }
    }
    0
}

/// Whether the bytes differ.
///
/// # Safety
/// As in C.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bcmp(one: *const c_void, other: *const c_void, len: usize) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { memcmp(one, other, len) }
}

/// # Safety
/// There is a byte at this offset of both.
unsafe fn copy_byte(to: *mut c_void, from: *const c_void, at: usize) {
    // SAFETY: as the caller promises.
    unsafe {
        let byte = from.cast::<u8>().add(at).read_volatile();
        to.cast::<u8>().add(at).write_volatile(byte);
    }
}
