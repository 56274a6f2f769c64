//! Calls into the C library that have no safe wrapper.
#![allow(unsafe_code)]

/// Has threads share few heaps: with one for each of its threads, glibc keeps what each of them once used.
pub(crate) fn limit_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes numbers and keeps no pointer; it may be called at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Gives memory that is free back to the system.
pub(crate) fn give_back_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, touches free memory only and locks the heaps itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
