//! Images from an OCI layout folder.

use super::*;

fn reference() -> Reference {
    "hartpod.local/demo:v1".parse().unwrap()
}

fn image() -> TestImage {
    TestImage::new(vec![layer("a", b"one"), Layer::plain(&Tar::new().file("b", b"two").finish())])
}

#[tokio::test]
async fn a_layout_is_an_image_like_others() {
    let world = World::new().await;
    for name in [None, Some("v1"), Some("hartpod.local/demo:v1")] {
        let folder = tempfile::tempdir().unwrap();
        image().write_layout(folder.path(), name);
        let taken = world.store.import_layout(folder.path(), &reference()).await.unwrap();
        assert_eq!(
            (taken.id.to_string(), taken.tags.as_slice()),
            (image().id(), &["hartpod.local/demo:v1".to_owned()][..])
        );
        assert_eq!(world.store.resolve("hartpod.local/demo:v1").unwrap().id, taken.id);
        assert!(world.store.layers_dir().join(&taken.layers[1]).join("b").is_file());
        world.store.remove(&taken.id).await.unwrap();
        assert_eq!(world.contents(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_broken_layout_is_refused_like_a_broken_registry() {
    let world = World::new().await;
    for (part, damage) in [
        (
            "has 0 images that are named",
            Box::new(|_: &Path, _: &TestImage| {}) as Box<dyn Fn(&Path, &TestImage)>,
        ),
        (
            "wrong digest",
            Box::new(|blobs, image| {
                let mut blob = image.layers[0].blob.clone();
                blob[20] ^= 1;
                std::fs::write(blobs.join(image.layers[0].digest.hex()), blob).unwrap();
            }),
        ),
        (
            "is truncated",
            Box::new(|blobs, image| {
                std::fs::write(blobs.join(image.layers[0].digest.hex()), &image.layers[0].blob[..50])
                    .unwrap();
            }),
        ),
        (
            "has the wrong digest",
            Box::new(|blobs, image| {
                let mut config = image.config.clone();
                config[0] = b' ';
                std::fs::write(blobs.join(&image.id()[7..]), config).unwrap();
            }),
        ),
        (
            "bytes instead of",
            Box::new(|blobs, image| {
                std::fs::write(blobs.join(image.digest().hex()), "{}").unwrap();
            }),
        ),
        (
            "No such file",
            Box::new(|blobs, image| {
                std::fs::remove_file(blobs.join(image.layers[1].digest.hex())).unwrap();
            }),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let name = if part.contains("named") { "other" } else { "v1" };
        image().write_layout(folder.path(), Some(name));
        damage(&folder.path().join("blobs/sha256"), &image());
        let error = world.store.import_layout(folder.path(), &reference()).await.unwrap_err();
        assert!(chain(&error).contains(part), "{}", chain(&error));
        assert_eq!(world.contents(), Vec::<String>::new());
    }
}
