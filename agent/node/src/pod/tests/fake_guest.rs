//! What is behind a VMM's sockets, as a test wants it: a VMM and an agent, each honest or not.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use hartpod_proto::pod::v1 as pod;
use hartpod_vm::launcher::{CONTROL_SOCKET, VSOCK_SOCKET};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type News = Pin<Box<dyn Stream<Item = Result<pod::WatchResponse, Status>> + Send>>;

/// What becomes of a call to the agent.
#[derive(Debug, Clone)]
pub(super) enum Answer {
    /// An empty answer, which is what most calls have.
    Done,
    Refused(&'static str),
    Never,
}

/// What becomes of a request to the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vmm {
    Obeys,
    Mute,
}

/// How the guest behaves; may be changed while it does.
#[derive(Default)]
pub(super) struct Behaviour {
    answers: Mutex<BTreeMap<&'static str, Answer>>,
    calls: Mutex<Vec<String>>,
    /// Connections for requests to the VMM.
    asked: AtomicUsize,
    /// Connections that the VMM refuses before it takes the next one.
    refusals: Mutex<u32>,
    /// Connections for calls.
    lines: Mutex<Vec<OwnedFd>>,
    /// Heartbeats are answered unless it is.
    silent: Mutex<bool>,
    news: Mutex<Option<Box<dyn Fn() -> News + Send>>>,
}

impl Behaviour {
    /// What a call comes to, by the name of its method.
    pub(super) fn answer(&self, call: &'static str, answer: Answer) {
        self.answers.lock().unwrap().insert(call, answer);
    }

    pub(super) fn refuse_connections(&self, count: u32) {
        *self.refusals.lock().unwrap() = count;
    }

    /// Ends all connections for calls.
    pub(super) fn hang_up(&self) {
        for line in self.lines.lock().unwrap().drain(..) {
            rustix::net::shutdown(&line, rustix::net::Shutdown::Both).unwrap();
        }
    }

    pub(super) fn be_silent(&self, silent: bool) {
        *self.silent.lock().unwrap() = silent;
    }

    /// What each Watch tells.
    pub(super) fn tell<S>(&self, news: impl Fn() -> S + Send + 'static)
    where
        S: Stream<Item = pod::WatchResponse> + Send + 'static,
    {
        *self.news.lock().unwrap() = Some(Box::new(move || news().map(Ok).boxed()));
    }

    /// How often the VMM was asked for something.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often a method was called.
    pub(super) fn calls(&self, call: &str) -> usize {
        self.calls.lock().unwrap().iter().filter(|known| *known == call).count()
    }
}

/// Serves the sockets in `dir` until the test's runtime ends.
pub(super) fn serve(dir: &Path, vmm: Vmm) -> Arc<Behaviour> {
    let behaviour = Arc::new(Behaviour::default());
    let listener = UnixListener::bind(dir.join(VSOCK_SOCKET)).unwrap();
    let (streams, incoming) = mpsc::channel::<io::Result<UnixStream>>(8);
    let agent = Agent(behaviour.clone());
    tokio::spawn(async move {
        let incoming = tokio_stream::wrappers::ReceiverStream::new(incoming);
        tonic::transport::Server::builder().add_service(agent).serve_with_incoming(incoming).await
    });
    let guest = behaviour.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(connect(guest.clone(), stream, streams.clone()));
        }
    });
    let control = control_socket(dir);
    let guest = behaviour.clone();
    std::thread::spawn(move || obey_blocking(&control, vmm, &guest));
    behaviour
}

async fn connect(
    guest: Arc<Behaviour>,
    mut stream: UnixStream,
    calls: mpsc::Sender<io::Result<UnixStream>>,
) -> io::Result<()> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(stream.read_u8().await?);
    }
    {
        let mut refusals = guest.refusals.lock().unwrap();
        if *refusals > 0 {
            *refusals -= 1;
            return Ok(());
        }
    }
    if line == b"CONNECT 1026\n" {
        if *guest.silent.lock().unwrap() {
            return pending().await;
        }
        stream.write_all(b"OK 1\n").await?;
        let byte = stream.read_u8().await?;
        return stream.write_u8(byte).await;
    }
    stream.write_all(b"OK 1\n").await?;
    guest.lines.lock().unwrap().push(rustix::io::dup(&stream)?);
    let _ = calls.send(Ok(stream)).await;
    Ok(())
}

fn control_socket(dir: &Path) -> OwnedFd {
    let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(dir.join(CONTROL_SOCKET)).unwrap()).unwrap();
    rustix::net::listen(&socket, 128).unwrap();
    socket
}

/// A packet's descriptors are closed by the kernel, as nobody takes them: a pipe that was to be closed some time is.
fn obey_blocking(socket: &OwnedFd, vmm: Vmm, guest: &Behaviour) {
    let mut held = Vec::new();
    while let Ok(connection) = rustix::net::accept(socket) {
        guest.asked.fetch_add(1, Ordering::Relaxed);
        let mut packet = [0; 4096];
        while vmm == Vmm::Obeys
            && rustix::net::recv(&connection, &mut packet, RecvFlags::empty()).is_ok_and(|(n, _)| n > 0)
        {
            let _ = rustix::net::send(&connection, br#"{"ok":{}}"#, SendFlags::NOSIGNAL);
        }
        if vmm == Vmm::Mute {
            held.push(connection);
        }
    }
}

#[derive(Clone)]
struct Agent(Arc<Behaviour>);

impl NamedService for Agent {
    const NAME: &'static str = "hartpod.pod.v1.PodAgent";
}

impl tower::Service<http::Request<Body>> for Agent {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let guest = self.0.clone();
        guest.calls.lock().unwrap().push(call.clone());
        Box::pin(async move {
            Ok(if call == "Watch" { watch(guest, request).await } else { one(guest, call, request).await })
        })
    }
}

async fn watch(guest: Arc<Behaviour>, request: http::Request<Body>) -> http::Response<Body> {
    let told = guest.news.lock().unwrap().as_ref().map(|news| news());
    let news = told.unwrap_or_else(|| stream::pending().boxed());
    let mut news = Some(news);
    let service = tower::service_fn(move |_: Request<pod::WatchRequest>| {
        let news = news.take().unwrap_or_else(|| stream::empty().boxed());
        std::future::ready(Ok::<_, Status>(Response::new(news)))
    });
    Grpc::new(ProstCodec::<pod::WatchResponse, pod::WatchRequest>::default())
        .server_streaming(service, request)
        .await
}

/// An empty message is whatever the caller expects.
async fn one(guest: Arc<Behaviour>, call: String, request: http::Request<Body>) -> http::Response<Body> {
    let answer = guest.answers.lock().unwrap().get(call.as_str()).cloned().unwrap_or(Answer::Done);
    let service = tower::service_fn(move |_: Request<()>| {
        let answer = answer.clone();
        async move {
            match answer {
                Answer::Done => Ok(Response::new(())),
                Answer::Refused(why) => Err(Status::internal(why)),
                Answer::Never => pending().await,
            }
        }
    });
    Grpc::new(ProstCodec::<(), ()>::default()).unary(service, request).await
}

/// Waits for what the test expects, for as long as it may take on a machine that is busy.
pub(super) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let looked = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(60), looked).await.is_ok(),
        "not within a minute: {what}"
    );
}
