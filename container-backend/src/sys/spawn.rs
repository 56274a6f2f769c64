//! `posix_spawn(3)`: starts a program from a process with threads, with exact descriptors.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// What the program gets beside /dev/null as 0 and 1.
pub(crate) struct Descriptors<'a> {
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) third: BorrowedFd<'a>,
    pub(crate) fourth: BorrowedFd<'a>,
}

/// The actions run one after another, so their sources must lie above every target.
const FIRST_FREE: RawFd = 5;

fn check(code: libc::c_int) -> io::Result<()> {
    // The posix_spawn family returns the error rather than setting errno.
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init fills in the object that raw points to.
        check(unsafe { libc::posix_spawn_file_actions_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        Ok(Self(unsafe { raw.assume_init() }))
    }

    fn duplicate(&mut self, from: &OwnedFd, to: RawFd) -> io::Result<()> {
        // SAFETY: self.0 is initialised; the numbers are only recorded.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&mut self.0, from.as_raw_fd(), to) })
    }

    fn null(&mut self, to: RawFd) -> io::Result<()> {
        // SAFETY: self.0 is initialised; the path is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(&mut self.0, to, c"/dev/null".as_ptr(), libc::O_RDWR, 0)
        })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe { libc::posix_spawn_file_actions_destroy(&mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    /// A session of its own, default signal dispositions, nothing blocked.
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: init fills in the object that raw points to.
        check(unsafe { libc::posix_spawnattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised just above.
        let mut this = Self(unsafe { raw.assume_init() });
        let mut none = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        #[allow(clippy::cast_possible_truncation, clippy::unnecessary_cast)]
        // three of eight bits; types differ by libc
        let flags = (libc::POSIX_SPAWN_SETSID as i32
            | libc::POSIX_SPAWN_SETSIGDEF as i32
            | libc::POSIX_SPAWN_SETSIGMASK as i32) as i16;
        // SAFETY: both sets are initialised before they are read, and copied into the attributes.
        unsafe {
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigfillset(all.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&mut this.0, none.as_ptr()))?;
            check(libc::posix_spawnattr_setsigdefault(&mut this.0, all.as_ptr()))?;
            check(libc::posix_spawnattr_setflags(&mut this.0, flags))?;
        }
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe { libc::posix_spawnattr_destroy(&mut self.0) };
    }
}

fn above_targets(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE)?)
}

/// Starts the program that `image` is open on, with no arguments; its pid.
pub(crate) fn spawn(
    image: BorrowedFd<'_>,
    name: &str,
    environment: &[String],
    fds: &Descriptors<'_>,
) -> io::Result<i32> {
    let sources = [above_targets(fds.stderr)?, above_targets(fds.third)?, above_targets(fds.fourth)?];
    let image = above_targets(image)?;
    let mut actions = Actions::new()?;
    actions.null(0)?;
    actions.null(1)?;
    for (from, to) in sources.iter().zip(2..) {
        actions.duplicate(from, to)?;
    }
    let attributes = Attributes::new()?;
    let path = CString::new(format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    let name = CString::new(name)?;
    let environment = environment.iter().map(|v| CString::new(v.as_str())).collect::<Result<Vec<_>, _>>()?;
    let argv = [name.as_ptr().cast_mut(), std::ptr::null_mut()];
    let envp: Vec<*mut c_char> =
        environment.iter().map(|v| v.as_ptr().cast_mut()).chain([std::ptr::null_mut()]).collect();
    let mut pid = 0;
    // SAFETY: every pointer refers to a local that outlives the call; argv and envp end with null; posix_spawn does not
    // write through them.
    check(unsafe {
        libc::posix_spawn(&mut pid, path.as_ptr(), &actions.0, &attributes.0, argv.as_ptr(), envp.as_ptr())
    })?;
    Ok(pid)
}
