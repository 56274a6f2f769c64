//! Clients: how they come, what they ask for, what wakes them, when their time is over.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, SocketFlags, accept_with, send};

use super::super::connection::Event;
use super::super::greeting::{Greeting, Heard};
use super::super::poll::{Interest, Token};
use super::super::stream::{Address, Readiness, Stream, Wait};
use super::{FIRST_PORT, LAST_PORT, Mux};

/// Connections that are accepted before streams have their turn.
const ACCEPTED_AT_A_TIME: usize = 64;

/// Rest after the process ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The timer of that rest; no client has this port.
const LISTENER: u32 = 0;

#[derive(Debug)]
pub(super) enum Client {
    /// It has not said what it wants.
    Greeting(Greeting),
    Stream {
        stream: Stream,
        /// What its socket is watched for.
        interest: Interest,
        /// What it waited for when its deadline was last set.
        seen: Wait,
    },
}

impl Mux {
    /// The listener has a connection, perhaps.
    pub(crate) fn listener_is_ready(&mut self) {
        self.acceptable = true;
    }

    /// A client of the VMM itself has come, perhaps.
    pub(crate) fn dialer_is_ready(&mut self) {
        self.called = true;
    }

    /// Connections may wait to be accepted.
    pub(crate) fn may_accept(&self) -> bool {
        self.acceptable
    }

    /// Accepts connections until there are no more, or many were.
    pub(crate) fn accept(&mut self, now: Instant) {
        while let Some(socket) = self.called.then(|| self.outside.dialer.next()).flatten() {
            if let Some(port) = self.seat(socket, now) {
                self.own.insert(port);
            }
        }
        self.called = false;
        for _ in 0..ACCEPTED_AT_A_TIME {
            if !self.acceptable {
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&*self.outside.listener, flags) {
                Ok(socket) => self.welcome(socket, now),
                Err(rustix::io::Errno::AGAIN) => self.acceptable = false,
                // The client has gone meanwhile, or a signal came.
                Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.acceptable = false;
                    self.timers.set(LISTENER, now + ACCEPT_PAUSE);
                }
            }
        }
    }

    fn welcome(&mut self, socket: OwnedFd, now: Instant) {
        let limit = self.limits.connections;
        if self.strangers() >= limit {
            return refuse(&socket, &format!("there are {limit} connections, and no more can be had"));
        }
        self.seat(socket, now);
    }

    /// Clients that are not of the VMM itself.
    pub(super) fn strangers(&self) -> usize {
        self.clients.len() - self.own.len()
    }

    /// Gives a client a port; it has yet to say what it wants.
    fn seat(&mut self, socket: OwnedFd, now: Instant) -> Option<u32> {
        let port = self.free_port();
        if self.poller.watch(&socket, Token::Client(port)).is_err() {
            refuse(&socket, "out of kernel memory");
            return None;
        }
        self.clients.insert(port, Client::Greeting(Greeting { socket }));
        self.timers.set(port, now + self.limits.greeting);
        Some(port)
    }

    /// The guest runs no more: clients get what it has sent.
    pub(crate) fn lose_guest(&mut self, now: Instant) {
        let ports: Vec<u32> = self.clients.keys().copied().collect();
        for port in ports {
            match self.clients.get_mut(&port) {
                Some(Client::Stream { stream, .. }) => {
                    stream.on(Event::Reset);
                    self.settle(port, now);
                }
                _ => self.remove(port),
            }
        }
    }

    /// Nobody is left.
    pub(crate) fn is_deserted(&self) -> bool {
        self.clients.is_empty()
    }

    pub(crate) fn guest_has_ended(&self) -> bool {
        self.outside.dialer.has_hung_up()
    }

    /// A host port that nobody has. There are far more of them than connections.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = if port == LAST_PORT { FIRST_PORT } else { port + 1 };
            if !self.clients.contains_key(&port) {
                return port;
            }
        }
    }

    /// Something happened to the socket of the client with this host port.
    pub(crate) fn client_is(&mut self, port: u32, ready: Readiness, now: Instant) {
        match self.clients.get_mut(&port) {
            Some(Client::Greeting(_)) => self.greet(port, now),
            Some(Client::Stream { stream, .. }) => {
                stream.client_is(ready);
                self.settle(port, now);
            }
            // Another event of the same batch ended it.
            None => {}
        }
    }

    fn greet(&mut self, port: u32, now: Instant) {
        let Some(Client::Greeting(greeting)) = self.clients.get(&port) else {
            return;
        };
        let guest_port = match greeting.hear() {
            Heard::Waiting => return,
            Heard::Port(guest_port) => guest_port,
            Heard::Malformed => {
                refuse(&greeting.socket, "the first line must be CONNECT <port>");
                return self.remove(port);
            }
            Heard::Hangup => return self.remove(port),
        };
        let Some(Client::Greeting(greeting)) = self.clients.remove(&port) else {
            return;
        };
        let guest_cid = self.outside.guest_cid;
        let address = Address { guest_cid, guest_port, host_port: port };
        let stream = Stream::new(address, greeting.socket, self.reserve_room());
        let seen = stream.waits_for();
        self.clients.insert(port, Client::Stream { stream, interest: Interest::Read, seen });
        self.timers.set(port, now + self.limits.answer);
        self.settle(port, now);
    }

    fn reserve_room(&mut self) -> u32 {
        if self.promised + self.limits.room > self.limits.memory {
            return self.limits.small_room;
        }
        self.promised += self.limits.room;
        self.limits.room
    }

    /// Ends what took too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(port) = self.timers.expired(now) {
            match self.clients.get_mut(&port) {
                Some(Client::Greeting(greeting)) => {
                    refuse(&greeting.socket, "no CONNECT <port> came");
                    self.remove(port);
                }
                Some(Client::Stream { stream, .. }) => {
                    stream.on(Event::Timeout);
                    self.settle(port, now);
                }
                None => self.acceptable = true,
            }
        }
    }
}

/// Tells a client that gets no connection why.
fn refuse(socket: &OwnedFd, why: &str) {
    // A client that has gone, or does not read, has no interest in it.
    let _ = send(socket, format!("ERROR {why}\n").as_bytes(), SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
}
