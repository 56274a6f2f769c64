//! Calls about execs.

use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{KillExecResponse, StartExecRequest, StartExecResponse, WaitExecResponse};
use tracing::{info, warn};

use super::Supervisor;
use super::news::Happened;
use crate::call::{CallError, Reply};
use crate::container::{PhaseEvent, Refused};
use crate::exec::{self, EXECS_MAX, ExecState, Stage};
use crate::request::{ExecPlan, InvalidRequest, fingerprint};
use crate::stream::{Expected, Token, Tokens};

impl Supervisor {
    pub(super) fn start_exec(
        &mut self,
        id: &ContainerId,
        request: StartExecRequest,
        reply: Reply<StartExecResponse>,
    ) {
        let mut reply = Some(reply);
        if let Err(error) = self.begin_exec(id, request, &mut reply) {
            if let Some(reply) = reply {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Takes the reply if it is to be given later.
    fn begin_exec(
        &mut self,
        id: &ContainerId,
        request: StartExecRequest,
        reply: &mut Option<Reply<StartExecResponse>>,
    ) -> Result<(), CallError> {
        let workshop = self.workshop()?;
        let fingerprint = fingerprint(&request);
        let plan = ExecPlan::try_from(request)?;
        let (tokens, newsdesk) = (self.tokens.clone(), self.newsdesk.clone());
        let container = self.container_mut(id)?;
        if let Some(exec) = container.execs.get_mut(&plan.id) {
            if exec.fingerprint != fingerprint {
                return Err(CallError::ExecDiffers(plan.id));
            }
            match &mut exec.state {
                ExecState::Starting { on_started, .. } => on_started.extend(reply.take()),
                ExecState::Running { pid, .. } | ExecState::Done { pid, .. } => {
                    if let Some(reply) = reply.take() {
                        let _ = reply.send(Ok(StartExecResponse { pid: *pid }));
                    }
                }
            }
            return Ok(());
        }
        let Some(process) = container.process.clone().filter(|_| container.phase.is_running()) else {
            let refused = Refused { phase: container.phase, event: PhaseEvent::Started };
            return Err(CallError::Refused { id: id.clone(), refused });
        };
        let leaf = container.leaf.exec_leaf(&plan.id).map_err(|error| CallError::Leaf(Arc::new(error)))?;
        let streams = expect(&tokens, plan.tokens, ["stdin", "stdout", "stderr"])?;
        let too_many = CallError::TooMany { what: "execs in the container", limit: EXECS_MAX };
        let killed = container.execs.begin(plan.id.clone(), fingerprint, reply).ok_or(too_many)?;
        let about = container.about();
        let stage = Stage {
            workshop,
            container: process,
            id: plan.id.clone(),
            args: plan.args,
            tty: plan.tty,
            size: plan.size,
            streams,
            killed,
            timeout: (plan.timeout_ms > 0).then(|| Duration::from_millis(plan.timeout_ms)),
            leaf,
        };
        let exec = plan.id;
        tokio::spawn(async move {
            let begun = |outcome| {
                let happened = Happened::ExecBegun(exec.clone(), outcome);
                newsdesk.tell(about.clone(), happened);
            };
            let deserted = || newsdesk.tell(about.clone(), Happened::ExecDeserted(exec.clone()));
            if let Some(result) = exec::run(stage, begun, deserted).await {
                newsdesk.tell(about, Happened::ExecDone(exec, result));
            }
        });
        Ok(())
    }

    pub(super) fn wait_exec(&mut self, id: &ContainerId, exec: &str, reply: Reply<WaitExecResponse>) {
        let container = match self.container_mut(id) {
            Ok(container) => container,
            Err(error) => return drop(reply.send(Err(error))),
        };
        if let Err(reply) = container.execs.wait(exec, reply) {
            let _ = reply.send(Err(CallError::UnknownExec(exec.to_owned())));
        }
    }

    /// The clients of all its streams have gone, as those of a daemon that has died have. If nobody waits for it either, nobody ever will.
    pub(super) fn on_deserted(&mut self, id: &ContainerId, exec: &str) {
        let awaited = self.containers.get(id).is_some_and(|container| container.execs.is_awaited(exec));
        if awaited {
            return;
        }
        info!(container = %id, exec, "killing an exec that everybody has left");
        if let Err(error) = self.kill_exec(id, exec) {
            warn!(container = %id, exec, %error, "cannot kill an exec");
        }
    }

    pub(super) fn kill_exec(&mut self, id: &ContainerId, exec: &str) -> Result<KillExecResponse, CallError> {
        // With the container its execs are over.
        let Ok(container) = self.container_mut(id) else { return Ok(KillExecResponse {}) };
        if container.execs.give_up(exec) {
            let leaf = container.leaf.exec_leaf(exec).map_err(|error| CallError::Leaf(Arc::new(error)))?;
            let failed = |error| CallError::KillExec { id: id.clone(), source: Arc::new(error) };
            leaf.kill().map_err(failed)?;
        }
        Ok(KillExecResponse {})
    }
}

/// Makes the tokens of these streams good, all or none of them.
pub(super) fn expect<const N: usize>(
    tokens: &Tokens,
    chosen: [Option<Token>; N],
    streams: [&'static str; N],
) -> Result<[Option<Expected>; N], CallError> {
    let mut expected = [const { None }; N];
    for ((slot, token), stream) in expected.iter_mut().zip(chosen).zip(streams) {
        if let Some(token) = token {
            let taken = |source| InvalidRequest::Token { stream, source };
            *slot = Some(tokens.expect(token).map_err(taken)?);
        }
    }
    Ok(expected)
}
