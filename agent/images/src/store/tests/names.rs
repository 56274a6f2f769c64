//! Tags, digests, pins.

use super::*;

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_its_digest() {
    let mut world = World::new().await;
    let (old, new) = (TestImage::new(vec![layer("a", b"old")]), TestImage::new(vec![layer("a", b"new")]));
    world.registry.push("app", "latest", &old);
    world.pull("app").await.unwrap();
    world.registry.push("app", "latest", &new);
    world.pull("app").await.unwrap();
    for _ in 0..2 {
        let name = world.reference("app").to_string();
        assert_eq!(world.store.resolve(&name).unwrap().id.to_string(), new.id());
        let old = world.store.resolve(&old.id()).unwrap();
        assert_eq!((old.tags.len(), old.digests.len()), (0, 1));
        world.reopen();
    }
}

#[tokio::test]
async fn an_image_collects_its_names() {
    let mut world = World::new().await;
    let image = TestImage::new(vec![layer("a", b"one")]);
    for repository in ["app", "copy"] {
        world.registry.push(repository, "v1", &image);
        world.pull(&format!("{repository}:v1")).await.unwrap();
    }
    let by_digest = format!("copy:anything@{}", image.digest());
    world.pull(&by_digest).await.unwrap();
    for _ in 0..2 {
        let known = world.store.resolve(&image.id()).unwrap();
        assert_eq!(known.tags, [world.reference("app:v1").name(), world.reference("copy:v1").name()]);
        assert_eq!(known.digests.len(), 2);
        world.reopen();
    }
    // Name after name goes, and the image with the last.
    let names = ["app:v1".to_owned(), "copy:v1".to_owned(), by_digest, format!("app@{}", image.digest())];
    for (n, name) in names.iter().enumerate() {
        assert_eq!(world.store.list().len(), 1, "after {n}");
        world.store.untag(&world.reference(name)).await.unwrap();
        world.store.untag(&world.reference(name)).await.unwrap();
        assert!(world.store.resolve(&world.reference(name).to_string()).is_none());
    }
    assert!(world.store.list().is_empty());
    assert_eq!(world.contents(), Vec::<String>::new());
}

#[tokio::test]
async fn pinned_images_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let registry = FakeRegistry::start().await;
    let pinned = vec![format!("{}/pause*", registry.address())];
    let store = ImageStore::open_blocking(ImagesConfig { pinned, ..config(&folder) }).unwrap();
    for repository in ["pause", "app"] {
        registry.push(repository, "v1", &TestImage::new(vec![layer(repository, b"one")]));
        let reference: Reference = format!("{}/{repository}:v1", registry.address()).parse().unwrap();
        let image = store.pull(&reference, None, None).await.unwrap();
        assert_eq!(image.pinned, repository == "pause");
    }
}

#[tokio::test]
async fn an_image_with_the_same_layer_twice_has_its_folder_once() {
    let mut world = World::new().await;
    let (empty, one) = (Layer::gzip(&Tar::new().finish()), layer("a", b"one"));
    let image = TestImage::new(vec![empty.clone(), one.clone(), empty.clone()]);
    world.registry.push("app", "latest", &image);
    let expected = [one.diff_id.hex().to_owned(), empty.diff_id.hex().to_owned()];
    assert_eq!(world.pull("app").await.unwrap().layers, expected);
    assert_eq!(world.registry.count(empty.digest.hex()), 1);
    world.reopen();
    let image = world.store.resolve(&image.id()).unwrap();
    assert_eq!(image.layers, expected);
    world.store.remove(&image.id).await.unwrap();
    assert_eq!(world.contents(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_without_layers_is_an_image() {
    let world = World::new().await;
    world.registry.push("scratch", "latest", &TestImage::new(vec![]));
    assert!(world.pull("scratch").await.unwrap().layers.is_empty());
}
