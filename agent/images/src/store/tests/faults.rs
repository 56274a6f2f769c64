//! Registries that are down, wrong, slow or hostile. The error is clear and nothing stays.

use super::*;
use crate::digest::Digest;
use crate::layer::LayerError;
use crate::pull::invalid::InvalidImage;
use crate::testing::image::{INDEX, MANIFEST};
use crate::testing::registry::{Reply, ranged};

/// Pulls, expects an error that has `part` in it, and that nothing stays.
async fn fails(world: &World, rest: &str, part: &str) -> PullError {
    let error = world.pull(rest).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains(part), "{text}");
    assert!(text.contains(&world.reference(rest).to_string()), "{text}");
    assert_eq!(world.contents(), Vec::<String>::new());
    assert!(world.store.list().is_empty());
    error
}

fn invalid(error: &PullError) -> &InvalidImage {
    match error {
        PullError::Invalid { source, .. } => source,
        other => panic!("not invalid: {other:?}"),
    }
}

#[tokio::test]
async fn what_a_registry_does_not_have_is_not_found() {
    let world = World::new().await;
    let image = TestImage::new(vec![layer("a", b"one")]);
    world.registry.push("app", "v1", &image);
    let missing = Digest::of(b"missing");
    for rest in ["app:v2", "other", &format!("app@{missing}")] {
        let error = fails(&world, rest, "404 Not Found: manifest unknown").await;
        assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_is_down_is_unavailable() {
    let world = World::new().await;
    let reference: Reference = "127.0.0.1:1/app".parse().unwrap();
    let error = world.store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(error, PullError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("http://127.0.0.1:1: "), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
}

#[tokio::test]
async fn statuses_are_told_apart() {
    for (status, is) in [
        (403, (|error| matches!(error, PullError::Unauthorized { .. })) as fn(&PullError) -> bool),
        (429, |error| matches!(error, PullError::Unavailable { .. })),
        (500, |error| matches!(error, PullError::Unavailable { .. })),
    ] {
        let world = World::new().await;
        world.registry.hook(move |_| {
            Some(Reply::new(status, r#"{"errors":[{"code":"X","message":"so\r\nsays \u001b[31m it"}]}"#))
        });
        let error = fails(&world, "app", ": so  says  [31m it").await;
        assert!(is(&error), "{error}");
    }
}

#[tokio::test]
async fn an_endless_manifest_is_cut_off() {
    let world = World::new().await;
    world.registry.hook(|_| Some(Reply::new(200, vec![b' '; (8 << 20) + 1])));
    fails(&world, "app", "an answer of more than 8388608 bytes").await;
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused() {
    let world = World::new().await;
    let image = TestImage::new(vec![layer("a", b"one")]);
    let wanted = Digest::of(b"wanted");
    let bytes = image.manifest.clone();
    world
        .registry
        .hook(move |request| request.target.contains("/manifests/").then(|| Reply::new(200, bytes.clone())));
    let error = fails(&world, &format!("app@{wanted}"), &format!("for {wanted}")).await;
    assert!(matches!(invalid(&error), InvalidImage::Wrong { .. }));
}

#[tokio::test]
async fn a_tag_whose_header_names_another_digest_is_refused() {
    let world = World::new().await;
    let image = TestImage::new(vec![layer("a", b"one")]);
    world.registry.hook(move |_| {
        let digest = Digest::of(b"x").to_string();
        Some(Reply::new(200, image.manifest.clone()).header("Docker-Content-Digest", digest))
    });
    fails(&world, "app", "sent a manifest with digest").await;
}

#[tokio::test]
async fn broken_manifests_are_refused() {
    let config = Digest::of(b"{}");
    let with_layer = |media_type: &str, digest: &str| {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{config}","size":2}},
            "layers":[{{"mediaType":"{media_type}","digest":"{digest}","size":1}}]}}"#
        )
    };
    let tar = "application/vnd.oci.image.layer.v1.tar";
    for (manifest, part) in [
        ("no json".to_owned(), "is malformed"),
        (r#"{"schemaVersion":1,"fsLayers":[]}"#.to_owned(), "which is no image"),
        (with_layer("application/wasm", &config.to_string()), "cannot be unpacked"),
        (with_layer(tar, "sha256:../nothing"), "is malformed"),
        (with_layer(tar, "sha384:00"), "is malformed"),
        (with_layer(tar, "md5:00"), "only sha256 and sha512"),
        (
            format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"x","digest":"{config}","size":99999999}},"layers":[]}}"#
            ),
            "the limit is 8388608",
        ),
        (
            r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"D","size":-1},"layers":[]}"#
                .replace('D', &config.to_string()),
            "is malformed",
        ),
    ] {
        let world = World::new().await;
        world.registry.push_manifest("app", "latest", MANIFEST, manifest.as_bytes());
        let error = fails(&world, "app", part).await;
        invalid(&error);
    }
}

#[tokio::test]
async fn too_many_layers_are_refused() {
    let world = World::new().await;
    world.registry.push("app", "latest", &TestImage::new(vec![layer("a", b""); 501]));
    fails(&world, "app", "has 501 layers, the limit is 500").await;
}

#[tokio::test]
async fn an_index_of_indexes_has_an_end() {
    let world = World::new().await;
    let mut inner = TestImage::new(vec![]).index();
    for _ in 0..6 {
        world.registry.push_manifest("app", "latest", INDEX, &inner);
        inner = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": INDEX, "digest": Digest::of(&inner).to_string(), "size": inner.len()}]})
        .to_string()
        .into_bytes();
    }
    world.registry.push_manifest("app", "latest", INDEX, &inner);
    fails(&world, "app", "in more than 4 other indexes").await;
}

#[tokio::test]
async fn an_image_for_other_machines_is_told_so() {
    let world = World::new().await;
    let index = String::from_utf8(TestImage::new(vec![]).index()).unwrap();
    let here = crate::testing::image::architecture();
    let index = index.replace(&format!("\"architecture\":\"{here}\""), "\"architecture\":\"mips64le\"");
    world.registry.push_manifest("app", "latest", INDEX, index.as_bytes());
    let error = fails(&world, "app", &format!("no image for linux/{here}, only for: linux/mips64le, ")).await;
    assert!(matches!(error, PullError::NoPlatform { .. }));

    let config = serde_json::json!({"architecture": "mips64le", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    world.registry.push("single", "latest", &TestImage::with_config(vec![], config));
    let error = fails(&world, "single", "only for: linux/mips64le").await;
    assert!(matches!(error, PullError::NoPlatform { .. }));
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_is_refused() {
    let world = World::new().await;
    let here = crate::testing::image::architecture();
    let one = layer("a", b"one");
    let fewer = serde_json::json!({"architecture": here, "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}});
    world.registry.push("fewer", "latest", &TestImage::with_config(vec![one.clone()], fewer));
    fails(&world, "fewer", "the manifest has 1 layers and the configuration 0").await;

    let image = TestImage::new(vec![one]);
    world.registry.push("wrong", "latest", &image);
    let mut other = image.config.clone();
    other[0] = b' ';
    world.registry.set_blob(&Digest::of(&image.config), &other);
    let error = fails(&world, "wrong", "has the wrong digest").await;
    invalid(&error);
}

#[tokio::test]
async fn a_layer_with_a_wrong_digest_leaves_nothing() {
    let world = World::new().await;
    let (good, bad) = (layer("good", b"1"), noise(2, 50_000));
    world.registry.push("app", "latest", &TestImage::new(vec![good, bad.clone()]));
    let mut other = bad.blob.clone();
    other[30_000] ^= 1;
    world.registry.set_blob(&bad.digest, &other);
    let error = fails(&world, "app", "has the wrong digest").await;
    assert!(matches!(invalid(&error), InvalidImage::Layer(LayerError::Digest { .. })));
}

#[tokio::test]
async fn a_layer_with_a_wrong_diff_id_leaves_nothing() {
    let world = World::new().await;
    let mut bad = layer("a", b"1");
    bad.diff_id = Digest::of(b"something else");
    world.registry.push("app", "latest", &TestImage::new(vec![bad]));
    let error = fails(&world, "app", "unpacks to diff-id").await;
    assert!(matches!(invalid(&error), InvalidImage::Layer(LayerError::DiffId { .. })));
}

#[tokio::test]
async fn a_truncated_layer_leaves_nothing() {
    let world = World::new().await;
    let bad = noise(3, 50_000);
    world.registry.push("app", "latest", &TestImage::new(vec![bad.clone()]));
    // The registry itself has too little.
    world.registry.set_blob(&bad.digest, &bad.blob[..20_000]);
    let error = fails(&world, "app", "is truncated: 20000 of").await;
    assert!(matches!(invalid(&error), InvalidImage::Layer(LayerError::Truncated { .. })));
    // It claims to have all and closes early, every time.
    let (digest, blob) = (bad.digest.to_string(), bad.blob.clone());
    world.registry.hook(move |request| {
        request.target.contains(&digest).then(|| Reply::new(200, blob.clone()).cut(20_000))
    });
    let before = world.registry.requests().len();
    let error = fails(&world, "app", "is truncated: 20000 of").await;
    assert!(matches!(invalid(&error), InvalidImage::Layer(LayerError::Truncated { .. })));
    assert!(world.registry.requests().len() - before < 12, "tries are bounded");
}

#[tokio::test]
async fn a_layer_that_is_longer_than_its_manifest_says_leaves_nothing() {
    let world = World::new().await;
    let bad = noise(4, 50_000);
    world.registry.push("app", "latest", &TestImage::new(vec![bad.clone()]));
    let mut longer = bad.blob.clone();
    longer.extend_from_slice(b"more");
    world.registry.set_blob(&bad.digest, &longer);
    let error = fails(&world, "app", "is longer than the").await;
    assert!(matches!(invalid(&error), InvalidImage::Layer(LayerError::TooLong { .. })));
}

#[tokio::test]
async fn hostile_layers_leave_nothing() {
    for (tar, part) in [
        (Tar::new().file("../x", b""), "has .. in its name"),
        (Tar::new().symlink("a", "..").file("a/x", b""), "leads out of the layer"),
        (
            Tar::new().entry(b'0', "zeros", b"", |header| header.set_size(10_000_000_000)),
            "limit of 10485760 bytes",
        ),
    ] {
        let world = World::new().await;
        let image = TestImage::new(vec![layer("fine", b""), Layer::gzip(&tar.finish())]);
        world.registry.push("app", "latest", &image);
        let error = fails(&world, "app", part).await;
        invalid(&error);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let world = World::new().await;
    let big = noise(5, 400_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world.registry.hook(move |request| {
        let start = request.range_start().unwrap_or(0);
        let goes_on = request.target.contains(&digest) && start < 300_000;
        goes_on.then(|| ranged(&blob, request).cut(100_000))
    });
    world.pull("app").await.unwrap();
    let starts: Vec<_> = world
        .registry
        .requests()
        .iter()
        .filter(|request| request.target.contains(big.digest.hex()))
        .map(|request| request.range_start())
        .collect();
    assert_eq!(starts, [None, Some(100_000), Some(200_000), Some(300_000)]);
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_again_from_the_start() {
    let world = World::new().await;
    let big = noise(6, 200_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world.registry.hook(move |request| {
        let reply = Reply::new(200, blob.clone());
        let first = request.range_start().is_none();
        request.target.contains(&digest).then_some(if first { reply.cut(150_000) } else { reply })
    });
    world.pull("app").await.unwrap();
    assert_eq!(world.registry.count(big.digest.hex()), 2);
}

#[tokio::test]
async fn a_range_that_starts_elsewhere_is_not_believed() {
    let world = World::new().await;
    let big = noise(7, 200_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world.registry.hook(move |request| {
        let reply = match request.range_start() {
            None => Reply::new(200, blob.clone()).cut(150_000),
            Some(_) => {
                Reply::new(206, &blob[100_000..]).header("Content-Range", "bytes 100000-199999/200000")
            }
        };
        request.target.contains(&digest).then_some(reply)
    });
    let error = world.pull("app").await.unwrap_err();
    assert!(error.to_string().contains("another range than asked for"), "{error}");
}

#[tokio::test]
async fn a_stalled_download_is_given_up() {
    let world = World::with(|config| config.progress_timeout = Duration::from_millis(200)).await;
    let big = noise(8, 100_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world
        .registry
        .hook(move |request| request.target.contains(&digest).then(|| ranged(&blob, request).stall(50_000)));
    let start = Instant::now();
    let error = fails(&world, "app", "no byte in 200ms").await;
    assert!(matches!(error, PullError::Unavailable { .. }));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_given_up() {
    let world = World::with(|config| config.progress_timeout = Duration::from_millis(200)).await;
    let never = Arc::new(tokio::sync::Semaphore::new(0));
    world.registry.hook(move |_| Some(Reply::new(200, "").gate(&never)));
    let error = fails(&world, "app", "no answer in 200ms").await;
    assert!(matches!(error, PullError::Unavailable { .. }));
}

#[tokio::test]
async fn a_slow_download_that_goes_on_is_not_given_up() {
    let world = World::with(|config| config.progress_timeout = Duration::from_millis(300)).await;
    let big = noise(9, 100_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    // Five connections of 150 ms each: longer than the timeout in all.
    world.registry.hook(move |request| {
        let start = request.range_start().unwrap_or(0);
        if !request.target.contains(&digest) || start > 80_000 {
            return None;
        }
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let opener = Arc::clone(&gate);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            opener.add_permits(1);
        });
        Some(ranged(&blob, request).cut(20_000).gate(&gate))
    });
    world.pull("app").await.unwrap();
}

#[tokio::test]
async fn redirects_are_followed_and_have_an_end() {
    let world = World::new().await;
    let one = layer("a", b"one");
    world.registry.push("app", "latest", &TestImage::new(vec![one.clone()]));
    let (digest, blob) = (one.digest.to_string(), one.blob.clone());
    world.registry.hook(move |request| {
        if request.target == "/storage?signature=x" {
            return Some(Reply::new(200, blob.clone()));
        }
        let is_blob = request.target.contains(&digest);
        is_blob.then(|| Reply::new(307, "").header("Location", "/storage?signature=x"))
    });
    world.pull("app").await.unwrap();

    let world = World::new().await;
    world.registry.hook(|request| Some(Reply::new(302, "").header("Location", request.target.clone())));
    fails(&world, "app", "more than 10 redirects").await;
}

#[tokio::test]
async fn a_broken_disk_is_an_error_of_the_store_and_leaves_nothing() {
    let upper = Layer::gzip(&Tar::new().file("app/file", b"").finish());
    let lower = Layer::gzip(&Tar::new().entry(b'5', "app", b"", |header| header.set_mode(0o700)).finish());
    for (folder, action) in [("tmp", "make folder"), ("lists", "rename to"), ("images", "create")] {
        let world = World::new().await;
        world.registry.push("app", "latest", &TestImage::new(vec![lower.clone(), upper.clone()]));
        // A folder that is gone fails like a disk that is full or broken.
        std::fs::remove_dir(world.root().join(folder)).unwrap();
        let error = world.pull("app").await.unwrap_err();
        assert!(matches!(error, PullError::Io { .. }), "{error:?}");
        assert!(chain(&error).contains(action), "{}", chain(&error));
        std::fs::create_dir(world.root().join(folder)).unwrap();
        assert_eq!(world.contents(), Vec::<String>::new(), "{folder}");
        world.pull("app").await.unwrap();
    }
}
