//! What containers use, as the agent tells it.

use hartpod_proto::pod::v1::stats_request::Depth;
use hartpod_proto::pod::v1::{StatsRequest, StatsResponse};
use tonic::Code;

use crate::kit::{Agent, eventually, id};

async fn stats(agent: &mut Agent, depth: Depth) -> StatsResponse {
    agent.client.stats(StatsRequest { depth: depth.into() }).await.unwrap().into_inner()
}

#[tokio::test]
async fn numbers_of_what_lives_are_told_and_of_nothing_else() {
    let mut agent = Agent::with_pod(|_| {}).await;
    assert_eq!(stats(&mut agent, Depth::All).await.containers, []);
    agent.run(agent.shell(1, "sleep 1000 & echo two; wait")).await.unwrap();
    agent.run(agent.shell(2, "exit 0")).await.unwrap();
    agent.until(2, |state| state.finished_at > 0).await;
    eventually(|| agent.log(1).len() == 1).await;

    let told = stats(&mut agent, Depth::Cpu).await;
    let ids: Vec<_> = told.containers.iter().map(|c| c.container_id.clone()).collect();
    assert_eq!(ids, [id(1).to_string()]);
    let sample = told.containers[0].sample.clone().unwrap();
    assert!(sample.cpu_usage_ns.is_some() && sample.memory_usage.is_none(), "{sample:?}");
    assert_eq!(told.interfaces, []);

    let told = stats(&mut agent, Depth::All).await;
    let sample = told.containers[0].sample.clone().unwrap();
    assert_eq!(sample.tasks, Some(2));
    assert!(sample.memory_usage >= sample.memory_rss && sample.memory_rss > Some(0), "{sample:?}");
    assert_eq!((told.containers[0].processes, told.containers[0].sockets), (Some(2), Some(0)));
    assert!(told.containers[0].files >= Some(6) && told.containers[0].files_limit > Some(0));
    // The agent is in the pod, too.
    assert!(told.pod.unwrap().tasks > sample.tasks);
    agent.remove(1).await.unwrap();
    assert_eq!(stats(&mut agent, Depth::Stats).await.containers, []);
    agent.shut_down().await;
}

#[tokio::test]
async fn a_pod_that_is_not_set_up_has_none() {
    let mut agent = Agent::start().await;
    let error = agent.client.stats(StatsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
}
