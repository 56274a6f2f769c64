//! Forwarded ports: connections to what listens in the pod, on its loopback addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, connect, socket_with, sockopt};
use tokio::io::Interest;
use tokio::time::timeout;
use tracing::debug;

use super::conduit::Conduit;
use super::connection::{Connection, read_some};
use super::{CHUNK, Expected, LINGER};
use crate::sys::Watched;

/// How long a loopback address may take to answer. One that does not has a full queue, or a rule of a container's in its way.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// Where a server of the pod may listen, in the order in which it is looked for.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Why there is no connection to a port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{v4}, and {v6}")]
pub(crate) struct ForwardError {
    v4: Refusal,
    v6: Refusal,
}

/// What became of one address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{address}: {}", why.as_ref().map_or_else(|| "no answer".to_owned(), ToString::to_string))]
struct Refusal {
    address: SocketAddr,
    /// Nothing, if there was no answer.
    why: Option<hartpod_container::Errno>,
}

/// A connection to a port of the pod.
#[derive(Debug)]
pub(crate) struct Forward(Watched);

impl Forward {
    /// Connects to whoever listens on `port`.
    pub(crate) async fn connect(port: u16) -> Result<Self, ForwardError> {
        let [v4, v6] = LOOPBACK.map(|address| SocketAddr::new(address, port));
        let v4 = match connect_to(v4).await {
            Ok(socket) => return Ok(Self(socket)),
            Err(refusal) => refusal,
        };
        match connect_to(v6).await {
            Ok(socket) => Ok(Self(socket)),
            Err(v6) => Err(ForwardError { v4, v6 }),
        }
    }

    /// Copies both ways between the port and its stream, each way until its end.
    pub(crate) async fn relay(self, expected: Expected) {
        let Some(connection) = expected.connected().await else {
            return debug!("nobody connected to a forwarded port");
        };
        let (to_pod, from_pod) = (self.send_all(&connection), self.receive_all(&connection));
        let (mut to_pod, mut from_pod) = (std::pin::pin!(to_pod), std::pin::pin!(from_pod));
        // Closing the connection, rather than ending it for writing, tells the client that its own end is of no use any more.
        tokio::select! {
            _ = &mut to_pod => {
                // A pod that takes no more may still have said something.
                from_pod.await;
            }
            over = &mut from_pod => match over {
                Over::Ended => {
                    connection.end();
                    to_pod.await;
                }
                Over::PodBroke => {}
                // What was sent before is still the pod's.
                Over::ClientLeft => drop(timeout(LINGER, to_pod).await),
            },
        }
    }

    /// From the stream to the pod.
    async fn send_all(&self, connection: &Connection) -> Over {
        let sent = async {
            let mut bulk = Bulk::No;
            loop {
                if let Bulk::Through(conduit) = &mut bulk {
                    match connection.io(Interest::READABLE, |fd| conduit.fill(fd)).await {
                        Ok(0) => return io::Result::Ok(()),
                        Ok(_) => while !self.0.io(Interest::WRITABLE, |fd| conduit.empty(fd)).await? {},
                        Err(error) => bulk.refuse(error)?,
                    }
                    continue;
                }
                let bytes = connection.read(CHUNK).await?;
                if bytes.is_empty() {
                    return Ok(());
                }
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let count = self.0.io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await?;
                    rest = rest.get(count..).unwrap_or_default();
                }
                bulk.note(bytes.len());
            }
        };
        let over = Over::of(sent.await, connection);
        // It fails where the pod's end is gone.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
        over
    }

    /// From the pod to the stream.
    async fn receive_all(&self, connection: &Connection) -> Over {
        let received = async {
            let mut bulk = Bulk::No;
            loop {
                if let Bulk::Through(conduit) = &mut bulk {
                    match self.0.io(Interest::READABLE, |fd| conduit.fill(fd)).await {
                        Ok(0) => break,
                        Ok(_) => while !connection.io(Interest::WRITABLE, |fd| conduit.empty(fd)).await? {},
                        Err(error) => bulk.refuse(error)?,
                    }
                    continue;
                }
                let bytes = self.0.io(Interest::READABLE, |fd| read_some(fd, CHUNK)).await?;
                if bytes.is_empty() {
                    break;
                }
                connection.write_all(&bytes).await?;
                bulk.note(bytes.len());
            }
            io::Result::Ok(())
        };
        let received = tokio::select! {
            received = received => received,
            () = connection.hung_up() => Err(io::ErrorKind::BrokenPipe.into()),
        };
        Over::of(received, connection)
    }
}

/// Whether there is so much to carry that a pipe for it is worth its two descriptors. Most connections are a question and an answer.
#[derive(Debug)]
enum Bulk {
    No,
    Through(Conduit),
    /// The kernel cannot splice it.
    Never,
}

impl Bulk {
    /// A read gave that many bytes.
    fn note(&mut self, count: usize) {
        if matches!(self, Self::No) && count == CHUNK {
            // Without descriptors to spare it goes on as before.
            *self = Conduit::new().map_or(Self::Never, Self::Through);
        }
    }

    /// Goes on without, if nothing worse has happened.
    fn refuse(&mut self, error: io::Error) -> io::Result<()> {
        *self = Self::Never;
        if error.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error) }
    }
}

/// How one way ended.
enum Over {
    Ended,
    /// The pod has broken off its end.
    PodBroke,
    /// Nobody is at the other end of the stream.
    ClientLeft,
}

impl Over {
    fn of(copied: io::Result<()>, connection: &Connection) -> Self {
        let Err(error) = copied else { return Self::Ended };
        debug!(%error, "a forwarded connection broke");
        if connection.has_hung_up() { Self::ClientLeft } else { Self::PodBroke }
    }
}

async fn connect_to(address: SocketAddr) -> Result<Watched, Refusal> {
    match timeout(ANSWER_WAIT, open(address)).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(error)) => Err(Refusal { address, why: Some(error.into()) }),
        Err(_) => Err(Refusal { address, why: None }),
    }
}

async fn open(address: SocketAddr) -> io::Result<Watched> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    // What is forwarded is often a conversation.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = Watched::new(socket, Interest::READABLE | Interest::WRITABLE)?;
    socket.io(Interest::WRITABLE, |fd: BorrowedFd<'_>| Ok(sockopt::socket_error(fd)??)).await?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream, UnixStream};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::stream::Tokens;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    /// A forwarded connection: the server's end, the client's, and the relay between.
    async fn forwarded(listener: &TcpListener) -> (TcpStream, UnixStream, JoinHandle<()>) {
        let forward = Forward::connect(listener.local_addr().unwrap().port()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let tokens = Tokens::default();
        let token = TOKEN.parse().unwrap();
        let expected = tokens.expect(token).unwrap();
        let (ours, client) = UnixStream::pair().unwrap();
        assert!(tokens.present(token, ours));
        (server, client, tokio::spawn(forward.relay(expected)))
    }

    /// The first port of a loopback address that is free there.
    async fn listener(address: &str) -> TcpListener {
        TcpListener::bind((address, 0)).await.unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn each_way_ends_by_itself() {
        let listener = listener("127.0.0.1").await;
        let (mut server, mut client, relay) = forwarded(&listener).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        server.write_all(b"answer").await.unwrap();
        assert!(!relay.is_finished());
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "answer");
        relay.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_server_that_listens_on_ipv6_alone_is_found() {
        let listener = listener("::1").await;
        let (mut server, mut client, _relay) = forwarded(&listener).await;
        server.write_all(b"six").await.unwrap();
        drop(server);
        let mut heard = String::new();
        client.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "six");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_port_that_nobody_listens_on_is_refused_by_both_addresses() {
        let listener = listener("127.0.0.1").await;
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let refused = Forward::connect(port).await.unwrap_err().to_string();
        let [v4, v6] = [format!("127.0.0.1:{port}: "), format!(", and [::1]:{port}: ")];
        assert!(refused.starts_with(&v4) && refused.contains(&v6), "{refused}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_end_slows_the_other_and_everything_arrives_both_ways() {
        let listener = listener("127.0.0.1").await;
        let (server, client, relay) = forwarded(&listener).await;
        let sent: Vec<u8> = (0..20_000_000_u32).flat_map(|n| [n.to_le_bytes()[0]]).collect();
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = client.into_split();
        let (up, down) = (sent.clone(), sent.clone());
        tokio::spawn(async move {
            to_client.write_all(&up).await.unwrap();
        });
        tokio::spawn(async move {
            to_server.write_all(&down).await.unwrap();
        });
        let (mut at_server, mut at_client) = (Vec::new(), Vec::new());
        let (a, b) =
            tokio::join!(from_server.read_to_end(&mut at_server), from_client.read_to_end(&mut at_client));
        a.unwrap();
        b.unwrap();
        assert!(at_server == sent && at_client == sent, "bytes lost or mixed up");
        relay.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pod_that_breaks_off_is_told_at_once_after_what_it_has_said() {
        for client_speaks in [false, true] {
            let listener = listener("127.0.0.1").await;
            let (mut server, mut client, relay) = forwarded(&listener).await;
            server.write_all(b"part").await.unwrap();
            if client_speaks {
                // Unread when it is closed: a reset, too.
                client.write_all(b"question").await.unwrap();
                assert!(server.peek(&mut [0]).await.unwrap() > 0);
            } else {
                server.set_zero_linger().unwrap();
            }
            drop(server);
            // Before what a client that has gone left behind would be given up.
            timeout(LINGER / 2, relay).await.expect("it waits for the client").unwrap();
            let mut heard = String::new();
            client.read_to_string(&mut heard).await.unwrap();
            if client_speaks {
                assert_eq!(heard, "part");
            }
            let ready = client.ready(Interest::WRITABLE).await.unwrap();
            assert!(ready.is_write_closed(), "the stream's other way is open");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_client_that_vanishes_ends_the_connection_into_the_pod() {
        let listener = listener("127.0.0.1").await;
        let (mut server, client, relay) = forwarded(&listener).await;
        // The server is silent and keeps its end open.
        drop(client);
        relay.await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap_or_default(), 0);
    }
}
