//! Fields that change nothing, or nothing but what is told: by status calls, by lists, after a restart; and old names of others. Some are
//! newer than `k8s-cri`.

use anyhow::{Context, Result, ensure};
use hartpod_proto::cri::v1 as new;
use hartpod_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use hartpod_tests::{Lab, cri, tests};
use serde_json::{Value, json};

tests![
    a_pods_own_security_is_told_and_changes_nothing,
    an_image_is_told_as_it_was_asked_for,
    an_image_has_one_id_everywhere,
    labels_and_annotations_outlive_the_daemon,
    what_is_for_windows_is_ignored,
    what_an_update_says_to_others_is_ignored,
    a_seccomp_profile_may_have_its_old_name,
];

/// The value at a path of keys.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, key| &value[key])
}

/// A pod's security context is that of a process that it does not have; the kubelet says all of it again for each container.
async fn a_pods_own_security_is_told_and_changes_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let profile = |file: &str| {
        Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: file.into(),
        })
    };
    let pod = node.pod("web").with(|config| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.run_as_group = Some(cri::Int64Value { value: 1001 });
        security.readonly_rootfs = true;
        security.supplemental_groups = vec![1002];
        security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
        security.seccomp = profile("/no/such/profile.json");
        security.apparmor = profile("no-such-profile");
        #[allow(deprecated)]
        {
            security.seccomp_profile_path = "localhost/no/such/file".into();
        }
    });
    let pod = pod.run().await?;
    let info = pod.info().await?;
    let told = at(&info, "config.linux.security_context");
    for (field, wanted) in [
        ("run_as_user.value", json!(1000)),
        ("run_as_group.value", json!(1001)),
        ("readonly_rootfs", json!(true)),
        ("supplemental_groups", json!([1002])),
        ("supplemental_groups_policy", json!(cri::SupplementalGroupsPolicy::Strict as i32)),
        ("seccomp.localhost_ref", json!("/no/such/profile.json")),
        ("apparmor.localhost_ref", json!("no-such-profile")),
        ("seccomp_profile_path", json!("localhost/no/such/file")),
    ] {
        assert_eq!(at(told, field), &wanted, "{field} of {told:#}");
    }
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("id -u; id -g; touch /written && echo written").await?, "0\n0\nwritten\n");
    ensure!(!main.sh("grep ^Groups: /proc/self/status").await?.contains("1002"));
    Ok(())
}

async fn an_image_is_told_as_it_was_asked_for(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let id = node.client().image(node.image()).await?.context("the image is gone")?.id;
    let pod = node.pod("web").run().await?;
    // The kubelet asks by id, and says what the user wrote.
    let spec = new::ImageSpec {
        image: id.clone(),
        annotations: [("example.org/why".to_owned(), "to see".to_owned())].into(),
        user_specified_image: "busybox:as-written".into(),
        runtime_handler: "some-handler".into(),
        image_ref: "some.registry/ref@sha256:0".into(),
    };
    let config = new::ContainerConfig {
        metadata: Some(new::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(spec.clone()),
        command: vec!["sleep".into(), "60".into()],
        ..Default::default()
    };
    let pod_sandbox_id = pod.id.clone();
    let request = new::CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None };
    let mut runtime = RuntimeServiceClient::new(node.client().channel());
    let container_id = runtime.create_container(request).await?.into_inner().container_id;
    node.client().start_container(cri::StartContainerRequest { container_id: container_id.clone() }).await?;
    let asked = new::ContainerStatusRequest { container_id, verbose: true };
    let asked = runtime.container_status(asked).await?.into_inner();
    let info: Value = serde_json::from_str(asked.info.get("info").context("no info")?)?;
    let wanted = json!({
        "image": id, "annotations": { "example.org/why": "to see" }, "user_specified_image": "busybox:as-written",
        "runtime_handler": "some-handler", "image_ref": "some.registry/ref@sha256:0",
    });
    assert_eq!(at(&info, "config.image"), &wanted);
    let status = asked.status.context("no status")?;
    let answered = status.image.context("no image")?;
    assert_eq!((answered.image.as_str(), &answered.annotations), ("busybox:as-written", &spec.annotations));
    assert_eq!(answered.user_specified_image, "busybox:as-written");
    let listed = node.client().containers().await?;
    let image = listed.first().and_then(|one| one.image.clone()).context("no image in the list")?;
    assert_eq!((image.image.as_str(), listed.len()), ("busybox:as-written", 1));
    Ok(())
}

async fn an_image_has_one_id_everywhere(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    let pulled = client.pull(node.image()).await?;
    let image = client.image(node.image()).await?.context("the image is gone")?;
    let pod = node.pod("web").run().await?;
    // By name, by id, and by digest.
    let digest = image.repo_digests.first().context("no digest")?;
    for (number, reference) in [node.image(), &image.id, digest].into_iter().enumerate() {
        pod.container(&format!("by-{number}")).image(reference).idle().run().await?;
    }
    let images = client.list_images(cri::ListImagesRequest::default()).await?.images;
    assert_eq!(images.iter().map(|image| &image.id).collect::<Vec<_>>(), [&image.id]);
    assert_eq!(pulled, image.id);
    let check = async || -> Result<()> {
        let listed = client.containers().await?;
        assert_eq!(listed.len(), 3);
        for one in listed {
            let asked = cri::ContainerStatusRequest { container_id: one.id.clone(), verbose: false };
            let status = client.container_status(asked).await?.status.context("no status")?;
            assert_eq!((&one.image_id, &status.image_id), (&image.id, &image.id));
            assert_eq!(one.image_ref, status.image_ref);
            // What the kubelet's image collection takes for "in use" is found by either.
            let found = client.image(&status.image_ref).await?.context("no image by image_ref")?;
            assert_eq!(found.id, image.id);
        }
        Ok(())
    };
    check().await?;
    node.crash().await?;
    check().await
}

async fn labels_and_annotations_outlive_the_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let odd = ["io.kubernetes.container.hash", "example.org/json", "empty"];
    let values = ["5e3f", "{\"a\": [1, \"ü\\n\"]}\n", ""];
    let pairs: Vec<(String, String)> =
        odd.iter().zip(values).map(|(key, value)| ((*key).to_owned(), value.to_owned())).collect();
    let pod = node.pod("web").with(|config| {
        config.annotations.extend(pairs.clone());
        config.labels.extend(pairs.clone());
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().with(|config| {
        config.annotations.extend(pairs.clone());
        config.labels.extend(pairs.clone());
    });
    let main = main.run().await?;
    node.crash().await?;
    let (of_pod, of_main) = (pod.status().await?, main.status().await?);
    assert_eq!((&of_pod.labels, &of_pod.annotations), (&pod.config.labels, &pod.config.annotations));
    assert_eq!((&of_main.labels, &of_main.annotations), (&main.config.labels, &main.config.annotations));
    let listed = node.client().containers().await?;
    assert_eq!(listed.first().map(|one| &one.annotations), Some(&main.config.annotations));
    let listed = node.client().pods().await?;
    assert_eq!(listed.first().map(|one| &one.annotations), Some(&pod.config.annotations));
    Ok(())
}

async fn what_is_for_windows_is_ignored(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").with(|config| {
        let security_context = Some(cri::WindowsSandboxSecurityContext {
            run_as_username: "ContainerAdministrator".into(),
            host_process: true,
            ..Default::default()
        });
        config.windows = Some(cri::WindowsPodSandboxConfig { security_context });
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().with(|config| {
        let resources = Some(cri::WindowsContainerResources { cpu_maximum: 1, ..Default::default() });
        let security_context = Some(cri::WindowsContainerSecurityContext {
            run_as_username: "ContainerUser".into(),
            ..Default::default()
        });
        config.windows = Some(cri::WindowsContainerConfig { resources, security_context });
    });
    let main = main.run().await?;
    assert_eq!(main.sh("id -u").await?, "0\n");
    let resources = main.status().await?.resources;
    ensure!(resources.is_none_or(|resources| resources.windows.is_none()));
    Ok(())
}

async fn what_an_update_says_to_others_is_ignored(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main =
        pod.container("main").idle().with_resources(|resources| resources.cpu_shares = 512).run().await?;
    let before = main.status().await?;
    let update = cri::UpdateContainerResourcesRequest {
        container_id: main.id.clone(),
        linux: None,
        windows: Some(cri::WindowsContainerResources { cpu_maximum: 1, ..Default::default() }),
        annotations: [("example.org/plugin".to_owned(), "do".to_owned())].into(),
    };
    node.client().runtime().update_container_resources(update).await?;
    let after = main.status().await?;
    assert_eq!((&after.resources, &after.annotations), (&before.resources, &before.annotations));
    Ok(())
}

async fn a_seccomp_profile_may_have_its_old_name(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let profile = lab.dir().join("profile.json");
    let no_folders = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    std::fs::write(&profile, no_folders.to_string())?;
    let localhost = format!("localhost/{}", profile.display());
    let unconfined = Some(cri::SecurityProfile {
        profile_type: cri::security_profile::ProfileType::Unconfined.into(),
        ..Default::default()
    });
    let seen = "grep Seccomp: /proc/self/status | cut -f2; unshare -U true 2>/dev/null && echo free; mkdir /made 2>/dev/null && echo made";
    for (number, (name, newer, wanted)) in [
        ("unconfined", None, "0\nfree\nmade\n"),
        ("runtime/default", None, "2\nmade\n"),
        (&localhost, None, "2\nfree\n"),
        // The newer field counts.
        (&localhost, unconfined, "0\nfree\nmade\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let main = pod.container(&format!("main-{number}")).idle().with_security(|security| {
            security.seccomp = newer;
            #[allow(deprecated)]
            {
                security.seccomp_profile_path = name.to_owned();
            }
        });
        let main = main.run().await?;
        assert_eq!(main.exec(["sh", "-c", seen]).await?.stdout, wanted, "{name}");
    }
    Ok(())
}
