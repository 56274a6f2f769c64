//! The life of pods and containers: every state, every time, every field.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use hartpod_tests::{Client, Lab, Need, Refused, cri, eventually, guest, process, tests};
use serde_json::Value;
use tonic::Code;

tests![
    a_pod_tells_what_it_is,
    a_container_goes_through_its_states,
    a_container_tells_what_it_is,
    a_verbose_status_is_what_tools_expect needs Need::OfNode("processes"),
    a_container_can_start_only_once,
    an_exited_container_keeps_its_exit_code,
    a_signal_that_kills_is_128_and_more needs Need::OfNode("processes"),
    stop_is_idempotent,
    a_stop_waits_for_the_grace_period,
    a_stop_ends_with_the_container,
    the_images_stop_signal_is_used,
    the_grace_of_one_container_delays_no_other,
    removing_a_running_container_kills_it,
    a_created_container_can_be_removed,
    stopping_a_pod_kills_its_containers,
    removing_a_pod_that_runs_removes_all_of_it,
    what_a_container_leaves_running_ends_with_it,
    a_memory_hog_is_reported_as_oom_killed needs Need::MemoryController,
    a_pods_limit_that_kills_a_container_is_named needs Need::MemoryController,
    containers_share_the_pod_one_after_the_other,
];

fn now() -> Result<i64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("clock")?;
    i64::try_from(since.as_nanos()).context("clock")
}

async fn a_pod_tells_what_it_is(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = now()?;
    let pod = node.pod("web").label("app", "web").with(|config| {
        config.annotations.insert("example.org/why".into(), "to see".into());
    });
    let pod = pod.run().await?;
    let after = now()?;

    let status = pod.status().await?;
    assert_eq!(status.id, pod.id);
    assert!(
        pod.id.len() == 64 && pod.id.bytes().all(|digit| b"0123456789abcdef".contains(&digit)),
        "{}",
        pod.id
    );
    assert_eq!(status.metadata, pod.config.metadata);
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert!((before..=after).contains(&status.created_at), "{before} <= {} <= {after}", status.created_at);
    assert_eq!(status.labels, pod.config.labels);
    assert_eq!(status.annotations, pod.config.annotations);
    assert_eq!(status.runtime_handler, guest::default_handler());
    let ip = status.network.context("no network status")?.ip;
    assert!(ip.starts_with("10.244.7."), "{ip}");
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    let options = options.context("no namespace options")?;
    assert_eq!(options.network(), cri::NamespaceMode::Pod);
    assert_eq!(options.pid(), cri::NamespaceMode::Container);

    let listed = node.client().pods().await?;
    let [one] = &listed[..] else { anyhow::bail!("one pod is listed: {listed:#?}") };
    assert_eq!((&one.id, &one.metadata), (&pod.id, &pod.config.metadata));
    assert_eq!((one.created_at, one.state()), (status.created_at, cri::PodSandboxState::SandboxReady));
    assert_eq!((&one.labels, &one.annotations), (&pod.config.labels, &pod.config.annotations));

    pod.stop().await?;
    let stopped = pod.status().await?;
    assert_eq!(stopped.state(), cri::PodSandboxState::SandboxNotready);
    assert_eq!(stopped.created_at, status.created_at);
    assert_eq!(stopped.metadata, pod.config.metadata);

    pod.remove().await?;
    assert_eq!(pod.status().await.refused("the status of a removed pod")?.code(), Code::NotFound);
    assert!(node.client().pods().await?.is_empty());
    Ok(())
}

async fn a_container_goes_through_its_states(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let t0 = now()?;
    let main = pod.container("main").sh("sleep 0.2; exit 7").create().await?;
    let t1 = now()?;
    let created = main.status().await?;
    assert_eq!(created.state(), cri::ContainerState::ContainerCreated);
    assert!((t0..=t1).contains(&created.created_at), "{created:#?}");
    assert_eq!((created.started_at, created.finished_at, created.exit_code), (0, 0, 0));

    main.start().await?;
    let t2 = now()?;
    let running = main.status().await?;
    assert_eq!(running.state(), cri::ContainerState::ContainerRunning);
    assert_eq!(running.created_at, created.created_at);
    assert!((t1..=t2).contains(&running.started_at), "{running:#?}");
    assert_eq!(running.finished_at, 0);

    let exited = main.exited().await?;
    assert_eq!(exited.exit_code, 7);
    assert_eq!(exited.reason, "Error");
    assert_eq!((exited.created_at, exited.started_at), (created.created_at, running.started_at));
    assert!(exited.finished_at >= running.started_at + 200_000_000, "{exited:#?}");
    assert!(exited.finished_at <= now()?, "{exited:#?}");
    assert!(pod.is_ready().await?, "a pod whose containers have all exited is still ready");

    main.remove().await?;
    assert_eq!(main.status().await.refused("the status of a removed container")?.code(), Code::NotFound);
    assert!(node.client().containers().await?.is_empty());
    Ok(())
}

async fn a_container_tells_what_it_is(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let source = lab.dir().join("volume");
    std::fs::create_dir(&source)?;
    let main = pod.container("main").label("tier", "front").idle().read_only_mount(&source, "/data").with(
        |config| {
            config.annotations.insert("example.org/restart".into(), "3".into());
            config.metadata.get_or_insert_default().attempt = 2;
        },
    );
    let main = main.run().await?;

    let status = main.status().await?;
    assert_eq!(status.id, main.id);
    assert!(main.id.len() == 64, "{}", main.id);
    assert_eq!(status.metadata, main.config.metadata);
    assert_eq!((&status.labels, &status.annotations), (&main.config.labels, &main.config.annotations));
    assert_eq!(status.image.as_ref().map(|image| image.image.as_str()), Some(node.image()));
    let image = node.client().image(node.image()).await?.context("the image is gone")?;
    assert!(
        status.image_ref == image.id || image.repo_digests.contains(&status.image_ref),
        "{} is neither {} nor one of {:?}",
        status.image_ref,
        image.id,
        image.repo_digests
    );
    assert_eq!(status.image_id, image.id);
    assert_eq!(status.log_path, main.log_path().display().to_string());
    let [mount] = &status.mounts[..] else { anyhow::bail!("one mount was asked for: {:#?}", status.mounts) };
    assert_eq!((mount.container_path.as_str(), mount.readonly), ("/data", true));
    assert_eq!(mount.host_path, source.display().to_string());

    let listed = node.client().containers().await?;
    let [one] = &listed[..] else { anyhow::bail!("one container is listed: {listed:#?}") };
    assert_eq!((&one.id, &one.pod_sandbox_id), (&main.id, &pod.id));
    assert_eq!((&one.metadata, one.created_at), (&status.metadata, status.created_at));
    assert_eq!(one.state(), cri::ContainerState::ContainerRunning);
    assert_eq!((&one.labels, &one.annotations), (&status.labels, &status.annotations));
    assert_eq!((&one.image_ref, &one.image_id), (&status.image_ref, &status.image_id));
    Ok(())
}

async fn a_verbose_status_is_what_tools_expect(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;

    let info = main.verbose_status(true).await?.info;
    let json: Value = serde_json::from_str(info.get("info").context("no key `info`")?)?;
    let pid = i32::try_from(json["pid"].as_i64().context("pid")?)?;
    assert!(
        process::read(pid).is_some_and(|one| one.command.contains("sleep")),
        "pid {pid} is the container's init"
    );
    assert_eq!(json["sandboxID"], Value::from(pod.id.clone()));
    assert_eq!(json["config"]["metadata"]["name"], "main");
    assert_eq!(json["runtimeSpec"]["process"]["args"][0], "sh");
    assert!(json["runtimeSpec"]["linux"]["cgroupsPath"].is_string(), "{json:#}");
    assert!(main.verbose_status(false).await?.info.is_empty());

    let info = pod.verbose_status(true).await?.info;
    let json: Value = serde_json::from_str(info.get("info").context("no key `info`")?)?;
    assert!(json["pid"].is_i64(), "{json:#}");
    assert_eq!(json["config"]["metadata"]["name"], "web");
    let has_netns = serde_json::to_string(&json)?.contains(&format!("/netns/hartpod-{}", pod.id));
    assert!(has_netns || std::env::var_os(hartpod_tests::node::DAEMON).is_some(), "{json:#}");
    assert!(pod.verbose_status(false).await?.info.is_empty());
    Ok(())
}

async fn a_container_can_start_only_once(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    main.start().await.refused("starting a running container")?;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    main.stop(Duration::from_secs(5)).await?;
    main.start().await.refused("starting an exited container")?;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerExited);
    Ok(())
}

async fn an_exited_container_keeps_its_exit_code(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (code, reason) in [(0, "Completed"), (1, "Error"), (255, "Error")] {
        let one = pod.container(&format!("code-{code}")).sh(&format!("exit {code}")).run().await?;
        let status = one.exited().await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
    }
    Ok(())
}

async fn a_signal_that_kills_is_128_and_more(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("sleep 1000").run().await?;
    // From outside its pid namespace even init can be killed.
    process::signal(main.pid().await?, nix::sys::signal::Signal::SIGKILL)?;
    assert_eq!(main.exited().await?.exit_code, 137);
    Ok(())
}

async fn stop_is_idempotent(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    main.logged("ready").await?;
    for _ in 0..3 {
        main.stop(Duration::from_secs(5)).await?;
    }
    assert_eq!(main.exited().await?.exit_code, 0);
    for _ in 0..3 {
        pod.stop().await?;
    }
    for _ in 0..3 {
        main.remove().await?;
    }
    for _ in 0..3 {
        pod.remove().await?;
    }
    // Unknown ids: somebody else removed them first.
    pod.stop().await?;
    assert_eq!(main.stop(Duration::ZERO).await.map_err(|status| status.code()), Ok(()));
    Ok(())
}

async fn a_stop_waits_for_the_grace_period(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let deaf = pod.container("deaf").sh("trap '' TERM; while :; do sleep 1; done").run().await?;
    deaf.exec(["true"]).await?;
    let start = Instant::now();
    deaf.stop(Duration::from_secs(1)).await?;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(950), "killed after {took:?}, before its grace period was over");
    assert_eq!(deaf.exited().await?.exit_code, 137);
    Ok(())
}

async fn a_stop_ends_with_the_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let polite = pod
        .container("polite")
        .sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done")
        .run()
        .await?;
    polite.logged("ready").await?;
    let start = Instant::now();
    polite.stop(Duration::from_secs(60)).await?;
    assert!(start.elapsed() < Duration::from_secs(30), "it waited although the container had ended");
    assert_eq!(polite.exited().await?.exit_code, 3);
    Ok(())
}

async fn the_images_stop_signal_is_used(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let image = hartpod_tests::image::busybox()?.with("StopSignal", "SIGUSR1".into()).build()?;
    let reference = lab.push("usr1", "1", &image).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("web").run().await?;
    let script = "trap 'exit 10' USR1; trap 'exit 15' TERM; echo ready; while :; do sleep 0.1; done";
    let main = pod.container("main").image(&reference).sh(script).run().await?;
    main.logged("ready").await?;
    main.stop(Duration::from_secs(60)).await?;
    assert_eq!(main.exited().await?.exit_code, 10);
    Ok(())
}

async fn the_grace_of_one_container_delays_no_other(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let deaf = pod.container("deaf").sh("trap '' TERM; while :; do sleep 1; done").run().await?;
    let other = pod.container("other").idle().run().await?;
    deaf.exec(["true"]).await?;
    let stop = async {
        let start = Instant::now();
        deaf.stop(Duration::from_secs(4)).await?;
        Ok::<_, tonic::Status>(start.elapsed())
    };
    let work = async {
        let start = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(other.exec(["echo", "hi"]).await?.stdout, "hi\n");
        other.reopen_log().await?;
        other.stop(Duration::from_secs(2)).await?;
        other.remove().await?;
        Ok::<_, tonic::Status>(start.elapsed())
    };
    let (stop, work) = tokio::join!(stop, work);
    let (stop, work) = (stop?, work?);
    assert!(work < stop, "exec, reopen, stop and remove took {work:?} while another's stop took {stop:?}");
    Ok(())
}

async fn removing_a_running_container_kills_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("trap '' TERM; while :; do sleep 1; done").run().await?;
    let pid = main.pid().await?;
    main.remove().await?;
    assert!(pod.is_guest() || !process::is_alive(pid), "the container's init outlived it");
    assert!(node.client().containers().await?.is_empty());
    Ok(())
}

async fn a_created_container_can_be_removed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let before = lab.look(&node)?;
    let main = pod.container("main").idle().create().await?;
    main.remove().await?;
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn stopping_a_pod_kills_its_containers(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let polite = pod.container("polite").idle().run().await?;
    let deaf = pod.container("deaf").sh("trap '' TERM; while :; do sleep 1; done").run().await?;
    let created = pod.container("created").idle().create().await?;
    pod.stop().await?;
    for one in [&polite, &deaf] {
        assert_eq!(one.state().await?, cri::ContainerState::ContainerExited);
    }
    assert_ne!(created.state().await?, cri::ContainerState::ContainerRunning);
    polite.exec(["true"]).await.refused("an exec in an exited container")?;
    created.start().await.refused("a start in a stopped pod")?;
    pod.container("late").idle().create().await.refused("a new container in a stopped pod")?;
    Ok(())
}

async fn removing_a_pod_that_runs_removes_all_of_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    pod.container("second").idle().create().await?;
    let (agent, main) = (pod.agent().await?.pid, main.pid().await?);
    pod.remove().await?;
    assert!(!process::is_alive(agent));
    assert!(pod.is_guest() || !process::is_alive(main));
    assert!(node.client().containers().await?.is_empty());
    assert!(node.client().pods().await?.is_empty());
    if let Some(cgroup) = &pod.cgroup {
        cgroup.remove()?;
    }
    Ok(())
}

async fn what_a_container_leaves_running_ends_with_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // In a pid namespace shared by the pod, nothing but the cgroup says what belongs to a container.
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    let other = pod.container("other").idle().run().await?;
    let main = pod
        .container("main")
        .sh("setsid sleep 31337 </dev/null >/dev/null 2>&1 & sleep 0.1; exit 0")
        .run()
        .await?;
    assert_eq!(main.exited().await?.exit_code, 0);
    let left = async || Ok(other.commands().await?.into_iter().filter(|one| one == "sleep 31337").count());
    eventually("the end of what the container left", left, |count| *count == 0).await?;
    Ok(())
}

async fn a_memory_hog_is_reported_as_oom_killed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let hog = pod.container("hog").sh("exec tail /dev/zero").with_resources(|resources| {
        resources.memory_limit_in_bytes = 16 << 20;
        resources.memory_swap_limit_in_bytes = 16 << 20;
    });
    let status = hog.run().await?.exited().await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let expected = "killed for want of memory: its memory limit was reached (cgroup /";
    assert!(status.message.starts_with(expected) && status.message.contains(&status.id), "{status:?}");
    Ok(())
}

async fn a_pods_limit_that_kills_a_container_is_named(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    if pod.is_guest() {
        // The limit of a guest's pod is what it boots with.
        return Ok(());
    }
    let cgroup = pod.cgroup.clone().context("the pod has no cgroup")?;
    cgroup.limit_memory(48 << 20)?;
    let neighbour = pod.container("neighbour").idle().run().await?;
    let status = pod.container("hog").sh("exec tail /dev/zero").run().await?.exited().await?;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    let expected = format!("the memory limit of cgroup {}, which it shares, was reached", cgroup.path());
    assert!(status.message.contains(&expected), "{status:?}");
    assert_eq!(neighbour.state().await?, cri::ContainerState::ContainerRunning);
    Ok(())
}

async fn containers_share_the_pod_one_after_the_other(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for attempt in 0..3 {
        let main = pod.container("main").sh("exit 0").with(|config| {
            config.metadata.get_or_insert_default().attempt = attempt;
        });
        main.run().await?.exited().await?;
    }
    let client: &Client = node.client();
    let mut attempts: Vec<u32> = client
        .containers()
        .await?
        .iter()
        .filter_map(|one| one.metadata.as_ref())
        .map(|data| data.attempt)
        .collect();
    attempts.sort_unstable();
    assert_eq!(attempts, [0, 1, 2]);
    Ok(())
}
