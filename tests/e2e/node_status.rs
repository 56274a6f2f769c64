//! What the node says about itself, and how its daemon starts and ends.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::{Context, Result};
use hartpod_tests::{Lab, cri, process, tests};

tests![
    the_version_is_that_of_cri,
    the_status_tells_conditions_handlers_and_features,
    the_cgroup_driver_is_told,
    a_pod_cidr_is_accepted,
    the_socket_is_roots_alone,
    a_second_daemon_on_the_same_folders_is_refused,
    a_stale_socket_is_replaced,
    an_unknown_configuration_key_stops_the_start,
    an_idle_daemon_is_small,
];

async fn the_version_is_that_of_cri(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let version = node.client().version(cri::VersionRequest { version: "v1".into() }).await?;
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    assert_eq!(version.runtime_name, "hartpod");
    assert_eq!(version.runtime_version, env!("CARGO_PKG_VERSION"));
    Ok(())
}

async fn the_status_tells_conditions_handlers_and_features(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let answer = node.client().status(cri::StatusRequest { verbose: true }).await?;
    let conditions = answer.status.context("no status")?.conditions;
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|one| one.r#type == wanted).with_context(|| wanted)?;
        assert!(condition.status, "{condition:?}");
    }
    let handlers: Vec<&str> = answer.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    assert!(handlers.contains(&""), "the default handler: {handlers:?}");
    assert!(handlers.contains(&"container"), "{handlers:?}");
    assert!(answer.features.is_some_and(|features| features.supplemental_groups_policy));
    assert!(!answer.info.is_empty());
    for handler in &answer.runtime_handlers {
        let pod = node.pod(&format!("h{}", handler.name)).handler(&handler.name).run().await?;
        assert_eq!(pod.status().await?.runtime_handler, handler.name);
    }
    Ok(())
}

async fn the_cgroup_driver_is_told(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let answer = node.client().runtime_config(cri::RuntimeConfigRequest {}).await?;
    assert_eq!(answer.linux.context("no linux")?.cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    Ok(())
}

async fn a_pod_cidr_is_accepted(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    for pod_cidr in ["10.244.7.0/24", "10.244.7.0/24,fd00:7::/64", ""] {
        let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.into() });
        let runtime_config = Some(cri::RuntimeConfig { network_config });
        node.client().update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config }).await?;
    }
    node.client().update_runtime_config(cri::UpdateRuntimeConfigRequest::default()).await?;
    Ok(())
}

async fn the_socket_is_roots_alone(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let socket = std::fs::metadata(node.socket())?;
    assert_eq!((socket.uid(), socket.gid(), socket.permissions().mode() & 0o777), (0, 0, 0o660));
    for folder in [node.root(), node.state()] {
        let mode = std::fs::metadata(&folder)?.permissions().mode() & 0o777;
        assert_eq!(mode & 0o022, 0, "{} can be written by others: {mode:o}", folder.display());
    }
    Ok(())
}

async fn a_second_daemon_on_the_same_folders_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let second = tokio::process::Command::new(hartpod_tests::node::bin_dir().join("hartpod"))
        .arg("serve")
        .arg("--config")
        .arg(node.dir().join("config.toml"))
        .arg("--root")
        .arg(node.root())
        .arg("--state")
        .arg(node.state())
        .arg("--socket")
        .arg(node.dir().join("second.sock"))
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(10), second).await;
    let output = output.context("a second daemon on the same folders goes on")??;
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&node.root().display().to_string()) || said.contains("already"), "{said}");
    assert!(pod.is_ready().await?);
    Ok(())
}

async fn a_stale_socket_is_replaced(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    node.kill().await?;
    assert!(node.socket().exists());
    node.start().await
}

async fn an_unknown_configuration_key_stops_the_start(lab: &Lab) -> Result<()> {
    let builder = lab.node_builder()?.settings("[images]\nno_such_key = 1\n");
    let Err(error) = builder.start().await else { anyhow::bail!("the daemon started with an unknown key") };
    assert!(format!("{error:#}").contains("no_such_key"), "{error:#}");
    Ok(())
}

async fn an_idle_daemon_is_small(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    pod.container("main").idle().run().await?;
    let pss = process::pss_kib(node.daemon_pid()?)?;
    // Not the promise (the bench has it), but a guard against something grossly wrong.
    assert!(pss < 64 << 10, "the daemon weighs {pss} KiB with one pod");
    Ok(())
}
