//! Calls about the streams and the terminals of what runs.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use hartpod_container::resize_terminal;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{AttachRequest, AttachResponse, ResizeTerminalRequest, ResizeTerminalResponse};
use tracing::{debug, warn};

use super::Supervisor;
use super::execs::expect;
use super::news::Happened;
use crate::call::CallError;
use crate::container::{ATTACHERS_MAX, Container, Died, LogWatch, Phase, PhaseEvent, Refused};
use crate::exec::ExecState;
use crate::request::{AttachPlan, InvalidRequest, ResizePlan};
use crate::stream::{Expected, Fed, Followed, Pipe, feed_attached, follow, tap};

/// Bytes that are kept for an attacher who does not take them; two outputs share them.
const KEPT: usize = 1 << 20;

impl Supervisor {
    pub(super) fn attach(
        &mut self,
        id: &ContainerId,
        request: AttachRequest,
    ) -> Result<AttachResponse, CallError> {
        self.is_set_up()?;
        let plan = AttachPlan::try_from(request)?;
        let (tokens, newsdesk) = (self.tokens.clone(), self.newsdesk.clone());
        let container = self.container_mut(id)?;
        if !matches!(container.phase, Phase::Created | Phase::Starting | Phase::Running) {
            let refused = Refused { phase: container.phase, event: PhaseEvent::Started };
            return Err(CallError::Refused { id: id.clone(), refused });
        }
        let [_, stderr] = &plan.outputs;
        if stderr.is_some() && container.terminal.is_some() {
            return Err(InvalidRequest::StderrWithTty.into());
        }
        if plan.stdin.is_some() && container.input.is_none() {
            return Err(CallError::NoInput(id.clone()));
        }
        let too_many = CallError::TooMany { what: "attachers of the container", limit: ATTACHERS_MAX };
        let room = Arc::clone(&container.attachers).try_acquire_owned().map_err(|_| too_many)?;
        // Until the last of its streams is over.
        let room = Arc::new(room);
        let [stdin] = expect(&tokens, [plan.stdin], ["stdin"])?;
        let outputs = expect(&tokens, plan.outputs, ["stdout", "stderr"])?;
        let failed = |error| CallError::Attach { id: id.clone(), source: Arc::new(error) };
        let stdin = match container.input.as_ref().zip(stdin) {
            Some((input, expected)) => Some((input.open().map_err(failed)?, expected)),
            None => None,
        };
        let copies = tap_outputs(container, &outputs).map_err(failed)?;
        // From here on nothing fails.
        for (copy, expected) in copies.into_iter().zip(outputs) {
            if let (Some(copy), Some(expected)) = (copy, expected) {
                let room = Arc::clone(&room);
                tokio::spawn(async move {
                    deliver(copy, expected).await;
                    drop(room);
                });
            }
        }
        let about = container.about();
        if let Some((input, (pipe, expected))) = container.input.as_mut().zip(stdin) {
            let over = input.closes_after_first().then_some(about);
            input.fed_by(&tokio::spawn(async move {
                let fed = feed_attached(expected, pipe).await;
                if let (Fed::Ended, Some(about)) = (fed, over) {
                    newsdesk.tell(about, Happened::InputEnded);
                }
                drop(room);
            }));
        }
        Ok(AttachResponse {})
    }

    pub(super) fn resize_terminal(
        &mut self,
        id: &ContainerId,
        request: ResizeTerminalRequest,
    ) -> Result<ResizeTerminalResponse, CallError> {
        let plan = ResizePlan::try_from(request)?;
        let container = self.container_mut(id)?;
        let (of, resized) = match plan.exec {
            None => {
                let resized = container.terminal.as_ref().map(|terminal| terminal.resize(plan.size));
                (format!("container {id}"), resized)
            }
            Some(exec) => {
                let found = container.execs.get_mut(&exec);
                let found = found.ok_or_else(|| CallError::UnknownExec(exec.clone()))?;
                let resized = match &found.state {
                    ExecState::Running { terminal: Some(terminal), .. } => {
                        Some(resize_terminal(terminal.as_fd(), plan.size))
                    }
                    ExecState::Starting { .. } | ExecState::Running { .. } | ExecState::Done { .. } => None,
                };
                (format!("exec `{exec}`"), resized)
            }
        };
        match resized {
            Some(Ok(())) => Ok(ResizeTerminalResponse {}),
            Some(Err(error)) => Err(CallError::Resize { of, source: Arc::new(error) }),
            None => Err(CallError::NoTerminal { of }),
        }
    }
}

/// A copy of an output for an attacher.
struct Copy {
    tap: Pipe,
    /// Bytes that a tap keeps.
    room: usize,
    /// Stdout is 0, stderr is 1.
    output: usize,
    /// Of an output that is not copied by the agent.
    log: Option<(LogWatch, Died)>,
}

impl Copy {
    /// A tap of the log writer that takes the place of one that has died; nothing when the output has ended.
    async fn tap_anew(&mut self) -> Option<()> {
        let (log, writer) = self.log.as_mut()?;
        loop {
            *writer = log.replaced(*writer).await?;
            let (end, tap) = tap(self.room).inspect_err(|error| warn!(%error, "an attacher is lost")).ok()?;
            let mut taps = [None, None];
            *taps.get_mut(self.output)? = Some(end);
            // One that takes no tap is dead, too.
            if log.tap(&taps).is_ok() {
                self.tap = tap;
                return Some(());
            }
        }
    }
}

/// Takes a copy to its attacher until the output ends or the attacher goes.
async fn deliver(mut copy: Copy, expected: Expected) {
    let Some(connection) = expected.connected().await else {
        return debug!("nobody connected to an output that was attached to");
    };
    while follow(&copy.tap, &connection).await == Followed::ToItsEnd {
        let more = tokio::select! {
            more = copy.tap_anew() => more,
            () = connection.hung_up() => None,
        };
        if more.is_none() {
            return;
        }
    }
}

/// Copies of what comes of the outputs that are wanted from now on.
fn tap_outputs(container: &Container, wanted: &[Option<Expected>; 2]) -> io::Result<[Option<Copy>; 2]> {
    let room = KEPT / wanted.iter().flatten().count().max(1);
    let (mut ends, mut taps) = ([None, None], [None, None]);
    for ((end, place), _) in ends.iter_mut().zip(&mut taps).zip(wanted).filter(|(_, wanted)| wanted.is_some())
    {
        let (writer, reader) = tap(room)?;
        (*end, *place) = (Some(writer), Some(reader));
    }
    let mut log = None;
    match (&container.log, &container.output) {
        (Some(by), _) => {
            let watch = by.watch();
            let writer = watch.tap(&ends).map_err(io::Error::other)?;
            log = Some((watch, writer));
        }
        (None, Some(output)) => output.tap(ends),
        // It has ended, and so have they.
        (None, None) => {}
    }
    let [stdout, stderr] = taps;
    let copy = |output, tap: Option<Pipe>| tap.map(|tap| Copy { tap, room, output, log: log.clone() });
    Ok([copy(0, stdout), copy(1, stderr)])
}
