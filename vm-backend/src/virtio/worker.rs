//! The thread of a device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::chain::QueueError;
use super::{ActivateError, Interrupt, sys};
use crate::jail;

/// A thread that is there as long as its device, and works from DRIVER_OK to reset, as often as a driver comes. Drivers come on the threads of
/// vCPUs, which may not start any.
#[derive(Debug)]
pub struct Worker {
    /// Until the end.
    jobs: Option<Sender<Job>>,
    /// A word per job that has ended.
    ended: Receiver<()>,
    working: bool,
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

type Job = Box<dyn FnOnce(&Stop) + Send>;

impl Worker {
    /// Starts a thread that does what this kind of device may.
    ///
    /// # Errors
    /// No descriptor or thread can be had.
    pub fn new(kind: jail::Thread) -> io::Result<Self> {
        let stop = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let asked = Stop(stop.try_clone()?);
        let (jobs, to_do) = mpsc::channel::<Job>();
        let (sender, ended) = mpsc::channel();
        let thread = jail::start_thread(kind, Builder::new().name(kind.name().to_owned()), move || {
            for job in to_do {
                // A panic of it was printed, and the driver told.
                let _ = catch_unwind(AssertUnwindSafe(|| job(&asked)));
                if sender.send(()).is_err() {
                    return;
                }
            }
        });
        let thread = Some(thread.map_err(io::Error::other)?);
        Ok(Self { jobs: Some(jobs), ended, working: false, stop, thread })
    }

    /// Begins `body`. Where it ends with an error or a panic the driver is told to reset the device.
    ///
    /// # Errors
    /// The thread has ended, which it does not by itself.
    pub fn start(
        &mut self,
        interrupt: Arc<Interrupt>,
        body: impl FnOnce(&Stop) -> Result<(), QueueError> + Send + 'static,
    ) -> Result<(), ActivateError> {
        self.stop();
        let job = Box::new(move |stop: &Stop| {
            let mut unwell = Unwell(Some(interrupt));
            if body(stop).is_ok() {
                unwell.0 = None;
            }
        });
        self.working = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        match self.working {
            true => Ok(()),
            false => Err(ActivateError::Io {
                what: "hand the queues to the device's thread",
                source: io::ErrorKind::BrokenPipe.into(),
            }),
        }
    }

    /// Asks the body to end, and waits for that.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.working) {
            // It can only fail where the counter is at its end, and then it is signalled.
            let _ = self.stop.write(1);
            // An error says that the thread has ended.
            let _ = self.ended.recv();
            let _ = self.stop.read();
        }
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
        self.stop();
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::virtio::test_driver::Wire;

    fn interrupt() -> Arc<Interrupt> {
        Arc::new(Interrupt::new(Box::new(Wire::default())))
    }

    fn worker() -> Worker {
        Worker::new(jail::Thread::Block).unwrap()
    }

    #[test]
    fn a_worker_that_is_stopped_begins_again_and_one_that_is_dropped_ends() {
        let (sender, ended) = mpsc::channel();
        let mut worker = worker();
        for job in 0..3 {
            let sender = sender.clone();
            let started = worker.start(interrupt(), move |stop| {
                assert_eq!(stop.wait([], Patience::Forever), None);
                sender.send(job).unwrap();
                Ok(())
            });
            started.unwrap();
            // The last one is not asked.
            if job < 2 {
                worker.stop();
                assert_eq!(ended.try_recv(), Ok(job), "the body has ended when stop returns");
            }
        }
        drop(worker);
        assert_eq!(ended.try_recv(), Ok(2), "the body has ended when drop returns");
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
        let mut worker = worker();
        worker.start(Arc::clone(&interrupt), |_| Err(QueueError::Ring)).unwrap();
        worker.stop();
        assert!(interrupt.reset_needed());
    }

    #[test]
    fn so_does_one_that_panics_and_the_next_one_works() {
        let panicked = interrupt();
        let mut worker = worker();
        // Without the hook of panics, which looks for files where RUST_BACKTRACE is set.
        worker.start(Arc::clone(&panicked), |_| std::panic::resume_unwind(Box::new("on purpose"))).unwrap();
        worker.stop();
        assert!(panicked.reset_needed());
        let ended = interrupt();
        worker.start(Arc::clone(&ended), |_| Ok(())).unwrap();
        worker.stop();
        assert!(!ended.reset_needed());
        assert_eq!(Arc::strong_count(&ended), 1, "nothing of it is left");
    }
}
