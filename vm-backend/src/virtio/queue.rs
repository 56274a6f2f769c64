//! Taking chains from a queue and giving them back.

use std::sync::atomic::Ordering;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, QueueError};
use super::{ActiveQueue, Interrupt};
use crate::memory::GuestMemory;

/// VIRTIO_F_RING_INDIRECT_DESC (VIRTIO 1.2 section 6): descriptors may stand in a table of their own.
const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// VIRTIO_F_VERSION_1: no legacy interface.
pub const VERSION_1: u64 = 1 << 32;

/// What every device here offers besides its own features: the rings as this module reads them. VIRTIO_F_RING_EVENT_IDX is not offered:
/// kicks and interrupts are held back by flag while the other side is at work, and a gain beyond that was not measured.
pub const RING_FEATURES: u64 = VERSION_1 | INDIRECT_DESCRIPTORS;

/// VIRTQ_AVAIL_F_NO_INTERRUPT: the driver looks at the used ring by itself.
const NO_INTERRUPT: u16 = 1;

/// Bytes before the elements of a used ring, and of each element (section 2.7.8).
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

impl ActiveQueue {
    /// The next chain that the driver made available.
    ///
    /// # Errors
    /// The ring or the chain is broken: the device cannot go on.
    pub fn next_chain<'m>(&mut self, memory: &'m GuestMemory) -> Result<Option<Chain<'m>>, QueueError> {
        let head = match self.queue.iter(memory) {
            Ok(mut available) => available.next().map(|chain| chain.head_index()),
            Err(virtio_queue::Error::InvalidAvailRingIndex) => return Err(QueueError::AvailableIndex),
            Err(_) => return Err(QueueError::Ring),
        };
        let Some(head) = head else { return Ok(None) };
        let chain = Chain::walk(&self.queue, memory, head)?;
        self.counters.requests.add(1);
        self.counters.from_guest.add(chain.readable.len());
        Ok(Some(chain))
    }

    /// Takes the signals off its kick, so that it wakes again for later ones only.
    pub fn take_kick(&self) {
        // EAGAIN of a non-blocking eventfd: another kick's read took this one too.
        if let Ok(kicks) = self.kick.read() {
            self.counters.kicks.add(kicks);
        }
    }

    /// Answers at most `at_most` chains in order: `answer` does what one asks for and says how many bytes of it were written. `true`: there
    /// are more.
    ///
    /// # Errors
    /// The driver broke the queue; the device cannot go on.
    pub fn answer_some<'m>(
        &mut self,
        memory: &'m GuestMemory,
        interrupt: &Interrupt,
        at_most: u16,
        mut answer: impl FnMut(Chain<'m>) -> u32,
    ) -> Result<bool, QueueError> {
        self.mute_kicks(memory)?;
        let mut answered = 0;
        while answered < at_most {
            let Some(chain) = self.next_chain(memory)? else { break };
            let head = chain.head;
            let written = answer(chain);
            self.complete(memory, head, written)?;
            answered += 1;
        }
        if answered > 0 {
            self.interrupt(memory, interrupt)?;
        }
        self.unmute_kicks(memory)
    }

    /// Gives the chain `head` back to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn complete(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        self.complete_together(memory, &[(head, written)])
    }

    /// Gives several chains back so that the driver sees all of them or none (section 5.1.6.4: the buffers of one packet).
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn complete_together(
        &mut self,
        memory: &GuestMemory,
        chains: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let ring = self.queue.used_ring();
        let mut next = self.queue.next_used();
        for (head, written) in chains {
            let place = u64::from(next % self.queue.size()) * USED_ELEMENT + USED_HEADER;
            let place = GuestAddress(ring.checked_add(place).ok_or(QueueError::Ring)?);
            let element = [u32::from(*head).to_le(), written.to_le()];
            memory.write_obj(element, place).map_err(|_| QueueError::Ring)?;
            self.counters.to_guest.add(u64::from(*written));
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        let index = GuestAddress(ring.checked_add(2).ok_or(QueueError::Ring)?);
        memory.store(next.to_le(), index, Ordering::Release).map_err(|_| QueueError::Ring)
    }

    /// Interrupts the driver for what was completed, unless it asked not to be.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn interrupt(&mut self, memory: &GuestMemory, interrupt: &Interrupt) -> Result<(), QueueError> {
        // The fence between the used index and this flag is in here.
        if !self.queue.needs_notification(memory).map_err(|_| QueueError::Ring)? {
            return Ok(());
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags: u16 = memory.load(flags, Ordering::Relaxed).map_err(|_| QueueError::Ring)?;
        if u16::from_le(flags) & NO_INTERRUPT == 0 {
            self.counters.interrupts.add(1);
            interrupt.used_buffer();
        }
        Ok(())
    }

    /// Asks the driver to save itself the kicks: the queue is being looked at.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn mute_kicks(&mut self, memory: &GuestMemory) -> Result<(), QueueError> {
        self.queue.disable_notification(memory).map_err(|_| QueueError::Ring)
    }

    /// Asks for kicks again. `true`: something came meanwhile without one.
    ///
    /// # Errors
    /// [`QueueError::Ring`].
    pub fn unmute_kicks(&mut self, memory: &GuestMemory) -> Result<bool, QueueError> {
        self.queue.enable_notification(memory).map_err(|_| QueueError::Ring)
    }
}
