//! One number from a child to the agent, over memory that the child's own children do not get.
//!
//! P1 tells here which process it has cloned. A pipe would not do: P2 holds a copy of its writing end from its first
//! instruction on, and whoever traces P2 could make the agent believe that another of its children is the container's
//! init.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, Ordering};

/// A shared page with one number in it.
#[derive(Debug)]
pub(crate) struct Mailbox {
    page: NonNull<AtomicI32>,
}

/// Less than a page is not mapped anyway; all page sizes are multiples of this, and the kernel rounds up.
const LEN: usize = 4096;

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), LEN, protection, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast()).map(|page| Self { page }).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// The number, once there is one.
    pub(crate) fn get(&self) -> Option<i32> {
        // SAFETY: the page lives until self drops, is aligned and starts as zeroes; it is only accessed atomically.
        let number = unsafe { self.page.as_ref() }.load(Ordering::Acquire);
        (number != 0).then_some(number)
    }

    /// Where it is, for the child that writes it.
    pub(crate) fn address(&self) -> usize {
        self.page.as_ptr() as usize
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        // SAFETY: mapped in new with this length, unmapped once.
        unsafe { libc::munmap(self.page.as_ptr().cast(), LEN) };
    }
}

// SAFETY: the page is only accessed atomically, from any thread.
unsafe impl Send for Mailbox {}
// SAFETY: as above.
unsafe impl Sync for Mailbox {}
