//! The line between the agent and a log writer: a stream socket, one byte per request, six per answer. Taps come as descriptors beside their
//! request, which has no answer.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// A writer that has not answered by then sits on a disk that hangs. More than the time that it waits for lines to end, less than
/// the 10 seconds that the node agent waits for this call.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(8);

/// Reopens that may wait behind one another; each of them is a call of the node agent.
const QUEUE: usize = 8;

/// Requests to copy stdout, stderr, or both; reopens have the numbers between 0 and these.
const TAP_STDOUT: u8 = 253;
const TAP_STDERR: u8 = 254;
const TAP_BOTH: u8 = 255;

/// Most descriptors beside a request.
const TAPS: usize = 2;

/// There is nobody any more who could ask for something.
#[derive(Debug)]
pub(crate) struct AgentGone;

/// What the agent asks of a writer.
#[derive(Debug)]
pub(crate) enum Request {
    /// Switch to a new file at the same path, and answer with this number.
    Reopen(u8),
    /// Copy what comes of stdout and of stderr to these.
    Tap([Option<OwnedFd>; TAPS]),
}

impl Request {
    /// The next request, if there is one now.
    pub(crate) fn receive(control: &StdUnixStream) -> Result<Option<Self>, AgentGone> {
        let mut number = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAPS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut buffer = [IoSliceMut::new(&mut number)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = recvmsg(control, &mut buffer, &mut ancillary, flags);
        let rights = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut fds = rights.flatten();
        let (first, second) = (fds.next(), fds.next());
        match received {
            Ok(received) if received.bytes == 1 => {}
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Ok(_) | Err(_) => return Err(AgentGone),
        }
        Ok(Some(match number {
            [TAP_STDOUT] => Self::Tap([first, None]),
            [TAP_STDERR] => Self::Tap([None, first]),
            [TAP_BOTH] => Self::Tap([first, second]),
            [number] => Self::Reopen(number),
        }))
    }
}

/// What a writer was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    EnterHostMounts = 1,
    Execute = 2,
    Open = 3,
}

/// Why the log could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("enter the mount namespace of the host")]
    EnterHostMounts(#[source] hartpod_container::Errno),
    #[error("execute the log writer")]
    Execute(#[source] hartpod_container::Errno),
    #[error("{}", match *.0 {
        // Its paths are opened so that no link is followed.
        hartpod_container::Errno::LOOP => "a part of the log's path is a symbolic link",
        _ => "open the log file",
    })]
    Open(#[source] hartpod_container::Errno),
    #[error("the log writer has ended")]
    Gone,
    #[error("the log writer did not answer within {} seconds", ANSWER_WAIT.as_secs())]
    Stuck,
}

/// An answer of the writer: to request `number`, where 0 is the opening at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reply {
    number: u8,
    failed: Option<(Step, i32)>,
}

impl Reply {
    const LEN: usize = 6;

    pub(crate) fn done(number: u8) -> Self {
        Self { number, failed: None }
    }

    pub(crate) fn failed(number: u8, step: Step, error: Errno) -> Self {
        Self { number, failed: Some((step, error.raw_os_error())) }
    }

    pub(crate) fn encode(self) -> [u8; Self::LEN] {
        let (step, errno) = self.failed.map_or((0, 0), |(step, errno)| (step as u8, errno));
        let [a, b, c, d] = errno.to_le_bytes();
        [self.number, step, a, b, c, d]
    }

    fn decode([number, step, a, b, c, d]: [u8; Self::LEN]) -> Self {
        let errno = i32::from_le_bytes([a, b, c, d]);
        let step = match step {
            0 => None,
            1 => Some(Step::EnterHostMounts),
            2 => Some(Step::Execute),
            _ => Some(Step::Open),
        };
        Self { number, failed: step.map(|step| (step, errno)) }
    }

    fn into_result(self) -> Result<(), LogError> {
        let Some((step, errno)) = self.failed else { return Ok(()) };
        let error = hartpod_container::Errno::from_raw(errno);
        Err(match step {
            Step::EnterHostMounts => LogError::EnterHostMounts(error),
            Step::Execute => LogError::Execute(error),
            Step::Open => LogError::Open(error),
        })
    }
}

/// Tells the agent why there will be no log writer.
pub(crate) fn report_failure(mut control: &StdUnixStream, step: Step, error: &io::Error) {
    let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
    // The agent is gone if this fails, and nobody is left to tell.
    let _ = control.write_all(&Reply::failed(0, step, errno).encode());
}

type Answer = oneshot::Sender<Result<(), LogError>>;

/// How the opening of a log went, once that is known.
pub(crate) type Opening = oneshot::Receiver<Result<(), LogError>>;

/// The agent's end of a log writer. The writer lives on when this is dropped, until its streams end.
#[derive(Debug, Clone)]
pub(crate) struct LogHandle {
    control: Arc<UnixStream>,
    reopens: mpsc::Sender<Answer>,
}

impl LogHandle {
    /// Takes the agent's end of the socket; the second value tells how the opening of the log went.
    pub(crate) fn new(control: StdUnixStream) -> io::Result<(Self, Opening)> {
        control.set_nonblocking(true)?;
        let control = Arc::new(UnixStream::from_std(control)?);
        let (opened, opening) = oneshot::channel();
        let (reopens, queue) = mpsc::channel(QUEUE);
        tokio::spawn(converse(Arc::clone(&control), opened, queue));
        Ok((Self { control, reopens }, opening))
    }

    /// Copies what comes of stdout and of stderr to these, from what nobody has read yet on.
    pub(crate) fn tap(&self, taps: &[Option<OwnedFd>; TAPS]) -> io::Result<()> {
        let request = match taps {
            [Some(_), Some(_)] => TAP_BOTH,
            [Some(_), None] => TAP_STDOUT,
            [None, Some(_)] => TAP_STDERR,
            [None, None] => return Ok(()),
        };
        let fds: Vec<BorrowedFd<'_>> = taps.iter().flatten().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(TAPS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        sendmsg(&*self.control, &[IoSlice::new(&[request])], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Switches to a new file at the same path; returns after the switch.
    pub(crate) async fn reopen(&self) -> Result<(), LogError> {
        let (answer, answered) = oneshot::channel();
        self.reopens.send(answer).await.map_err(|_| LogError::Gone)?;
        answered.await.unwrap_or(Err(LogError::Gone))
    }
}

/// One request at a time; ends with the writer or with the last handle.
async fn converse(control: Arc<UnixStream>, opened: Answer, mut queue: mpsc::Receiver<Answer>) {
    // The opening has no deadline of its own: a hung disk keeps this container from being created, until it is removed.
    let first = receive(&control, 0).await;
    let alive = first.is_ok();
    let _ = opened.send(first);
    if !alive {
        return;
    }
    let mut number = 0_u8;
    while let Some(answer) = queue.recv().await {
        number = if number + 1 == TAP_STDOUT { 1 } else { number + 1 };
        let outcome = match rustix::net::send(&*control, &[number], SendFlags::NOSIGNAL) {
            Ok(_) => timeout(ANSWER_WAIT, receive(&control, number)).await.unwrap_or(Err(LogError::Stuck)),
            Err(_) => Err(LogError::Gone),
        };
        let gone = matches!(outcome, Err(LogError::Gone));
        let _ = answer.send(outcome);
        if gone {
            break;
        }
    }
}

/// The answer to request `number`; late answers to earlier ones are passed over.
async fn receive(control: &UnixStream, number: u8) -> Result<(), LogError> {
    let mut reply = [0; Reply::LEN];
    loop {
        // A writer says it at once, so that it comes as a whole.
        let whole = || match rustix::net::recv(control, &mut reply, RecvFlags::empty()) {
            Ok((Reply::LEN, _)) => Ok(()),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(io::Error::from(error)),
        };
        control.async_io(Interest::READABLE, whole).await.map_err(|_| LogError::Gone)?;
        let reply = Reply::decode(reply);
        if reply.number == number {
            return reply.into_result();
        }
    }
}
