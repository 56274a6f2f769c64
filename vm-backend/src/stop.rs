//! The end of a guest: who asks for it first says why.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::console::Console;
use crate::status::{Exit, ExitReason};

/// Why a guest must stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    PowerOff,
    Reset,
    /// The parent asked.
    Asked,
    /// KVM or the VMM cannot go on.
    Failure(String),
}

/// The first reason to stop, and an event that comes with it.
#[derive(Debug)]
pub struct StopSignal {
    first: Mutex<Option<Stop>>,
    requested: AtomicBool,
    event: OwnedFd,
}

impl StopSignal {
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { first: Mutex::new(None), requested: AtomicBool::new(false), event })
    }

    /// Asks for the end. Later reasons are forgotten: they follow from the first.
    pub fn request(&self, stop: Stop) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(stop);
        self.requested.store(true, Ordering::Release);
        // It fails only when the counter is full, and then the event is there already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Cheap: asked at every exit of a vCPU.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Why; `None` while nobody has asked.
    #[must_use]
    pub fn reason(&self) -> Option<Stop> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Readable once the end was asked for.
impl AsFd for StopSignal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Stop {
    /// For the status. Linux resets after a panic exactly as for a reboot, and hangs if it was told to, so only the console tells.
    #[must_use]
    pub fn exit(&self, console: &Console) -> Exit {
        if let (Self::Reset | Self::Asked, Some(line)) = (self, console.panic_line()) {
            return Exit::new(ExitReason::Panic, &line);
        }
        match self {
            Self::PowerOff => Exit::new(ExitReason::PowerOff, ""),
            Self::Asked => Exit::new(ExitReason::PowerOff, "ended on request"),
            Self::Reset => Exit::new(ExitReason::Reset, ""),
            Self::Failure(what) => Exit::new(ExitReason::KvmFailure, what),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    fn console(text: &str) -> Console {
        let console = Console::new(tempfile::tempfile().unwrap(), 4096);
        console.print(text.as_bytes());
        console
    }

    #[test]
    fn the_first_reason_stays() {
        let signal = StopSignal::new().unwrap();
        assert!(!signal.is_requested() && signal.reason().is_none());
        signal.request(Stop::Reset);
        signal.request(Stop::Failure("late".into()));
        assert_eq!(signal.reason(), Some(Stop::Reset));
        assert!(signal.is_requested());
        let mut fds = [PollFd::new(&signal, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec::default())).unwrap(), 1);
    }

    #[test]
    fn a_reset_after_a_panic_is_a_panic_and_so_is_one_that_hangs() {
        let text = "[  3.1] Kernel panic - not syncing: no init\nCall Trace:\n";
        for stop in [Stop::Reset, Stop::Asked] {
            let exit = stop.exit(&console(text));
            assert_eq!(exit, Exit::new(ExitReason::Panic, "Kernel panic - not syncing: no init"));
        }
        assert_eq!(Stop::PowerOff.exit(&console(text)).reason, ExitReason::PowerOff);
        assert_eq!(Stop::Reset.exit(&console("fine\n")).reason, ExitReason::Reset);
        let failure = Stop::Failure("run a vCPU: x".into()).exit(&console(text));
        assert_eq!(failure, Exit::new(ExitReason::KvmFailure, "run a vCPU: x"));
    }
}
