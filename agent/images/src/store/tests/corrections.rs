//! Layers of ko, jib and bazel: files without entries for their folders.

use std::os::unix::fs::MetadataExt;

use super::*;

fn owned(mode: u32, uid: u64) -> impl FnOnce(&mut tar::Header) {
    move |header| {
        header.set_mode(mode);
        header.set_uid(uid);
    }
}

fn base() -> Layer {
    let tar = Tar::new()
        .entry(b'5', "app", b"", owned(0o700, 1000))
        .entry(b'5', "app/data", b"", owned(0o750, 1001))
        .entry(b'5', "tmp", b"", owned(0o1777, 0))
        .folder("usr")
        .entry(b'5', "gone", b"", owned(0o700, 7))
        .entry(b'5', "gone2", b"", owned(0o700, 7))
        .entry(b'5', "hidden", b"", owned(0o700, 7))
        .entry(b'5', "hidden/in", b"", owned(0o700, 7));
    Layer::gzip(&tar.finish())
}

/// What overlayfs shows: the attributes of the uppermost layer that has the folder.
fn shown(world: &World, image: &Image, path: &str) -> (u32, u32) {
    let layers = image.layers.iter().rev().map(|layer| world.store.layers_dir().join(layer).join(path));
    let stat = layers.filter_map(|path| std::fs::symlink_metadata(path).ok()).next().unwrap();
    (stat.mode() & 0o7777, stat.uid())
}

#[tokio::test]
async fn folders_that_a_layer_does_not_list_stay_as_they_were_below() {
    let mut world = World::new().await;
    let upper = Tar::new()
        .file("app/data/x/file", b"1")
        .file("tmp/file", b"2")
        .file("usr/file", b"3")
        .file("new/file", b"4")
        // Removed and used again: nothing of the lower folder shows.
        .file(".wh.gone", b"")
        .file("gone/file", b"5")
        .file("gone2/file", b"")
        .file(".wh.gone2", b"")
        .file("hidden/.wh..wh..opq", b"")
        .file("hidden/in/file", b"6");
    let upper = Layer::gzip(&upper.finish());
    let image = TestImage::new(vec![base(), upper.clone()]);
    world.registry.push("app", "latest", &image);
    let pulled = world.pull("app").await.unwrap();
    assert_eq!(pulled.layers.len(), 3);
    assert_eq!(pulled.layers[..2], [base().diff_id.hex(), upper.diff_id.hex()]);
    for _ in 0..2 {
        let image = world.store.resolve(&image.id()).unwrap();
        assert_eq!(image.layers, pulled.layers);
        for (path, expected) in [
            ("app", (0o700, 1000)),
            ("app/data", (0o750, 1001)),
            ("app/data/x", (0o755, 0)),
            ("tmp", (0o1777, 0)),
            ("usr", (0o755, 0)),
            ("new", (0o755, 0)),
            ("gone", (0o755, 0)),
            ("gone2", (0o755, 0)),
            ("hidden", (0o700, 7)),
            ("hidden/in", (0o755, 0)),
        ] {
            assert_eq!(shown(&world, &image, path), expected, "{path}");
        }
        // Only folders, and only those that are needed.
        let top = world.store.layers_dir().join(&image.layers[2]);
        let mut names: Vec<_> =
            std::fs::read_dir(top).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["app", "hidden", "tmp"]);
        world.reopen();
    }
    world.store.remove(&pulled.id).await.unwrap();
    assert_eq!(world.contents(), Vec::<String>::new());
}

#[tokio::test]
async fn images_share_a_correcting_layer_and_the_last_takes_it_away() {
    let world = World::new().await;
    for (name, file) in [("one", "app/1"), ("two", "app/2")] {
        let image = TestImage::new(vec![base(), Layer::gzip(&Tar::new().file(file, b"").finish())]);
        world.registry.push(name, "latest", &image);
    }
    let (one, two) = (world.pull("one").await.unwrap(), world.pull("two").await.unwrap());
    assert_eq!(one.layers[2], two.layers[2]);
    world.store.remove(&one.id).await.unwrap();
    assert_eq!(shown(&world, &two, "app"), (0o700, 1000));
    world.store.remove(&two.id).await.unwrap();
    assert_eq!(world.contents(), Vec::<String>::new());
}

#[tokio::test]
async fn an_image_that_needs_no_correction_gets_none() {
    let world = World::new().await;
    let upper =
        Tar::new().file("usr/file", b"").entry(b'5', "app", b"", owned(0o711, 5)).file("app/file", b"");
    let below = Tar::new().file("implied/by/the/lowest", b"");
    let layers = [below, upper].map(|tar| Layer::gzip(&tar.finish()));
    let image = TestImage::new(vec![layers[0].clone(), base(), layers[1].clone()]);
    world.registry.push("app", "latest", &image);
    assert_eq!(world.pull("app").await.unwrap().layers.len(), 3);
}
