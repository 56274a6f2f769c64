//! Requests that make no sense: a clear error each, and nothing left behind.

use std::fs;

use anyhow::Result;
use hartpod_tests::{Lab, Pod, Refused, cri, tests, world};
use tonic::Code;

tests![
    a_pod_without_metadata_is_refused,
    an_unknown_handler_is_refused,
    unknown_ids_are_not_found,
    a_container_of_a_pod_that_is_not_there_is_not_found,
    a_container_without_metadata_or_image_is_refused,
    an_image_that_was_not_pulled_is_not_found,
    a_log_path_that_leaves_the_pods_folder_is_refused,
    a_command_that_does_not_exist_fails_at_start,
    a_command_that_is_not_executable_fails_at_start,
    a_working_directory_that_is_a_file_fails,
    a_missing_mount_source_is_told,
    a_mount_on_a_path_that_climbs_stays_inside,
    a_user_that_does_not_exist_is_told,
    a_cgroup_parent_that_climbs_is_refused,
    what_the_node_cannot_give_is_the_requests_fault,
    calls_of_later_versions_are_unimplemented,
];

async fn a_pod_without_metadata_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    let good = node.pod("web").config;
    let client = node.client();
    let none = client.run_pod_sandbox(cri::PodSandboxConfig { metadata: None, ..good.clone() }, "").await;
    assert_eq!(none.refused("a pod without metadata")?.code(), Code::InvalidArgument);
    for key in ["name", "uid", "namespace"] {
        let mut config = good.clone();
        let metadata = config.metadata.get_or_insert_default();
        match key {
            "name" => metadata.name.clear(),
            "uid" => metadata.uid.clear(),
            _ => metadata.namespace.clear(),
        }
        let status = client.run_pod_sandbox(config, "").await.refused(&format!("a pod without {key}"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains(key), "{status:?}");
    }
    let status = node.client().runtime().run_pod_sandbox(cri::RunPodSandboxRequest::default()).await;
    assert_eq!(status.refused("a pod without config")?.code(), Code::InvalidArgument);
    world::must_return_to(&before, || lab.look(&node)).await
}

async fn an_unknown_handler_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    let status = node.pod("web").handler("no-such-handler").run().await.refused("an unknown handler")?;
    assert!(status.message().contains("no-such-handler"), "{status:?}");
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    world::must_return_to(&before, || lab.look(&node)).await
}

async fn unknown_ids_are_not_found(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    for id in ["0".repeat(64), "nobody".into(), String::new(), "../../etc".into(), "é".repeat(40)] {
        let (pod_sandbox_id, container_id) = (id.clone(), id.clone());
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id.clone() };
        if !id.is_empty() {
            client.stop_pod_sandbox(stop).await?;
            client.remove_pod_sandbox(remove).await?;
            client.stop_container(cri::StopContainerRequest { container_id: id.clone(), timeout: 0 }).await?;
            client.remove_container(cri::RemoveContainerRequest { container_id: id.clone() }).await?;
        }
        let mut codes = Vec::new();
        let status =
            client.pod_sandbox_status(cri::PodSandboxStatusRequest { pod_sandbox_id, verbose: false }).await;
        codes.push(status.refused("the status of an unknown pod")?);
        let request = cri::ContainerStatusRequest { container_id, verbose: true };
        codes.push(client.container_status(request).await.refused("the status of an unknown container")?);
        let request = cri::StartContainerRequest { container_id: id.clone() };
        codes.push(client.start_container(request).await.refused("the start of an unknown container")?);
        let request = cri::ExecSyncRequest { container_id: id.clone(), cmd: vec!["true".into()], timeout: 0 };
        codes.push(client.exec_sync(request).await.refused("an exec in an unknown container")?);
        let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
        codes.push(client.reopen_container_log(request).await.refused("the log of an unknown container")?);
        for status in codes {
            let clear =
                status.code() == Code::NotFound || (id.is_empty() && status.code() == Code::InvalidArgument);
            assert!(clear, "{id:?}: {status:?}");
        }
    }
    Ok(())
}

async fn a_container_of_a_pod_that_is_not_there_is_not_found(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    pod.stop().await?;
    pod.remove().await?;
    let status = pod.container("main").idle().create().await.refused("a container of a removed pod")?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    Ok(())
}

/// Asks for a container that must be refused at once; the node must look as before.
async fn refused_create(
    lab: &Lab,
    pod: &Pod,
    builder: hartpod_tests::ContainerBuilder,
    what: &str,
) -> Result<tonic::Status> {
    let before = lab.look(pod.node())?;
    let status = builder.create().await.refused(what)?;
    assert!(pod.node().client().containers().await?.is_empty(), "{what} left a container");
    world::must_return_to(&before, || lab.look(pod.node())).await?;
    Ok(status)
}

/// Asks for a container that cannot run: CreateContainer or StartContainer says so, and once it is removed nothing is left.
async fn refused_run(
    lab: &Lab,
    pod: &Pod,
    builder: hartpod_tests::ContainerBuilder,
    what: &str,
) -> Result<tonic::Status> {
    let before = lab.look(pod.node())?;
    let status = match builder.create().await {
        Err(status) => status,
        Ok(container) => {
            let status = container.start().await.refused(what)?;
            // Not created any more: the kubelet would try to start it again.
            let after = container.status().await?;
            assert_eq!(after.state(), cri::ContainerState::ContainerExited, "{what}: {after:#?}");
            assert_ne!(after.exit_code, 0, "{what}: {after:#?}");
            container.remove().await?;
            status
        }
    };
    assert!(pod.node().client().containers().await?.is_empty(), "{what} left a container");
    world::must_return_to(&before, || lab.look(pod.node())).await?;
    assert!(pod.is_ready().await?, "{what} broke the pod");
    Ok(status)
}

async fn a_container_without_metadata_or_image_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let no_metadata = pod.container("main").idle().with(|config| config.metadata = None);
    let status = refused_create(lab, &pod, no_metadata, "a container without metadata").await?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let no_name = pod.container("").idle();
    let status = refused_create(lab, &pod, no_name, "a container without a name").await?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let no_image = pod.container("main").idle().with(|config| config.image = None);
    let status = refused_create(lab, &pod, no_image, "a container without an image").await?;
    assert!([Code::InvalidArgument, Code::NotFound].contains(&status.code()), "{status:?}");
    let request = cri::CreateContainerRequest { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let status = node.client().create_container(request).await.refused("a container without a config")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    Ok(())
}

async fn an_image_that_was_not_pulled_is_not_found(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").image("registry.test/never-pulled:1").idle();
    let status = refused_create(lab, &pod, builder, "a container of an image that is not here").await?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    assert!(status.message().contains("never-pulled"), "{status:?}");
    Ok(())
}

async fn a_log_path_that_leaves_the_pods_folder_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let outside = lab.dir().join("outside.log").display().to_string();
    for path in
        ["../escape.log", "a/../../escape.log", "..", "/etc/escape.log", &outside, "a/b/../../../escape.log"]
    {
        let builder = pod.container("main").sh("echo x").with(|config| config.log_path = path.into());
        let status = refused_create(lab, &pod, builder, "a log path that climbs").await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{path}: {status:?}");
        assert!(status.message().contains("log"), "{path}: {status:?}");
    }
    // By way of a link that somebody put into the folder.
    std::os::unix::fs::symlink(lab.dir(), pod.log_directory().join("link"))?;
    let builder =
        pod.container("main").sh("echo x").with(|config| config.log_path = "link/outside.log".into());
    if let Ok(container) = builder.run().await {
        container.exited().await?;
    }
    assert!(
        !lab.dir().join("outside.log").exists(),
        "the log was written through a link out of the pod's folder"
    );
    Ok(())
}

async fn a_command_that_does_not_exist_fails_at_start(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").command(["foo"]);
    let status = refused_run(lab, &pod, builder, "a command that is not in PATH").await?;
    assert!(status.message().contains(r#"exec "foo": no such file in $PATH"#), "{status:?}");
    let builder = pod.container("main").command(["/bin/foo"]);
    let status = refused_run(lab, &pod, builder, "a command that is not there").await?;
    assert!(status.message().contains("/bin/foo"), "{status:?}");
    Ok(())
}

async fn a_command_that_is_not_executable_fails_at_start(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").command(["/etc/not-executable"]);
    let status = refused_run(lab, &pod, builder, "a plain file as command").await?;
    assert!(status.message().to_lowercase().contains("permission denied"), "{status:?}");
    let builder = pod.container("main").command(["/etc"]);
    refused_run(lab, &pod, builder, "a folder as command").await?;
    Ok(())
}

async fn a_working_directory_that_is_a_file_fails(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod.container("main").idle().with(|config| config.working_dir = "/etc/passwd".into());
    let status = refused_run(lab, &pod, builder, "a file as working directory").await?;
    assert!(status.message().contains("/etc/passwd"), "{status:?}");
    Ok(())
}

async fn a_missing_mount_source_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let source = lab.dir().join("no/such/source");
    let builder = pod.container("main").idle().mount(&source, "/data");
    let status = refused_run(lab, &pod, builder, "a mount without a source").await?;
    assert!(status.message().contains(&source.display().to_string()), "{status:?}");
    assert!(!source.exists(), "the source was made");
    Ok(())
}

async fn a_mount_on_a_path_that_climbs_stays_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let source = lab.dir().join("source");
    std::fs::create_dir(&source)?;
    std::fs::write(source.join("file"), "x")?;
    let outside = lab.dir().join("outside");
    for target in
        ["/../../../../data".to_owned(), format!("/..{}", outside.display()), "relative/data".to_owned()]
    {
        let builder = pod.container("main").idle().mount(&source, &target);
        if let Ok(container) = builder.run().await {
            container.remove().await?;
        }
        assert!(
            !outside.exists() && !std::path::Path::new("/data").exists(),
            "{target} was made on the node"
        );
    }
    Ok(())
}

async fn a_user_that_does_not_exist_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let builder = pod
        .container("main")
        .idle()
        .with_security(|security| security.run_as_username = "nobody-here".into());
    let status = refused_run(lab, &pod, builder, "a user that the image does not have").await?;
    assert!(status.message().contains("nobody-here"), "{status:?}");
    // A group without a user makes no sense (CRI says so).
    let builder = pod.container("main").idle().with_security(|security| {
        security.run_as_group = Some(cri::Int64Value { value: 1000 });
    });
    let status = refused_run(lab, &pod, builder, "a group without a user").await?;
    assert!(status.message().contains("group"), "{status:?}");
    Ok(())
}

async fn a_cgroup_parent_that_climbs_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for parent in ["/../escape", "../escape", "/a/../../escape"] {
        let pod =
            node.pod("web").with(|config| config.linux.get_or_insert_default().cgroup_parent = parent.into());
        let status = pod.run().await.refused("a cgroup parent that climbs")?;
        assert!(status.message().contains("cgroup"), "{status:?}");
    }
    assert!(node.client().pods().await?.is_empty());
    Ok(())
}

async fn what_the_node_cannot_give_is_the_requests_fault(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let before = lab.look(&node)?;
    let cpus = pod.container("main").idle().with_resources(|r| r.cpuset_cpus = "0-999".into());
    let status = cpus.create().await.refused("CPUs that the node does not have")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let file = lab.dir().join("file");
    fs::write(&file, "")?;
    // By hand: the kit makes the folder.
    let logs = cri::PodSandboxConfig { log_directory: file.display().to_string(), ..node.pod("logs").config };
    let status = node.client().run_pod_sandbox(logs, "").await.refused("a file for a folder")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = node.pod("ports").port(18083, 80).port(18083, 81).run().await.refused("one port for two")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let long = |c: &mut cri::PodSandboxConfig| {
        let sysctls = &mut c.linux.get_or_insert_default().sysctls;
        sysctls.insert("net.ipv4.ip_local_port_range".into(), "7".repeat(5000));
    };
    let status = node.pod("sysctl").with(long).run().await.refused("a port range of 5000 digits")?;
    assert!(status.message().contains("ip_local_port_range") && status.message().len() < 500, "{status:?}");
    world::must_return_to(&before, || lab.look(&node)).await
}

async fn calls_of_later_versions_are_unimplemented(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut runtime = node.client().runtime();
    let statuses = [runtime
        .checkpoint_container(cri::CheckpointContainerRequest::default())
        .await
        .refused("CheckpointContainer")?];
    for status in statuses {
        assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
        assert!(status.message().len() > 4, "which one: {status:?}");
    }
    Ok(())
}
