//! A runtime whose processes are tasks.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::{
    AttachRequest, BoxError, Connection, Ending, ExecRequest, Opening, Runtime, Session, Streams,
    TerminalSize,
};

/// What a pipe holds.
const PIPE: usize = 64 * 1024;

/// Runs commands by their names.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub(super) seen: Arc<Seen>,
}

/// What became of all processes and connections.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) started: AtomicUsize,
    /// Whose client went away.
    pub(super) abandoned: AtomicUsize,
    /// Bytes that `zeros` got rid of.
    pub(super) produced: AtomicU64,
    /// Connections to ports that are open.
    pub(super) connections: AtomicUsize,
    /// Lets `deaf` go.
    pub(super) release: Notify,
    /// Ends the pod.
    pub(super) end: Notify,
}

/// The process's ends.
struct Process {
    cmd: Vec<String>,
    stdin: DuplexStream,
    stdout: DuplexStream,
    stderr: DuplexStream,
    /// The one that it began with.
    first_size: Option<TerminalSize>,
    size: watch::Receiver<Option<TerminalSize>>,
    seen: Arc<Seen>,
}

impl Process {
    async fn run(mut self) -> i32 {
        let words = self.cmd.iter().map(String::as_str).collect::<Vec<_>>();
        match words.as_slice() {
            ["say", rest @ ..] => {
                self.stdout.write_all(rest.join(" ").as_bytes()).await.unwrap();
                0
            }
            ["both"] => {
                self.stdout.write_all(b"\x00out\xff").await.unwrap();
                self.stderr.write_all(b"\xfeerr\x00").await.unwrap();
                3
            }
            ["exit", code] => code.parse().unwrap(),
            ["cat"] => {
                tokio::io::copy(&mut self.stdin, &mut self.stdout).await.unwrap();
                0
            }
            ["zeros", count] => {
                let (zeros, mut left) = (vec![0; PIPE], count.parse::<usize>().unwrap());
                while left > 0 {
                    let count = self.stdout.write(&zeros[..left.min(PIPE)]).await.unwrap();
                    self.seen.produced.fetch_add(count as u64, Ordering::Relaxed);
                    left -= count;
                }
                0
            }
            ["sizes"] => {
                // Says each size, until its input ends.
                let mut end = [0; 1];
                if let Some(TerminalSize { width, height }) = self.first_size {
                    self.stdout.write_all(format!("begins {width}x{height}\n").as_bytes()).await.unwrap();
                }
                loop {
                    tokio::select! {
                        _ = self.stdin.read(&mut end) => return 0,
                        Ok(()) = self.size.changed() => {}
                    }
                    let TerminalSize { width, height } = self.size.borrow_and_update().unwrap();
                    self.stdout.write_all(format!("{width}x{height}\n").as_bytes()).await.unwrap();
                }
            }
            ["mute"] => {
                // Closes its outputs, and lives on.
                drop((self.stdout, self.stderr));
                self.seen.release.notified().await;
                4
            }
            // Reads nothing.
            ["deaf"] => {
                self.seen.release.notified().await;
                5
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A process's exit; ends the process when it is dropped.
struct Exit {
    process: JoinHandle<i32>,
    exited: bool,
    seen: Arc<Seen>,
}

impl Future for Exit {
    type Output = Result<i32, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let exit = Pin::new(&mut self.process).poll(cx).map_err(Into::into);
        self.exited |= exit.is_ready();
        exit
    }
}

impl Drop for Exit {
    fn drop(&mut self) {
        if !self.exited {
            self.process.abort();
            self.seen.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Machine {
    fn start(
        &self,
        cmd: Vec<String>,
        streams: Streams,
        first_size: Option<TerminalSize>,
    ) -> Result<Session, BoxError> {
        if cmd[0] == "missing" {
            let source = std::io::Error::from_raw_os_error(2);
            return Err(Box::new(NoProgram { name: "missing", source }));
        }
        let ((stdin, process_stdin), (stdout, process_stdout), (stderr, process_stderr)) =
            (duplex(PIPE), duplex(PIPE), duplex(PIPE));
        let (size, process_size) = watch::channel(None);
        let process = Process {
            cmd,
            stdin: process_stdin,
            stdout: process_stdout,
            stderr: process_stderr,
            first_size,
            size: process_size,
            seen: Arc::clone(&self.seen),
        };
        self.seen.started.fetch_add(1, Ordering::Relaxed);
        let exit = Exit { process: tokio::spawn(process.run()), exited: false, seen: Arc::clone(&self.seen) };
        Ok(Session {
            stdin: streams.stdin.then(|| Box::new(stdin) as _),
            stdout: streams.stdout.then(|| Box::new(stdout) as _),
            stderr: streams.stderr.then(|| Box::new(stderr) as _),
            size: streams.tty.then_some(size),
            exit: Box::pin(exit),
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("start {name}")]
struct NoProgram {
    name: &'static str,
    source: std::io::Error,
}

impl Runtime for Machine {
    fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Opening<'_, Session> {
        Box::pin(async move { self.start(request.cmd, request.streams, size) })
    }

    /// The container's name is the command that it runs.
    fn attach(&self, request: AttachRequest) -> Opening<'_, Session> {
        let cmd = request.container_id.split(' ').map(str::to_owned).collect();
        Box::pin(async move { self.start(cmd, request.streams, None) })
    }

    fn connect(&self, sandbox_id: String, port: u16) -> Opening<'_, Connection> {
        assert_eq!(sandbox_id, "pod");
        Box::pin(async move {
            let (ours, theirs) = duplex(PIPE);
            let seen = Arc::clone(&self.seen);
            match port {
                1 => std::future::pending().await,
                11 => return Ok(Connection { to_pod: Box::new(ours), from_pod: Box::new(Broken) }),
                7 | 8 | 9 | 19 => {}
                _ => return Err("connection refused".into()),
            }
            tokio::spawn(async move {
                seen.connections.fetch_add(1, Ordering::Relaxed);
                serve_port(port, theirs).await;
                seen.connections.fetch_sub(1, Ordering::Relaxed);
            });
            Ok(ours.into())
        })
    }

    fn gone(&self, sandbox_id: String) -> Ending<'_> {
        assert_eq!(sandbox_id, "pod");
        Box::pin(self.seen.end.notified())
    }
}

/// The output of a pod that breaks its connection off.
struct Broken;

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()))
    }
}

async fn serve_port(port: u16, stream: DuplexStream) {
    let (mut from, mut to) = tokio::io::split(stream);
    // Whether anybody still listens is nothing to these.
    let _ = match port {
        // Echo.
        7 => tokio::io::copy(&mut from, &mut to).await.map(drop),
        // Says how much it was told, after the end of that.
        8 => {
            let mut heard = Vec::new();
            let _ = from.read_to_end(&mut heard).await;
            to.write_all(heard.len().to_string().as_bytes()).await
        }
        // Reads nothing until it is hung up on.
        9 => {
            let never = to.write_all(&[b'x'; PIPE + 1]);
            never.await
        }
        // Speaks first, and closes.
        _ => to.write_all(b"hello").await,
    };
}
