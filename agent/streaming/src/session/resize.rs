//! Sizes of the client's terminal: JSON objects, one after another.

use tokio::sync::watch;

use crate::runtime::TerminalSize;
use crate::wire::{Inbound, Next};

/// What of an object may be there before its end. One has less than 40 bytes.
const MOST: usize = 1024;

/// The sizes that a client sends. What is no size ends them, and the session goes on, as with the reference server.
#[derive(Debug)]
pub(crate) struct Sizes {
    inbound: Inbound,
    /// What is no whole object yet.
    text: Vec<u8>,
    nonsense: bool,
}

impl Sizes {
    pub(crate) fn new(inbound: Inbound) -> Self {
        Self { inbound, text: Vec::new(), nonsense: false }
    }

    /// The latest of those that have come already, without waiting for any.
    pub(crate) fn come(&mut self) -> Option<TerminalSize> {
        let mut latest = None;
        while let Some(chunk) = self.inbound.waiting() {
            latest = self.read(chunk.bytes()).or(latest);
        }
        latest
    }

    /// Passes on all that come.
    pub(super) async fn follow(mut self, size: Option<watch::Sender<Option<TerminalSize>>>) {
        while !self.nonsense {
            let Next::Data(chunk) = self.inbound.next().await else { return };
            let Some(size) = &size else { continue };
            if let Some(latest) = self.read(chunk.bytes()) {
                size.send_replace(Some(latest));
            }
        }
        drop(size);
        self.inbound.discard().await;
    }

    /// The last size that is whole with these bytes.
    fn read(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        if self.nonsense {
            return None;
        }
        self.text.extend_from_slice(bytes);
        let mut sizes = serde_json::Deserializer::from_slice(&self.text).into_iter::<TerminalSize>();
        let (mut latest, mut taken) = (None, 0);
        loop {
            match sizes.next() {
                Some(Ok(size)) => {
                    latest = Some(size);
                    taken = sizes.byte_offset();
                }
                Some(Err(error)) if !error.is_eof() => {
                    self.nonsense = true;
                    break;
                }
                _ => break,
            }
        }
        self.text.drain(..taken);
        self.nonsense |= self.text.len() > MOST;
        latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Budget, Peer, inbound};

    async fn sizes_of(pieces: &[&[u8]]) -> Option<TerminalSize> {
        let (sender, receiver) = watch::channel(None);
        let (feed, inbound) = inbound();
        let budget = Budget::new(Peer::default());
        for piece in pieces {
            feed.data(budget.take(piece.to_vec().into(), || Ok(())).await.unwrap());
        }
        feed.end();
        Sizes::new(inbound).follow(Some(sender)).await;
        *receiver.borrow()
    }

    #[tokio::test]
    async fn sizes_that_have_come_are_not_waited_for_and_come_once() {
        let (sender, receiver) = watch::channel(None);
        let (feed, inbound) = inbound();
        let (budget, mut sizes) = (Budget::new(Peer::default()), Sizes::new(inbound));
        let say = async |text: &'static str| feed.data(budget.take(text.into(), || Ok(())).await.unwrap());
        assert_eq!(sizes.come(), None);
        say("{\"Width\":80,\"Height\":24}{\"Width\":81,\"Height\":25}").await;
        say("{\"Width\":1,").await;
        assert_eq!(sizes.come(), Some(TerminalSize { width: 81, height: 25 }));
        assert_eq!(sizes.come(), None);
        say("\"Height\":2}").await;
        drop(feed);
        sizes.follow(Some(sender)).await;
        assert_eq!(*receiver.borrow(), Some(TerminalSize { width: 1, height: 2 }));
    }

    #[tokio::test]
    async fn the_last_size_counts() {
        for (pieces, expected) in [
            (&[&b"{\"Width\":80,\"Height\":24}\n"[..]][..], Some((80, 24))),
            (&[b"{\"Width\":80,\"Hei", b"ght\":24}{\"Width\":81,\"Height\":25}\n{\"Wi"], Some((81, 25))),
            (&[b"{\"Width\":80,\"Height\":24}", b"nonsense", b"{\"Width\":1,\"Height\":1}"], Some((80, 24))),
            (&[b"{\"Width\":65536,\"Height\":24}"], None),
            (&[&[b' '; 2000], b"{\"Width\":80,\"Height\":24}"], None),
        ] {
            let size = sizes_of(pieces).await.map(|size| (size.width, size.height));
            assert_eq!(size, expected, "{pieces:?}");
        }
    }
}
