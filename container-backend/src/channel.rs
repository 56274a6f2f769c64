//! The agent's ends of everything that connects it with a child on its way to execve.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::child::Child;
use crate::container::console;
use crate::launch::{LaunchError, agent};
use crate::report::{Listener, Told};
use crate::sys::mailbox::Mailbox;

/// Kills the child when dropped.
#[derive(Debug)]
pub(crate) struct Channel {
    listener: Listener,
    child: Option<Child>,
    /// Where a terminal arrives.
    console: Option<OwnedFd>,
    successor: Successor,
    handed_over: bool,
}

/// Which process comes after the one that was cloned, and where its number arrives.
#[derive(Debug)]
pub(crate) enum Successor {
    /// None.
    Nobody,
    /// One that makes the rest of the container, reports and executes: init of a pid namespace that a user namespace owns, so that only a
    /// process in that could clone it.
    Init(Mailbox),
    /// One that does nothing but execute, in a pid namespace with others in it.
    Program(Mailbox),
}

impl Successor {
    fn mailbox(&self) -> Option<&Mailbox> {
        match self {
            Self::Nobody => None,
            Self::Init(mailbox) | Self::Program(mailbox) => Some(mailbox),
        }
    }

    fn adopt(&self) -> Option<io::Result<Child>> {
        self.mailbox().and_then(Mailbox::get).map(Child::adopt)
    }
}

impl Channel {
    pub(crate) fn new(
        listener: Listener,
        child: Child,
        console: Option<OwnedFd>,
        successor: Successor,
    ) -> Self {
        Self { listener, child: Some(child), console, successor, handed_over: false }
    }

    /// What to poll.
    pub(crate) fn pipe(&self) -> Arc<File> {
        Arc::clone(self.listener.pipe())
    }

    pub(crate) fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// What the child told, less what only matters in here.
    pub(crate) fn next(&mut self) -> Result<Option<Told>, LaunchError> {
        loop {
            let told = self.listener.next().map_err(agent("read the report"))?;
            match told.map_err(|_| LaunchError::Garbled)? {
                Some(Told::HandedOver)
                    if !self.handed_over && matches!(self.successor, Successor::Program(_)) =>
                {
                    self.handed_over = true
                }
                // Whoever writes now may be a tracer of P2; no frame but these can be P2's own.
                Some(Told::AtHooks | Told::Ready(_) | Told::Failed(_) | Told::HandedOver)
                    if self.handed_over =>
                {
                    return Err(LaunchError::Garbled);
                }
                Some(Told::Ready(ready)) => {
                    self.meet_init()?;
                    return Ok(Some(Told::Ready(ready)));
                }
                other => return Ok(other),
            }
        }
    }

    /// From its report on the init stands for the container. The process that cloned it is reaped as an orphan.
    fn meet_init(&mut self) -> Result<(), LaunchError> {
        if matches!(self.successor, Successor::Init(_)) {
            let init = self.successor.adopt().ok_or(LaunchError::Died)?;
            self.child = Some(init.map_err(agent("take over the container's process"))?);
            self.successor = Successor::Nobody;
        }
        Ok(())
    }

    /// The terminal, which was sent before the report that is being handled.
    pub(crate) fn take_console(&self) -> io::Result<Option<OwnedFd>> {
        self.console.as_ref().map(console::receive).transpose().map_err(Into::into)
    }

    /// The process that runs the program, once every writing end of the report is closed without a failure.
    pub(crate) fn finish(mut self) -> Result<Child, LaunchError> {
        let child = self.child.take().ok_or(LaunchError::Died)?;
        let successor = std::mem::replace(&mut self.successor, Successor::Nobody);
        if matches!(successor, Successor::Nobody) {
            return Ok(child);
        }
        // P1 is gone or about to go; it is reaped as an orphan.
        let program = successor.adopt().filter(|_| self.handed_over).ok_or(LaunchError::Died)?;
        program.map_err(agent("take over the container's process"))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let late = self.successor.adopt().and_then(Result::ok);
        for child in [self.child.take(), late].into_iter().flatten() {
            // It may have died already.
            let _ = child.signal(libc::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::pipe::{PipeFlags, pipe_with};
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;
    use crate::report::RawFrame;

    /// A channel to a child that sleeps, and the writing end of its report.
    fn channel(successor: Successor) -> (Channel, OwnedFd, std::process::Child) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let process = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(process.id()).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        (Channel::new(Listener::new(reader), Child::new(pid, pidfd), None, successor), writer, process)
    }

    fn write(writer: &OwnedFd, frame: &RawFrame) {
        rustix::io::write(writer, &frame.bytes[..frame.len]).unwrap();
    }

    /// Other tests start processes, which hold a copy of the writing end until they execute.
    fn wait_for_the_end(channel: &mut Channel) {
        loop {
            match channel.next().unwrap() {
                None => std::thread::yield_now(),
                Some(told) => return assert!(matches!(told, Told::End), "{told:?}"),
            }
        }
    }

    #[test]
    fn a_traced_p2_cannot_name_another_process_or_invent_reports() {
        // P2 may write what it wants after the hand-over; the mailbox is out of its reach.
        for lie in [RawFrame::AT_HOOKS, RawFrame::READY, RawFrame::FAILED, RawFrame::HANDED_OVER] {
            let (mut channel, writer, mut process) = channel(Successor::Program(Mailbox::new().unwrap()));
            write(&writer, &RawFrame::handed_over());
            let frame = RawFrame { bytes: [lie, 0, 0, 0, 0, 0, 0, 0, 0], len: 5 };
            write(&writer, &frame);
            assert!(matches!(channel.next(), Err(LaunchError::Garbled)), "{lie}");
            drop(channel);
            assert!(!process.wait().unwrap().success());
        }
    }

    #[test]
    fn an_end_without_a_successor_is_a_death() {
        let (mut channel, writer, mut process) = channel(Successor::Program(Mailbox::new().unwrap()));
        write(&writer, &RawFrame::handed_over());
        drop(writer);
        wait_for_the_end(&mut channel);
        assert!(matches!(channel.finish(), Err(LaunchError::Died)));
        process.kill().unwrap();
        process.wait().unwrap();
    }

    #[test]
    fn only_a_child_of_ours_can_be_the_successor() {
        // Init is alive, but no child.
        assert_eq!(Child::adopt(1).unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert!(Child::adopt(0).is_err());
        assert!(Child::adopt(-1).is_err());
    }

    #[test]
    fn a_channel_that_is_dropped_kills_its_child_and_one_that_finished_does_not() {
        let (mut kept, writer, mut process) = channel(Successor::Nobody);
        drop(writer);
        wait_for_the_end(&mut kept);
        let child = kept.finish().unwrap();
        assert_eq!(process.try_wait().unwrap(), None);
        child.signal(libc::SIGKILL).unwrap();
        process.wait().unwrap();
    }
}
