//! What a guest may do to its pod, and what it may not.

mod execs;
mod fake_guest;
mod ward;

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as agent;
use hartpod_proto::pod::v1::watch_response::Change;

use self::fake_guest::{Answer, Vmm, eventually};
use self::ward::{Ward, id, told};
use super::bring_up::RunError;
use super::bring_up::in_guest::explained;
use super::command::{Message, News};
use super::{Command, RemoveContainerError, SandboxState, Word, heartbeat};
use crate::agent_client::AgentError;
use crate::container::ContainerState;

const EXITED: agent::Phase = agent::Phase::Exited;
const RUNNING: agent::Phase = agent::Phase::Running;

fn with_message(mut news: agent::WatchResponse, length: usize) -> agent::WatchResponse {
    if let Some(Change::Container(state)) = &mut news.change {
        state.message = "x".repeat(length);
    }
    news
}

#[tokio::test]
async fn an_agent_that_tells_of_more_containers_than_there_can_be_is_not_listened_to() {
    let ward = Ward::open(Vmm::Obeys, Word::Awaited, &[]);
    ward.guest.tell(|| {
        stream::iter(
            (0..u64::MAX).map(|n| told(&format!("{n:064x}").parse().unwrap(), agent::Phase::Running)),
        )
    });
    eventually("the stream to be begun anew", || ward.guest.calls("Watch") > 1).await;
}

#[tokio::test]
async fn what_a_guest_tells_is_bounded_before_it_waits_for_anything() {
    let (small, large) = (id("a1"), id("b2"));
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[small.clone(), large.clone()]);
    let news = [with_message(told(&small, EXITED), 200 << 10), with_message(told(&large, EXITED), 300 << 10)];
    ward.guest.tell(move || stream::iter(news.clone()));
    eventually("the container to end", || ward.state_of(&small) == Some(ContainerState::Exited)).await;
    let exit = ward.snapshot().container(&small).and_then(|container| container.exit.clone()).unwrap();
    assert_eq!(exit.message.len(), 4096);
    let begun = ward.guest.calls("Watch");
    eventually("the stream to break", || ward.guest.calls("Watch") > begun).await;
    assert_eq!(ward.state_of(&large), Some(ContainerState::Running), "a message that large is taken");
}

#[tokio::test]
async fn what_is_told_again_is_no_news() {
    /// Of which the last come one by one.
    const TIMES: usize = 130;
    let (same, other) = (id("a1"), id("b2"));
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[same.clone(), other.clone()]);
    let published = Arc::new(AtomicUsize::new(0));
    let (count, mut snapshots) = (published.clone(), ward.pod.snapshot.clone());
    tokio::spawn(async move {
        while snapshots.changed().await.is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    let end = told(&other, EXITED);
    ward.guest.tell(move || {
        let again = stream::iter(vec![told(&same, RUNNING); TIMES]);
        again.chain(stream::iter([end.clone()])).chain(stream::pending())
    });
    eventually("the last news", || ward.state_of(&other) == Some(ContainerState::Exited)).await;
    let published = published.load(Ordering::Relaxed);
    assert!(published <= 2, "{published} snapshots");
}

#[tokio::test]
async fn a_vmm_that_does_not_answer_is_asked_once_for_the_end_of_a_log() {
    let main = id("a1");
    let ward = Ward::open(Vmm::Mute, Word::Heard, slice::from_ref(&main));
    let end = told(&main, EXITED);
    ward.guest.tell(move || stream::iter(vec![end.clone(); 50]).chain(stream::pending()));
    eventually("the container to end", || ward.state_of(&main) == Some(ContainerState::Exited)).await;
    assert_eq!(ward.guest.asked(), 1);
}

impl Ward {
    async fn stop_container(&self, id: &ContainerId) {
        let id = id.clone();
        let stopped = self.pod.ask(|reply| Command::StopContainer(id, Duration::ZERO, reply)).await;
        stopped.unwrap().unwrap();
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), Arc<RemoveContainerError>> {
        let id = id.clone();
        self.pod.ask(|reply| Command::RemoveContainer(id, reply)).await.unwrap()
    }

    /// The reason, once the pod is not ready any more.
    async fn reason(&self) -> String {
        eventually("the pod to be not ready", || self.snapshot().state == SandboxState::NotReady).await;
        self.snapshot().reason.clone()
    }
}

#[tokio::test]
async fn a_guest_that_does_not_take_in_a_kill_is_ended_and_the_reason_says_so() {
    let main = id("a1");
    let ward = Ward::open(Vmm::Obeys, Word::Heard, slice::from_ref(&main));
    ward.guest.answer("SignalContainer", Answer::Never);
    ward.stop_container(&main).await;
    let expected = format!(
        "the pod's guest is gone: hartpod ended it: container {main} could not be killed in it: no answer within 4 s"
    );
    assert_eq!(ward.reason().await, expected);
}

#[tokio::test]
async fn a_connection_that_breaks_does_not_end_a_guest() {
    let main = id("a1");
    let ward = Ward::open(Vmm::Obeys, Word::Heard, slice::from_ref(&main));
    ward.guest.refuse_connections(6);
    let (guest, end) = (ward.guest.clone(), told(&main, EXITED));
    // Its end is told once it was killed.
    ward.guest.tell(move || {
        let (guest, end) = (guest.clone(), end.clone());
        stream::once(async move {
            eventually("a kill", || guest.calls("SignalContainer") > 0).await;
            end
        })
        .chain(stream::pending())
    });
    ward.stop_container(&main).await;
    assert!(ward.agent.process.is_alive(), "{:?}", ward.agent.process.why_killed());
    assert_eq!(ward.state_of(&main), Some(ContainerState::Exited));
}

#[tokio::test]
async fn a_container_that_runs_in_a_guest_that_hangs_is_removed_with_its_guest() {
    let main = id("a1");
    let ward = Ward::open(Vmm::Obeys, Word::Heard, slice::from_ref(&main));
    ward.guest.answer("SignalContainer", Answer::Never);
    ward.guest.answer("RemoveContainer", Answer::Never);
    ward.remove_container(&main).await.unwrap();
    assert!(!ward.agent.process.is_alive());
    assert_eq!(ward.state_of(&main), None);
    assert!(ward.reason().await.contains("could not be killed in it"));
}

#[tokio::test]
async fn a_container_that_its_guest_does_not_remove_is_what_it_was() {
    let (ended, running) = (id("a1"), id("b2"));
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[ended.clone(), running.clone()]);
    let mut end = told(&ended, EXITED);
    if let Some(Change::Container(state)) = &mut end.change {
        state.exit_code = 3;
    }
    ward.guest.tell(move || stream::iter([end.clone()]).chain(stream::pending()));
    eventually("its end", || ward.state_of(&ended) == Some(ContainerState::Exited)).await;

    ward.guest.answer("RemoveContainer", Answer::Refused("it is busy"));
    let refused = ward.remove_container(&running).await.unwrap_err();
    assert!(crate::chain(&*refused).ends_with("it is busy"), "{refused}");
    assert_eq!(ward.state_of(&running), Some(ContainerState::Running));

    ward.guest.answer("RemoveContainer", Answer::Never);
    ward.guest.be_silent(true);
    let refused = ward.remove_container(&ended).await.unwrap_err();
    assert!(crate::chain(&*refused).contains("does not answer"), "{refused}");
    let exit = ward.snapshot().container(&ended).and_then(|container| container.exit.clone());
    assert_eq!(exit.map(|exit| exit.code), Some(3));
    assert!(ward.agent.process.is_alive(), "a guest is not ended for what has ended");
}

#[tokio::test]
async fn a_guest_that_holds_up_its_end_is_stopped_all_the_same() {
    let ward = Ward::open(Vmm::Mute, Word::Heard, &[]);
    ward.guest.answer("ShutDown", Answer::Never);
    ward.pod.ask(Command::Stop).await.unwrap().unwrap();
    assert!(!ward.agent.process.is_alive());
    assert_eq!(ward.snapshot().state, SandboxState::Stopped);
}

#[tokio::test]
async fn each_beat_is_told_as_a_guest_may_be_silent_before_and_after_its_first_word() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[]);
    ward.guest.be_silent(true);
    let (sender, mut beats) = tokio::sync::mpsc::unbounded_channel();
    let times = (Duration::from_millis(1), Duration::from_millis(50));
    tokio::spawn(heartbeat::beat(ward.agent.clone(), sender, times));
    for _ in 0..3 {
        assert!(matches!(beats.recv().await, Some(Message::News(News::Silent))));
    }
    ward.guest.be_silent(false);
    while !matches!(beats.recv().await, Some(Message::News(News::Alive))) {}
}

#[tokio::test]
async fn the_reason_of_a_guests_end_is_what_its_vmm_wrote_down() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[]);
    ward.write_status("{\"event\":\"exited\",\"reason\":\"panic\",\"detail\":\"sysrq\\u001b[2J\"}\n");
    ward.agent.process.kill().unwrap();
    let expected =
        "the pod's guest is gone: it was killed by signal 9 (the guest's kernel panicked: sysrq [2J)";
    assert_eq!(ward.reason().await, expected);
}

#[tokio::test]
async fn a_guest_that_ends_before_it_is_set_up_is_the_reason_that_it_was_not() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[]);
    ward.write_status("{\"event\":\"ready\"}\n");
    let unreachable =
        || RunError::SetUp(AgentError::Unreachable { call: "SetUpPod", why: "connection refused".into() });
    let (node, info) = (&ward.node, &ward.pod.info);
    let error = explained(node, info, &ward.agent, unreachable()).await;
    assert!(matches!(error, RunError::SetUp(_)), "it lives: {error}");
    ward.agent.process.kill().unwrap();
    let error = explained(node, info, &ward.agent, unreachable()).await.to_string();
    assert!(error.ends_with("(the VMM ended without a word: it was killed)"), "{error}");
}

#[tokio::test]
async fn what_a_guest_warns_of_takes_no_room_from_what_the_node_does() {
    let ward = Ward::open(Vmm::Obeys, Word::Heard, &[]);
    ward.node.warn_of(&ward.pod.info, (0..1000).map(|n| format!("warning {n}")).collect());
    assert!(ward.node.warned.lock().unwrap().is_empty());
}
