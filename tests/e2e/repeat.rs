//! The same request again: joined while it runs, answered once more when its reply was lost, refused otherwise.

use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::cni::SUBNET;
use hartpod_tests::skip::CNI_BIN_DIR;
use hartpod_tests::{Lab, Node, PodBuilder, Refused, cri, eventually, guest, tests};
use tonic::Code;

tests![
    the_same_pod_twice_names_who_holds_the_name,
    a_changed_pod_of_the_same_name_is_refused,
    two_requests_at_once_get_one_pod,
    a_pod_whose_reply_was_lost_is_returned_once,
    the_next_attempt_is_another_pod,
    a_name_is_free_again_after_removal,
    the_same_container_twice_names_who_holds_the_name,
    two_containers_at_once_get_one,
    a_call_whose_caller_went_away_is_finished_or_undone,
];

/// The same request word by word.
async fn again(node: &Node, builder: &PodBuilder) -> Result<String, tonic::Status> {
    node.client().run_pod_sandbox(builder.config.clone(), &guest::default_handler()).await
}

/// A node whose network takes long enough for a second request to come while the first is at work.
async fn slow_node(lab: &Lab) -> Result<Node> {
    let builder = lab.node_builder()?.network(|cni| {
        let script = format!("#!/bin/sh\n[ $CNI_COMMAND != ADD ] || sleep 1; exec {CNI_BIN_DIR}/bridge\n");
        cni.install_plugin("slow", &script).ok()?;
        let mut network = cni.bridge(&[SUBNET]);
        network["plugins"][0]["type"] = "slow".into();
        Some(network)
    });
    lab.start(builder).await
}

async fn the_same_pod_twice_names_who_holds_the_name(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web");
    let pod = builder.clone().run().await?;
    let status = again(&node, &builder).await.refused("the same pod again")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert!(status.message().contains(&pod.id[..12]), "who holds the name: {status:?}");
    assert!(pod.is_ready().await?);
    assert_eq!(node.client().pods().await?.len(), 1);
    Ok(())
}

async fn a_changed_pod_of_the_same_name_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web");
    builder.clone().run().await?;
    let changed = builder.with(|config| config.hostname = "other".into());
    let status = again(&node, &changed).await.refused("another pod of this name")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    Ok(())
}

async fn two_requests_at_once_get_one_pod(lab: &Lab) -> Result<()> {
    let node = slow_node(lab).await?;
    let builder = node.pod("web");
    let (one, two) = tokio::join!(builder.clone().run(), again(&node, &builder));
    let (one, two) = (one?.id, two?);
    assert_eq!(one, two);
    assert_eq!(node.client().pods().await?.len(), 1);
    Ok(())
}

async fn a_pod_whose_reply_was_lost_is_returned_once(lab: &Lab) -> Result<()> {
    let node = slow_node(lab).await?;
    let builder = node.pod("web");
    // The kubelet gives up after its deadline and asks again.
    let lost = tokio::time::timeout(Duration::from_millis(300), builder.clone().run()).await;
    assert!(lost.is_err(), "it answered in time: {lost:?}");
    let id = again(&node, &builder).await?;
    assert_eq!(
        node.client().pods().await?.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(),
        [id.as_str()]
    );
    let status = again(&node, &builder).await.refused("a third request, after the reply arrived")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    Ok(())
}

async fn the_next_attempt_is_another_pod(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web");
    let first = builder.clone().run().await?;
    let second = builder.with(|config| config.metadata.get_or_insert_default().attempt = 1);
    let second = again(&node, &second).await?;
    assert_ne!(first.id, second);
    Ok(())
}

async fn a_name_is_free_again_after_removal(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web");
    let first = builder.clone().run().await?;
    first.stop().await?;
    let status = again(&node, &builder).await.refused("a stopped pod holds its name")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    first.remove().await?;
    let second = builder.run().await?;
    assert_ne!(first.id, second.id);
    Ok(())
}

async fn the_same_container_twice_names_who_holds_the_name(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").idle();
    let main = builder.clone().create().await?;
    let status = builder.clone().create().await.refused("the same container again")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    assert!(status.message().contains(&main.id[..12]), "who holds the name: {status:?}");
    main.start().await?;
    let status = builder.clone().create().await.refused("the same container while it runs")?;
    assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
    main.remove().await?;
    builder.create().await?;
    Ok(())
}

async fn two_containers_at_once_get_one(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").idle();
    let (one, two) = tokio::join!(builder.clone().create(), builder.clone().create());
    // The second joined the first, or came when it had answered.
    match (one, two) {
        (Ok(one), Ok(two)) => assert_eq!(one.id, two.id),
        (Ok(_), Err(status)) | (Err(status), Ok(_)) => {
            assert_eq!(status.code(), Code::AlreadyExists, "{status:?}")
        }
        (Err(one), Err(two)) => anyhow::bail!("neither succeeded: {one:?}, {two:?}"),
    }
    assert_eq!(node.client().containers().await?.len(), 1);
    Ok(())
}

async fn a_call_whose_caller_went_away_is_finished_or_undone(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for wait in [0, 1, 3, 6, 10, 15, 25, 40] {
        let builder = node.pod("web");
        let lost = tokio::time::timeout(Duration::from_millis(wait), builder.clone().run()).await;
        // Whatever became of it, the next request of the same name gets a pod that works.
        let id = match lost {
            Ok(pod) => pod?.id,
            Err(_) => match again(&node, &builder).await {
                // The first answer was on its way: to the daemon its caller knows.
                Err(status) if status.code() == Code::AlreadyExists => {
                    node.client().pods().await?.first().context("a pod has the name")?.id.clone()
                }
                id => id?,
            },
        };
        let pods = node.client().pods().await?;
        let pods: Vec<_> = pods.iter().map(|pod| (pod.id.clone(), pod.state())).collect();
        assert_eq!(pods, [(id.clone(), cri::PodSandboxState::SandboxReady)], "after {wait} ms");
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        node.client().stop_pod_sandbox(stop).await?;
        node.client().remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
        if let Some(linux) = &builder.config.linux {
            hartpod_tests::cgroup::remove_tree(&linux.cgroup_parent)?;
        }
        let empty = async || Ok(node.client().pods().await?);
        eventually("no pod to be left", empty, Vec::is_empty).await?;
    }
    Ok(())
}
