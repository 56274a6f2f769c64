//! Images as volumes. The calls are those of a kubelet that is newer than `k8s-cri`.

use anyhow::{Context, Result, ensure};
use hartpod_proto::cri::v1 as new;
use hartpod_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use hartpod_tests::client::image_spec;
use hartpod_tests::image::ImageBuilder;
use hartpod_tests::layer::{LayerBuilder, Packing};
use hartpod_tests::{Lab, Node, Pod, Refused, cri, eventually, tests, world};
use tonic::{Code, Status};

tests![
    an_image_is_a_read_only_volume,
    a_sub_path_of_an_image_stays_inside,
    an_image_that_is_mounted_stays_until_its_container_has_ended,
    an_image_volume_that_makes_no_sense_is_refused,
];

const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done";

/// Pulls an image of two layers, the upper of which hides and changes what the lower has. Its name and its id.
async fn data(lab: &Lab, node: &Node) -> Result<(String, String)> {
    let lower = LayerBuilder::new()
        .dir("etc", 0o755)?
        .dir("etc/web", 0o755)?
        .file("etc/web/deep", 0o644, b"deep\n")?
        .file("both", 0o644, b"lower\n")?
        .file("gone", 0o644, b"")?
        .symlink("web", "/etc/web")?
        .symlink("out", "../../../../../..")?
        .build(Packing::Gzip)?;
    let upper = LayerBuilder::new().file("both", 0o644, b"upper\n")?.without("gone")?.build(Packing::Gzip)?;
    let built = ImageBuilder::new(vec![lower, upper]).build()?;
    let reference = lab.push("data", "1", &built).await?;
    node.client().pull(&reference).await?;
    Ok((reference, built.id()?))
}

fn volume(image: &str, container_path: &str, image_sub_path: &str) -> new::Mount {
    new::Mount {
        container_path: container_path.into(),
        readonly: true,
        image: Some(new::ImageSpec { image: image.into(), ..Default::default() }),
        image_sub_path: image_sub_path.into(),
        ..Default::default()
    }
}

/// A container that mounts images, and runs until it is stopped.
struct Idle {
    node: Node,
    id: String,
}

impl Idle {
    async fn create(pod: &Pod, name: &str, mounts: Vec<new::Mount>) -> Result<Self, Status> {
        let node = pod.node().clone();
        let config = new::ContainerConfig {
            metadata: Some(new::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(new::ImageSpec { image: node.image().into(), ..Default::default() }),
            command: vec!["sh".into(), "-c".into(), IDLE.into()],
            mounts,
            ..Default::default()
        };
        let pod_sandbox_id = pod.id.clone();
        let request =
            new::CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: None };
        let answer = runtime(&node).create_container(request).await?;
        Ok(Self { node, id: answer.into_inner().container_id })
    }

    async fn run(pod: &Pod, name: &str, mounts: Vec<new::Mount>) -> Result<Self, Status> {
        let idle = Self::create(pod, name, mounts).await?;
        let request = cri::StartContainerRequest { container_id: idle.id.clone() };
        idle.node.client().start_container(request).await?;
        Ok(idle)
    }

    async fn sh(&self, script: &str) -> Result<String> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: vec!["sh".into(), "-c".into(), script.into()],
            timeout: 0,
        };
        let output = self.node.client().exec_sync(request).await?;
        ensure!(output.exit_code == 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    async fn status(&self) -> Result<new::ContainerStatus> {
        let request = new::ContainerStatusRequest { container_id: self.id.clone(), verbose: false };
        let answer = runtime(&self.node).container_status(request).await?;
        answer.into_inner().status.context("no status in the answer")
    }

    async fn stop(&self) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: 60 };
        self.node.client().stop_container(request).await?;
        Ok(())
    }
}

fn runtime(node: &Node) -> RuntimeServiceClient<tonic::transport::Channel> {
    RuntimeServiceClient::new(node.client().channel())
}

async fn an_image_is_a_read_only_volume(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (reference, id) = data(lab, &node).await?;
    let pod = node.pod("web").run().await?;
    // By a name and by its id; and the container's own image, all of whose layers are there already.
    let mounts =
        vec![volume(&reference, "/v/deep/er", ""), volume(&id, "/w", ""), volume(node.image(), "/own", "")];
    let main = Idle::run(&pod, "main", mounts).await?;
    for place in ["/v/deep/er", "/w"] {
        let seen = main.sh(&format!("cd {place}; cat both etc/web/deep; ls")).await?;
        assert_eq!(seen, "upper\ndeep\nboth\netc\nout\nweb\n", "{place}");
    }
    let tried = "for f in /w/new /w/both /w/etc/web/deep /own/etc/passwd /own/new; do (echo x >$f) 2>&1; done; rm /w/both 2>&1 || true";
    let refused = main.sh(tried).await?;
    assert_eq!(refused.matches("Read-only file system").count(), 6, "{refused}");
    // critest wants it so, and containerd has it so: programs in an image volume run.
    assert_eq!(main.sh("/own/bin/busybox echo runs").await?, "runs\n");
    let second = Idle::run(&pod, "second", vec![volume(&reference, "/v", "")]).await?;
    assert_eq!(second.sh("cat /v/both").await?, "upper\n");
    // As it was asked for, and what it turned out to be (KEP-5365).
    let mounts = main.status().await?.mounts;
    assert_eq!(mounts.len(), 3);
    let told = mounts[0].image.clone().context("no image in the mount's status")?;
    assert_eq!((told.image, told.image_ref), (reference, id.clone()));
    assert_eq!(mounts[1].image.clone().context("no image in the mount's status")?.image_ref, id);
    assert!(mounts.iter().all(|mount| mount.readonly && mount.host_path.is_empty()));
    Ok(())
}

async fn a_sub_path_of_an_image_stays_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (reference, _) = data(lab, &node).await?;
    let pod = node.pod("web").run().await?;
    let before = lab.look(&node)?;
    // Links of the image mean what they mean in it.
    for (number, (sub_path, shown)) in
        [("etc/web", "deep"), ("web", "deep"), ("etc/./web/", "deep"), ("out", "both"), ("out/web", "deep")]
            .into_iter()
            .enumerate()
    {
        let mounts = vec![volume(&reference, "/v", sub_path)];
        let main = Idle::run(&pod, &format!("main-{number}"), mounts).await?;
        main.sh(&format!("[ -f /v/{shown} ] && ! [ -e /v/proc ] && ! [ -e /v/bin ]"))
            .await
            .with_context(|| format!("sub path {sub_path}"))?;
        node.client().remove_container(cri::RemoveContainerRequest { container_id: main.id }).await?;
    }
    for sub_path in ["none", "etc/none/x", "both"] {
        let refused = Idle::create(&pod, "main", vec![volume(&reference, "/v", sub_path)]).await;
        let status = refused.map(|main| main.id).refused(&format!("sub path {sub_path}"))?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let clear = status.message().contains("ImageVolumeMountFailed")
            && status.message().contains(&format!("sub path {sub_path:?}"));
        assert!(clear, "{status:?}");
    }
    node.trash_is_empty().await?;
    world::must_return_to(&before, || lab.look(&node)).await
}

async fn an_image_that_is_mounted_stays_until_its_container_has_ended(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (reference, id) = data(lab, &node).await?;
    let pod = node.pod("web").run().await?;
    let main = Idle::run(&pod, "main", vec![volume(&reference, "/v", "")]).await?;
    let remove = || node.client().remove_image(cri::RemoveImageRequest { image: Some(image_spec(&id)) });
    let status = remove().await.refused("the removal of an image that is mounted")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains(&main.id), "{status:?}");
    // The next daemon knows, too.
    node.kill().await?;
    node.start().await?;
    let status = remove().await.refused("the removal by the next daemon")?;
    assert!(status.message().contains(&main.id), "{status:?}");
    assert_eq!(main.sh("cat /v/both").await?, "upper\n");
    let told = main.status().await?.mounts[0].image.clone().context("no image in the mount's status")?;
    assert_eq!(told.image_ref, id);
    main.stop().await?;
    eventually("the image to go", async || Ok(remove().await.is_ok()), |gone| *gone).await?;
    assert_eq!(node.client().image(&reference).await?, None);
    Ok(())
}

async fn an_image_volume_that_makes_no_sense_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (reference, _) = data(lab, &node).await?;
    let pod = node.pod("web").run().await?;
    let before = lab.look(&node)?;
    let good = || volume(&reference, "/v", "");
    for (mount, code, expected) in [
        (volume("registry.test/never:pulled", "/v", ""), Code::NotFound, "config.mounts[0].image"),
        (volume(&reference, "v", ""), Code::InvalidArgument, "config.mounts[0].container_path"),
        (volume(&reference, "/v", "../etc"), Code::InvalidArgument, "config.mounts[0].image_sub_path"),
        (new::Mount { readonly: false, ..good() }, Code::InvalidArgument, "config.mounts[0].readonly"),
        (
            new::Mount { host_path: "/etc".into(), ..good() },
            Code::InvalidArgument,
            "config.mounts[0].host_path",
        ),
        (new::Mount { propagation: 2, ..good() }, Code::InvalidArgument, "config.mounts[0].propagation"),
    ] {
        let refused = Idle::create(&pod, "main", vec![mount]).await;
        let status = refused.map(|main| main.id).refused(expected)?;
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(expected), "{status:?}");
    }
    world::must_return_to(&before, || lab.look(&node)).await
}
