//! How containers end, and begin again: exit codes, stop signals (newer than `k8s-cri`), start errors, races, restarts in the same pod.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_proto::cri::v1 as new;
use hartpod_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use hartpod_tests::{Lab, Pod, Refused, cri, emulated, eventually, tests};

tests![
    a_start_error_is_in_the_status,
    a_container_that_a_signal_kills_has_its_number_and_128,
    the_requests_stop_signal_comes_before_the_images,
    a_container_is_restarted_in_its_pod,
    a_stop_that_races_an_exit_succeeds,
];

async fn a_start_error_is_in_the_status(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (name, command, words) in [
        ("missing", "/no/such/program", "/no/such/program"),
        ("not-executable", "/etc/passwd", "/etc/passwd"),
    ] {
        let Ok(main) = pod.container(name).command([command]).create().await else {
            anyhow::bail!("{command} is found out at the start, as with any other runtime")
        };
        let refused = main.start().await.refused(command)?;
        ensure!(refused.message().contains(words), "{refused:?}");
        let check = async || -> Result<cri::ContainerStatus> {
            let status = main.status().await?;
            assert_eq!(status.state(), cri::ContainerState::ContainerExited, "{status:#?}");
            // What the kubelet makes the pod's status of: the same in containerd.
            assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{status:#?}");
            ensure!(status.message.contains(words), "{status:#?}");
            ensure!(status.finished_at >= status.created_at, "{status:#?}");
            Ok(status)
        };
        let before = check().await?;
        node.crash().await?;
        assert_eq!(check().await?, before);
        main.start().await.refused("a second start")?;
        main.stop(Duration::from_secs(1)).await?;
        main.remove().await?;
    }
    // The pod is as good as before.
    pod.container("main").idle().run().await?;
    Ok(())
}

async fn a_container_that_a_signal_kills_has_its_number_and_128(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // Init of a pid namespace ignores its own signals; in a shared one a container has no such init.
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    for (signal, code) in [("KILL", 137), ("TERM", 143), ("SEGV", 139), ("HUP", 129)] {
        let main = pod.container(&signal.to_lowercase()).sh(&format!("kill -{signal} $$; sleep 60"));
        let status = main.run().await?.exited().await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "Error"), "{signal}: {status:#?}");
    }
    Ok(())
}

async fn the_requests_stop_signal_comes_before_the_images(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let image = hartpod_tests::image::busybox()?.with("StopSignal", "SIGUSR1".into()).build()?;
    let reference = lab.push("usr1", "1", &image).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("web").run().await?;
    for (name, asked, told, code) in [
        ("images", new::Signal::RuntimeDefault, new::Signal::Sigusr1, 10),
        ("asked", new::Signal::Sigusr2, new::Signal::Sigusr2, 12),
        // What systemd takes for "power off".
        ("real-time", new::Signal::Sigrtminplus3, new::Signal::Sigrtminplus3, 37),
    ] {
        let request = stopped_by(&pod, name, &reference, asked.into());
        let mut runtime = RuntimeServiceClient::new(node.client().channel());
        let container_id = runtime.create_container(request).await?.into_inner().container_id;
        node.client()
            .start_container(cri::StartContainerRequest { container_id: container_id.clone() })
            .await?;
        let log = pod.log_directory().join(name);
        let said = async || Ok(std::fs::read_to_string(&log).unwrap_or_default());
        eventually("the traps to be set", said, |text| text.contains("ready")).await?;
        let stop = cri::StopContainerRequest { container_id: container_id.clone(), timeout: 60 };
        node.client().stop_container(stop).await?;
        let request = new::ContainerStatusRequest { container_id, verbose: false };
        let status = runtime.container_status(request).await?.into_inner().status.context("no status")?;
        assert_eq!((status.stop_signal(), status.exit_code), (told, code), "{name}: {status:#?}");
    }
    let request = stopped_by(&pod, "unknown", &reference, 999);
    let refused = RuntimeServiceClient::new(node.client().channel()).create_container(request).await;
    let refused = refused.refused("a signal that is none")?;
    ensure!(refused.message().contains("config.stop_signal"), "{refused:?}");
    Ok(())
}

/// A container that says by its exit code which signal stopped it.
fn stopped_by(pod: &Pod, name: &str, image: &str, stop_signal: i32) -> new::CreateContainerRequest {
    let script = "trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 15' TERM; trap 'exit 37' 37; \
                  echo ready; while :; do sleep 0.1; done";
    let config = new::ContainerConfig {
        metadata: Some(new::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(new::ImageSpec { image: image.into(), ..Default::default() }),
        command: ["sh", "-c", script].map(str::to_owned).into(),
        log_path: name.into(),
        stop_signal,
        ..Default::default()
    };
    new::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), config: Some(config), sandbox_config: None }
}

async fn a_container_is_restarted_in_its_pod(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let address = pod.ip().await?;
    let attempt = |number: u32| {
        let script = "echo $(cat /dev/shm/kept 2>/dev/null) $(cat /own 2>/dev/null) end; \
                      echo shared >/dev/shm/kept; echo own >/own; exit 3";
        pod.container("main").sh(script).with(move |config| {
            config.metadata.get_or_insert_default().attempt = number;
            config.log_path = format!("main/{number}.log");
        })
    };
    let first = attempt(0).run().await?;
    assert_eq!(first.exited().await?.exit_code, 3);
    // As the kubelet does: the next attempt while the last one is still there for its logs.
    let second = attempt(1).run().await?;
    assert_eq!(second.exited().await?.exit_code, 3);
    ensure!(first.id != second.id);
    let said = |container: &hartpod_tests::Container| -> Result<String> {
        Ok(container.log()?.iter().map(|line| line.text.clone()).collect())
    };
    // What is the pod's is kept, what was the container's is not; each has a log of its own.
    assert_eq!((said(&first)?, said(&second)?), ("end".to_owned(), "shared end".to_owned()));
    first.remove().await?;
    let third = attempt(2).run().await?;
    assert_eq!(third.exited().await?.exit_code, 3);
    let attempts: Vec<_> =
        node.client().containers().await?.into_iter().filter_map(|one| one.metadata).collect();
    assert_eq!(attempts.iter().map(|metadata| metadata.attempt).collect::<Vec<_>>(), [1, 2]);
    // The name of an attempt is taken for as long as the container is there.
    attempt(1).create().await.refused("an attempt that was made before")?;
    assert_eq!(pod.ip().await?, address);
    ensure!(pod.is_ready().await?);
    Ok(())
}

async fn a_stop_that_races_an_exit_succeeds(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let rounds = if emulated() { 6 } else { 50 };
    for round in 0..rounds {
        // Each ends a little later: before, during and after the stop.
        let script = format!("trap 'exit 9' TERM; usleep {}; exit 7", round * 400);
        let main = pod.container("main").sh(&script).with(|config| {
            config.metadata.get_or_insert_default().attempt = round;
        });
        let main = main.run().await?;
        let (one, other) =
            tokio::join!(main.stop(Duration::from_secs(60)), main.stop(Duration::from_secs(30)));
        one.and(other).with_context(|| format!("round {round}"))?;
        let status = main.status().await?;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited, "round {round}: {status:#?}");
        // Before it has set its trap, TERM is ignored, for it is init.
        ensure!([7, 9].contains(&status.exit_code), "round {round}: {status:#?}");
        ensure!(
            status.finished_at >= status.started_at && status.started_at > 0,
            "round {round}: {status:#?}"
        );
        main.remove().await?;
    }
    assert_eq!(node.client().containers().await?.len(), 0);
    Ok(())
}
