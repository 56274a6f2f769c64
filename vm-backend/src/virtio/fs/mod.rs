//! virtio-fs (VIRTIO 1.2 section 5.11): requests of a guest's FUSE driver, handed to a file server in another process.
//!
//! Nothing is looked at here but where a request and its answer are in guest memory, and the number that the driver knows a request by: without a
//! file server (any more) each is answered with EIO.

#[cfg(test)]
mod tests;
mod under_way;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

pub(crate) use self::under_way::UnderWay;
use super::queue::RING_FEATURES;
use super::worker::{Patience, Stop, Worker};
use super::{ActivateError, Activation, ActiveQueue, Device, Interrupt, read_config_space, sys};
use crate::jail::Thread;
use crate::memory::GuestMemory;
use crate::virtio::chain::QueueError;

/// What the guest finds the device by.
pub const TAG: &str = "hartpod";

/// Places of the queue for requests: the driver makes chains of a page each, and one of 128 KiB has 33 and its header.
const QUEUE_SIZE: u16 = 128;

/// The device.
#[derive(Debug)]
pub struct Files {
    server: Arc<OwnedFd>,
    /// The next request's; never the same again, so that an answer to what an earlier driver asked is known for it.
    next: Arc<AtomicU64>,
    config: [u8; 40],
    worker: Worker,
}

impl Files {
    /// A file system whose requests go to `server`, a socket of [`wire`](crate::share::wire).
    ///
    /// # Errors
    /// It is no socket, or there is no thread.
    pub fn new(server: OwnedFd) -> io::Result<Self> {
        // What kind of socket it is could be asked of calls alone that the VMM may not make.
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&server)?.st_mode);
        if kind != rustix::fs::FileType::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
        }
        rustix::io::ioctl_fionbio(&server, true)?;
        let worker = Worker::new(Thread::Fs)?;
        // struct virtio_fs_config: the tag, and the number of queues for requests.
        let mut config = [0; 40];
        config[..TAG.len()].copy_from_slice(TAG.as_bytes());
        config[36..].copy_from_slice(&1_u32.to_le_bytes());
        Ok(Self { server: Arc::new(server), next: Arc::new(AtomicU64::new(1)), config, worker })
    }
}

impl Device for Files {
    fn device_type(&self) -> u32 {
        26
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        // Urgent requests, which only ever forget, and all others.
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let mut queues = queues.into_iter();
        let mut queue = |index| queues.next().flatten().ok_or(ActivateError::MissingQueue(index));
        let mut queues = [queue(0)?, queue(1)?];
        let (server, next) = (Arc::clone(&self.server), Arc::clone(&self.next));
        let raise = Arc::clone(&interrupt);
        self.worker.start(interrupt, move |stop: &Stop| {
            let mut session = Session { server: &server, memory: &memory, interrupt: &raise, next: &next };
            session.run(&mut queues, stop)
        })
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}

/// A driver's time with the device.
struct Session<'s> {
    server: &'s OwnedFd,
    memory: &'s GuestMemory,
    interrupt: &'s Interrupt,
    next: &'s AtomicU64,
}

impl<'s> Session<'s> {
    fn run(&mut self, queues: &mut [ActiveQueue; 2], stop: &Stop) -> Result<(), QueueError> {
        let mut under_way = [UnderWay::default(), UnderWay::default()];
        // The server's socket is waited for as long as somebody is at its other end.
        let mut connected = true;
        loop {
            let full = under_way.iter().any(UnderWay::is_held_up);
            if full && connected && !self.wait_for_room(stop) {
                return Ok(());
            }
            let [urgent, usual] = &*queues;
            let server = connected.then(|| self.server.as_fd());
            let fds = [Some(sys::borrow(&urgent.kick)), Some(sys::borrow(&usual.kick)), server];
            let patience = if full { Patience::None } else { Patience::Forever };
            let Some(woken) = stop.wait(fds, patience) else { return Ok(()) };
            if connected && (woken.readable[2] || woken.broken[2]) {
                connected = self.hear(queues, &mut under_way)?;
            }
            for (queue, under_way) in queues.iter_mut().zip(&mut under_way) {
                queue.take_kick();
                while self.take(queue, under_way, &mut connected)? && !stop.asked() {}
            }
            if !connected {
                for (queue, under_way) in queues.iter_mut().zip(&mut under_way) {
                    under_way.fail_all(queue, self.memory)?;
                    queue.interrupt(self.memory, self.interrupt)?;
                }
            }
        }
    }

    /// Until the server takes another packet, or has something to say; false when the session is over.
    fn wait_for_room(&self, stop: &Stop) -> bool {
        let mut fds =
            [PollFd::new(stop, PollFlags::IN), PollFd::new(self.server, PollFlags::IN | PollFlags::OUT)];
        // An error is for the next call on the socket to tell.
        let _ = rustix::io::retry_on_intr(|| poll(&mut fds, None));
        fds[0].revents().is_empty()
    }

    /// Takes some requests off a queue; true when there are more.
    fn take(
        &self,
        queue: &mut ActiveQueue,
        under_way: &mut UnderWay<'s>,
        connected: &mut bool,
    ) -> Result<bool, QueueError> {
        queue.mute_kicks(self.memory)?;
        let taken = under_way.take(
            queue,
            self.memory,
            || self.next.fetch_add(1, Ordering::Relaxed),
            |packet| match *connected {
                true => send(self.server, packet),
                false => Sent::Gone,
            },
        )?;
        *connected &= !taken.gone;
        if taken.completed {
            queue.interrupt(self.memory, self.interrupt)?;
        }
        if under_way.is_held_up() {
            return Ok(false);
        }
        queue.unmute_kicks(self.memory)
    }

    /// Takes the answers that are there; false when nobody is at the other end.
    fn hear(
        &self,
        queues: &mut [ActiveQueue; 2],
        under_way: &mut [UnderWay<'s>; 2],
    ) -> Result<bool, QueueError> {
        use crate::share::wire::{ANSWER_HEADER, MAX_ANSWER, answer};
        use rustix::io::Errno;
        use rustix::net::{RecvFlags, recv};

        let mut buffer = vec![0; ANSWER_HEADER + MAX_ANSWER];
        let mut connected = true;
        let mut heard = [false; 2];
        loop {
            let count = match recv(self.server, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    connected = false;
                    break;
                }
                Ok((count, _)) => count,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(_) => {
                    connected = false;
                    break;
                }
            };
            // A packet that is none is of a server that was taken over; and a request may be gone that an earlier driver made.
            let Some((number, answer)) = answer(&buffer[..count]) else { continue };
            for ((queue, under_way), heard) in queues.iter_mut().zip(&mut *under_way).zip(&mut heard) {
                *heard |= under_way.complete(queue, self.memory, number, answer)?;
            }
        }
        for (queue, heard) in queues.iter_mut().zip(heard) {
            if heard {
                queue.interrupt(self.memory, self.interrupt)?;
            }
        }
        Ok(connected)
    }
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    Yes,
    /// The server has not taken what it was sent before.
    NotNow,
    Gone,
}

fn send(server: &OwnedFd, packet: &[u8]) -> Sent {
    use rustix::io::Errno;
    use rustix::net::{SendFlags, send};

    match rustix::io::retry_on_intr(|| send(server, packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)) {
        Ok(_) => Sent::Yes,
        Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM) => Sent::NotNow,
        Err(_) => Sent::Gone,
    }
}
