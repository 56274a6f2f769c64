//! What happens to pods and containers, as the kubelet is told of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::patient;
use hartpod_tests::{Lab, Node, cri, process, tests};
use nix::sys::signal::Signal;
use tonic::Streaming;

tests![
    a_life_is_told_in_order,
    every_listener_is_told,
    a_killed_agent_ends_what_it_ran,
    events_begin_anew_with_the_daemon
];

use cri::ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

struct Listener(Streaming<cri::ContainerEventResponse>);

impl Listener {
    async fn new(node: &Node) -> Result<Self> {
        let events = node.client().runtime().get_container_events(cri::GetEventsRequest {}).await?;
        Ok(Self(events.into_inner()))
    }

    async fn next(&mut self) -> Result<cri::ContainerEventResponse> {
        let event = tokio::time::timeout(patient(Duration::from_secs(20)), self.0.message()).await;
        event.context("no event came")??.context("the events ended")
    }

    /// The next events: whose, and what happened.
    async fn take(&mut self, count: usize) -> Result<Vec<cri::ContainerEventResponse>> {
        let mut events = Vec::new();
        for _ in 0..count {
            events.push(self.next().await?);
        }
        Ok(events)
    }
}

fn told(events: &[cri::ContainerEventResponse]) -> Vec<(&str, cri::ContainerEventType)> {
    events.iter().map(|e| (e.container_id.as_str(), e.container_event_type())).collect()
}

async fn a_life_is_told_in_order(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut listener = Listener::new(&node).await?;
    // Each event is awaited before the next step: it carries the pod as it is when the event is told, which may be after later steps.
    let pod = node.pod("web").run().await?;
    let mut events = listener.take(2).await?;
    let main = pod.container("main").sh("read x; exit 3").with(|config| config.stdin = true).create().await?;
    events.push(listener.next().await?);
    main.start().await?;
    events.push(listener.next().await?);
    main.stop(Duration::ZERO).await?;
    events.push(listener.next().await?);
    main.remove().await?;
    events.push(listener.next().await?);
    pod.stop().await?;
    events.push(listener.next().await?);
    pod.remove().await?;
    events.push(listener.next().await?);
    let (pod, main) = (pod.id.as_str(), main.id.as_str());
    let expected = [
        (pod, Created),
        (pod, Started),
        (main, Created),
        (main, Started),
        (main, Stopped),
        (main, Deleted),
        (pod, Stopped),
        (pod, Deleted),
    ];
    assert_eq!(told(&events), expected);
    let times: Vec<_> = events.iter().map(|e| e.created_at).collect();
    ensure!(times.windows(2).all(|pair| pair[0] < pair[1]), "{times:?}");
    let ready = |event: &cri::ContainerEventResponse| {
        event.pod_sandbox_status.as_ref().is_some_and(|s| s.state() == cri::PodSandboxState::SandboxReady)
    };
    assert_eq!(
        events.iter().map(ready).collect::<Vec<_>>(),
        [true, true, true, true, true, true, false, false]
    );
    let state = |event: &cri::ContainerEventResponse| event.containers_statuses.first().map(|c| c.state());
    assert_eq!(state(&events[2]), Some(cri::ContainerState::ContainerCreated));
    assert_eq!(state(&events[3]), Some(cri::ContainerState::ContainerRunning));
    assert_eq!(state(&events[4]), Some(cri::ContainerState::ContainerExited));
    assert_eq!(events[4].containers_statuses[0].exit_code, 137);
    assert_eq!(state(&events[5]), None);
    Ok(())
}

async fn every_listener_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut first = Listener::new(&node).await?;
    let idle = Listener::new(&node).await?;
    let pod = node.pod("web").run().await?;
    // Events come when they are on record, which may be after the answers to calls.
    first.take(2).await?;
    let mut late = Listener::new(&node).await?;
    let main = pod.container("main").sh("exit 7").run().await?;
    assert_eq!(main.exited().await?.exit_code, 7);
    let of_main = [(main.id.as_str(), Created), (main.id.as_str(), Started), (main.id.as_str(), Stopped)];
    assert_eq!(told(&first.take(3).await?), of_main);
    assert_eq!(told(&late.take(3).await?), of_main);
    drop(idle);
    Ok(())
}

async fn a_killed_agent_ends_what_it_ran(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut listener = Listener::new(&node).await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    listener.take(4).await?;
    process::signal(pod.agent().await?.pid, Signal::SIGKILL)?;
    // The pod is not ready from the first moment on, its containers are killed then.
    let events = listener.take(2).await?;
    assert_eq!(told(&events), [(pod.id.as_str(), Stopped), (main.id.as_str(), Stopped)]);
    Ok(())
}

async fn events_begin_anew_with_the_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut before = Listener::new(&node).await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    before.take(4).await?;
    node.crash().await?;
    ensure!(before.0.message().await.map_or(true, |event| event.is_none()), "the daemon's end is no event");
    let mut after = Listener::new(&node).await?;
    main.stop(Duration::ZERO).await?;
    // What was there already is not told again.
    assert_eq!(told(&after.take(1).await?), [(main.id.as_str(), Stopped)]);
    Ok(())
}
