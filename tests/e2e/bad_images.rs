//! Registries that fail or lie, and layers that attack: a clear error each, and nothing of it stays.

use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::fake_registry::{Answer, FakeRegistry};
use hartpod_tests::image::{Image, ImageBuilder};
use hartpod_tests::layer::{Attributes, Layer, LayerBuilder, Packing, digest};
use hartpod_tests::{Lab, Node, Refused, cri, registry, tests};
use tar::EntryType;
use tonic::{Code, Status};

tests![
    an_unknown_image_tag_or_digest_is_not_found,
    a_reference_that_is_none_is_refused,
    a_registry_that_is_down_is_unavailable,
    a_401_is_about_credentials,
    a_token_is_asked_for_and_used,
    a_500_is_the_registrys_fault,
    a_layer_with_a_wrong_digest_is_refused,
    a_layer_whose_content_is_not_what_the_config_says_is_refused,
    a_config_or_manifest_with_a_wrong_digest_is_refused,
    a_truncated_layer_is_refused,
    a_layer_that_is_no_archive_is_refused,
    a_missing_platform_is_told,
    an_endless_manifest_is_refused,
    a_layer_of_zeros_past_the_limit_is_refused,
    paths_that_climb_out_stay_inside,
    links_are_no_way_out,
    devices_are_not_made_outside,
    a_broken_pull_can_be_repeated,
];

/// Pulls what must not be pulled; the store must look as before.
async fn refused_pull(lab: &Lab, node: &Node, reference: &str) -> Result<Status> {
    let before = lab.look(node)?;
    let tags = node.client().image_tags().await?;
    let status = node.client().pull(reference).await.refused(&format!("a pull of {reference}"))?;
    assert!(!status.message().is_empty());
    assert_eq!(node.client().image_tags().await?, tags);
    hartpod_tests::world::must_return_to(&before, || lab.look(node)).await?;
    Ok(status)
}

async fn an_unknown_image_tag_or_digest_is_not_found(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let name = registry::NAME;
    let nobodys = "0123456789abcdef".repeat(4);
    for reference in [
        format!("{name}/no-such-image:1"),
        format!("{name}/busybox:no-such-tag"),
        format!("{name}/busybox@sha256:{nobodys}"),
    ] {
        let status = refused_pull(lab, &node, &reference).await?;
        assert_eq!(status.code(), Code::NotFound, "{reference}: {status:?}");
        assert!(status.message().contains(&reference) || status.message().contains("no-such"), "{status:?}");
    }
    Ok(())
}

async fn a_reference_that_is_none_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for reference in [
        "",
        "registry.test/UPPER:1",
        "registry.test/a b",
        "registry.test/busybox:",
        "registry.test/../x:1",
        "registry.test/x@sha256:12",
    ] {
        let status = refused_pull(lab, &node, reference).await?;
        assert_eq!(status.code(), Code::InvalidArgument, "{reference:?}: {status:?}");
    }
    let none = cri::PullImageRequest::default();
    assert_eq!(
        node.client().pull_image(none).await.refused("a pull of nothing")?.code(),
        Code::InvalidArgument
    );
    Ok(())
}

async fn a_registry_that_is_down_is_unavailable(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    lab.registry().await?.write().await.stop().await?;
    let status = refused_pull(lab, &node, "registry.test/busybox:other").await?;
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("refused") || status.message().contains("connect"), "{status:?}");
    Ok(())
}

async fn a_401_is_about_credentials(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let challenge = |status| {
        let mut answer = Answer::status(status);
        answer.headers.insert("www-authenticate".into(), "Basic realm=\"closed\"".into());
        answer
    };
    fake.answer("/v2/", challenge(401));
    fake.answer("/v2/closed/manifests/1", challenge(401));
    let status = refused_pull(lab, &node, &fake.reference("closed", "1")).await?;
    let denied = [Code::Unauthenticated, Code::PermissionDenied];
    assert!(denied.contains(&status.code()), "{status:?}");
    // With a password it is asked again, with it.
    let auth = cri::AuthConfig { username: "me".into(), password: "secret".into(), ..Default::default() };
    let image = Some(hartpod_tests::client::image_spec(&fake.reference("closed", "1")));
    let request = cri::PullImageRequest { image, auth: Some(auth), ..Default::default() };
    let status = node.client().pull_image(request).await.refused("a pull with the wrong password")?;
    assert!(denied.contains(&status.code()), "{status:?}");
    assert!(!status.message().contains("secret"), "the password is in the message: {status:?}");
    let sent = fake.requests().into_iter().filter_map(|(_, authorization)| authorization);
    // base64 of me:secret
    assert!(sent.into_iter().any(|value| value == "Basic bWU6c2VjcmV0"), "{:?}", fake.requests());
    Ok(())
}

async fn a_token_is_asked_for_and_used(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let image = simple(LayerBuilder::new().file("a", 0o644, b"a")?)?;
    fake.serve("tokens", "1", &image);
    let mut challenge = Answer::status(401);
    let realm = format!(
        "Bearer realm=\"http://{}/token\",service=\"test\",scope=\"repository:tokens:pull\"",
        fake.address
    );
    challenge.headers.insert("www-authenticate".into(), realm);
    fake.answer("/v2/", challenge.clone());
    fake.answer("/token", Answer::ok("application/json", br#"{"token":"sesame"}"#.to_vec()));
    fake.require_token("sesame", challenge);
    node.client().pull(&fake.reference("tokens", "1")).await?;
    let open = fake.requests().into_iter().filter(|(_, value)| value.as_deref() == Some("Bearer sesame"));
    assert!(open.count() >= 3, "manifest, config and layer: {:?}", fake.requests());
    Ok(())
}

async fn a_500_is_the_registrys_fault(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    fake.answer("/v2/ill/manifests/1", Answer::status(500));
    let status = refused_pull(lab, &node, &fake.reference("ill", "1")).await?;
    assert!(![Code::Ok, Code::NotFound, Code::InvalidArgument].contains(&status.code()), "{status:?}");
    assert!(status.message().contains("500"), "{status:?}");
    Ok(())
}

fn simple(layer: LayerBuilder) -> Result<Image> {
    ImageBuilder::new(vec![layer.build(Packing::Gzip)?]).build()
}

/// Serves an image whose last blob (the layer) answers something else, and pulls it.
async fn pull_with_layer(lab: &Lab, change: impl Fn(&[u8]) -> Answer) -> Result<Status> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = simple(LayerBuilder::new().file("a", 0o644, &content)?)?;
    fake.serve("liar", "1", &image);
    let Some((digest, blob)) = image.blobs.last() else { anyhow::bail!("no layer") };
    fake.answer(&format!("/v2/liar/blobs/{digest}"), change(blob));
    refused_pull(lab, &node, &fake.reference("liar", "1")).await
}

async fn a_layer_with_a_wrong_digest_is_refused(lab: &Lab) -> Result<()> {
    // The time in gzip's head: the size is right, it unpacks to the right tar, and yet it is another blob.
    let other = |blob: &[u8]| {
        let mut blob = blob.to_vec();
        blob[4] ^= 1;
        Answer::ok("application/octet-stream", blob)
    };
    let status = pull_with_layer(lab, other).await?;
    assert!(status.message().contains("sha256:"), "{status:?}");
    Ok(())
}

async fn a_layer_whose_content_is_not_what_the_config_says_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut layer = LayerBuilder::new().file("a", 0o644, b"a")?.build(Packing::Gzip)?;
    layer.diff_id = digest(b"something else");
    let fake = FakeRegistry::start().await?;
    fake.serve("liar", "1", &ImageBuilder::new(vec![layer]).build()?);
    let status = refused_pull(lab, &node, &fake.reference("liar", "1")).await?;
    assert!(status.message().contains("sha256:"), "{status:?}");
    Ok(())
}

async fn a_config_or_manifest_with_a_wrong_digest_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let image = simple(LayerBuilder::new().file("a", 0o644, b"a")?)?;
    fake.serve("liar", "1", &image);
    let config = image.id()?;
    fake.answer(
        &format!("/v2/liar/blobs/{config}"),
        Answer::ok("application/json", br#"{"architecture":"amd64"}"#.to_vec()),
    );
    refused_pull(lab, &node, &fake.reference("liar", "1")).await?;

    fake.serve("liar", "1", &image);
    let other = simple(LayerBuilder::new().file("b", 0o644, b"b")?)?;
    fake.serve("liar", "2", &other);
    let wrong = Answer::ok(image.media_type, image.manifest.clone());
    fake.answer(&format!("/v2/liar/manifests/{}", other.digest()), wrong);
    refused_pull(lab, &node, &format!("{}/liar@{}", fake.address, other.digest())).await?;
    Ok(())
}

async fn a_truncated_layer_is_refused(lab: &Lab) -> Result<()> {
    let cut = |blob: &[u8]| Answer {
        cut_after: Some(blob.len() / 2),
        ..Answer::ok("application/octet-stream", blob.to_vec())
    };
    pull_with_layer(lab, cut).await?;
    Ok(())
}

async fn a_layer_that_is_no_archive_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let garbage: Vec<u8> = (0..50_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    // An archive that ends within a file: gzip and digest are right, the tar is not.
    let whole = LayerBuilder::new().file("a", 0o644, &garbage)?.build(Packing::Plain)?;
    let half = whole.blob[..20_000].to_vec();
    let packed = LayerBuilder::new().file("a", 0o644, &garbage)?.build(Packing::Gzip)?;
    let plain = "application/vnd.oci.image.layer.v1.tar";
    for (what, media_type, blob) in [
        ("noise as gzip", gzip, garbage.clone()),
        ("half a gzip", gzip, packed.blob[..packed.blob.len() / 2].to_vec()),
        ("noise as tar", plain, garbage.clone()),
        ("half a tar", plain, half),
    ] {
        let layer = Layer { media_type, diff_id: digest(&blob), blob };
        fake.serve("garbage", "1", &ImageBuilder::new(vec![layer]).build()?);
        refused_pull(lab, &node, &fake.reference("garbage", "1")).await.context(what)?;
    }
    let layer =
        Layer { media_type: "application/vnd.example.unknown", diff_id: digest(b"x"), blob: b"x".to_vec() };
    fake.serve("garbage", "1", &ImageBuilder::new(vec![layer]).build()?);
    let status = refused_pull(lab, &node, &fake.reference("garbage", "1")).await?;
    assert!(status.message().contains("vnd.example.unknown"), "{status:?}");
    Ok(())
}

async fn a_missing_platform_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let image = simple(LayerBuilder::new().file("a", 0o644, b"a")?)?;
    let reference = lab.push("foreign", "1", &Image::index(vec![("s390x", image)])?).await?;
    let status = refused_pull(lab, &node, &reference).await?;
    assert!(status.message().contains("platform") || status.message().contains("linux/"), "{status:?}");
    Ok(())
}

async fn an_endless_manifest_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let mut manifest = b"{\"schemaVersion\":2,\"x\":\"".to_vec();
    manifest.resize(64 << 20, b'x');
    manifest.extend_from_slice(b"\"}");
    fake.answer("/v2/endless/manifests/1", Answer::ok(hartpod_tests::image::MANIFEST_TYPE, manifest));
    refused_pull(lab, &node, &fake.reference("endless", "1")).await?;
    let pss = hartpod_tests::process::pss_kib(node.daemon_pid()?)?;
    assert!(pss < 60 << 10, "the daemon holds {pss} KiB after a manifest of 64 MiB");
    Ok(())
}

async fn a_layer_of_zeros_past_the_limit_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?.settings("[images]\nmax_layer_gib = 1\n")).await?;
    // The kilobytes of a zip bomb: 1.1 GB of zeros, packed once and again.
    let layer = LayerBuilder::new().zeros("zeros", 1100 << 20)?.build(Packing::Zstd)?;
    assert!(layer.blob.len() < 1 << 20);
    let fake = FakeRegistry::start().await?;
    fake.serve("bomb", "1", &ImageBuilder::new(vec![layer]).build()?);
    let status = refused_pull(lab, &node, &fake.reference("bomb", "1")).await?;
    let message = status.message().to_lowercase();
    assert!(
        message.contains("limit") || message.contains("large") || message.contains("max_layer"),
        "{status:?}"
    );
    Ok(())
}

/// Pulls a hostile image; whether it is refused or made harmless, the folder beside the node's stays as it is.
async fn pull_hostile(lab: &Lab, node: &Node, layers: Vec<Layer>) -> Result<()> {
    let outside = lab.dir().join("outside");
    std::fs::create_dir_all(&outside)?;
    std::fs::write(outside.join("file"), "untouched")?;
    let fake = FakeRegistry::start().await?;
    let image = ImageBuilder::new(layers).build()?;
    fake.serve("hostile", "1", &image);
    let reference = fake.reference("hostile", "1");
    let before = lab.look(node)?;
    match node.client().pull(&reference).await {
        Err(status) => {
            assert!(!status.message().is_empty());
            assert_eq!(node.client().image(&reference).await?, None);
        }
        Ok(_) => {
            let remove =
                cri::RemoveImageRequest { image: Some(hartpod_tests::client::image_spec(&reference)) };
            node.client().remove_image(remove).await?;
        }
    }
    hartpod_tests::world::must_return_to(&before, || lab.look(node)).await?;
    let names: Vec<String> = std::fs::read_dir(&outside)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    assert_eq!(names, ["file"]);
    assert_eq!(std::fs::read_to_string(outside.join("file"))?, "untouched");
    for path in ["/evil", "/tmp/evil", "/etc/evil", "/var/tmp/evil"] {
        assert!(!std::path::Path::new(path).exists(), "{path} was written");
    }
    Ok(())
}

async fn paths_that_climb_out_stay_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let outside = lab.dir().join("outside/evil").display().to_string();
    let deep = format!("{}{}", "../".repeat(12), outside.trim_start_matches('/'));
    for name in [
        "../evil",
        "../../../../../../../../../evil",
        "a/../../../../../../evil",
        "/evil",
        "//evil",
        &deep,
        &outside,
        "..",
        "a/..",
    ] {
        let layer = LayerBuilder::new().dir("a", 0o755)?.file(name, 0o644, b"x")?.build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
    }
    for name in [".wh...", ".wh..", ".wh.", "a/.wh...", ".wh.../evil"] {
        let layer = LayerBuilder::new().dir("a", 0o755)?.file(name, 0o644, b"")?.build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
    }
    Ok(())
}

async fn links_are_no_way_out(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let outside = lab.dir().join("outside").display().to_string();
    let climb = format!("{}{}", "../".repeat(16), outside.trim_start_matches('/'));
    for target in [outside.as_str(), climb.as_str(), "/tmp", "/"] {
        // Write through a link of the same layer.
        let layer = LayerBuilder::new()
            .symlink("out", target)?
            .file("out/evil", 0o644, b"x")?
            .build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
        // A folder through it, a file replaced through it, a whiteout through it.
        let layer =
            LayerBuilder::new().symlink("out", target)?.dir("out/evil", 0o777)?.build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
        let layer = LayerBuilder::new()
            .symlink("out", target)?
            .file("out/.wh.file", 0o644, b"")?
            .build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
        let layer = LayerBuilder::new()
            .symlink("out", target)?
            .file("out/.wh..wh..opq", 0o644, b"")?
            .build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
        // The link in one layer, the write in the next.
        let one = LayerBuilder::new().symlink("out", target)?.build(Packing::Gzip)?;
        let two = LayerBuilder::new().file("out/evil", 0o644, b"x")?.build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![one, two]).await?;
        // Attributes through a link: chmod and chown must not follow it.
        let layer = LayerBuilder::new()
            .entry("out", EntryType::Symlink, Attributes { mode: 0o777, uid: 4242, gid: 4242 }, target, b"")?
            .build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
        let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(lab.dir().join("outside"))?);
        assert_eq!(owner, 0);
    }
    // Hard links to what is not in the layer, then a write through the link.
    for target in [
        format!("{outside}/file"),
        format!("{climb}/file"),
        "/etc/passwd".into(),
        "../../../../etc/passwd".into(),
    ] {
        let layer = LayerBuilder::new()
            .hard_link("stolen", &target)?
            .file("stolen", 0o666, b"overwritten")?
            .build(Packing::Gzip)?;
        pull_hostile(lab, &node, vec![layer]).await?;
    }
    // A hard link by way of a symbolic one.
    let layer = LayerBuilder::new()
        .symlink("out", &outside)?
        .hard_link("stolen", "out/file")?
        .file("stolen", 0o666, b"x")?;
    pull_hostile(lab, &node, vec![layer.build(Packing::Gzip)?]).await
}

async fn devices_are_not_made_outside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let layer = LayerBuilder::new().char_device("../../../evil", 1, 3)?.build(Packing::Gzip)?;
    pull_hostile(lab, &node, vec![layer]).await?;
    let layer = LayerBuilder::new().char_device("zero-is-a-whiteout", 0, 0)?.char_device("null", 1, 3)?;
    let layer =
        layer.entry("fifo", EntryType::Fifo, Attributes::mode(0o644), "", b"")?.build(Packing::Gzip)?;
    pull_hostile(lab, &node, vec![layer]).await
}

async fn a_broken_pull_can_be_repeated(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let fake = FakeRegistry::start().await?;
    let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let image = simple(LayerBuilder::new().file("a", 0o644, &content)?)?;
    let reference = fake.reference("flaky", "1");
    fake.serve("flaky", "1", &image);
    let Some((digest, blob)) = image.blobs.last() else { anyhow::bail!("no layer") };
    let path = format!("/v2/flaky/blobs/{digest}");
    let whole = Answer::ok("application/octet-stream", blob.clone());
    fake.answer(&path, Answer { cut_after: Some(10_000), ..whole.clone() });
    refused_pull(lab, &node, &reference).await?;
    // A pull that hangs while the daemon dies leaves nothing in the way, either.
    fake.answer(&path, Answer { hang: true, ..whole.clone() });
    let hung = tokio::time::timeout(Duration::from_millis(500), node.client().pull(&reference)).await;
    assert!(hung.is_err(), "it did not hang: {hung:?}");
    node.crash().await?;
    fake.answer(&path, whole);
    node.client().pull(&reference).await?;
    assert!(node.client().image(&reference).await?.is_some());
    Ok(())
}
