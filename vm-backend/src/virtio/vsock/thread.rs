//! The thread of an active device: waits for kicks and sockets, moves packets.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_queue::QueueT;

use super::mux::{Mux, Stopped};
use super::news::News;
use super::packet::{HEADER_LEN, Header};
use super::poll::{Poller, Ready, Token};
use super::rx::RxRing;
use super::stream::Readiness;
use crate::memory::{GuestMemory, GuestRam};
use crate::virtio::chain::QueueError;
use crate::virtio::worker::Stop;
use crate::virtio::{ActiveQueue, Interrupt, sys};

/// Packets that are taken from the guest before the clients' own have their turn.
const RECEIVED_AT_A_TIME: usize = 128;

/// Rounds for what is in the queues when the guest has ended; they hold far less.
const LAST_ROUNDS: usize = 16;

/// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (VIRTIO 1.2 section 5.10.6.7): all connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// What the thread works with from activation to reset.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) memory: GuestRam,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) mux: Mux,
    pub(super) rx: ActiveQueue,
    pub(super) tx: ActiveQueue,
    pub(super) events: ActiveQueue,
    /// Set while the guest has to be told that its connections are gone: on entry for those of an earlier session, at the end for those
    /// of this one.
    pub(super) lost: Arc<AtomicBool>,
}

impl Session {
    /// Works until it is asked to stop.
    ///
    /// # Errors
    /// The driver broke a queue.
    pub(super) fn run(self, stop: &Stop) -> Result<(), QueueError> {
        self.with_rounds(|rounds| {
            // Without the set nothing can be waited for; it fails only for want of kernel memory.
            rounds.watch(stop).map_err(|_| QueueError::Ring)?;
            let result = rounds.run();
            if rounds.mux.has_streams() {
                rounds.lost.store(true, Ordering::Release);
            }
            result
        })
    }

    /// The session at work, as long as `body` takes.
    pub(super) fn with_rounds<R>(self, body: impl FnOnce(&mut Rounds<'_>) -> R) -> R {
        let Self { memory, interrupt, mux, rx, tx, events, lost } = self;
        let rx = RxRing::new(&memory, rx);
        let news = News::new(tx.queue.size());
        body(&mut Rounds { memory: &memory, interrupt: &interrupt, mux, rx, tx, events, news, lost: &lost })
    }
}

/// What the thread does again and again.
pub(super) struct Rounds<'m> {
    memory: &'m GuestMemory,
    interrupt: &'m Interrupt,
    mux: Mux,
    rx: RxRing<'m>,
    tx: ActiveQueue,
    events: ActiveQueue,
    news: News,
    lost: &'m AtomicBool,
}

impl Rounds<'_> {
    fn watch(&mut self, stop: &Stop) -> io::Result<()> {
        let poller: &Poller = self.mux.poller();
        poller.watch(stop.as_fd(), Token::Stop)?;
        for kick in [&self.rx.queue().kick, &self.tx.kick, &self.events.kick] {
            poller.watch(sys::borrow(kick), Token::Kick)?;
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), QueueError> {
        let mut patience = Some(Duration::ZERO);
        loop {
            // It fails only for a bad set.
            let ready = self.mux.poller().wait(patience).map_err(|_| QueueError::Ring)?;
            if ready.iter().any(|ready| ready.token == Token::Stop) {
                return Ok(());
            }
            let now = Instant::now();
            let more = self.round(&ready, now)?;
            if ready.iter().any(|ready| ready.token == Token::Dialer) && self.mux.guest_has_ended() {
                return self.finish();
            }
            let deadline = self.mux.next_deadline().into_iter().chain(self.news.due()).min();
            let left = deadline.map(|at| at.saturating_duration_since(now));
            patience = if more { Some(Duration::ZERO) } else { left };
        }
    }

    /// The guest runs no more: what it has sent goes to the clients, as long as they take it and nobody asks for the end.
    pub(super) fn finish(&mut self) -> Result<(), QueueError> {
        for _ in 0..LAST_ROUNDS {
            if !self.round(&[], Instant::now())? {
                break;
            }
        }
        self.mux.lose_guest(Instant::now());
        while !self.mux.is_deserted() {
            let ready = self.mux.poller().wait(None).map_err(|_| QueueError::Ring)?;
            for ready in ready {
                match ready.token {
                    Token::Stop => return Ok(()),
                    Token::Client(port) => {
                        let Ready { readable, writable, hangup, .. } = ready;
                        self.mux.client_is(port, Readiness { readable, writable, hangup }, Instant::now());
                    }
                    Token::Kick | Token::Listener | Token::Dialer => {}
                }
            }
        }
        Ok(())
    }

    /// Does some of everything that there is to do; `true` if there is more.
    pub(super) fn round(&mut self, ready: &[Ready], now: Instant) -> Result<bool, QueueError> {
        for ready in ready {
            match ready.token {
                Token::Listener => self.mux.listener_is_ready(),
                Token::Dialer => self.mux.dialer_is_ready(),
                Token::Client(port) => {
                    let Ready { readable, writable, hangup, .. } = *ready;
                    self.mux.client_is(port, Readiness { readable, writable, hangup }, now);
                }
                // All queues of a kind count together.
                Token::Kick => self.tx.counters.kicks.add(1),
                Token::Stop => {}
            }
        }
        self.mux.accept(now);
        self.mux.expire(now);
        self.tell_of_loss()?;
        self.tx.mute_kicks(self.memory)?;
        self.rx.queue().mute_kicks(self.memory)?;
        let mut more = self.take_packets(now)?;
        let sent = self.mux.transmit(&mut self.rx, now)?;
        if sent.packets > 0 {
            self.rx.queue().interrupt(self.memory, self.interrupt)?;
        }
        self.tell_of_taken(now)?;
        more |= sent.stopped == Stopped::Enough || self.mux.may_accept();
        if !more && !self.mux.is_congested() {
            more |= self.tx.unmute_kicks(self.memory)?;
        }
        if !more && sent.stopped == Stopped::Starved {
            more |= self.rx.queue().unmute_kicks(self.memory)?;
        }
        Ok(more)
    }

    /// Takes packets of the guest; `true` if there may be more.
    fn take_packets(&mut self, now: Instant) -> Result<bool, QueueError> {
        let mut taken = 0;
        while taken < RECEIVED_AT_A_TIME && !self.mux.is_congested() {
            let Some(mut chain) = self.tx.next_chain(self.memory)? else {
                break;
            };
            let descriptors = chain.readable.pieces() + chain.writable.pieces();
            let mut header = [0; HEADER_LEN];
            // What is too short for a header has no sender to be answered.
            if chain.readable.read(&mut header).is_ok() {
                self.mux.receive(&Header::from_bytes(&header), chain.readable, now)?;
            }
            self.tx.complete(self.memory, chain.head, 0)?;
            self.news.add(descriptors, now);
            taken += 1;
        }
        Ok(taken == RECEIVED_AT_A_TIME)
    }

    /// Tells the guest that its packets were taken, when it is time and no other interrupt does.
    fn tell_of_taken(&mut self, now: Instant) -> Result<(), QueueError> {
        if self.interrupt.used_buffer_pending() {
            self.news.told();
        } else if self.news.is_due(now) {
            self.tx.interrupt(self.memory, self.interrupt)?;
            self.news.told();
        }
        Ok(())
    }

    /// Tells the guest that connections of an earlier session are gone, once it has given a buffer for that.
    fn tell_of_loss(&mut self) -> Result<(), QueueError> {
        if !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        let Some(mut chain) = self.events.next_chain(self.memory)? else {
            return Ok(());
        };
        self.lost.store(false, Ordering::Release);
        let written = chain.writable.write(&TRANSPORT_RESET.to_le_bytes()).map_or(0, |()| u32::BITS / 8);
        self.events.complete(self.memory, chain.head, written)?;
        self.events.interrupt(self.memory, self.interrupt)
    }
}

#[cfg(any(test, feature = "fuzz"))]
impl Rounds<'_> {
    /// What there is for the next round, without waiting.
    pub(super) fn ready(&self) -> Vec<Ready> {
        self.mux.poller().wait(Some(Duration::ZERO)).unwrap_or_default()
    }

    /// Nothing has grown beyond its limit.
    pub(super) fn assert_bounded(&self) {
        self.mux.assert_bounded();
    }
}
