//! All connections of the device: who they are, and whose turn it is.

mod clients;
mod transmit;
mod turns;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use super::connection::Event;
use super::dialer::Dialer;
use super::limits::Limits;
use super::packet::{HOST_CID, Header, MAX_PAYLOAD, Operation, STREAM};
use super::poll::{Interest, Poller, Token};
use super::ready::{READY_PORT, ReadySignal};
use super::stream::Stream;
use super::timers::Timers;
use crate::virtio::chain::{Buffers, QueueError};
use clients::Client;
pub(super) use transmit::Stopped;
use turns::Turns;

/// Host ports are given out from here on, so that none looks like a port that means something.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// What the multiplexer shares with the device that outlives it.
#[derive(Debug, Clone)]
pub(super) struct Outside {
    pub(super) guest_cid: u64,
    /// A listening unix stream socket that does not block.
    pub(super) listener: Arc<OwnedFd>,
    pub(super) dialer: Dialer,
    pub(super) ready: Arc<ReadySignal>,
}

#[derive(Debug)]
pub(super) struct Mux {
    outside: Outside,
    limits: Limits,
    poller: Poller,
    /// By host port, of which each is given to one client as long as it lives.
    clients: HashMap<u32, Client>,
    /// Ports of those of the VMM itself, which sees to it that they are not too many.
    own: HashSet<u32>,
    next_port: u32,
    turns: Turns,
    timers: Timers,
    /// The listener may have a connection: it said so and has not said EAGAIN since.
    acceptable: bool,
    /// There may be a client of the VMM itself.
    called: bool,
    /// Bytes promised to connections with a room of the larger size.
    promised: u32,
}

impl Mux {
    /// Begins to listen.
    ///
    /// # Errors
    /// The listener cannot be watched.
    pub(super) fn new(outside: Outside, limits: Limits, poller: Poller) -> std::io::Result<Self> {
        poller.watch(&*outside.listener, Token::Listener)?;
        poller.watch(&outside.dialer, Token::Dialer)?;
        Ok(Self {
            outside,
            limits,
            poller,
            clients: HashMap::new(),
            own: HashSet::new(),
            next_port: FIRST_PORT,
            turns: Turns::default(),
            timers: Timers::default(),
            acceptable: true,
            called: true,
            promised: 0,
        })
    }

    pub(super) fn poller(&self) -> &Poller {
        &self.poller
    }

    /// There are connections that the guest may know of.
    pub(super) fn has_streams(&self) -> bool {
        self.clients.values().any(|client| matches!(client, Client::Stream { .. }))
    }

    /// When [`expire`](Self::expire) has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// So many resets wait for buffers that no more packets should be taken from the guest (VIRTIO 1.2 section 5.10.6.1.2).
    pub(super) fn is_congested(&self) -> bool {
        self.turns.resets() >= self.limits.resets
    }

    /// Takes a packet of the guest: its header, and all bytes behind it.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        mut bytes: Buffers<'_>,
        now: Instant,
    ) -> Result<(), QueueError> {
        // Not of this guest or not for this host: no answer would reach whom it concerns.
        if header.src_cid != self.outside.guest_cid || header.dst_cid != HOST_CID {
            return Ok(());
        }
        let operation = header.operation().filter(|_| header.kind == STREAM);
        if operation == Some(Operation::Request) {
            if header.dst_port == READY_PORT {
                self.outside.ready.raise();
            }
            self.turns.refuse(header);
            return Ok(());
        }
        let port = header.dst_port;
        let stream = self.stream(port).filter(|stream| stream.is_from(header.src_port));
        let (Some(operation), Some(stream)) = (operation, stream) else {
            if header.op != Operation::Reset as u16 {
                self.turns.refuse(header);
            }
            return Ok(());
        };
        match bytes.take(header.len.into()) {
            Ok(payload) if header.len <= MAX_PAYLOAD => stream.receive(header, operation, payload)?,
            // It lies about its length.
            _ => stream.on(Event::Violation),
        }
        self.settle(port, now);
        Ok(())
    }

    fn stream(&mut self, port: u32) -> Option<&mut Stream> {
        match self.clients.get_mut(&port) {
            Some(Client::Stream { stream, .. }) => Some(stream),
            _ => None,
        }
    }

    /// Does what follows from a change of a connection: its turn, its deadline, what is watched, its end.
    fn settle(&mut self, port: u32, now: Instant) {
        let Some(Client::Stream { stream, interest, seen }) = self.clients.get_mut(&port) else {
            return;
        };
        if stream.is_over() {
            return self.remove(port);
        }
        if stream.wants_turn() {
            self.turns.join(port);
        }
        let waits = stream.waits_for();
        if std::mem::replace(seen, waits) != waits {
            self.timers.cancel(port);
            if let Some(limit) = self.limits.of(waits) {
                self.timers.set(port, now + limit);
            }
        }
        let wanted = if stream.waits_for_client() { Interest::ReadWrite } else { Interest::Read };
        if let Some(socket) = stream.socket().filter(|_| *interest != wanted) {
            // It can only fail for want of kernel memory; then the client is as good as gone.
            match self.poller.change(socket, Token::Client(port), wanted) {
                Ok(()) => *interest = wanted,
                Err(_) => {
                    stream.on(Event::ClientRefuses);
                    self.turns.join(port);
                }
            }
        }
    }

    fn remove(&mut self, port: u32) {
        self.timers.cancel(port);
        self.own.remove(&port);
        if let Some(Client::Stream { stream, .. }) = self.clients.remove(&port) {
            if stream.room() == self.limits.room {
                self.promised -= self.limits.room;
            }
        }
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl Mux {
    /// Nothing has grown beyond its limit.
    pub(super) fn assert_bounded(&self) {
        assert!(self.strangers() <= self.limits.connections, "{} connections", self.clients.len());
        assert!(self.turns.resets() <= self.limits.resets, "{} resets", self.turns.resets());
        assert!(self.promised <= self.limits.memory, "{} bytes promised", self.promised);
        for client in self.clients.values() {
            if let Client::Stream { stream, .. } = client {
                stream.assert_bounded();
            }
        }
    }
}
