//! ExecSync: one more process in a running container, waited for, with its output.

use std::io;
use std::time::Duration;

use hartpod_container::cgroup::PathError;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::exec_target::{ExecTarget, KILL_MARGIN};
use crate::agent_client::{AgentError, StreamError, Token};
use crate::random;
use crate::trace::Context;

/// Bytes kept of both streams together; the rest is read and dropped. The kubelet takes no message of more than 16 MiB
/// (pkg/kubelet/cri/remote: maxMsgSize), and there is more in one than the output.
const OUTPUT_LIMIT: usize = (16 << 20) - (4 << 10);
/// What an exec left.
#[derive(Debug, Default)]
pub(crate) struct ExecOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Exit code, or 128 + signal.
    pub(crate) exit_code: i32,
}

/// An exec could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("exec in container {container}: no command given")]
    NoCommand { container: ContainerId },
    #[error("exec in container {container}: it is {state}, not running")]
    NotRunning { container: ContainerId, state: &'static str },
    /// The agent says what it tried and in which container.
    #[error(transparent)]
    Agent(AgentError),
    #[error("exec in container {container}: cgroup")]
    Cgroup { container: ContainerId, source: PathError },
    #[error("exec in container {container}: output")]
    Stream { container: ContainerId, source: StreamError },
    #[error("exec in container {container}: no random token")]
    Random { container: ContainerId, source: io::Error },
    #[error("command {command:?} timed out after {} s", after.as_secs())]
    TimedOut { command: String, after: Duration },
    /// The daemon is ending.
    #[error("exec in container {container}: cut off")]
    CutOff { container: ContainerId },
}

/// Runs `args`; no timeout waits for ever. When the caller goes away, the process goes, too.
pub(crate) async fn exec_sync(
    target: ExecTarget,
    args: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput, ExecError> {
    let container = target.container.clone();
    if args.is_empty() {
        return Err(ExecError::NoCommand { container });
    }
    let (reply, answer) = oneshot::channel();
    // In a task of its own: a caller that hangs up must not leave the process without anybody who waits for it.
    tokio::spawn(Context::current().scope(Exec { target, timeout }.run(args, reply)));
    answer.await.map_err(|_| ExecError::CutOff { container })?
}

type Reply = oneshot::Sender<Result<ExecOutput, ExecError>>;

struct Exec {
    target: ExecTarget,
    timeout: Option<Duration>,
}

impl Exec {
    async fn run(self, args: Vec<String>, mut reply: Reply) {
        let command = args.join(" ");
        let id = match random::hex::<16>() {
            Ok(id) => id,
            Err(source) => {
                let container = self.target.container.clone();
                let _ = reply.send(Err(ExecError::Random { container, source }));
                return;
            }
        };
        let outcome = tokio::select! {
            outcome = self.to_its_end(&id, args, command) => outcome,
            () = reply.closed() => {
                self.target.kill(&id).await;
                return;
            }
        };
        if outcome.as_ref().is_err_and(may_run_on) {
            self.target.kill(&id).await;
        }
        let _ = reply.send(outcome);
    }

    async fn to_its_end(
        &self,
        id: &str,
        args: Vec<String>,
        command: String,
    ) -> Result<ExecOutput, ExecError> {
        let random = |source| ExecError::Random { container: self.target.container.clone(), source };
        let (out, err) = (Token::new().map_err(random)?, Token::new().map_err(random)?);
        let request = pod::StartExecRequest {
            container_id: self.target.container.to_string(),
            exec_id: id.to_owned(),
            args,
            stdout_token: out.as_str().to_owned(),
            stderr_token: err.as_str().to_owned(),
            timeout_ms: self.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
            ..Default::default()
        };
        self.bounded("StartExec", self.target.agent.start_exec(request)).await?;
        let wait = self.target.wait(id);
        let (stdout, stderr, end) =
            tokio::try_join!(self.read(&out), self.read(&err), self.bounded("WaitExec", wait))?;
        if end.timed_out {
            return Err(ExecError::TimedOut { command, after: self.timeout.unwrap_or_default() });
        }
        let (stdout, stderr) = share(stdout, stderr);
        Ok(ExecOutput { stdout, stderr, exit_code: end.exit_code })
    }

    /// The agent ends an exec at its timeout; one that does not is not waited for much longer.
    async fn bounded<T>(
        &self,
        call: &'static str,
        answer: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, ExecError> {
        let Some(timeout) = self.timeout else { return answer.await.map_err(ExecError::Agent) };
        let after = timeout.saturating_add(KILL_MARGIN);
        match tokio::time::timeout(after, answer).await {
            Ok(answer) => answer.map_err(ExecError::Agent),
            Err(_) => Err(ExecError::Agent(AgentError::TimedOut { call, after })),
        }
    }

    async fn read(&self, token: &Token) -> Result<Vec<u8>, ExecError> {
        let stream_error =
            |source: StreamError| ExecError::Stream { container: self.target.container.clone(), source };
        let stream = self.target.agent.open_stream(token).await.map_err(stream_error)?;
        read_capped(stream).await.map_err(|e| stream_error(e.into()))
    }
}

/// Whether the process may still run after this: nobody would wait for it.
fn may_run_on(error: &ExecError) -> bool {
    match error {
        // The agent has killed it, or says that there is none.
        ExecError::TimedOut { .. } | ExecError::Agent(AgentError::Answered { .. }) => false,
        _ => true,
    }
}

/// Cuts both to the limit: neither loses more than it must to leave the other half of the room.
fn share(mut stdout: Vec<u8>, mut stderr: Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    stderr.truncate(OUTPUT_LIMIT.saturating_sub(stdout.len()).max(OUTPUT_LIMIT / 2));
    stdout.truncate(OUTPUT_LIMIT - stderr.len());
    (stdout, stderr)
}

async fn read_capped(mut stream: UnixStream) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    (&mut stream).take(OUTPUT_LIMIT as u64).read_to_end(&mut kept).await?;
    if kept.len() == OUTPUT_LIMIT {
        // The process must not block on a full pipe.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn output_past_the_limit_is_read_and_dropped() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let written = tokio::spawn(async move {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..18 {
                writer.write_all(&chunk).await.unwrap();
            }
        });
        let kept = read_capped(reader).await.unwrap();
        written.await.unwrap();
        assert_eq!(kept.len(), OUTPUT_LIMIT);
    }

    #[test]
    fn two_long_streams_share_the_room() {
        let lengths = |out, err| {
            let (out, err) = share(vec![0; out], vec![0; err]);
            (out.len(), err.len())
        };
        let half = OUTPUT_LIMIT / 2;
        assert_eq!(lengths(3, 4), (3, 4));
        assert_eq!(lengths(OUTPUT_LIMIT, 5), (OUTPUT_LIMIT - 5, 5));
        assert_eq!(lengths(5, OUTPUT_LIMIT), (5, OUTPUT_LIMIT - 5));
        assert_eq!(lengths(OUTPUT_LIMIT, OUTPUT_LIMIT), (half, half));
    }

    #[tokio::test]
    async fn all_of_a_short_output_is_kept() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        writer.write_all(b"hello").await.unwrap();
        drop(writer);
        assert_eq!(read_capped(reader).await.unwrap(), b"hello");
    }
}
