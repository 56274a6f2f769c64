//! The calls that need `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes per page.
const PAGE: usize = 4096;

/// How far below the caller [`release_stack`] begins, and how far it goes: the kernel keeps 1 MiB below a stack free
/// (`stack_guard_gap`).
const STACK_MARGIN: usize = 4 * PAGE;
const STACK_DEPTH: usize = 512 * 1024;

/// Takes over a descriptor that this process was started with, named by its arguments. For the start of `main`, once per number.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes any number and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, and as nothing was opened since the start of the process nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ignores `signals`; children that are cloned from here set them back to their defaults.
pub(crate) fn ignore_signals(signals: &[libc::c_int]) {
    for &signal in signals {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Makes the allocator keep little: large blocks are mappings of their own, and the end of the heap is given back early.
pub(crate) fn tune_allocator() {
    for (parameter, value) in [
        (libc::M_MMAP_THRESHOLD, 64 * 1024),
        (libc::M_TRIM_THRESHOLD, 64 * 1024),
        (libc::M_TOP_PAD, 16 * 1024),
    ] {
        // SAFETY: mallopt takes any values; it is called before there are threads.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives the heap's free memory back to the kernel.
pub(crate) fn release_free_memory() {
    // SAFETY: malloc_trim only touches memory that the allocator knows to be free.
    unsafe { libc::malloc_trim(0) };
}

/// Gives the stack below the caller back to the kernel, which deep calls have used and left.
///
/// Not inlined, so that the frame of the caller is above what is released.
#[inline(never)]
pub(crate) fn release_stack() {
    let here = 0_u8;
    let end = (&raw const here).addr().saturating_sub(STACK_MARGIN) & !(PAGE - 1);
    let start = end.saturating_sub(STACK_DEPTH);
    // SAFETY: what lies below the frames of running functions is not in use, the margin covers this one's own and the red
    // zone, and there are no signal handlers that could be running there. Where the stack is not that deep the kernel stops with
    // ENOMEM after releasing what there is; STACK_DEPTH is less than its guard gap, so no other mapping is that near.
    unsafe { libc::madvise(std::ptr::without_provenance_mut(start), STACK_DEPTH, libc::MADV_DONTNEED) };
}

/// Brings a network interface of this process's network namespace up.
pub(crate) fn set_interface_up(name: &CStr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

    #[allow(clippy::cast_possible_truncation)] // netdevice(7) has 16 bits for flags
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as libc::c_short },
    };
    let bytes = name.to_bytes_with_nul();
    if bytes.len() > libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call; the socket is open.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A descriptor that the runtime watches.
#[derive(Debug)]
pub(crate) struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Watches `fd` for `interest`. Needs a runtime.
    pub(crate) fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: an OwnedFd keeps its descriptor open and the same; the AsyncFd owns it, and this type lends it shared only, so
        // that none can be put in its place.
        let watched = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self(watched))
    }

    /// Watches a duplicate of `fd`, which stays with its owner.
    pub(crate) fn duplicate(fd: impl AsFd, interest: Interest) -> io::Result<Self> {
        Self::new(fd.as_fd().try_clone_to_owned()?, interest)
    }

    /// Does `operation` once the descriptor is readable; again, as long as that says `WouldBlock`.
    pub(crate) fn poll_read<R>(
        &self,
        cx: &mut Context<'_>,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> Poll<io::Result<R>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match ready.try_io(|fd| operation(fd.as_fd())) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(outcome) => return Poll::Ready(outcome),
                Err(_would_block) => {}
            }
        }
    }

    /// Waits until the descriptor is ready for `interest` and does `operation`; again, as long as that says `WouldBlock`.
    pub(crate) async fn io<R>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        loop {
            match self.0.async_io(interest, |fd| operation(fd.as_fd())).await {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}
