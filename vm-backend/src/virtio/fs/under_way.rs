//! Requests of a queue that were handed to the file server and not answered yet.

use std::collections::HashMap;

use rustix::io::Errno;
use virtio_queue::QueueT as _;

use super::Sent;
use crate::memory::GuestMemory;
use crate::share::fuse::{IN_HEADER, error_answer};
use crate::share::wire::{MAX_ANSWER, MAX_REQUEST, Request};
use crate::virtio::ActiveQueue;
use crate::virtio::chain::{Buffers, Chain, QueueError};

/// Chains after which the driver hears of what is done, and a reset is heard.
const BATCH: usize = 16;
/// Offset of the number that the driver knows a request by in its header.
const UNIQUE: usize = 8;

/// A request that is awaited. What it is to be answered into is found again by its place in the queue.
#[derive(Debug)]
struct Awaited<'m> {
    head: u16,
    unique: u64,
    answer: Buffers<'m>,
}

/// Requests that are under way, and one that the server had no room for.
#[derive(Debug, Default)]
pub(crate) struct UnderWay<'m> {
    awaited: HashMap<u64, Awaited<'m>>,
    held_up: Option<Packet<'m>>,
}

/// A request on its way to the server.
#[derive(Debug)]
struct Packet<'m> {
    bytes: Vec<u8>,
    head: u16,
    /// With its number; none where no answer is awaited.
    awaited: Option<(u64, Awaited<'m>)>,
}

/// How taking went.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Chains were given back.
    pub(crate) completed: bool,
    /// The server has gone.
    pub(crate) gone: bool,
}

impl<'m> UnderWay<'m> {
    /// Whether a request waits for the server to have room.
    pub(crate) fn is_held_up(&self) -> bool {
        self.held_up.is_some()
    }

    /// Hands on what a driver asks for, a batch at most.
    pub(crate) fn take(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &'m GuestMemory,
        next: impl Fn() -> u64,
        mut send: impl FnMut(&[u8]) -> Sent,
    ) -> Result<Taken, QueueError> {
        let mut taken = Taken::default();
        for _ in 0..BATCH {
            let packet = match self.held_up.take() {
                Some(held_up) => held_up,
                None => {
                    let Some(chain) = queue.next_chain(memory)? else { break };
                    // No driver has more under way than its queue has places.
                    if self.awaited.len() >= usize::from(queue.queue.size()) {
                        return Err(QueueError::AvailableIndex);
                    }
                    let head = chain.head;
                    match packet_of(chain, &next) {
                        Some(packet) => packet,
                        // Nothing that could be answered.
                        None => {
                            queue.complete(memory, head, 0)?;
                            taken.completed = true;
                            continue;
                        }
                    }
                }
            };
            let Packet { bytes, head, awaited } = packet;
            match (send(&bytes), awaited) {
                (Sent::NotNow, awaited) => {
                    self.held_up = Some(Packet { bytes, head, awaited });
                    break;
                }
                (Sent::Yes, Some((number, awaited))) => {
                    self.awaited.insert(number, awaited);
                }
                // Nobody awaits an answer.
                (Sent::Yes | Sent::Gone, None) => {
                    queue.complete(memory, head, 0)?;
                    taken.completed = true;
                }
                (Sent::Gone, Some((_, awaited))) => {
                    taken.gone = true;
                    fail(queue, memory, awaited)?;
                    taken.completed = true;
                }
            }
        }
        Ok(taken)
    }

    /// Gives an answer to the driver; false where the request is none of this queue's.
    pub(crate) fn complete(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        number: u64,
        answer: &[u8],
    ) -> Result<bool, QueueError> {
        let Some(mut awaited) = self.awaited.remove(&number) else { return Ok(false) };
        let room = usize::try_from(awaited.answer.len()).unwrap_or(usize::MAX);
        let answer = &answer[..answer.len().min(room)];
        awaited.answer.write(answer)?;
        queue.complete(memory, awaited.head, u32::try_from(answer.len()).unwrap_or(u32::MAX))?;
        Ok(true)
    }

    /// Answers all that is awaited with an error.
    pub(crate) fn fail_all(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
    ) -> Result<(), QueueError> {
        let held_up = self.held_up.take();
        if let Some(Packet { head, awaited: None, .. }) = &held_up {
            queue.complete(memory, *head, 0)?;
        }
        let held_up = held_up.and_then(|packet| packet.awaited).map(|(_, awaited)| awaited);
        for awaited in self.awaited.drain().map(|(_, awaited)| awaited).chain(held_up) {
            fail(queue, memory, awaited)?;
        }
        Ok(())
    }
}

fn fail(queue: &mut ActiveQueue, memory: &GuestMemory, mut awaited: Awaited<'_>) -> Result<(), QueueError> {
    let answer = error_answer(awaited.unique, Errno::IO);
    let written = match awaited.answer.write(&answer) {
        Ok(()) => u32::try_from(answer.len()).unwrap_or(u32::MAX),
        Err(_) => 0,
    };
    queue.complete(memory, awaited.head, written)
}

/// What goes to the server for a chain, and what awaits the answer where there is room for one. A request that is too long or too short is none.
fn packet_of<'m>(chain: Chain<'m>, next: impl Fn() -> u64) -> Option<Packet<'m>> {
    let Chain { head, mut readable, writable: answer } = chain;
    let length =
        usize::try_from(readable.len()).ok().filter(|length| (IN_HEADER..=MAX_REQUEST).contains(length))?;
    let number = next();
    let room = usize::try_from(answer.len()).unwrap_or(usize::MAX).min(MAX_ANSWER);
    let header = Request { number, room: u32::try_from(room).unwrap_or(0) }.to_bytes();
    let mut bytes = vec![0; header.len() + length];
    bytes[..header.len()].copy_from_slice(&header);
    // Copied once: what the guest changes afterwards is changed for nobody.
    readable.read(&mut bytes[header.len()..]).ok()?;
    let unique =
        bytes[header.len() + UNIQUE..].first_chunk::<8>().map(|unique| u64::from_ne_bytes(*unique))?;
    let awaited = (room > 0).then_some((number, Awaited { head, unique, answer }));
    Some(Packet { bytes, head, awaited })
}
