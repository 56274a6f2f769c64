//! The execs of a container: those that run, and those whose result nobody fetched yet.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use hartpod_proto::pod::v1::{StartExecResponse, WaitExecResponse};
use tokio::sync::oneshot;

use super::Begun;
use crate::call::{CallError, Reply};
use crate::container::answer;

/// Execs of one container at one time, finished ones that nobody waited for included.
pub(crate) const EXECS_MAX: usize = 256;

/// How far an exec is.
#[derive(Debug)]
pub(crate) enum ExecState {
    /// Between the call and execve.
    Starting { on_started: Vec<Reply<StartExecResponse>>, give_up: Option<oneshot::Sender<()>> },
    /// Its process, or output that it left behind, is still there.
    Running { pid: i32, terminal: Option<OwnedFd> },
    /// It is over; kept until somebody waits for it.
    Done { pid: i32, result: WaitExecResponse },
}

/// An exec, and who waits for its end.
#[derive(Debug)]
pub(crate) struct Exec {
    /// Of the request that started it.
    pub(crate) fingerprint: u64,
    /// Finished execs go in the order in which they were started.
    order: u64,
    pub(crate) state: ExecState,
    pub(crate) on_done: Vec<Reply<WaitExecResponse>>,
}

/// The execs of one container, by id.
#[derive(Debug, Default)]
pub(crate) struct Execs {
    by_id: BTreeMap<String, Exec>,
    started: u64,
}

impl Execs {
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Exec> {
        self.by_id.get_mut(id)
    }

    /// Notes an exec that begins and takes the reply of its caller; what is returned tells when it is to be given up. When the table is
    /// full, the oldest result that nobody fetched makes room; nothing when there is none.
    pub(crate) fn begin(
        &mut self,
        id: String,
        fingerprint: u64,
        reply: &mut Option<Reply<StartExecResponse>>,
    ) -> Option<oneshot::Receiver<()>> {
        if self.by_id.len() >= EXECS_MAX && !self.forget_oldest_result() {
            return None;
        }
        self.started += 1;
        let (give_up, killed) = oneshot::channel();
        let on_started = reply.take().into_iter().collect();
        let state = ExecState::Starting { on_started, give_up: Some(give_up) };
        self.by_id.insert(id, Exec { fingerprint, order: self.started, state, on_done: Vec::new() });
        Some(killed)
    }

    fn forget_oldest_result(&mut self) -> bool {
        let done = self.by_id.iter().filter(|(_, exec)| matches!(exec.state, ExecState::Done { .. }));
        let Some(id) = done.min_by_key(|(_, exec)| exec.order).map(|(id, _)| id.clone()) else {
            return false;
        };
        self.by_id.remove(&id).is_some()
    }

    /// It runs, or it could not be started and is forgotten.
    pub(crate) fn begun(&mut self, id: &str, outcome: Result<Begun, CallError>) {
        let Some(exec) = self.by_id.get_mut(id) else { return };
        let ExecState::Starting { on_started, .. } = &mut exec.state else { return };
        let started = outcome.as_ref().map(|begun| StartExecResponse { pid: begun.pid });
        answer(on_started, &started.map_err(Clone::clone));
        match outcome {
            Ok(Begun { pid, terminal }) => exec.state = ExecState::Running { pid, terminal },
            Err(error) => {
                answer(&mut exec.on_done, &Err(error));
                self.by_id.remove(id);
            }
        }
    }

    /// It is over: told to those who wait, or kept until somebody does.
    pub(crate) fn done(&mut self, id: &str, result: WaitExecResponse) {
        let Some(exec) = self.by_id.get_mut(id) else { return };
        let ExecState::Running { pid, .. } = exec.state else { return };
        exec.state = ExecState::Done { pid, result };
        let mut told = false;
        for reply in exec.on_done.drain(..) {
            // A caller that hung up did not take the result.
            told |= reply.send(Ok(result)).is_ok();
        }
        if told {
            self.by_id.remove(id);
        }
    }

    /// Answers with the result now or later; gives the reply back when there is no such exec.
    pub(crate) fn wait(
        &mut self,
        id: &str,
        reply: Reply<WaitExecResponse>,
    ) -> Result<(), Reply<WaitExecResponse>> {
        let Some(exec) = self.by_id.get_mut(id) else { return Err(reply) };
        if let ExecState::Done { result, .. } = &exec.state {
            if reply.send(Ok(*result)).is_ok() {
                self.by_id.remove(id);
            }
        } else {
            exec.on_done.retain(|waiting| !waiting.is_closed());
            exec.on_done.push(reply);
        }
        Ok(())
    }

    /// Whether somebody waits for its end.
    pub(crate) fn is_awaited(&self, id: &str) -> bool {
        self.by_id.get(id).is_some_and(|exec| exec.on_done.iter().any(|reply| !reply.is_closed()))
    }

    /// Whether there is something of it to kill; if it has not begun, it will not.
    pub(crate) fn give_up(&mut self, id: &str) -> bool {
        match self.by_id.get_mut(id).map(|exec| &mut exec.state) {
            Some(ExecState::Starting { give_up, .. }) => {
                // It may have begun just now: then it has a process to kill.
                let _ = give_up.take().map(|give_up| give_up.send(()));
                true
            }
            Some(ExecState::Running { .. }) => true,
            Some(ExecState::Done { .. }) | None => false,
        }
    }

    /// Tells everybody who waits that there is nothing to wait for any more.
    pub(crate) fn abandon(&mut self, error: &CallError) {
        for exec in self.by_id.values_mut() {
            if let ExecState::Starting { on_started, .. } = &mut exec.state {
                answer(on_started, &Err(error.clone()));
            }
            answer(&mut exec.on_done, &Err(error.clone()));
        }
        self.by_id.clear();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const RESULT: WaitExecResponse = WaitExecResponse { exit_code: 3, timed_out: false };

    /// The reply of a caller that does not wait any more.
    fn hung_up<T>() -> Reply<T> {
        let (reply, answer) = oneshot::channel();
        drop(answer);
        reply
    }

    fn with_running(ids: &[&str]) -> Execs {
        let mut execs = Execs::default();
        for id in ids {
            execs.begin((*id).to_owned(), 0, &mut None).unwrap();
            execs.begun(id, Ok(Begun { pid: 42, terminal: None }));
        }
        execs
    }

    #[test]
    fn a_result_waits_to_be_fetched_once() {
        let mut execs = with_running(&["e"]);
        execs.done("e", RESULT);
        let (reply, mut answer) = oneshot::channel();
        execs.wait("e", reply).unwrap();
        assert_eq!(answer.try_recv().unwrap().unwrap(), RESULT);
        assert!(execs.wait("e", hung_up()).is_err());
    }

    #[test]
    fn a_caller_that_hung_up_does_not_take_the_result() {
        let mut execs = with_running(&["e"]);
        execs.wait("e", hung_up()).unwrap();
        execs.done("e", RESULT);
        execs.wait("e", hung_up()).unwrap();
        let (reply, mut answer) = oneshot::channel();
        execs.wait("e", reply).unwrap();
        assert_eq!(answer.try_recv().unwrap().unwrap(), RESULT);
    }

    #[test]
    fn an_exec_is_awaited_until_its_last_caller_hangs_up() {
        let mut execs = with_running(&["e"]);
        assert!(!execs.is_awaited("e"));
        let (reply, answer) = oneshot::channel();
        execs.wait("e", reply).unwrap();
        assert!(execs.is_awaited("e"));
        drop(answer);
        assert!(!execs.is_awaited("e"));
    }

    #[test]
    fn an_exec_that_did_not_start_is_forgotten() {
        let mut execs = Execs::default();
        let (started, mut start) = oneshot::channel();
        execs.begin("e".to_owned(), 0, &mut Some(started)).unwrap();
        let (done, mut end) = oneshot::channel();
        execs.wait("e", done).unwrap();
        execs.begun("e", Err(CallError::ExecTimedOut));
        assert!(matches!(start.try_recv().unwrap(), Err(CallError::ExecTimedOut)));
        assert!(matches!(end.try_recv().unwrap(), Err(CallError::ExecTimedOut)));
        assert!(execs.wait("e", hung_up()).is_err());
    }

    #[test]
    fn an_exec_is_killed_as_long_as_there_is_something_of_it() {
        let mut execs = with_running(&["running"]);
        let mut killed = execs.begin("starting".to_owned(), 0, &mut None).unwrap();
        assert!(!execs.give_up("unknown"));
        assert!(execs.give_up("running"));
        assert!(execs.give_up("starting") && execs.give_up("starting"));
        killed.try_recv().unwrap();
        execs.done("running", RESULT);
        assert!(!execs.give_up("running"));
    }

    #[test]
    fn a_full_table_gives_up_the_oldest_result_but_no_running_exec() {
        let ids: Vec<_> = (0..EXECS_MAX).map(|n| n.to_string()).collect();
        let mut execs = with_running(&ids.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(execs.begin("more".to_owned(), 0, &mut None).is_none());
        execs.done("7", RESULT);
        execs.done("5", RESULT);
        execs.begin("more".to_owned(), 0, &mut None).unwrap();
        assert!(execs.get_mut("5").is_none());
        assert!(execs.get_mut("7").is_some());
    }
}
