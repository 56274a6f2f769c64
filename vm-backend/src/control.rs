//! Requests to a running VMM: packets of JSON with descriptors, on connections to a listening `SOCK_SEQPACKET` socket. Each is answered by
//! one packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use crate::boot::{Claims, Disk, Fd, disk_extents};
use crate::channel;
use crate::counts::{Counters, Counts};
use crate::log::{LogId, LogToken, Logs};
use crate::status::cut;
use crate::stop::{Stop, StopSignal};
use crate::virtio::blk::BlockExtent;

/// Connections at a time; more are closed at once. The daemon opens one for each request.
const MAX_CONNECTIONS: usize = 16;

/// Rest after a connection could not be accepted for want of descriptors: it goes on waiting, and the listener stays ready.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// What the daemon may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Put a disk into an empty slot; its files come with the packet. The guest does not notice by itself.
    Fill { slot: u32, disk: Disk },
    /// Put the file system of volumes into an empty slot, the last one; `server` is a socket to the file server (see `share::wire`).
    FillFiles { slot: u32, server: Fd },
    /// Take the disk, or the file system, out of a slot, if there is one; the driver in the guest must have let go of it.
    Empty { slot: u32 },
    /// Append what a container says to a regular file that is open for appending. The tokens are those of CreateContainer (pod.proto); a
    /// terminal has no stderr. Of a log that is being written only the file is new.
    Log { id: LogId, stdout: Option<LogToken>, stderr: Option<LogToken>, file: Fd },
    /// Go over to another file at a line's end, and close `done`, a pipe, then. It does not wait for a stream that is within a line for
    /// longer than a second. Of a log that is over there is nothing to do.
    ReopenLog { id: LogId, file: Fd, done: Fd },
    /// Close `done`, a pipe, once both streams were written to their end: at once where there is no such log.
    AwaitLog { id: LogId, done: Fd },
    /// Write no more of what a container says, and close its file. Success where there is no such log.
    EndLog { id: LogId },
    /// Tell what the guest has done.
    Counts {},
    /// End the guest at once. What is polite is asked of the agent inside before.
    PowerOff {},
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    Ok {},
    Counts(Box<Counts>),
    Error(String),
}

/// Slots whose disks come and go.
pub trait Slots {
    /// # Errors
    /// There is no such slot, something is in it, the guest holds it, or the files are no disk.
    fn fill(&mut self, slot: u32, disk: Vec<BlockExtent>) -> Result<(), SlotRefused>;

    /// # Errors
    /// As of [`fill`](Self::fill).
    fn fill_files(&mut self, slot: u32, server: OwnedFd) -> Result<(), SlotRefused>;

    /// # Errors
    /// There is no such slot, or the guest uses or holds what is in it.
    fn empty(&mut self, slot: u32) -> Result<(), SlotRefused>;
}

/// Why a slot stays as it is.
#[derive(Debug, thiserror::Error)]
#[error("slot {slot}")]
pub struct SlotRefused {
    pub slot: u32,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What requests are about.
#[allow(missing_debug_implementations)]
pub struct Services<'s> {
    /// Asked to end the guest, and asked for the end of the service.
    pub stop: &'s StopSignal,
    pub slots: &'s mut dyn Slots,
    pub logs: &'s mut Logs,
    pub counters: &'s Counters,
}

/// Answers requests until the guest is to stop.
///
/// # Errors
/// The listening socket or the kernel's poll fail; the guest cannot be told anything any more then.
pub fn serve(listener: &OwnedFd, services: &mut Services<'_>) -> io::Result<()> {
    let stop = services.stop;
    // Between poll and accept a client may go away.
    rustix::io::ioctl_fionbio(listener, true)?;
    let mut connections: Vec<OwnedFd> = Vec::new();
    while !stop.is_requested() {
        let ready = wait(listener, stop, &connections)?;
        // From the last one on, so that places stay what they were.
        for place in ready.connections.iter().rev() {
            if !answer(connections[*place].as_fd(), services) {
                connections.swap_remove(*place);
            }
        }
        if ready.listener && accept(listener, &mut connections) == Accepted::Later {
            let mut ended = [PollFd::new(stop, PollFlags::IN)];
            rustix::io::retry_on_intr(|| poll(&mut ended, Some(&ACCEPT_PAUSE)))?;
        }
    }
    Ok(())
}

struct Ready {
    listener: bool,
    /// Places, ascending.
    connections: Vec<usize>,
}

fn wait(listener: &OwnedFd, stop: &StopSignal, connections: &[OwnedFd]) -> io::Result<Ready> {
    let mut fds = vec![PollFd::new(stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
    fds.extend(connections.iter().map(|c| PollFd::new(c, PollFlags::IN)));
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    let is_ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
    let connections = fds[2..].iter().enumerate().filter(|(_, fd)| is_ready(fd)).map(|(place, _)| place);
    Ok(Ready { listener: is_ready(&fds[1]), connections: connections.collect() })
}

#[derive(Debug, PartialEq, Eq)]
enum Accepted {
    /// A client, or one that went away meanwhile.
    Done,
    /// Nobody can be accepted for now.
    Later,
}

fn accept(listener: &OwnedFd, connections: &mut Vec<OwnedFd>) -> Accepted {
    use rustix::io::Errno;

    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(connection) if connections.len() < MAX_CONNECTIONS => connections.push(connection),
        Ok(_) | Err(Errno::AGAIN | Errno::CONNABORTED | Errno::INTR) => {}
        Err(_) => return Accepted::Later,
    }
    Accepted::Done
}

/// Reads one request and answers it; false when the connection is of no more use.
fn answer(connection: BorrowedFd<'_>, services: &mut Services<'_>) -> bool {
    let response = match channel::receive(connection) {
        Ok(Some(packet)) => handle(&packet.bytes, packet.fds, services),
        Ok(None) => return false,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Response::Error(error.to_string()),
        Err(_) => return false,
    };
    // A client that does not read its answers is let go.
    serde_json::to_vec(&response).is_ok_and(|bytes| channel::send(connection, &bytes, &[]).is_ok())
}

fn handle(message: &[u8], fds: Vec<OwnedFd>, services: &mut Services<'_>) -> Response {
    match try_handle(message, fds, services) {
        Ok(response) => response,
        // It may quote the request, and must fit a packet.
        Err(error) => Response::Error(cut(&chain(&*error)).to_owned()),
    }
}

fn try_handle(
    message: &[u8],
    fds: Vec<OwnedFd>,
    services: &mut Services<'_>,
) -> Result<Response, Box<dyn std::error::Error>> {
    let Services { stop, slots, logs, counters } = services;
    let mut claims = Claims::new(fds);
    match serde_json::from_slice(message)? {
        Request::Fill { slot, disk } => {
            let extents = disk_extents(disk, &mut claims)?;
            claims.finish()?;
            slots.fill(slot, extents)?;
        }
        Request::FillFiles { slot, server } => {
            let server = claims.take(server, "the file server")?;
            claims.finish()?;
            slots.fill_files(slot, server)?;
        }
        Request::Empty { slot } => {
            claims.finish()?;
            slots.empty(slot)?;
        }
        Request::Log { id, stdout, stderr, file } => {
            let file = claims.take(file, "the log file")?;
            claims.finish()?;
            logs.begin(id, stdout, stderr, file)?;
        }
        Request::ReopenLog { id, file, done } => {
            let file = claims.take(file, "the log file")?;
            let done = claims.take(done, "what is closed afterwards")?;
            claims.finish()?;
            logs.reopen(&id, file, done)?;
        }
        Request::AwaitLog { id, done } => {
            let done = claims.take(done, "what is closed afterwards")?;
            claims.finish()?;
            logs.at_end(&id, done)?;
        }
        Request::EndLog { id } => {
            claims.finish()?;
            logs.end(&id);
        }
        Request::Counts {} => {
            claims.finish()?;
            return Ok(Response::Counts(Box::new(counters.read())));
        }
        Request::PowerOff {} => {
            claims.finish()?;
            stop.request(Stop::Asked);
        }
    }
    Ok(Response::Ok {})
}

/// An error with all its sources, in a line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
