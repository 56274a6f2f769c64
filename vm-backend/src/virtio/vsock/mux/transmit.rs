//! From clients to the guest.

use std::time::Instant;

use super::super::packet::{MAX_PAYLOAD, Operation};
use super::super::rx::RxRing;
use super::super::stream::Read;
use super::Mux;
use super::turns::Turn;
use crate::virtio::chain::QueueError;

/// Packets that are sent before the guest's own have their turn.
const SENT_AT_A_TIME: usize = 256;

/// Why sending stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Nobody has anything more.
    Idle,
    /// The guest has no buffer for more.
    Starved,
    /// Others must have their turn.
    Enough,
}

/// What sending came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Transmitted {
    pub(crate) packets: usize,
    pub(crate) stopped: Stopped,
}

impl Mux {
    /// Sends the guest what there is for it, as far as it has buffers: everyone in turn.
    pub(crate) fn transmit(&mut self, rx: &mut RxRing<'_>, now: Instant) -> Result<Transmitted, QueueError> {
        let mut packets = 0;
        while packets < SENT_AT_A_TIME {
            if self.turns.is_empty() {
                return Ok(Transmitted { packets, stopped: Stopped::Idle });
            }
            if !rx.has_slot()? {
                return Ok(Transmitted { packets, stopped: Stopped::Starved });
            }
            packets += match self.turns.next() {
                Some(Turn::Client(port)) => self.turn(port, rx, now)?,
                Some(Turn::Reset(header)) => rx.send(header, 0)?,
                None => 0,
            };
        }
        Ok(Transmitted { packets, stopped: Stopped::Enough })
    }

    /// One turn of a connection: a packet without payload, or one read of its socket.
    fn turn(&mut self, port: u32, rx: &mut RxRing<'_>, now: Instant) -> Result<usize, QueueError> {
        let Some(stream) = self.stream(port) else {
            return Ok(0);
        };
        let packets = if let Some(header) = stream.next_control() {
            rx.send(header, 0)?
        } else {
            let mut room = rx.payload_room(stream.input_allowance().min(MAX_PAYLOAD))?;
            match stream.read(&mut room) {
                Read::Bytes(count) => rx.send(stream.header(Operation::Data), count)?,
                Read::Nothing => match stream.next_control().or_else(|| stream.next_update()) {
                    Some(header) => rx.send(header, 0)?,
                    None => 0,
                },
            }
        };
        self.settle(port, now);
        Ok(packets)
    }
}
