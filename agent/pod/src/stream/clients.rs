//! Whether anybody is left at the other ends of a process's streams.

use std::future::pending;

use tokio::sync::mpsc;

/// Held for a stream for as long as somebody may be at its other end.
#[derive(Debug, Clone)]
pub(crate) struct Client(mpsc::Sender<()>);

/// Those of all streams of a process.
#[derive(Debug)]
pub(crate) struct Clients(mpsc::Receiver<()>);

impl Client {
    /// The first one, for which others are clones.
    pub(crate) fn first() -> (Self, Clients) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), Clients(receiver))
    }

    /// It has hung up, or never came. A client that is merely dropped is one whose stream the process has ended.
    pub(super) fn leave(self) {
        // One word is enough for all of them.
        let _ = self.0.try_send(());
    }
}

impl Clients {
    /// Becomes ready when all are gone; never, where none of them went before the process had ended the streams.
    pub(crate) async fn gone(mut self) {
        let mut one_is = false;
        while self.0.recv().await.is_some() {
            one_is = true;
        }
        if !one_is {
            pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Whether they count as gone when the second client has left, too.
    async fn gone(first: fn(Client), second: fn(Client)) -> bool {
        let (client, clients) = Client::first();
        let other = client.clone();
        let gone = tokio::spawn(timeout(Duration::from_secs(1), clients.gone()));
        first(client);
        tokio::task::yield_now().await;
        assert!(!gone.is_finished(), "one is there");
        second(other);
        gone.await.unwrap().is_ok()
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn all_are_gone_when_the_last_is_unless_the_process_has_ended_all_streams() {
        assert!(gone(Client::leave, Client::leave).await);
        assert!(gone(drop, Client::leave).await);
        assert!(gone(Client::leave, drop).await);
        assert!(!gone(drop, drop).await);
    }
}
