//! The thread of an active device.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::QueueError;
use super::{ActivateError, Interrupt, sys};

/// A running thread; dropping it asks it to stop and waits for that.
#[derive(Debug)]
pub struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `body`. Where it ends with an error or a panic the driver is told to reset the device.
    ///
    /// # Errors
    /// No descriptor or thread can be had.
    pub fn spawn(
        name: &str,
        interrupt: Arc<Interrupt>,
        body: impl FnOnce(&Stop) -> Result<(), QueueError> + Send + 'static,
    ) -> Result<Self, ActivateError> {
        let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
            .map_err(|source| ActivateError::Io { what: "make an eventfd", source })?;
        let asked = Stop(
            stop.try_clone().map_err(|source| ActivateError::Io { what: "duplicate an eventfd", source })?,
        );
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            let mut unwell = Unwell(Some(interrupt));
            if body(&asked).is_ok() {
                unwell.0 = None;
            }
        });
        let thread = thread.map_err(|source| ActivateError::Io { what: "start a thread", source })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

/// Tells the driver, unless the body ended well. Also after a panic: it must not leave a device that is merely silent.
struct Unwell(Option<Arc<Interrupt>>);

impl Drop for Unwell {
    fn drop(&mut self) {
        if let Some(interrupt) = &self.0 {
            interrupt.needs_reset();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It can only fail where the counter is at its end, and then it is signalled.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic of it was printed; nothing of the thread is left to use.
            let _ = thread.join();
        }
    }
}

/// Tells a worker's body when to end.
#[derive(Debug)]
pub struct Stop(EventFd);

/// For a body that waits by itself: readable once it must end.
impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.0)
    }
}

/// What ended a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Woken<const N: usize> {
    /// Which of the descriptors are readable, in their order.
    pub readable: [bool; N],
    /// Which have failed or been hung up. They stay so: do not wait for them again.
    pub broken: [bool; N],
}

/// How long a worker waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Only look.
    None,
    For(Duration),
    Forever,
}

impl Stop {
    /// Waits until one of `fds` (`None`: not of interest) is readable or the time is over; `None` when the body must end.
    pub fn wait<const N: usize>(
        &self,
        fds: [Option<BorrowedFd<'_>>; N],
        patience: Patience,
    ) -> Option<Woken<N>> {
        let mut polled = Vec::with_capacity(N + 1);
        polled.push(PollFd::from_borrowed_fd(sys::borrow(&self.0), PollFlags::IN));
        polled.extend(fds.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        let timeout = match patience {
            Patience::None => Some(Duration::ZERO),
            Patience::For(time) => Some(time),
            Patience::Forever => None,
        };
        let timeout = timeout.and_then(|time| Timespec::try_from(time).ok());
        loop {
            match poll(&mut polled, timeout.as_ref()) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                // Out of kernel memory, or a broken descriptor set: nothing that waiting mends.
                Err(_) => return None,
            }
        }
        let mut events = polled.iter().map(PollFd::revents);
        if events.next().is_some_and(|stop| !stop.is_empty()) {
            return None;
        }
        let mut woken = Woken { readable: [false; N], broken: [false; N] };
        for (place, _) in fds.iter().enumerate().filter(|(_, fd)| fd.is_some()) {
            let events = events.next().unwrap_or(PollFlags::empty());
            woken.readable[place] = events.contains(PollFlags::IN);
            woken.broken[place] = events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL);
        }
        Some(woken)
    }

    /// Whether the body must end now.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.wait([], Patience::None).is_none()
    }
}

/// Takes the signals off a kick, so that it wakes again for later ones only.
pub fn take_kick(kick: &EventFd) {
    // EAGAIN of a non-blocking eventfd: another kick's read took this one too.
    let _ = kick.read();
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::virtio::test_driver::Wire;

    fn interrupt() -> Arc<Interrupt> {
        Arc::new(Interrupt::new(Box::new(Wire::default())))
    }

    #[test]
    fn dropping_a_worker_ends_its_wait() {
        let (sender, ended) = mpsc::channel();
        let worker = Worker::spawn("test", interrupt(), move |stop| {
            assert_eq!(stop.wait([], Patience::Forever), None);
            sender.send(()).unwrap();
            Ok(())
        });
        drop(worker.unwrap());
        ended.try_recv().expect("the body has ended when drop returns");
    }

    #[test]
    fn a_wait_tells_which_descriptor_is_ready_and_which_is_hung_up() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let quiet = rustix::pipe::pipe().unwrap();
        let stop = Stop(EventFd::new(EFD_NONBLOCK).unwrap());
        let look = || stop.wait([Some(quiet.0.as_fd()), None, Some(reader.as_fd())], Patience::None);
        assert_eq!(look(), Some(Woken { readable: [false; 3], broken: [false; 3] }));
        rustix::io::write(&writer, b"x").unwrap();
        assert_eq!(look(), Some(Woken { readable: [false, false, true], broken: [false; 3] }));
        drop(writer);
        assert!(look().unwrap().broken[2]);
    }

    #[test]
    fn a_body_that_fails_asks_the_driver_for_a_reset() {
        let interrupt = interrupt();
        drop(Worker::spawn("test", Arc::clone(&interrupt), |_| Err(QueueError::Ring)).unwrap());
        assert!(interrupt.reset_needed());
    }

    #[test]
    fn so_does_one_that_panics_and_none_that_is_told_to_end() {
        let panicked = interrupt();
        drop(Worker::spawn("test", Arc::clone(&panicked), |_| panic!("on purpose")).unwrap());
        assert!(panicked.reset_needed());
        let ended = interrupt();
        drop(Worker::spawn("test", Arc::clone(&ended), |_| Ok(())).unwrap());
        assert!(!ended.reset_needed());
        assert_eq!(Arc::strong_count(&ended), 1, "nothing of it is left");
    }
}
