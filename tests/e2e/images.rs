//! Images: pulling, naming, listing, removing, and what a container gets of them.

use anyhow::{Context, Result};
use hartpod_tests::image::{self, Image, ImageBuilder};
use hartpod_tests::layer::{Attributes, LayerBuilder, Packing};
use hartpod_tests::{Lab, cri, process, registry, tests};

tests![
    a_pulled_image_is_listed_with_its_names,
    pulling_again_changes_nothing,
    an_image_is_found_by_every_name,
    a_digest_names_exactly_one_image,
    a_tag_that_moves_leaves_the_old_image_unnamed,
    removing_an_image_removes_all_its_names,
    an_image_in_use_can_be_removed_and_pulled_again,
    images_share_layers_and_removing_one_keeps_them,
    a_loopback_registry_needs_no_hosts_file,
    whiteouts_and_links_are_what_a_container_sees,
    owners_and_modes_of_files_are_kept,
    entrypoint_command_env_and_folder_come_from_the_image,
    writes_of_one_container_are_not_seen_by_another,
    image_usage_is_reported,
    an_image_survives_a_restart_of_the_daemon,
    twenty_pulls_at_once_are_one_image,
];

fn tiny(name: &str) -> Result<Image> {
    let layer = LayerBuilder::new().file(name, 0o644, name.as_bytes())?.build(Packing::Gzip)?;
    ImageBuilder::new(vec![layer]).build()
}

async fn a_pulled_image_is_listed_with_its_names(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let built = tiny("a")?;
    let reference = lab.push("tiny", "1", &built).await?;
    let pulled = node.client().pull(&reference).await?;
    let by_digest = format!("{}/tiny@{}", registry::NAME, built.digest());
    assert!([built.id()?, by_digest.clone()].contains(&pulled), "{pulled}");
    let image = node.client().image(&reference).await?.context("the pulled image is not known")?;
    assert_eq!(image.id, built.id()?);
    assert_eq!(image.repo_tags, [reference]);
    assert_eq!(image.repo_digests, [by_digest]);
    assert!(image.size > 0);
    assert!(!image.pinned);
    let listed = node.client().list_images(cri::ListImagesRequest::default()).await?.images;
    assert_eq!(listed.iter().filter(|one| **one == image).count(), 1, "{listed:#?}");
    assert_eq!(node.client().image("registry.test/never:pulled").await?, None, "unknown is no error");
    Ok(())
}

async fn pulling_again_changes_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    let images = node.client().list_images(cri::ListImagesRequest::default()).await?;
    let first = node.client().pull(node.image()).await?;
    assert_eq!(node.client().pull(node.image()).await?, first);
    assert_eq!(node.client().list_images(cri::ListImagesRequest::default()).await?, images);
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn an_image_is_found_by_every_name(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let built = tiny("a")?;
    let reference = lab.push("tiny", "latest", &built).await?;
    node.client().pull(&reference).await?;
    let by_digest = format!("{}/tiny@{}", registry::NAME, built.digest());
    let id = built.id()?;
    let short = id.trim_start_matches("sha256:").to_owned();
    let bare = format!("{}/tiny", registry::NAME);
    for name in [&reference, &by_digest, &id, &short, &bare] {
        let image = node.client().image(name).await?;
        assert_eq!(image.map(|image| image.id), Some(id.clone()), "by {name}");
    }
    let filter = |name: &str| cri::ListImagesRequest {
        filter: Some(cri::ImageFilter { image: Some(hartpod_tests::client::image_spec(name)) }),
    };
    let found = node.client().list_images(filter(&reference)).await?.images;
    assert_eq!(found.iter().map(|image| &image.id).collect::<Vec<_>>(), [&id]);
    assert!(node.client().list_images(filter("registry.test/other:1")).await?.images.is_empty());
    Ok(())
}

async fn a_digest_names_exactly_one_image(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (old, new) = (tiny("old")?, tiny("new")?);
    lab.push("moving", "1", &old).await?;
    lab.push("moving", "1", &new).await?;
    let by_digest = format!("{}/moving@{}", registry::NAME, old.digest());
    node.client().pull(&by_digest).await?;
    let image = node.client().image(&by_digest).await?.context("not known by its digest")?;
    assert_eq!(image.id, old.id()?);
    assert!(image.repo_tags.is_empty(), "{:?}", image.repo_tags);
    // With both, the digest decides.
    let both = format!("{}/moving:1@{}", registry::NAME, old.digest());
    node.client().pull(&both).await?;
    let image = node.client().image(&by_digest).await?.context("not known by its digest")?;
    assert_eq!(image.id, old.id()?);
    Ok(())
}

async fn a_tag_that_moves_leaves_the_old_image_unnamed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (old, new) = (tiny("old")?, tiny("new")?);
    let reference = lab.push("moving", "1", &old).await?;
    node.client().pull(&reference).await?;
    lab.push("moving", "1", &new).await?;
    node.client().pull(&reference).await?;
    let image = node.client().image(&reference).await?.context("not known")?;
    assert_eq!(image.id, new.id()?);
    let left = node.client().image(&old.id()?).await?.context("the old image is gone")?;
    assert!(left.repo_tags.is_empty(), "{:?}", left.repo_tags);
    Ok(())
}

async fn removing_an_image_removes_all_its_names(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    let built = tiny("a")?;
    let one = lab.push("tiny", "1", &built).await?;
    let two = lab.push("tiny", "2", &built).await?;
    node.client().pull(&one).await?;
    node.client().pull(&two).await?;
    let mut names = node.client().image(&one).await?.context("not known")?.repo_tags;
    names.sort();
    assert_eq!(names, [one.clone(), two.clone()]);
    let remove =
        |name: &str| cri::RemoveImageRequest { image: Some(hartpod_tests::client::image_spec(name)) };
    node.client().remove_image(remove(&built.id()?)).await?;
    assert_eq!(node.client().image(&one).await?, None);
    assert_eq!(node.client().image(&two).await?, None);
    node.client().remove_image(remove(&one)).await?;
    // Its layers, too.
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn an_image_in_use_can_be_removed_and_pulled_again(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let remove = cri::RemoveImageRequest { image: Some(hartpod_tests::client::image_spec(node.image())) };
    // Refusing is right, too: then the image is still there.
    if node.client().remove_image(remove).await.is_ok() {
        node.client().pull(node.image()).await?;
    }
    assert_eq!(main.sh("cat /opt/hidden/above; ls -d /home/app").await?, "seen\n/home/app\n");
    let second = pod.container("second").idle().run().await?;
    assert_eq!(second.sh("cat /opt/hidden/above").await?, "seen\n");
    Ok(())
}

async fn images_share_layers_and_removing_one_keeps_them(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let extra = LayerBuilder::new().file("extra", 0o644, b"extra\n")?.build(Packing::Gzip)?;
    let bigger = image::busybox()?.layer(extra).build()?;
    let reference = lab.push("bigger", "1", &bigger).await?;
    let layers = |world: hartpod_tests::world::World| {
        world.list("file").into_iter().filter(|path| path.contains("/layers/")).count()
    };
    let before = layers(lab.look(&node)?);
    node.client().pull(&reference).await?;
    assert_eq!(layers(lab.look(&node)?), before + 1, "only the layer that was not there is new");
    let remove = cri::RemoveImageRequest { image: Some(hartpod_tests::client::image_spec(&reference)) };
    node.client().remove_image(remove).await?;
    assert_eq!(layers(lab.look(&node)?), before, "the shared layers stay, the other goes");
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("cat /opt/hidden/above").await?, "seen\n");
    Ok(())
}

async fn a_loopback_registry_needs_no_hosts_file(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    lab.push("tiny", "1", &tiny("a")?).await?;
    let reference = format!("{}/tiny:1", registry::ADDRESS);
    node.client().pull(&reference).await?;
    assert!(node.client().image(&reference).await?.is_some());
    Ok(())
}

async fn whiteouts_and_links_are_what_a_container_sees(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("ls /etc/gone /opt/hidden 2>/dev/null || true").await?, "/opt/hidden:\nabove\n");
    assert_eq!(main.sh("find / -xdev -name '.wh.*'").await?, "");
    assert_eq!(
        main.sh("readlink /etc/absolute; readlink /etc/upwards").await?,
        "/etc/passwd\n../../../../etc/passwd\n"
    );
    assert_eq!(
        main.sh("head -n 1 /etc/absolute; head -n 1 /etc/upwards").await?,
        "root:x:0:0:root:/root:/bin/sh\n".repeat(2)
    );
    // Hard links of the layer are hard links.
    assert_eq!(main.sh("[ /bin/sh -ef /bin/busybox ] && echo same").await?, "same\n");
    Ok(())
}

async fn owners_and_modes_of_files_are_kept(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let layer = LayerBuilder::new()
        .owned_file("suid", Attributes { mode: 0o4755, uid: 12, gid: 34 }, b"x")?
        .owned_file("big", Attributes { mode: 0o600, uid: 65534, gid: 100_000 }, b"x")?
        .dir("sticky", 0o1777)?
        .build(Packing::Zstd)?;
    let reference = lab.push("owners", "1", &image::busybox()?.layer(layer).build()?).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").image(&reference).idle().run().await?;
    let seen =
        main.sh("stat -c '%a %u %g' /suid /big /sticky /tmp /home/app/notes; stat -c %Y /suid").await?;
    assert_eq!(seen, "4755 12 34\n600 65534 100000\n1777 0 0\n1777 0 0\n640 1000 29\n1000000000\n");
    Ok(())
}

async fn entrypoint_command_env_and_folder_come_from_the_image(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let image = image::busybox()?
        .with("Entrypoint", ["sh", "-c", "echo $0 $1 $WHO $PATH; pwd; id -un"].as_slice().into())
        .with("Cmd", ["from", "image"].as_slice().into())
        .with("Env", ["WHO=image", "PATH=/bin"].as_slice().into())
        .with("WorkingDir", "/var/log".into())
        .with("User", "app".into())
        .build()?;
    let reference = lab.push("full", "1", &image).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("web").run().await?;
    let plain = pod.container("plain").image(&reference).run().await?;
    plain.exited().await?;
    let said = hartpod_tests::log_file::text(&plain.log()?, "stdout");
    assert_eq!(said, "from image image /bin\n/var/log\napp\n");
    let other = pod.container("other").image(&reference).args(["of", "ours"]).env("WHO", "kubelet");
    let other = other.with(|config| config.working_dir = "/opt".into()).run().await?;
    other.exited().await?;
    let said = hartpod_tests::log_file::text(&other.log()?, "stdout");
    assert_eq!(said, "of ours kubelet /bin\n/opt\napp\n");
    Ok(())
}

async fn writes_of_one_container_are_not_seen_by_another(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let one = pod.container("one").idle().run().await?;
    let two = pod.container("two").idle().run().await?;
    one.sh("echo mine > /etc/passwd; rm /bin/wc; mkdir /new").await?;
    assert_eq!(
        two.sh("head -c 4 /etc/passwd; ls -d /bin/wc; ls -d /new 2>/dev/null || true").await?,
        "root/bin/wc\n"
    );
    let later = pod.container("later").idle().run().await?;
    assert_eq!(later.sh("head -c 4 /etc/passwd").await?, "root");
    Ok(())
}

async fn image_usage_is_reported(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let usage = node.client().image_fs_info(cri::ImageFsInfoRequest::default()).await?;
    let [one] = &usage.image_filesystems[..] else { anyhow::bail!("one image file system: {usage:#?}") };
    assert!(one.timestamp > 0);
    let place = one.fs_id.as_ref().map(|id| id.mountpoint.clone()).unwrap_or_default();
    assert!(place.starts_with(&node.root().display().to_string()), "{place}");
    // The test image has a busybox of 2 MB.
    let bytes = one.used_bytes.as_ref().map_or(0, |value| value.value);
    assert!((1 << 20..1 << 30).contains(&bytes), "{bytes} bytes used");
    assert!(one.inodes_used.as_ref().is_some_and(|value| value.value > 20), "{one:#?}");
    Ok(())
}

async fn an_image_survives_a_restart_of_the_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = node.client().list_images(cri::ListImagesRequest::default()).await?;
    node.crash().await?;
    assert_eq!(node.client().list_images(cri::ListImagesRequest::default()).await?, before);
    lab.registry().await?.write().await.stop().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    Ok(())
}

async fn twenty_pulls_at_once_are_one_image(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let extra = LayerBuilder::new().file("extra", 0o644, &vec![7; 3 << 20])?.build(Packing::Gzip)?;
    let built = image::busybox()?.layer(extra).build()?;
    let reference = lab.push("popular", "1", &built).await?;
    let pulls = (0..20).map(|_| node.client().pull(&reference));
    for pulled in futures_util::future::join_all(pulls).await {
        pulled?;
    }
    let images = node.client().list_images(cri::ListImagesRequest::default()).await?.images;
    assert_eq!(images.iter().filter(|image| image.repo_tags.contains(&reference)).count(), 1);
    let files = process::open_files(node.daemon_pid()?)?;
    let in_store = files.keys().filter(|path| path.contains("/layers/")).count();
    assert_eq!(in_store, 0, "files of layers stay open: {files:#?}");
    Ok(())
}
