//! A container's log as the agent holds it: the writer that runs, and what it takes to start another one.
//!
//! The agent keeps the ends that the writer reads. Were the writer's the only ones, its death (the kernel's choice when memory
//! is short, a slip of an operator) would kill the container by SIGPIPE at its next line. So the container runs on and waits at
//! worst for room in its pipe, and the next writer goes on with what the last one had not taken. What that had read and
//! not written is lost: the beginning of a line that was not complete yet, or one read if it was killed right then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::{Child, Pod, fork_role};
use hartpod_logs::LogPlace;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::settle::DRAIN_WAIT;
use crate::children::{Children, Exit};
use crate::log_writer::{ANSWER_WAIT, LogError, LogHandle, NAME, Opening, Sources, become_log_writer};

/// Before a writer that died is replaced; doubled each time that the next one does not live for [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What a writer is made from.
#[derive(Debug)]
pub(crate) struct LogSource {
    pub(crate) pod: Arc<Pod>,
    pub(crate) children: Children,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    /// Without one the output is read and thrown away.
    pub(crate) place: Option<LogPlace>,
}

/// The writer at present.
#[derive(Debug)]
struct Seat {
    handle: LogHandle,
    child: Arc<Child>,
    /// It has opened the log.
    open: bool,
    /// Writers before it, which died.
    died: u32,
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    watch: LogWatch,
    give_up: oneshot::Sender<()>,
}

/// Writers that had died before one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Died(u32);

/// A look at a log, for as long as it is written.
#[derive(Debug, Clone)]
pub(crate) struct LogWatch {
    /// Closed once both streams were written to their end, or that was given up.
    seat: watch::Receiver<Seat>,
}

impl Log {
    /// Starts the writer, which opens the log among the host's mounts; the second value tells how that went. One that could
    /// not open it is not replaced.
    pub(crate) fn start(source: LogSource) -> io::Result<(Self, Opening)> {
        let first = source.start_writer()?;
        let (opened, opening) = oneshot::channel();
        let (give_up, given_up) = oneshot::channel();
        let (seat, watch) = watch::channel(first.seat(0));
        let keeper = Keeper { source, seat, given_up };
        tokio::spawn(keeper.keep(first, opened));
        Ok((Self { watch: LogWatch { seat: watch }, give_up }, opening))
    }

    pub(crate) fn watch(&self) -> LogWatch {
        self.watch.clone()
    }

    /// Waits until the log is written, and ends the writer when it has had its time; one that hangs on its disk goes when the
    /// disk lets it.
    pub(crate) async fn finish(self) {
        let mut watch = self.watch;
        if timeout(DRAIN_WAIT, watch.ended()).await.is_err() {
            let _ = self.give_up.send(());
            let seat = watch.seat.borrow();
            warn!(pid = seat.child.pid(), "killing a log writer that does not end");
            let _ = seat.child.signal(libc::SIGKILL);
        }
    }
}

impl LogWatch {
    /// Becomes ready when both streams were written to their end, or that was given up.
    pub(crate) async fn ended(&mut self) {
        while self.seat.changed().await.is_ok() {}
    }

    /// What did not go as it should, in words.
    pub(crate) fn trouble(&self) -> Option<String> {
        match self.seat.borrow().died {
            0 => None,
            1 => Some("its log writer died and was replaced: output may be missing".to_owned()),
            more => Some(format!("its log writer died {more} times and was replaced: output may be missing")),
        }
    }

    /// Copies what comes of stdout and of stderr to these from now on. Of a log that has ended nothing comes. The value tells the writer that
    /// does it from later ones.
    pub(crate) fn tap(&self, taps: &[Option<OwnedFd>; 2]) -> Result<Died, LogError> {
        let seat = self.seat.borrow();
        match seat.handle.tap(taps) {
            Err(_) if self.seat.has_changed().is_ok() => Err(LogError::Gone),
            _ => Ok(Died(seat.died)),
        }
    }

    /// Waits until the writer that copied has died and there is another one, which has taken nothing yet; nothing when the log has ended.
    pub(crate) async fn replaced(&mut self, Died(before): Died) -> Option<Died> {
        self.seat.wait_for(|seat| seat.died > before).await.ok().map(|seat| Died(seat.died))
    }

    /// Switches to a new file at the same path; returns after the switch.
    pub(crate) async fn reopen(mut self) -> Result<(), LogError> {
        let (handle, died) = {
            let seat = self.seat.borrow();
            (seat.handle.clone(), seat.died)
        };
        match handle.reopen().await {
            // The next writer opens the file that is at the path then.
            Err(LogError::Gone) => {
                let next = self.seat.wait_for(|seat| seat.open && seat.died > died);
                match timeout(ANSWER_WAIT, next).await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(_)) => Err(LogError::Gone),
                    Err(_) => Err(LogError::Stuck),
                }
            }
            outcome => outcome,
        }
    }
}

/// A writer that was just started.
struct Writer<E> {
    handle: LogHandle,
    child: Arc<Child>,
    opening: Opening,
    exit: E,
}

impl<E> Writer<E> {
    fn seat(&self, died: u32) -> Seat {
        Seat { handle: self.handle.clone(), child: self.child.clone(), open: false, died }
    }
}

impl LogSource {
    fn start_writer(&self) -> io::Result<Writer<impl Future<Output = Exit> + Send + use<>>> {
        let host = self.pod.host();
        let (ours, theirs) = UnixStream::pair()?;
        let sources = Sources {
            stdout: self.stdout.as_ref().map(AsFd::as_fd),
            stderr: self.stderr.as_ref().map(AsFd::as_fd),
        };
        let keep: Vec<BorrowedFd<'_>> =
            [sources.stdout, sources.stderr, Some(theirs.as_fd()), Some(host.as_fd())]
                .into_iter()
                .flatten()
                .collect();
        let child =
            fork_role(NAME, &keep, || become_log_writer(host, sources, self.place.as_ref(), &theirs))?;
        let exit = self.children.own(&child);
        let (handle, opening) = LogHandle::new(ours)?;
        Ok(Writer { handle, child: Arc::new(child), opening, exit })
    }
}

/// Sees to it that there is a writer.
struct Keeper {
    source: LogSource,
    seat: watch::Sender<Seat>,
    given_up: oneshot::Receiver<()>,
}

impl Keeper {
    async fn keep<E: Future<Output = Exit>>(
        mut self,
        first: Writer<E>,
        opened: oneshot::Sender<Result<(), LogError>>,
    ) {
        let outcome = first.opening.await.unwrap_or(Err(LogError::Gone));
        let is_open = outcome.is_ok();
        self.seat.send_modify(|seat| seat.open = is_open);
        let _ = opened.send(outcome);
        let (mut died, mut pause, mut since) = (0, PAUSE_MIN, Instant::now());
        let mut code = first.exit.await.code;
        while is_open && code != 0 && self.wait(pause).await {
            pause = if since.elapsed() > PAUSE_MAX { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            (died, since) = (died + 1, Instant::now());
            warn!(code, died, "a log writer died, starting another one");
            match self.source.start_writer() {
                Ok(next) => {
                    self.seat.send_replace(next.seat(died));
                    if let Ok(Ok(())) = next.opening.await {
                        self.seat.send_modify(|seat| seat.open = true);
                    }
                    code = next.exit.await.code;
                }
                Err(error) => warn!(%error, "cannot start a log writer"),
            }
        }
    }

    /// False when there is to be no other writer.
    async fn wait(&mut self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            // A log that was dropped without a word is still to be written.
            Ok(()) = &mut self.given_up => false,
            () = sleep(pause) => true,
        }
    }
}
