//! One connection: a client's socket on one side, packets of the guest on the other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::connection::{Backlog, ClientStep, Ends, Event, Move, State, Tell};
use super::credit::{Allowance, Window};
use super::greeting::accepted;
use super::leftover::Leftover;
use super::packet::{HOST_CID, Header, Operation, STREAM};
use crate::virtio::chain::{Buffers, QueueError};
use crate::virtio::sys::{self, At};

/// The two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) guest_cid: u64,
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
}

#[derive(Debug)]
pub(super) struct Stream {
    address: Address,
    state: State,
    /// Gone once the client is.
    socket: Option<OwnedFd>,
    window: Window,
    allowance: Allowance,
    leftover: Leftover,
    owed: Owed,
    /// The socket may have something to read: it said so and has not said EAGAIN since.
    readable: bool,
    /// The client has closed; what it sent before may still be in the socket.
    closed: bool,
}

/// What of the guest has a time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    Nothing,
    /// To REQUEST.
    Answer,
    /// To the last SHUTDOWN.
    Farewell,
    /// To take what a client that is gone has left, of which it has taken `sent` bytes. Else that would stay for as long as the guest likes, and
    /// such clients take all places.
    Legacy {
        sent: u32,
    },
}

/// Packets that the guest is to be sent, besides data.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    reset: bool,
    shutdown: Option<Ends>,
    credit_update: bool,
    credit_request: bool,
}

impl Owed {
    fn anything(&self) -> bool {
        self.request || self.reset || self.shutdown.is_some() || self.credit_update || self.credit_request
    }
}

/// What the epoll set said of a client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// It will take nothing any more.
    pub(super) hangup: bool,
}

/// What came of reading a client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    /// Nothing for now, or nothing ever again.
    Nothing,
}

impl Stream {
    /// A connection that a client asked for; the guest is owed a REQUEST.
    pub(super) fn new(address: Address, socket: OwnedFd, room: u32) -> Self {
        Self {
            address,
            state: State::NEW,
            socket: Some(socket),
            window: Window::new(room),
            allowance: Allowance::new(),
            leftover: Leftover::default(),
            owed: Owed { request: true, ..Owed::default() },
            // Something may have come with the line that asked for the port.
            readable: true,
            closed: false,
        }
    }

    pub(super) fn waits_for(&self) -> Wait {
        match self.state {
            State::Requesting => Wait::Answer,
            State::Leaving => Wait::Farewell,
            State::Open { .. } if self.closed && self.has_input() => {
                Wait::Legacy { sent: self.allowance.sent() }
            }
            State::Open { .. } | State::Draining | State::Gone => Wait::Nothing,
        }
    }

    pub(super) fn room(&self) -> u32 {
        self.window.room()
    }

    pub(super) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Whether a packet of the guest that comes from this port is of this connection.
    pub(super) fn is_from(&self, guest_port: u32) -> bool {
        self.address.guest_port == guest_port && self.state.has_guest()
    }

    /// Nothing is left to do.
    pub(super) fn is_over(&self) -> bool {
        self.state == State::Gone && !self.owed.anything()
    }

    /// The client should be told to the epoll set as one that bytes wait for.
    pub(super) fn waits_for_client(&self) -> bool {
        !self.leftover.is_empty() && self.socket.is_some()
    }

    /// There is a packet for the guest, or there may be.
    pub(super) fn wants_turn(&mut self) -> bool {
        if self.has_input() && self.allowance.should_ask() {
            self.owed.credit_request = true;
        }
        self.owed.anything() || self.input_allowance() > 0
    }

    /// Bytes of the client that the guest has room for; 0 if there are none to be had.
    pub(super) fn input_allowance(&self) -> u32 {
        if self.has_input() { self.allowance.free() } else { 0 }
    }

    fn has_input(&self) -> bool {
        self.readable && self.state.takes_input() && self.socket.is_some()
    }

    /// Takes a packet of the guest, whose payload is as long as its header says.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        operation: Operation,
        payload: Buffers<'_>,
    ) -> Result<(), QueueError> {
        if operation == Operation::Reset {
            self.on(Event::Reset);
            return Ok(());
        }
        if self.allowance.hear(header.buf_alloc, header.fwd_cnt).is_err() {
            self.on(Event::Violation);
            return Ok(());
        }
        match operation {
            Operation::Response => self.on(Event::Response),
            Operation::Shutdown => self.on(Event::Shutdown(Ends::from_flags(header.flags))),
            Operation::CreditRequest => self.owed.credit_update |= self.state.has_guest(),
            Operation::Data => self.receive_data(header.len, payload)?,
            Operation::CreditUpdate | Operation::Request | Operation::Reset => {}
        }
        Ok(())
    }

    fn receive_data(&mut self, len: u32, mut payload: Buffers<'_>) -> Result<(), QueueError> {
        if self.window.receive(len).is_err() {
            self.on(Event::Violation);
            return Ok(());
        }
        self.on(Event::Data);
        let forwarded = match (&self.socket, self.state.gives_output()) {
            (Some(socket), true) if self.leftover.is_empty() => {
                match sys::send_from(socket.as_fd(), payload.slices()) {
                    Ok(count) => count as u64,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
                    Err(_) => {
                        self.on(Event::ClientRefuses);
                        u64::from(len)
                    }
                }
            }
            (Some(_), true) => 0,
            _ => u64::from(len),
        };
        payload.take(forwarded.min(payload.len()))?;
        self.leftover.keep(&mut payload)?;
        self.forward(usize::try_from(forwarded).unwrap_or(usize::MAX));
        Ok(())
    }

    /// Bytes are out of the way.
    fn forward(&mut self, count: usize) {
        self.window.forward(u32::try_from(count).unwrap_or(u32::MAX));
        self.owed.credit_update |= self.state.has_guest() && self.window.update_due();
    }

    /// Takes what the epoll set said of the client's socket.
    pub(super) fn client_is(&mut self, ready: Readiness) {
        self.readable |= ready.readable;
        if ready.hangup {
            self.closed = true;
            self.on(Event::ClientRefuses);
        } else if ready.writable {
            self.drain();
        }
    }

    fn drain(&mut self) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.leftover.is_empty()) else {
            return;
        };
        match self.leftover.send_to(socket.as_fd()) {
            Ok(count) => self.forward(count),
            Err(_) => return self.on(Event::ClientRefuses),
        }
        if self.leftover.is_empty() {
            self.on(Event::Drained);
        }
    }

    /// Reads bytes of the client straight into the guest's buffers, which are no longer than
    /// [`input_allowance`](Self::input_allowance).
    pub(super) fn read(&mut self, buffers: &mut Buffers<'_>) -> Read {
        let Some(socket) = self.socket.as_ref().filter(|_| !buffers.is_empty()) else {
            return Read::Nothing;
        };
        match sys::read_into(socket.as_fd(), buffers.slices(), At::Packet) {
            Ok(0) => {
                self.readable = false;
                self.on(Event::ClientEnded);
                Read::Nothing
            }
            Ok(count) => {
                self.allowance.spend(u32::try_from(count).unwrap_or(u32::MAX));
                Read::Bytes(count)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Read::Nothing
            }
            // ECONNRESET: it closed its end with bytes of the guest unread.
            Err(_) => {
                self.readable = false;
                self.on(Event::ClientRefuses);
                self.on(Event::ClientEnded);
                Read::Nothing
            }
        }
    }

    /// The next packet without payload that the guest is owed, but one that tells of credit. One at a time: the caller has a buffer for it.
    pub(super) fn next_control(&mut self) -> Option<Header> {
        if std::mem::take(&mut self.owed.reset) {
            self.owed = Owed::default();
            return Some(self.header(Operation::Reset));
        }
        if std::mem::take(&mut self.owed.request) {
            return Some(self.header(Operation::Request));
        }
        if let Some(ends) = self.owed.shutdown.take() {
            return Some(Header { flags: ends.flags(), ..self.header(Operation::Shutdown) });
        }
        if std::mem::take(&mut self.owed.credit_request) {
            return Some(self.header(Operation::CreditRequest));
        }
        None
    }

    /// A packet that tells the guest of its credit, if none with payload has done so.
    pub(super) fn next_update(&mut self) -> Option<Header> {
        self.owed.credit_update.then(|| self.header(Operation::CreditUpdate))
    }

    /// The header of a packet for the guest. It carries the newest credit, so an update that is owed is done with.
    pub(super) fn header(&mut self, operation: Operation) -> Header {
        self.owed.credit_update = false;
        let (buf_alloc, fwd_cnt) = self.window.stamp();
        Header {
            src_cid: HOST_CID,
            dst_cid: self.address.guest_cid,
            src_port: self.address.host_port,
            dst_port: self.address.guest_port,
            kind: STREAM,
            op: operation as u16,
            buf_alloc,
            fwd_cnt,
            ..Header::default()
        }
    }

    /// Something happened; what follows from it is done at once.
    pub(super) fn on(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next {
            let backlog = if self.leftover.is_empty() { Backlog::Empty } else { Backlog::Waiting };
            let Move { state, tell, client } = self.state.on(event, backlog);
            self.state = state;
            match tell {
                Tell::Nothing => {}
                Tell::Shutdown(ends) => self.owed.shutdown = Some(ends),
                // A guest that never heard of the connection needs no word of its end.
                Tell::Reset if self.owed.request => self.owed = Owed::default(),
                Tell::Reset => self.owed = Owed { reset: true, ..Owed::default() },
            }
            if event == Event::Reset || state == State::Gone && tell == Tell::Nothing {
                self.owed = Owed::default();
            }
            if event == Event::ClientRefuses {
                let thrown_away = self.leftover.discard();
                self.forward(thrown_away);
            }
            next = self.step(client);
        }
    }

    fn step(&mut self, step: ClientStep) -> Option<Event> {
        let socket = self.socket.as_ref()?;
        match step {
            ClientStep::Nothing => None,
            ClientStep::Answer => {
                let line = accepted(self.address.guest_port);
                // It is the first that is sent, so there is room for it.
                let sent = send(socket, line.as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
                (sent != Ok(line.len())).then_some(Event::ClientRefuses)
            }
            // It fails where the client has closed, which reading or writing tells as well.
            ClientStep::EndOutput => shutdown(socket, Shutdown::Write).err().map(|_| Event::ClientRefuses),
            ClientStep::EndInput => {
                let _ = shutdown(socket, Shutdown::Read);
                None
            }
            ClientStep::Close => {
                self.socket = None;
                self.leftover.discard();
                None
            }
        }
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl Stream {
    /// It keeps no more than it promised, and nothing for nobody.
    pub(super) fn assert_bounded(&self) {
        assert!(self.leftover.len() <= self.window.room() as usize, "{} bytes kept", self.leftover.len());
        assert!(self.leftover.is_empty() || self.socket.is_some(), "bytes kept for a client that is gone");
        assert!(!self.is_over(), "an end that was not noticed");
    }
}
