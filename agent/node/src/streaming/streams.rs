//! The streams of one session, between the tokens that the agent is told and the connections that open with them.

use std::io;

use hartpod_streaming::{Input, Output, Streams, TerminalSize};
use tokio::sync::watch;

use crate::agent_client::{AgentClient, StreamError, Token};
use crate::container::ExecTarget;

/// A token for each stream that a client is to have.
#[derive(Debug)]
pub(super) struct Tokens {
    stdin: Option<Token>,
    stdout: Option<Token>,
    stderr: Option<Token>,
}

/// Connections to the agent.
pub(super) struct Opened {
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
}

impl Tokens {
    pub(super) fn new(wanted: Streams) -> io::Result<Self> {
        let token = |wanted: bool| wanted.then(Token::new).transpose();
        // A terminal's errors come with its output.
        let stderr = token(wanted.stderr && !wanted.tty)?;
        Ok(Self { stdin: token(wanted.stdin)?, stdout: token(wanted.stdout)?, stderr })
    }

    /// As in pod/v1, of stdin, stdout and stderr.
    pub(super) fn texts(&self) -> [String; 3] {
        [&self.stdin, &self.stdout, &self.stderr]
            .map(|token| token.as_ref().map(Token::as_str).unwrap_or_default().to_owned())
    }

    /// Connects to the agent, which was told the tokens.
    pub(super) async fn open(&self, agent: &AgentClient) -> Result<Opened, StreamError> {
        let connect = async |token: &Option<Token>| match token {
            Some(token) => agent.open_stream(token).await.map(Some),
            None => Ok(None),
        };
        let (stdin, stdout, stderr) =
            tokio::try_join!(connect(&self.stdin), connect(&self.stdout), connect(&self.stderr))?;
        Ok(Opened {
            stdin: stdin.map(|stream| Box::new(stream) as Input),
            stdout: stdout.map(|stream| Box::new(stream) as Output),
            stderr: stderr.map(|stream| Box::new(stream) as Output),
        })
    }
}

/// Tells the terminal of a container, or of an exec in it, each new size of its client's until the session is over. A size that came meanwhile
/// replaces one that waits.
pub(super) fn follow_sizes(target: ExecTarget, exec: Option<String>) -> watch::Sender<Option<TerminalSize>> {
    let (sender, mut sizes) = watch::channel(None);
    tokio::spawn(async move {
        while sizes.changed().await.is_ok() {
            let Some(TerminalSize { width, height }) = *sizes.borrow_and_update() else { continue };
            let told =
                target.agent.resize_terminal(&target.container, exec.as_deref(), (width, height)).await;
            if let Err(error) = told {
                tracing::debug!(container = %target.container, exec, %error, "a terminal keeps its size");
            }
        }
    });
    sender
}
