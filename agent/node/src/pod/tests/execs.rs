//! Execs whose agent cannot be asked for a moment, or any more.

use super::fake_guest::{Answer, Vmm, eventually};
use super::ward::{Ward, id};
use crate::agent_client::AgentError;
use crate::container::{BegunExec, ExecTarget};
use crate::names::Progress;
use crate::pod::Word;

/// A pod with an exec that is waited for.
async fn waiting(ward: &Ward) -> tokio::task::JoinHandle<Result<i32, AgentError>> {
    let container = id("a1");
    ward.node.registry.restore(ward.pod.clone(), Progress::Settled);
    ward.node.registry.add_container(&container, &ward.pod.info.id);
    let target = ExecTarget::running(&ward.node, container.as_str()).unwrap();
    ward.guest.answer("WaitExec", Answer::Never);
    let exec = tokio::spawn(BegunExec::new(target, "e".to_owned()).ended());
    eventually("its end to be asked for", || ward.guest.calls("WaitExec") > 0).await;
    exec
}

#[tokio::test]
async fn an_exec_outlives_a_connection_that_breaks() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[id("a1")]);
    let exec = waiting(&ward).await;
    ward.guest.hang_up();
    eventually("its end to be asked for again", || ward.guest.calls("WaitExec") > 1).await;
    ward.guest.answer("WaitExec", Answer::Done);
    ward.guest.hang_up();
    assert_eq!(exec.await.unwrap().unwrap(), 0);
    assert_eq!(ward.guest.calls("KillExec"), 0);
}

#[tokio::test]
async fn an_exec_does_not_outlive_its_agent() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[id("a1")]);
    let exec = waiting(&ward).await;
    ward.agent.process.kill().unwrap();
    eventually("the agent to be missed", || ward.snapshot().agent.is_none()).await;
    ward.guest.hang_up();
    assert!(matches!(exec.await.unwrap(), Err(AgentError::Unreachable { .. })));
}
