//! Layers as EROFS files.

use super::*;

/// At byte 1024 of every EROFS file system (fs/erofs/erofs_fs.h).
const MAGIC: [u8; 4] = 0xE0F5_E1E2_u32.to_le_bytes();

#[tokio::test]
async fn a_layer_becomes_a_file_once_and_goes_with_its_image() {
    let mut world = World::new().await;
    let folder = tempfile::tempdir().unwrap();
    TestImage::new(vec![layer("a", b"one"), layer("b", b"two")]).write_layout(folder.path(), None);
    let reference = "hartpod.local/demo:v1".parse().unwrap();
    let image = world.store.import_layout(folder.path(), &reference).await.unwrap();

    let before = world.store.usage();
    let (files, same) = tokio::join!(world.store.layer_files(&image), world.store.layer_files(&image));
    let files = files.unwrap();
    assert_eq!(files, same.unwrap());
    assert_eq!(files.len(), 2);
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let inodes: Vec<u64> = files.iter().map(|file| inode(file)).collect();
    let mut bytes = 0;
    for file in &files {
        let content = std::fs::read(file).unwrap();
        assert_eq!(content[1024..1028], MAGIC);
        bytes += content.len() as u64;
    }
    let after = world.store.usage();
    assert_eq!((after.bytes - before.bytes, after.inodes - before.inodes), (bytes, 2));

    // Known to the next store, too, and not made again.
    world.reopen();
    let image = world.store.resolve("hartpod.local/demo:v1").unwrap();
    assert_eq!(world.store.usage(), after);
    assert_eq!(world.store.layer_files(&image).await.unwrap(), files);
    assert_eq!(files.iter().map(|file| inode(file)).collect::<Vec<_>>(), inodes);

    world.store.remove(&image.id).await.unwrap();
    assert_eq!(world.contents(), Vec::<String>::new());
    let gone = world.store.layer_files(&image).await.unwrap_err().to_string();
    assert!(gone.ends_with("is not in the store"), "{gone}");
    assert_eq!(world.contents(), Vec::<String>::new());
}
