//! A container's output as raw streams, for a container whose log, if it has one, is not the agent's to write.

use std::os::fd::OwnedFd;

use tokio::sync::watch;
use tracing::debug;

use crate::stream::{Ended, Expected, Pipe, Taps, relay};

/// Output that is passed on. Once this is dropped, what others still hold open is read and thrown away.
#[derive(Debug)]
pub(crate) struct Output {
    ended: watch::Receiver<bool>,
    /// Of stdout and stderr.
    taps: [Taps; 2],
    _held: watch::Sender<bool>,
}

impl Output {
    /// Passes the output of stdout, and of stderr if it has a pipe of its own, to the connection that is expected for it; without one it is
    /// thrown away.
    pub(crate) fn start(pipes: impl IntoIterator<Item = (Pipe, Option<Expected>)>) -> Self {
        let (held, dropped) = watch::channel(false);
        let taps = <[Taps; 2]>::default();
        let relays: Vec<_> = pipes
            .into_iter()
            .zip(&taps)
            .map(|((pipe, expected), taps)| {
                tokio::spawn(relay(pipe, expected, taps.clone(), dropped.clone(), None))
            })
            .collect();
        let (sender, ended) = watch::channel(false);
        tokio::spawn(async move {
            for relay in relays {
                if let Ok(Ended::HeldOpen(pipe)) = relay.await {
                    debug!("a container's output is still held open");
                    tokio::spawn(pipe.drain());
                }
            }
            let _ = sender.send(true);
        });
        Self { ended, taps, _held: held }
    }

    /// Copies what comes of stdout and of stderr to these from now on.
    pub(crate) fn tap(&self, taps: [Option<OwnedFd>; 2]) {
        for (tap, output) in taps.into_iter().zip(&self.taps) {
            if let Some(tap) = tap {
                output.add(tap);
            }
        }
    }

    /// Becomes ready when everything was passed on.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixStream;

    use super::*;
    use crate::stream::Tokens;

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn it_ends_when_both_streams_do_or_it_is_dropped() {
        let tokens = Tokens::default();
        let token = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let expected = tokens.expect(token).unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (silent, held_open) = rustix::pipe::pipe().unwrap();
        let output = Output::start([
            (Pipe::reader(reader).unwrap(), Some(expected)),
            (Pipe::reader(silent).unwrap(), None),
        ]);
        let (ours, mut client) = UnixStream::pair().unwrap();
        assert!(tokens.present(token, ours));
        rustix::io::write(&writer, b"said").unwrap();
        drop(writer);
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "said");
        let ended = output.ended();
        assert!(tokio::time::timeout(std::time::Duration::from_secs(60), output.ended()).await.is_err());
        drop(output);
        ended.await;
        drop(held_open);
    }
}
