//! Lists and their filters: id and its prefix, state, labels, pod, and all of them at once.

use std::collections::BTreeSet;

use anyhow::Result;
use hartpod_tests::{Client, Lab, cri, tests};

tests![pods_are_filtered, containers_are_filtered, lists_do_not_wait_for_a_busy_pod, an_id_may_be_short];

async fn pod_ids(client: &Client, filter: cri::PodSandboxFilter) -> Result<BTreeSet<String>> {
    let request = cri::ListPodSandboxRequest { filter: Some(filter) };
    Ok(client.list_pod_sandbox(request).await?.items.into_iter().map(|pod| pod.id).collect())
}

async fn container_ids(client: &Client, filter: cri::ContainerFilter) -> Result<BTreeSet<String>> {
    let request = cri::ListContainersRequest { filter: Some(filter) };
    Ok(client.list_containers(request).await?.containers.into_iter().map(|one| one.id).collect())
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|&id| id.to_owned()).collect()
}

fn labels(pairs: &[(&str, &str)]) -> std::collections::HashMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

async fn pods_are_filtered(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    let a = node.pod("a").label("app", "web").label("tier", "front").run().await?;
    let b = node.pod("b").label("app", "web").label("tier", "back").run().await?;
    let c = node.pod("c").label("app", "db").run().await?;
    b.stop().await?;
    let none = cri::PodSandboxFilter::default;
    let state = |state: cri::PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
    let ready = state(cri::PodSandboxState::SandboxReady);
    let not_ready = state(cri::PodSandboxState::SandboxNotready);
    let by_label = |pairs: &[(&str, &str)]| cri::PodSandboxFilter {
        label_selector: labels(pairs),
        ..Default::default()
    };

    assert_eq!(pod_ids(client, none()).await?, set(&[&a.id, &b.id, &c.id]));
    assert_eq!(pod_ids(client, cri::PodSandboxFilter { id: a.id.clone(), ..none() }).await?, set(&[&a.id]));
    assert_eq!(
        pod_ids(client, cri::PodSandboxFilter { id: a.id[..13].into(), ..none() }).await?,
        set(&[&a.id])
    );
    assert_eq!(pod_ids(client, cri::PodSandboxFilter { id: "0".repeat(64), ..none() }).await?, set(&[]));
    assert_eq!(
        pod_ids(client, cri::PodSandboxFilter { state: ready, ..none() }).await?,
        set(&[&a.id, &c.id])
    );
    assert_eq!(pod_ids(client, cri::PodSandboxFilter { state: not_ready, ..none() }).await?, set(&[&b.id]));
    assert_eq!(pod_ids(client, by_label(&[("app", "web")])).await?, set(&[&a.id, &b.id]));
    assert_eq!(pod_ids(client, by_label(&[("app", "web"), ("tier", "back")])).await?, set(&[&b.id]));
    assert_eq!(pod_ids(client, by_label(&[("app", "we")])).await?, set(&[]));
    assert_eq!(pod_ids(client, by_label(&[("missing", "")])).await?, set(&[]));
    let all =
        cri::PodSandboxFilter { id: a.id.clone(), state: ready, label_selector: labels(&[("app", "web")]) };
    assert_eq!(pod_ids(client, all.clone()).await?, set(&[&a.id]));
    assert_eq!(pod_ids(client, cri::PodSandboxFilter { state: not_ready, ..all }).await?, set(&[]));
    Ok(())
}

async fn containers_are_filtered(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    let web = node.pod("web").run().await?;
    let db = node.pod("db").run().await?;
    let running = web.container("running").label("kind", "app").idle().run().await?;
    let exited = web.container("exited").label("kind", "job").sh("exit 0").run().await?;
    let created = db.container("created").label("kind", "app").idle().create().await?;
    exited.exited().await?;
    let none = cri::ContainerFilter::default;
    let state = |state: cri::ContainerState| cri::ContainerFilter {
        state: Some(cri::ContainerStateValue { state: state.into() }),
        ..Default::default()
    };
    assert_eq!(container_ids(client, none()).await?, set(&[&running.id, &exited.id, &created.id]));
    assert_eq!(
        container_ids(client, state(cri::ContainerState::ContainerRunning)).await?,
        set(&[&running.id])
    );
    assert_eq!(container_ids(client, state(cri::ContainerState::ContainerExited)).await?, set(&[&exited.id]));
    assert_eq!(
        container_ids(client, state(cri::ContainerState::ContainerCreated)).await?,
        set(&[&created.id])
    );
    let of_pod = |id: &str| cri::ContainerFilter { pod_sandbox_id: id.to_owned(), ..Default::default() };
    assert_eq!(container_ids(client, of_pod(&web.id)).await?, set(&[&running.id, &exited.id]));
    assert_eq!(container_ids(client, of_pod(&db.id[..13])).await?, set(&[&created.id]));
    assert_eq!(container_ids(client, of_pod(&"0".repeat(64))).await?, set(&[]));
    let short = cri::ContainerFilter { id: running.id[..13].into(), ..none() };
    assert_eq!(container_ids(client, short).await?, set(&[&running.id]));
    let apps = cri::ContainerFilter { label_selector: labels(&[("kind", "app")]), ..none() };
    assert_eq!(container_ids(client, apps.clone()).await?, set(&[&running.id, &created.id]));
    let both = cri::ContainerFilter { pod_sandbox_id: db.id.clone(), ..apps };
    assert_eq!(container_ids(client, both).await?, set(&[&created.id]));
    Ok(())
}

async fn lists_do_not_wait_for_a_busy_pod(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let deaf = pod.container("deaf").sh("trap '' TERM; while :; do sleep 1; done").run().await?;
    deaf.exec(["true"]).await?;
    let stop = async { deaf.stop(std::time::Duration::from_secs(300)).await };
    let lists = async {
        for _ in 0..20 {
            node.client().pods().await?;
            node.client().containers().await?;
            pod.status().await?;
            deaf.status().await?;
        }
        Ok::<_, tonic::Status>(())
    };
    tokio::select! {
        biased;
        _ = stop => anyhow::bail!("the container that does not listen was stopped before its time"),
        outcome = lists => outcome?,
    }
    // Who is more in a hurry is heard.
    deaf.stop(std::time::Duration::ZERO).await?;
    Ok(())
}

async fn an_id_may_be_short(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // As crictl's users type it.
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id[..13].into(), verbose: false };
    let status = node.client().pod_sandbox_status(request).await?.status.unwrap_or_default();
    assert_eq!(status.id, pod.id);
    let request =
        cri::ExecSyncRequest { container_id: main.id[..13].into(), cmd: vec!["true".into()], timeout: 0 };
    assert_eq!(node.client().exec_sync(request).await?.exit_code, 0);
    Ok(())
}
