//! What a guest may do to its pod, and what it may not.

#[allow(dead_code)] // tests to come use the rest
mod fake_guest;
mod ward;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::stream::{self, StreamExt as _};
use hartpod_proto::pod::v1 as agent;
use hartpod_proto::pod::v1::watch_response::Change;

use self::fake_guest::{Vmm, eventually};
use self::ward::{Ward, id, told};
use super::Word;
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
    let ward = Ward::open(Vmm::Mute, Word::Heard, std::slice::from_ref(&main));
    let end = told(&main, EXITED);
    ward.guest.tell(move || stream::iter(vec![end.clone(); 50]).chain(stream::pending()));
    eventually("the container to end", || ward.state_of(&main) == Some(ContainerState::Exited)).await;
    assert_eq!(ward.guest.asked(), 1);
}
