//! What the store finds after a crash.

use super::*;

async fn world_with_image() -> (World, Arc<Image>) {
    let world = World::new().await;
    world.registry.push("app", "latest", &TestImage::new(vec![layer("a", b"one"), layer("b", b"two")]));
    let image = world.pull("app").await.unwrap();
    (world, image)
}

fn record(world: &World, image: &Image) -> PathBuf {
    world.root().join("images").join(format!("{}.json", image.id.digest().hex()))
}

#[tokio::test]
async fn images_are_there_again_after_a_restart() {
    let (mut world, before) = world_with_image().await;
    let usage = world.store.usage();
    world.reopen();
    let after = world.store.resolve(&world.reference("app").to_string()).unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
    assert_eq!(world.store.usage(), usage);
    let requests = world.registry.requests().len();
    world.pull("app").await.unwrap();
    assert_eq!(world.registry.requests().len(), requests + 1);
}

#[tokio::test]
async fn half_done_work_is_swept() {
    let (mut world, image) = world_with_image().await;
    let whole = world.contents();
    let root = world.root();
    let hex = "0".repeat(64);
    // A crash while unpacking, between the two renames, before the record, while the record was written.
    std::fs::create_dir_all(root.join("tmp/17/layer/usr/bin")).unwrap();
    std::fs::write(root.join("tmp/17/list"), "x").unwrap();
    std::fs::write(root.join(format!("lists/{hex}.zst")), "x").unwrap();
    std::fs::create_dir_all(root.join(format!("layers/{hex}/usr"))).unwrap();
    std::fs::write(root.join(format!("images/{hex}.tmp")), "{\"vers").unwrap();
    world.reopen();
    assert_eq!(world.contents(), whole);
    assert!(world.store.layers_dir().join(&image.layers[0]).join("a").is_file());
}

#[tokio::test]
async fn an_unreadable_record_is_set_aside_and_keeps_its_layers() {
    let (mut world, image) = world_with_image().await;
    let path = record(&world, &image);
    let good = std::fs::read_to_string(&path).unwrap();
    for broken in [
        "".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("\"version\":1", "\"version\":2"),
        // A flipped bit in the configuration.
        good.replace("/bin/sh", "/bin/sx"),
        good.replace(&image.layers[0], "../nothing"),
    ] {
        std::fs::write(&path, &broken).unwrap();
        for _ in 0..2 {
            world.reopen();
            assert!(world.store.list().is_empty());
            assert!(path.with_extension("unreadable").is_file() && !path.exists());
            assert!(world.store.layers_dir().join(&image.layers[0]).join("a").is_file());
        }
        // Pulling it again makes all well.
        let again = world.pull("app").await.unwrap();
        assert_eq!(again.layers, image.layers);
        assert!(world.store.layers_dir().join(&image.layers[1]).join("b").is_file());
        assert!(!path.with_extension("unreadable").exists());
        assert!(!world.contents().iter().any(|name| name.starts_with("tmp/")), "{:?}", world.contents());
    }
}

#[tokio::test]
async fn an_image_that_lost_a_layer_is_pulled_again() {
    let (mut world, image) = world_with_image().await;
    std::fs::remove_dir_all(world.store.layers_dir().join(&image.layers[0])).unwrap();
    world.reopen();
    assert!(world.store.list().is_empty());
    assert_eq!(world.contents(), Vec::<String>::new());
    world.pull("app").await.unwrap();
    assert!(world.store.layers_dir().join(&image.layers[0]).join("a").is_file());
}

#[tokio::test]
async fn foreign_files_are_not_touched() {
    let (mut world, _) = world_with_image().await;
    let notes = world.root().join("notes");
    std::fs::write(&notes, "mine").unwrap();
    world.reopen();
    assert!(notes.is_file());
}

#[tokio::test]
async fn the_folders_of_the_store_are_closed_to_others() {
    use std::os::unix::fs::PermissionsExt;
    let (world, image) = world_with_image().await;
    for folder in ["images", "layers", "lists", "tmp"] {
        let mode = std::fs::metadata(world.root().join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{folder}");
    }
    // The layer itself is what a container sees.
    let mode =
        std::fs::metadata(world.store.layers_dir().join(&image.layers[0])).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}
