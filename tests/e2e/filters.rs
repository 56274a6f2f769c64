//! Lists and their filters: id and its prefix, state, labels, pod, and all of them at once.

use std::collections::BTreeSet;

use anyhow::Result;
use hartpod_tests::{Client, Lab, Pod, Refused, cri, tests};

tests![
    pods_are_filtered,
    containers_are_filtered,
    lists_do_not_wait_for_a_busy_pod,
    an_id_may_be_short,
    every_call_takes_the_beginning_of_an_id,
];

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

async fn every_call_takes_the_beginning_of_an_id(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    let pod = node.pod("web").run().await?;
    let pod_id = || pod.id[..12].to_owned();
    // Made in the pod by the beginning of its id.
    let created = cri::CreateContainerRequest {
        pod_sandbox_id: pod_id(),
        config: Some(pod.container("main").idle().config),
        sandbox_config: Some(pod.config.clone()),
    };
    let id = client.create_container(created).await?;
    let short = || id[..12].to_owned();
    client.start_container(cri::StartContainerRequest { container_id: short() }).await?;
    let asked = cri::ContainerStatusRequest { container_id: short(), verbose: true };
    let status = client.container_status(asked).await?.status.unwrap_or_default();
    assert_eq!((&status.id, status.state()), (&id, cri::ContainerState::ContainerRunning));
    joins_by_the_beginning_of_an_id(&pod, &short()).await?;

    client.reopen_container_log(cri::ReopenContainerLogRequest { container_id: short() }).await?;
    let stats = client.container_stats(cri::ContainerStatsRequest { container_id: short() }).await?.stats;
    assert_eq!(stats.and_then(|stats| stats.attributes).map(|attributes| attributes.id), Some(id.clone()));
    let linux = Some(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() });
    let update = cri::UpdateContainerResourcesRequest { container_id: short(), linux, ..Default::default() };
    client.runtime().update_container_resources(update).await?;
    let exec = cri::ExecRequest {
        container_id: short(),
        cmd: vec!["true".into()],
        stdout: true,
        ..Default::default()
    };
    client.runtime().exec(exec).await?;
    let attach = cri::AttachRequest { container_id: short(), stdout: true, ..Default::default() };
    client.runtime().attach(attach).await?;
    let forward = cri::PortForwardRequest { pod_sandbox_id: pod_id(), port: vec![80] };
    client.runtime().port_forward(forward).await?;
    let pod_stats = cri::PodSandboxStatsRequest { pod_sandbox_id: pod_id() };
    let stats = client.runtime().pod_sandbox_stats(pod_stats).await?.into_inner().stats;
    let told = stats.and_then(|stats| stats.attributes).map(|attributes| attributes.id);
    assert_eq!(told.as_deref(), Some(pod.id.as_str()));
    let filter = cri::ContainerFilter { pod_sandbox_id: pod_id(), id: short(), ..Default::default() };
    assert_eq!(container_ids(client, filter).await?, BTreeSet::from([id.clone()]));

    client.stop_container(cri::StopContainerRequest { container_id: short(), timeout: 5 }).await?;
    client.remove_container(cri::RemoveContainerRequest { container_id: short() }).await?;
    assert!(!client.containers().await?.iter().any(|one| one.id == id));
    client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_id() }).await?;
    client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: pod_id() }).await?;
    assert!(client.pods().await?.is_empty());
    Ok(())
}

/// As `kubectl debug` does, but for the length of the id.
async fn joins_by_the_beginning_of_an_id(pod: &Pod, short: &str) -> Result<()> {
    let with_target = |name: &str, target: &str| {
        pod.container(name).idle().with_security(|security| {
            let options = security.namespace_options.get_or_insert_default();
            options.pid = cri::NamespaceMode::Target.into();
            options.target_id = target.into();
        })
    };
    let debugger = with_target("debugger", short).run().await?;
    let namespace = ["readlink", "/proc/self/ns/pid"];
    let cmd = namespace.map(str::to_owned).to_vec();
    let of_main = cri::ExecSyncRequest { container_id: short.into(), cmd, timeout: 0 };
    let of_main = String::from_utf8(pod.node().client().exec_sync(of_main).await?.stdout)?;
    assert_eq!(debugger.exec(namespace).await?.stdout, of_main);
    for target in ["nothing", ""] {
        let refused = with_target("lost", target).create().await.refused("a target that is nowhere")?;
        assert!(refused.message().contains("does not run in this pod"), "{refused:?}");
    }
    debugger.remove().await?;
    Ok(())
}
