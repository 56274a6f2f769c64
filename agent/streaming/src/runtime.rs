//! What the server asks of the daemon.

use std::error::Error;
use std::fmt;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

use crate::request::{AttachRequest, ExecRequest};

/// Why something could not be opened, or how a session failed. The client is told the whole chain of sources.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Being opened. Dropped when the client goes away meanwhile: then nothing may be left behind.
pub type Opening<'a, T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send + 'a>>;

/// Awaited for its own sake. Dropped when nobody cares any more.
pub type Ending<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Bytes towards the pod. Shutdown is the end of input: the other side reads what was written, and then its end.
pub type Input = Box<dyn AsyncWrite + Send + Unpin>;

/// Bytes from the pod.
pub type Output = Box<dyn AsyncRead + Send + Unpin>;

/// Opens what clients ask for. Nothing is called before a client has redeemed its URL and made all its streams.
pub trait Runtime: Send + Sync + 'static {
    /// Runs a command in a container; in a terminal of that size, where the client has told one by now.
    fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Opening<'_, Session>;

    /// Joins the standard streams of a container.
    fn attach(&self, request: AttachRequest) -> Opening<'_, Session>;

    /// Connects to a TCP port on the loopback addresses of a sandbox's network namespace.
    fn connect(&self, sandbox_id: String, port: u16) -> Opening<'_, Connection>;

    /// Waits until nothing in a sandbox can be connected to any more, for good: then its clients are let go.
    fn gone(&self, sandbox_id: String) -> Ending<'_>;
}

/// A command that runs, or a container that is attached to.
///
/// Dropping it before `exit` is ready means that the client has gone: an exec's processes are to be killed, an attached container
/// is left as it is. Outputs are read until their ends, so these must come soon after the exit whoever else holds them open.
pub struct Session {
    /// Where the client's input goes; asked for by `stdin` of the request.
    pub stdin: Option<Input>,
    /// Dropped early when the client no longer wants it, which must not disturb the process.
    pub stdout: Option<Output>,
    /// As `stdout`. A terminal has none.
    pub stderr: Option<Output>,
    /// Told each size of the client's terminal, but for one that the session began with; only the latest matters. `None` where there is no
    /// terminal.
    pub size: Option<watch::Sender<Option<TerminalSize>>>,
    /// The exit code. For an attachment: 0, when the container's streams are over.
    pub exit: Pin<Box<dyn Future<Output = Result<i32, BoxError>> + Send>>,
}

/// A connection to a port, as two halves; shutdown of `to_pod` is the client's half-close, the end of `from_pod` the pod's.
pub struct Connection {
    /// What the client sends.
    pub to_pod: Input,
    /// What the pod sends.
    pub from_pod: Output,
}

impl<S: AsyncRead + AsyncWrite + Send + 'static> From<S> for Connection {
    fn from(stream: S) -> Self {
        let (from_pod, to_pod) = tokio::io::split(stream);
        Self { to_pod: Box::new(to_pod), from_pod: Box::new(from_pod) }
    }
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("terminal", &self.size.is_some()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// An error with its sources, as one line.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    line
}
