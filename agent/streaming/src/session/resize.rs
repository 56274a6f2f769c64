//! Sizes of the client's terminal: JSON objects, one after another.

use tokio::sync::watch;

use crate::runtime::TerminalSize;
use crate::wire::{Inbound, Next};

/// What of an object may be there before its end. One has less than 40 bytes.
const MOST: usize = 1024;

/// Passes on each size that the client sends. What is no size ends that, and the session goes on, as with the reference server.
pub(super) async fn resizes(mut inbound: Inbound, size: Option<watch::Sender<Option<TerminalSize>>>) {
    let mut text = Vec::new();
    while let Next::Data(chunk) = inbound.next().await {
        let Some(size) = &size else { continue };
        text.extend_from_slice(chunk.bytes());
        let Some(taken) = latest(&text, size) else { break };
        text.drain(..taken);
        if text.len() > MOST {
            break;
        }
    }
    drop(size);
    inbound.discard().await;
}

/// Passes on the sizes in `text`, and says how many bytes these are. `None` where something is no size.
fn latest(text: &[u8], size: &watch::Sender<Option<TerminalSize>>) -> Option<usize> {
    let mut sizes = serde_json::Deserializer::from_slice(text).into_iter::<TerminalSize>();
    let mut taken = 0;
    loop {
        match sizes.next() {
            Some(Ok(next)) => {
                size.send_replace(Some(next));
                taken = sizes.byte_offset();
            }
            Some(Err(error)) if !error.is_eof() => return None,
            _ => return Some(taken),
        }
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
        resizes(inbound, Some(sender)).await;
        *receiver.borrow()
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
