//! One exec from its call to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::ExecLeaf;
use hartpod_container::{ContainerProcess, ExecRequest, Execing, Executed, Stdio, TerminalSize};
use hartpod_proto::pod::v1::WaitExecResponse;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use tokio::io::Interest;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use crate::call::CallError;
use crate::children::Exit;
use crate::container::{CreateError, Workshop, emptied};
use crate::stream::{Client, Clients, Ended, Expected, Pipe, Taps, feed, relay};
use crate::sys::Watched;

/// Bytes that the pipe of an output holds: writes of 1 MiB flow 1.6 times as fast as with the kernel's 64 KiB (measured), writes of 4 KiB as fast.
/// Memory is only taken by what is in it.
const OUTPUT_ROOM: usize = 256 * 1024;

/// Between looks at whether somebody waits for an exec whose clients are gone.
const DESERTED_PAUSE: Duration = Duration::from_secs(1);

/// What an exec needs.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) workshop: Workshop,
    pub(crate) container: Arc<ContainerProcess>,
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
    /// Of its terminal.
    pub(crate) size: TerminalSize,
    /// Who will read or write stdin, stdout and stderr; nobody means /dev/null.
    pub(crate) streams: [Option<Expected>; 3],
    /// Comes when it is not to begin at all.
    pub(crate) killed: oneshot::Receiver<()>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) leaf: ExecLeaf,
}

/// An exec that runs.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) pid: i32,
    /// Master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Runs an exec to its end: of the process, and of its output. `begun` is told once execve has succeeded, or why it did
/// not; then there is no result. `deserted` is told, again and again, once all clients of its streams have gone before their ends.
///
/// The sub-leaf goes when the last process in it has ended, which may be later than this: what an exec leaves running in the
/// background runs on, as it would in a shell.
pub(crate) async fn run(
    stage: Stage,
    begun: impl FnOnce(Result<Begun, CallError>),
    deserted: impl Fn(),
) -> Option<WaitExecResponse> {
    let Stage { workshop, container, id, args, tty, size, streams, mut killed, timeout, leaf } = stage;
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let container_id = container.id().clone();
    let launched =
        launch(&workshop, &container, ExecRequest { id, args, stdio: Stdio::Tty(size) }, tty, streams);
    let launched = tokio::select! {
        biased;
        Ok(()) = &mut killed => Err(CallError::ExecKilled),
        launched = launched => launched.map_err(|source| CallError::Exec { id: container_id, source: Arc::new(source) }),
        () = until(deadline) => Err(CallError::ExecTimedOut),
    };
    let outcome = match launched {
        Ok((mut process, exit)) => {
            begun(Ok(Begun { pid: process.pid, terminal: process.terminal.take() }));
            Some(process.attend(exit, deadline, &leaf, deserted).await)
        }
        Err(error) => {
            kill(&leaf);
            begun(Err(error));
            None
        }
    };
    tokio::spawn(remove_when_empty(leaf));
    outcome
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn kill(leaf: &ExecLeaf) {
    if let Err(error) = leaf.kill() {
        warn!(%error, "cannot kill an exec");
    }
}

/// A process that runs, and the relays of its streams.
struct Process {
    pid: i32,
    terminal: Option<OwnedFd>,
    exited: watch::Sender<bool>,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<Ended>>,
    clients: Clients,
}

impl Process {
    /// Waits for the end of the process, by the deadline at the latest, and then of its output, which has a time of its own: what the process has left
    /// in the background runs on.
    async fn attend(
        self,
        exit: impl Future<Output = Exit>,
        deadline: Option<Instant>,
        leaf: &ExecLeaf,
        deserted: impl Fn(),
    ) -> WaitExecResponse {
        let Self { pid, terminal: _, exited, input, outputs, clients } = self;
        let end = async {
            let mut exit = std::pin::pin!(exit);
            let (exit, timed_out) = tokio::select! {
                biased;
                exit = &mut exit => (exit, false),
                () = until(deadline) => {
                    kill(leaf);
                    (exit.await, true)
                }
            };
            let _ = exited.send(true);
            for output in outputs {
                if let Ok(Ended::HeldOpen(pipe)) = output.await {
                    debug!(pid, "an exec left its output open to others");
                    tokio::spawn(pipe.drain());
                }
            }
            WaitExecResponse { exit_code: exit.code, timed_out }
        };
        let told = async {
            clients.gone().await;
            loop {
                deserted();
                sleep(DESERTED_PAUSE).await;
            }
        };
        let response: WaitExecResponse = tokio::select! {
            biased;
            response = end => response,
            response = told => response,
        };
        if let Some(input) = input {
            input.abort();
        }
        response
    }
}

/// Starts the process and the relays of its streams. Dropping the future kills what was started.
async fn launch(
    workshop: &Workshop,
    container: &ContainerProcess,
    mut request: ExecRequest,
    tty: bool,
    streams: [Option<Expected>; 3],
) -> Result<(Process, impl Future<Output = Exit> + use<>), CreateError> {
    let _starting = workshop.children.starting();
    let mut ours = [None, None, None];
    if !tty {
        let (stdio, pipes) = Pipes::make(workshop, &streams).map_err(CreateError::stdio)?;
        request.stdio = stdio;
        ours = pipes.0;
    }
    let executed = execed(workshop.pod.begin_exec(container, request)?).await?;
    let exit = workshop.children.own(&executed.child);
    for warning in executed.warnings {
        warn!(warning, "an exec runs, but not in all as it should");
    }
    let terminal = executed.console;
    if let Some(terminal) = &terminal {
        let input = terminal.try_clone().and_then(Pipe::writer).map_err(CreateError::stdio)?;
        let output = terminal.try_clone().and_then(Pipe::reader).map_err(CreateError::stdio)?;
        ours = [Some(input), Some(output), None];
    }
    let [stdin, stdout, stderr] = ours;
    let [to_stdin, from_stdout, from_stderr] = streams;
    let (exited, has_exited) = watch::channel(false);
    let (client, clients) = Client::first();
    let input =
        stdin.zip(to_stdin).map(|(pipe, expected)| tokio::spawn(feed(expected, pipe, client.clone())));
    let outputs = [(stdout, from_stdout), (stderr, from_stderr)];
    let outputs = outputs.into_iter().filter_map(|(pipe, expected)| {
        let has_exited = has_exited.clone();
        let client = Some(client.clone());
        pipe.map(|pipe| tokio::spawn(relay(pipe, expected, Taps::default(), has_exited, client)))
    });
    let outputs = outputs.collect();
    let process = Process { pid: executed.child.pid(), terminal, exited, input, outputs, clients };
    Ok((process, exit))
}

/// Waits for its execve.
pub(crate) async fn execed(mut execing: Execing) -> Result<Executed, CreateError> {
    let watched = Watched::duplicate(&execing, Interest::READABLE).map_err(CreateError::watch)?;
    let poll = |_: std::os::fd::BorrowedFd<'_>| match execing.poll() {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(executed)) => Ok(Ok(executed)),
        Err(error) => Ok(Err(error)),
    };
    Ok(watched.io(Interest::READABLE, poll).await.map_err(CreateError::watch)??)
}

/// The agent's ends of stdin, stdout and stderr.
struct Pipes([Option<Pipe>; 3]);

impl Pipes {
    fn make(workshop: &Workshop, streams: &[Option<Expected>; 3]) -> io::Result<(Stdio, Self)> {
        let null = || workshop.null.try_clone();
        let [to_stdin, from_stdout, from_stderr] = streams;
        let (stdin, input) = match to_stdin {
            Some(_) => {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                (reader, Some(Pipe::writer(writer)?))
            }
            None => (null()?, None),
        };
        let output = |expected: &Option<Expected>| -> io::Result<(OwnedFd, Option<Pipe>)> {
            if expected.is_none() {
                return Ok((null()?, None));
            }
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            // A smaller one does as well, but slower.
            let _ = fcntl_setpipe_size(&writer, OUTPUT_ROOM);
            Ok((writer, Some(Pipe::reader(reader)?)))
        };
        let (stdout, out) = output(from_stdout)?;
        let (stderr, err) = output(from_stderr)?;
        Ok((Stdio::Fds { stdin, stdout, stderr }, Self([input, out, err])))
    }
}

/// Removes the sub-leaf once nothing runs in it; the removal of its container does so too.
pub(crate) async fn remove_when_empty(leaf: ExecLeaf) {
    while let Err(error) = leaf.remove() {
        let Ok(events) = leaf.open_events() else { return };
        match leaf.populated() {
            Ok(true) => {}
            Ok(false) | Err(_) => {
                return warn!(%error, "an exec's cgroup stays until its container is removed");
            }
        }
        if emptied(events).await.is_err() {
            return;
        }
    }
}
