//! A connection: its reader, and what its streams share.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::coop::consume_budget;

use super::StreamId;
use super::decoder::{Decoder, Event, Violation};
use super::frame::{self, GoAway};
use super::stream::Stream;
use super::table::{Admission, DataFor, Table};
use crate::websocket::{CloseCode, Opcode};
use crate::wire::{Activity, Budget, End, Framing, Sender, Source, Tunnel, Wire};

/// Streams that wait for the session to take them on or refuse them. Then the reader waits too: what a client says of a stream, its headers
/// before all, is kept also when it has ended the stream meanwhile.
const MOST_OPENED: usize = 32;

/// The reading side of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) activity: Activity,
    source: Source,
    decoder: Decoder,
    budget: Budget,
    opened: mpsc::Sender<Stream>,
    framing: Framing,
}

/// What all streams of a connection write to.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) sender: Arc<Sender>,
    /// Guards which streams are open; held for a look-up, and while an answer is queued, so that answers leave in their order.
    table: Mutex<Table>,
}

impl Connection {
    /// Speaks SPDY over `wire`, and gives out the streams that the client opens. Whoever gets them has to take them at once, for the reader
    /// waits for it.
    pub(crate) fn new(wire: Wire, framing: Framing) -> Result<(Self, mpsc::Receiver<Stream>), End> {
        let activity = Activity::new();
        let sender = Arc::new(Sender::new(wire.writer, framing, activity.clone()));
        let tunnel = (framing == Framing::Messages).then(|| Tunnel::new(Arc::clone(&sender)));
        let (opened, streams) = mpsc::channel(MOST_OPENED);
        let connection = Self {
            shared: Arc::new(Shared { sender, table: Mutex::default() }),
            source: Source::new(wire.reader, &wire.early, activity.clone(), tunnel)?,
            activity,
            decoder: Decoder::new(),
            budget: Budget::new(wire.peer),
            opened,
            framing,
        };
        Ok((connection, streams))
    }

    /// Reads until the connection comes to its end.
    pub(crate) async fn read(&mut self) -> End {
        loop {
            // A client that never pauses is not to keep its own session from its turn, nor other clients.
            consume_budget().await;
            let outcome = match self.decoder.next(&mut self.source.buffer) {
                Ok(Some(event)) => self.on(event).await,
                Ok(None) => self.source.fill().await,
                Err(violation) => Err(violation.into()),
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    async fn on(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Open { id, headers, fin } => {
                let admission = self.shared.table().open(id, headers, fin);
                match admission.map_err(|_| Violation::StreamId { id })? {
                    Admission::Opened(opened) => {
                        let stream = Stream { opened, shared: Arc::clone(&self.shared) };
                        // To nobody at the end of a session, which has its own way of telling the client.
                        let _ = self.opened.send(stream).await;
                    }
                    Admission::Refused(answer) => self.shared.sender.answer(&answer)?,
                    Admission::Ignored => {}
                }
                Ok(())
            }
            Event::Data { id, bytes, fin } => self.on_data(id, bytes, fin).await,
            Event::Reset(id) => {
                self.shared.table().end(id);
                self.unless_over()
            }
            // Even numbers would answer pings of ours.
            Event::Ping(number) if number % 2 == 1 => self.shared.sender.answer(&frame::ping(number)),
            Event::Ping(_) => Ok(()),
            Event::GoAway => {
                self.shared.table().go_away();
                self.unless_over()
            }
            Event::Ignored => Ok(()),
        }
    }

    async fn on_data(&mut self, id: StreamId, bytes: Bytes, fin: bool) -> Result<(), End> {
        if !bytes.is_empty() {
            let data_for = self.shared.table().data_for(id);
            match data_for {
                DataFor::Open => {
                    let chunk = self.budget.take(bytes, || Ok(())).await?;
                    self.shared.table().data(id, chunk);
                }
                DataFor::Nobody => {}
                DataFor::Refused(answer) => self.shared.sender.answer(&answer)?,
            }
        }
        if fin {
            self.shared.table().end_inbound(id);
            self.unless_over()?;
        }
        Ok(())
    }

    /// Whether the client may still want something. One that has said goodbye may keep its connection all the same.
    fn unless_over(&self) -> Result<(), End> {
        if self.shared.table().is_over() { Err(End::Closed) } else { Ok(()) }
    }

    /// Ends all streams, says why the connection ends, and waits for the client to close it: one that was cut off in the middle of sending
    /// would lose what it has not read yet, its exit code before all.
    pub(crate) async fn close(&mut self, why: GoAway, code: CloseCode) -> io::Result<()> {
        let (resets, last) = {
            let mut table = self.shared.table();
            (table.reset_all(), table.last())
        };
        // A client that has filled the queue is told nothing.
        let _ = self.shared.sender.answer(&resets);
        let _ = self.shared.sender.answer(&frame::go_away(last, why));
        if self.framing == Framing::Messages {
            let _ = self.shared.sender.control(Opcode::Close, &(code as u16).to_be_bytes());
        }
        self.shared.sender.close().await?;
        self.source.discard().await
    }
}

impl Shared {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn answer(&self, make: impl FnOnce(&mut Table) -> Option<Vec<u8>>) -> Result<(), End> {
        let mut table = self.table();
        match make(&mut table) {
            Some(frame) => self.sender.answer(&frame),
            None => Ok(()),
        }
    }
}
