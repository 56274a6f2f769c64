//! Whose packet goes to the guest next.

use std::collections::{HashSet, VecDeque};

use super::super::packet::Header;

/// Everyone with something for the guest, served in turn. Resets for packets of no connection are one among them, so that a guest that
/// provokes them does not hold up a stream.
#[derive(Debug, Default)]
pub(super) struct Turns {
    order: VecDeque<Waiting>,
    clients: HashSet<u32>,
    resets: VecDeque<Header>,
}

#[derive(Debug)]
enum Waiting {
    Client(u32),
    Resets,
}

/// What goes to the guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something of the connection with this host port.
    Client(u32),
    Reset(Header),
}

impl Turns {
    /// Puts a connection at the end, unless it waits already.
    pub(super) fn join(&mut self, port: u32) {
        if self.clients.insert(port) {
            self.order.push_back(Waiting::Client(port));
        }
    }

    /// Answers a packet of no connection.
    pub(super) fn refuse(&mut self, header: &Header) {
        if self.resets.is_empty() {
            self.order.push_back(Waiting::Resets);
        }
        self.resets.push_back(header.reset());
    }

    /// Resets that wait.
    pub(super) fn resets(&self) -> usize {
        self.resets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Turn> {
        match self.order.pop_front()? {
            Waiting::Client(port) => {
                self.clients.remove(&port);
                Some(Turn::Client(port))
            }
            Waiting::Resets => {
                let reset = self.resets.pop_front()?;
                if !self.resets.is_empty() {
                    self.order.push_back(Waiting::Resets);
                }
                Some(Turn::Reset(reset))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_has_one_turn_a_round_and_all_resets_together_have_one() {
        let mut turns = Turns::default();
        let stray = |port| Header { src_port: port, ..Header::default() };
        turns.join(1);
        turns.refuse(&stray(70));
        turns.refuse(&stray(71));
        turns.join(2);
        turns.join(1);
        assert_eq!(turns.next(), Some(Turn::Client(1)));
        turns.join(1);
        assert_eq!(turns.next(), Some(Turn::Reset(stray(70).reset())));
        assert_eq!(turns.next(), Some(Turn::Client(2)));
        assert_eq!(turns.next(), Some(Turn::Client(1)));
        assert_eq!(turns.next(), Some(Turn::Reset(stray(71).reset())));
        assert_eq!(turns.next(), None);
        assert!(turns.is_empty());
    }
}
