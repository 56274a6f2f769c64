//! virtio-balloon (VIRTIO 1.2 section 5.5) for one thing only: the guest reports pages that it does not use, and the host takes them back.
//!
//! The balloon is never inflated (its target is 0). A driver that puts pages in all the same is answered and keeps them.

use std::io;
use std::sync::Arc;

use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::chain::QueueError;
use super::queue::RING_FEATURES;
use super::worker::{Patience, Stop, Worker};
use super::{ActivateError, Activation, ActiveQueue, Device, Interrupt, read_config_space, sys};
use crate::jail::Thread;
use crate::memory::GuestMemory;

/// VIRTIO_BALLOON_F_PAGE_REPORTING. Not offered: TELL_HOST, STATS_VQ, DEFLATE_ON_OOM, FREE_PAGE_HINT, PAGE_POISON.
const PAGE_REPORTING: u64 = 1 << 5;

/// The queues by the standard are inflate, deflate, statistics, free page hints and reports; drivers that skip those that they were not
/// offered (Linux for long) have reports third. So all but the first two take reports.
const FIRST_REPORT_QUEUE: usize = 2;

/// Linux reports up to 32 ranges at a time (PAGE_REPORTING_CAPACITY), one chain under way.
const QUEUE_SIZES: [u16; 5] = [32; 5];

/// Bytes of a page, the only size on riscv64 and x86_64.
const PAGE: usize = 4096;

/// The device.
#[derive(Debug)]
pub struct Balloon {
    worker: Worker,
}

impl Balloon {
    /// # Errors
    /// No thread can be had.
    pub fn new() -> io::Result<Self> {
        Ok(Self { worker: Worker::new(Thread::Balloon)? })
    }
}

impl Device for Balloon {
    fn device_type(&self) -> u32 {
        5
    }

    fn features(&self) -> u64 {
        RING_FEATURES | PAGE_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // num_pages and actual: nothing is asked for. What the driver writes to actual is of no interest.
        read_config_space(&[0; 8], offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let mut queues = <[Option<ActiveQueue>; 5]>::try_from(queues)
            .map_err(|queues| ActivateError::MissingQueue(queues.len()))?;
        let raise = interrupt.clone();
        self.worker.start(interrupt, move |stop: &Stop| {
            loop {
                let kicks =
                    queues.each_ref().map(|queue| queue.as_ref().map(|queue| sys::borrow(&queue.kick)));
                let Some(woken) = stop.wait(kicks, Patience::Forever) else { return Ok(()) };
                let queues = queues.iter_mut().zip(woken.readable).enumerate();
                for (index, (queue, _)) in queues.filter(|(_, (_, kicked))| *kicked) {
                    let Some(queue) = queue else { continue };
                    queue.take_kick();
                    let what = if index >= FIRST_REPORT_QUEUE { Pages::Reported } else { Pages::InBalloon };
                    while serve(what, queue, &memory, &raise)? && !stop.asked() {}
                }
            }
        })
    }

    fn reset(&mut self) {
        self.worker.stop();
    }
}

/// What the chains of a queue are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Ranges that the guest does not use until it is answered.
    Reported,
    /// Page numbers for the balloon, which are not looked at.
    InBalloon,
}

/// Works on at most a queue's length of chains. `true`: there are more.
///
/// # Errors
/// The driver broke the queue; the device cannot go on.
pub fn serve(
    pages: Pages,
    queue: &mut ActiveQueue,
    memory: &GuestMemory,
    interrupt: &Interrupt,
) -> Result<bool, QueueError> {
    let at_most = queue.queue.size();
    let counters = Arc::clone(&queue.counters);
    queue.answer_some(memory, interrupt, at_most, |mut chain| {
        if pages == Pages::Reported {
            counters.from_guest.add(chain.writable.slices().iter().map(give_back).sum());
        }
        0
    })
}

/// Gives the whole pages of a range back to the host; the guest finds zeros (or what a template held) when it uses them again. The number of bytes.
fn give_back(range: &VolatileSlice<'_>) -> u64 {
    let start = range.ptr_guard().as_ptr().addr();
    let skipped = start.next_multiple_of(PAGE) - start;
    let length = range.len().saturating_sub(skipped) / PAGE * PAGE;
    if let (Ok(pages), true) = (range.subslice(skipped.min(range.len()), length), length > 0) {
        // The host keeps what it does not take; the guest is none the wiser.
        if sys::give_back(&pages).is_ok() {
            return length as u64;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::test_driver::{Driver, Piece, RAM_START, ram};

    const MIB: u64 = 1 << 20;

    /// A guest with 8 MiB, the upper half of which is full of a pattern.
    fn rig() -> Driver {
        let mut driver = Driver::new(ram(8 << 20));
        driver.slot.fill(Box::new(Balloon::new().unwrap())).unwrap();
        driver.start(u64::MAX, 32);
        driver.poke(RAM_START + 4 * MIB, &vec![0xa5; 4 << 20]);
        driver
    }

    fn report(driver: &mut Driver, queue: u32, ranges: &[Piece]) {
        let head = driver.queues[queue as usize].add(&[], ranges);
        driver.kick(queue);
        assert_eq!(driver.wait_used(queue as usize), (head, 0));
    }

    #[test]
    fn reported_pages_are_given_back_and_no_other() {
        for queue in [2, 4] {
            let mut driver = rig();
            let start = RAM_START + 5 * MIB;
            report(&mut driver, queue, &[(start, 1 << 20), (start + 2 * MIB, 4096)]);
            assert_eq!(driver.peek(start, 1 << 20), vec![0; 1 << 20]);
            assert_eq!(driver.peek(start + 2 * MIB, 4096), [0; 4096]);
            assert_eq!(driver.peek(start - 4096, 4096), [0xa5; 4096]);
            assert_eq!(driver.peek(start + MIB, 1 << 20), vec![0xa5; 1 << 20]);
            assert_eq!(driver.peek(start + 2 * MIB + 4096, 4096), [0xa5; 4096]);
        }
    }

    #[test]
    fn parts_of_pages_stay() {
        let mut driver = rig();
        let start = RAM_START + 5 * MIB;
        report(
            &mut driver,
            2,
            &[(start + 1, 4095), (start + 8192 - 10, 4096 + 20), (start + 65536, 0), (start + 4096, 100)],
        );
        let expected = [vec![0xa5; 8192], vec![0; 4096], vec![0xa5; 4096]].concat();
        assert_eq!(driver.peek(start, 16384), expected);
    }

    #[test]
    fn a_range_outside_of_ram_gives_nothing_back_and_stops_the_device() {
        let mut driver = rig();
        let (inside, end) = (RAM_START + 5 * MIB, RAM_START + 8 * MIB);
        driver.queues[2].add(&[], &[(inside, 4096), (end - 4096, 8192)]);
        driver.kick(2);
        driver.wait_needs_reset();
        assert_eq!(driver.peek(inside, 4096), [0xa5; 4096]);
        driver.start(u64::MAX, 32);
        report(&mut driver, 2, &[(inside, 4096)]);
        assert_eq!(driver.peek(inside, 4096), [0; 4096]);
    }

    #[test]
    fn what_is_put_into_the_balloon_is_answered_and_stays_the_guests() {
        let mut driver = rig();
        let list = RAM_START + MIB;
        driver.poke(list, &u32::try_from((RAM_START + 5 * MIB) >> 12).unwrap().to_le_bytes());
        for queue in [0, 1] {
            driver.queues[queue].add(&[(list, 4)], &[]);
            driver.kick(u32::try_from(queue).unwrap());
            driver.wait_used(queue);
        }
        // Ranges in another queue, or to be read, are no reports.
        report(&mut driver, 0, &[(RAM_START + 5 * MIB, 4096)]);
        driver.queues[2].add(&[(RAM_START + 5 * MIB, 4096)], &[]);
        driver.kick(2);
        driver.wait_used(2);
        assert_eq!(driver.peek(RAM_START + 5 * MIB, 4096), [0xa5; 4096]);
    }
}
