//! Flow control: how much either side of a connection may send (VIRTIO 1.2 section 5.10.6.3).
//!
//! Counters run free and wrap at 2^32. What is on the way is always a difference of two of them, and never above 2^31.

/// A limit on the room that a guest may claim, so that differences of counters stay unambiguous.
const MAX_PEER_ROOM: u32 = 1 << 30;

/// The guest sent more than it had room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes were sent where {room} fit")]
pub(super) struct Overrun {
    pub(super) len: u32,
    pub(super) room: u32,
}

/// The guest acknowledged bytes that it was never sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("forward count {claimed} is ahead of the {sent} sent")]
pub(super) struct FalseCount {
    pub(super) claimed: u32,
    pub(super) sent: u32,
}

/// From guest to host: what the guest may send.
#[derive(Debug)]
pub(super) struct Window {
    room: u32,
    received: u32,
    forwarded: u32,
    /// `forwarded` as the guest knows it.
    told: u32,
}

impl Window {
    /// `room` is what the connection can buffer, in bytes.
    pub(super) fn new(room: u32) -> Self {
        Self { room, received: 0, forwarded: 0, told: 0 }
    }

    pub(super) fn room(&self) -> u32 {
        self.room
    }

    /// The guest has sent `len` bytes.
    pub(super) fn receive(&mut self, len: u32) -> Result<(), Overrun> {
        let room = self.room - self.received.wrapping_sub(self.forwarded);
        if len > room {
            return Err(Overrun { len, room });
        }
        self.received = self.received.wrapping_add(len);
        Ok(())
    }

    /// `len` of the received bytes are with the client, or were thrown away.
    pub(super) fn forward(&mut self, len: u32) {
        debug_assert!(len <= self.received.wrapping_sub(self.forwarded));
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// (buf_alloc, fwd_cnt) for a packet that is being sent.
    pub(super) fn stamp(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.room, self.told)
    }

    /// The guest believes that half of the room or less is left, and there is more: time to say so.
    pub(super) fn update_due(&self) -> bool {
        self.told != self.forwarded && self.received.wrapping_sub(self.told) >= self.room / 2
    }
}

/// From host to guest: what may be sent to the guest.
#[derive(Debug)]
pub(super) struct Allowance {
    sent: u32,
    peer_room: u32,
    peer_forwarded: u32,
    /// The guest was asked for news since it ran out.
    asked: bool,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Self { sent: 0, peer_room: 0, peer_forwarded: 0, asked: false }
    }

    /// Takes in the credit fields of any packet from the guest.
    pub(super) fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) -> Result<(), FalseCount> {
        let on_the_way = self.sent.wrapping_sub(fwd_cnt);
        if on_the_way > MAX_PEER_ROOM {
            return Err(FalseCount { claimed: fwd_cnt, sent: self.sent });
        }
        // Two threads of the guest may have stamped packets in one order and queued them in another: an older count says nothing.
        if on_the_way <= self.sent.wrapping_sub(self.peer_forwarded) {
            self.peer_forwarded = fwd_cnt;
            self.peer_room = buf_alloc.min(MAX_PEER_ROOM);
        }
        self.asked &= self.free() == 0;
        Ok(())
    }

    /// Bytes that were sent in all.
    pub(super) fn sent(&self) -> u32 {
        self.sent
    }

    /// Bytes that may be sent now. A guest may shrink its buffer below what is on the way.
    pub(super) fn free(&self) -> u32 {
        self.peer_room.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    pub(super) fn spend(&mut self, len: u32) {
        debug_assert!(len <= self.free());
        self.sent = self.sent.wrapping_add(len);
    }

    /// True once each time that there is something to send and no room for it: send a CREDIT_REQUEST.
    pub(super) fn should_ask(&mut self) -> bool {
        self.free() == 0 && !std::mem::replace(&mut self.asked, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_what_it_granted_and_not_a_byte_more() {
        let mut window = Window::new(100);
        window.receive(60).unwrap();
        assert_eq!(window.receive(41), Err(Overrun { len: 41, room: 40 }));
        window.receive(40).unwrap();
        assert_eq!(window.receive(1), Err(Overrun { len: 1, room: 0 }));
        window.forward(100);
        window.receive(100).unwrap();
    }

    #[test]
    fn news_is_due_when_the_guest_believes_half_is_gone() {
        let mut window = Window::new(100);
        window.receive(49).unwrap();
        window.forward(49);
        assert!(!window.update_due());
        window.receive(1).unwrap();
        assert!(window.update_due());
        assert_eq!(window.stamp(), (100, 49));
        assert!(!window.update_due());
        window.forward(1);
        assert!(!window.update_due(), "one byte of a hundred is no news");
    }

    #[test]
    fn a_full_window_that_drains_a_little_is_news() {
        let mut window = Window::new(100);
        window.receive(100).unwrap();
        assert!(!window.update_due(), "nothing has drained");
        window.forward(1);
        assert!(window.update_due());
    }

    #[test]
    fn counters_wrap() {
        let mut window = Window::new(1 << 20);
        let mut allowance = Allowance::new();
        let mut total: u64 = 0;
        while total < (1 << 32) + (1 << 22) {
            window.receive(1 << 20).unwrap();
            window.forward(1 << 20);
            let (room, count) = window.stamp();
            allowance.hear(room, count.wrapping_sub(1 << 20)).unwrap();
            assert_eq!(allowance.free(), 1 << 20);
            allowance.spend(1 << 20);
            assert_eq!(allowance.free(), 0);
            total += 1 << 20;
        }
    }

    #[test]
    fn a_guest_cannot_acknowledge_what_it_was_not_sent() {
        let mut allowance = Allowance::new();
        allowance.hear(1000, 0).unwrap();
        allowance.spend(10);
        assert_eq!(allowance.hear(1000, 11), Err(FalseCount { claimed: 11, sent: 10 }));
        allowance.hear(1000, 10).unwrap();
        assert_eq!(allowance.free(), 1000);
    }

    #[test]
    fn an_older_count_changes_nothing() {
        let mut allowance = Allowance::new();
        allowance.hear(1000, 0).unwrap();
        allowance.spend(500);
        allowance.hear(1000, 500).unwrap();
        allowance.hear(10, 400).unwrap();
        assert_eq!(allowance.free(), 1000);
    }

    #[test]
    fn a_shrunken_buffer_is_no_credit_and_no_underflow() {
        let mut allowance = Allowance::new();
        allowance.hear(1000, 0).unwrap();
        allowance.spend(800);
        allowance.hear(100, 0).unwrap();
        assert_eq!(allowance.free(), 0);
        allowance.hear(100, 750).unwrap();
        assert_eq!(allowance.free(), 50);
    }

    #[test]
    fn news_is_asked_for_once_per_drought() {
        let mut allowance = Allowance::new();
        assert!(allowance.should_ask());
        assert!(!allowance.should_ask());
        allowance.hear(0, 0).unwrap();
        assert!(!allowance.should_ask(), "the answer was: still nothing");
        allowance.hear(5, 0).unwrap();
        assert!(!allowance.should_ask());
        allowance.spend(5);
        assert!(allowance.should_ask());
    }
}
