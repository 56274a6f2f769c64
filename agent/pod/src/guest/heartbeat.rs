//! Tells the host that the agent is alive: it echoes bytes. A guest that spins, or an agent that hangs, does not.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::peer::Listener;

/// Connections at one time: the daemon's, and one of an older daemon that is not gone yet.
const CONNECTIONS: usize = 4;

/// Pause after a failed accept. It must not be the last: a guest without heartbeats is taken for dead.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Echoes for as long as the agent lives.
pub(super) async fn serve(listener: Listener) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok(connection) => {
                tokio::spawn(async move {
                    if let Err(error) = echo(connection).await {
                        debug!(%error, "a heartbeat's connection broke");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a heartbeat");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn echo(mut connection: UnixStream) -> std::io::Result<()> {
    let mut bytes = [0; 64];
    loop {
        match connection.read(&mut bytes).await? {
            0 => return Ok(()),
            count => connection.write_all(bytes.get(..count).unwrap_or_default()).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_come_back_and_the_end_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("beat");
        let listener = Listener::unix(std::os::unix::net::UnixListener::bind(&path).unwrap()).unwrap();
        tokio::spawn(serve(listener));
        for _ in 0..CONNECTIONS * 2 {
            let mut connection = UnixStream::connect(&path).await.unwrap();
            connection.write_all(b"beat").await.unwrap();
            connection.shutdown().await.unwrap();
            let mut echoed = String::new();
            connection.read_to_string(&mut echoed).await.unwrap();
            assert_eq!(echoed, "beat");
        }
    }
}
