//! The stream socket: reads the token of each connection and hands the connection on.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::token::{TOKEN_LEN, Token, Tokens};
use crate::peer::Listener;

/// How long a connection may take to say its token.
const TOKEN_WAIT: Duration = Duration::from_secs(10);

/// Connections that may be without a token at one time; more wait in the socket's queue.
const UNIDENTIFIED: usize = 64;

/// Pause after a failed accept, which fails again at once when the cause is a lack of fds.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts streams for as long as the agent lives.
pub(crate) async fn serve(listener: Listener, tokens: Tokens) {
    let places = Arc::new(Semaphore::new(UNIDENTIFIED));
    loop {
        let Ok(()) = places.acquire().await.map(|place| place.forget()) else { return };
        match listener.accept().await {
            Ok(connection) => {
                let (tokens, places) = (tokens.clone(), Arc::clone(&places));
                tokio::spawn(async move {
                    identify(connection, &tokens).await;
                    places.add_permits(1);
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept a stream");
                places.add_permits(1);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn identify(mut connection: UnixStream, tokens: &Tokens) {
    // Exactly the token's line: what follows belongs to the stream.
    let mut line = [0; TOKEN_LEN + 1];
    match timeout(TOKEN_WAIT, connection.read_exact(&mut line)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => return debug!(%error, "a stream ended before its token"),
        Err(_) => return warn!("a stream did not say its token in time"),
    }
    let [digits @ .., newline] = line;
    let token = Token::try_from(digits).ok().filter(|_| newline == b'\n');
    if !token.is_some_and(|token| tokens.present(token, connection)) {
        warn!("closed a stream whose token nobody expects");
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    /// Runs `body` beside a listener at the path it is given.
    async fn with_listener<F: Future>(body: impl FnOnce(std::path::PathBuf, Tokens) -> F) -> F::Output {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stream.sock");
        let tokens = Tokens::default();
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(serve(Listener::unix(socket).unwrap(), tokens.clone()));
        body(path, tokens).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn bytes_after_the_token_belong_to_the_stream() {
        let read = with_listener(|path, tokens| async move {
            let expected = tokens.expect(TOKEN.parse().unwrap()).unwrap();
            let mut client = UnixStream::connect(path).await.unwrap();
            client.write_all(format!("{TOKEN}\nfirst bytes").as_bytes()).await.unwrap();
            client.shutdown().await.unwrap();
            expected.connected().await.unwrap().read(64).await.unwrap()
        });
        assert_eq!(read.await, b"first bytes");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn wrong_tokens_are_hung_up_on() {
        with_listener(|path, tokens| async move {
            let _expected = tokens.expect(TOKEN.parse().unwrap()).unwrap();
            for line in [format!("{}\n", "f".repeat(32)), format!("{TOKEN} "), "x".repeat(33)] {
                let mut client = UnixStream::connect(&path).await.unwrap();
                client.write_all(line.as_bytes()).await.unwrap();
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "{line}");
            }
        })
        .await;
    }
}
