//! Several pulls at once, and callers that go away.

use tokio::sync::Semaphore;

use super::*;
use crate::testing::registry::{Reply, ranged};

impl World {
    /// Holds every answer about a layer until permits come.
    fn gate(&self, layer: &Layer) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        let (held, digest, blob) = (Arc::clone(&gate), layer.digest.to_string(), layer.blob.clone());
        self.registry.hook(move |request| {
            request.target.contains(&digest).then(|| ranged(&blob, request).gate(&held))
        });
        gate
    }

    fn start_pull(&self, rest: &str) -> tokio::task::JoinHandle<Result<Arc<Image>, PullError>> {
        let (store, reference) = (self.store.clone(), self.reference(rest));
        tokio::spawn(async move { store.pull(&reference, None, None).await })
    }
}

#[tokio::test]
async fn pulls_of_the_same_image_are_one() {
    let world = World::new().await;
    let slow = layer("a", b"one");
    world.registry.push("app", "latest", &TestImage::new(vec![slow.clone()]));
    let gate = world.gate(&slow);
    let pulls: Vec<_> = (0..5).map(|_| world.start_pull("app")).collect();
    world.eventually("asked", |world| world.registry.count(slow.digest.hex()) > 0).await;
    gate.add_permits(10);
    for pull in pulls {
        pull.await.unwrap().unwrap();
    }
    assert_eq!(world.registry.count("/manifests/"), 1);
    assert_eq!(world.registry.count(slow.digest.hex()), 1);
}

#[tokio::test]
async fn lists_do_not_wait_for_pulls() {
    let world = World::new().await;
    let slow = layer("a", b"one");
    world.registry.push("app", "latest", &TestImage::new(vec![slow.clone()]));
    let gate = world.gate(&slow);
    let pull = world.start_pull("app");
    world.eventually("asked", |world| world.registry.count(slow.digest.hex()) > 0).await;
    assert!(world.store.list().is_empty());
    assert!(world.store.resolve(&world.reference("app").to_string()).is_none());
    gate.add_permits(1);
    pull.await.unwrap().unwrap();
    assert_eq!(world.store.list().len(), 1);
}

#[tokio::test]
async fn pulls_that_share_a_layer_do_it_once() {
    let world = World::new().await;
    let shared = layer("shared", b"one");
    world.registry.push("one", "latest", &TestImage::new(vec![shared.clone(), layer("1", b"")]));
    world.registry.push("two", "latest", &TestImage::new(vec![shared.clone(), layer("2", b"")]));
    let gate = world.gate(&shared);
    let (one, two) = (world.start_pull("one"), world.start_pull("two"));
    world.eventually("asked", |world| world.registry.count("/two/blobs/") > 1).await;
    gate.add_permits(10);
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    assert_eq!(world.registry.count(shared.digest.hex()), 1);
}

#[tokio::test]
async fn a_pull_nobody_waits_for_stops_and_the_next_takes_over() {
    let world = World::new().await;
    let shared = layer("shared", b"one");
    world.registry.push("one", "latest", &TestImage::new(vec![shared.clone()]));
    world.registry.push("two", "latest", &TestImage::new(vec![shared.clone(), layer("2", b"")]));
    let gate = world.gate(&shared);
    let one = world.start_pull("one");
    world.eventually("asked", |world| world.registry.count(shared.digest.hex()) == 1).await;
    let two = world.start_pull("two");
    world.eventually("waits", |world| world.registry.count("/two/blobs/") > 1).await;
    one.abort();
    world.eventually("takes over", |world| world.registry.count(shared.digest.hex()) == 2).await;
    gate.add_permits(10);
    two.await.unwrap().unwrap();
    assert_eq!(world.store.list().len(), 1);
}

#[tokio::test]
async fn a_pull_goes_on_while_anybody_waits_for_it() {
    let world = World::new().await;
    let slow = layer("a", b"one");
    world.registry.push("app", "latest", &TestImage::new(vec![slow.clone()]));
    let gate = world.gate(&slow);
    let (one, two) = (world.start_pull("app"), world.start_pull("app"));
    world.eventually("asked", |world| world.registry.count(slow.digest.hex()) > 0).await;
    one.abort();
    assert!(one.await.unwrap_err().is_cancelled());
    gate.add_permits(10);
    two.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cancelled_pull_leaves_no_half_layer() {
    let world = World::new().await;
    let big = noise(30, 300_000);
    world.registry.push("app", "latest", &TestImage::new(vec![big.clone()]));
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world.registry.hook(move |request| {
        request.target.contains(&digest).then(|| Reply::new(200, blob.clone()).stall(200_000))
    });
    let pull = world.start_pull("app");
    world.eventually("unpacks", |world| world.contents().iter().any(|name| name.starts_with("tmp/"))).await;
    pull.abort();
    world.eventually("cleans up", |world| world.contents().is_empty()).await;
}

#[tokio::test]
async fn layers_of_a_failed_download_wait_for_the_next_try() {
    let world = World::new().await;
    let (good, late) = (layer("good", b"1"), layer("late", b"2"));
    world.registry.push("app", "latest", &TestImage::new(vec![good.clone(), late.clone()]));
    let (digest, gate) = (late.digest.to_string(), Arc::new(Semaphore::new(0)));
    let held = Arc::clone(&gate);
    world
        .registry
        .hook(move |request| request.target.contains(&digest).then(|| Reply::new(500, "").gate(&held)));
    let pull = world.start_pull("app");
    let path = world.store.layers_dir().join(good.diff_id.hex());
    world.eventually("one layer", |_| path.is_dir()).await;
    gate.add_permits(1);
    pull.await.unwrap().unwrap_err();
    assert_eq!(world.contents().len(), 2);
    world.registry.hook(|_| None);
    world.pull("app").await.unwrap();
    assert_eq!(world.registry.count(good.digest.hex()), 1);
}

#[tokio::test]
async fn an_image_removed_while_another_needs_its_layer_leaves_the_layer() {
    let world = World::new().await;
    let (shared, slow) = (layer("shared", b"one"), layer("slow", b"two"));
    world.registry.push("one", "latest", &TestImage::new(vec![shared.clone()]));
    world.registry.push("two", "latest", &TestImage::new(vec![shared.clone(), slow.clone()]));
    let one = world.pull("one").await.unwrap();
    let gate = world.gate(&slow);
    let two = world.start_pull("two");
    world.eventually("asked", |world| world.registry.count(slow.digest.hex()) > 0).await;
    world.store.remove(&one.id).await.unwrap();
    gate.add_permits(10);
    let two = two.await.unwrap().unwrap();
    assert!(world.store.layers_dir().join(&two.layers[0]).join("shared").is_file());
    assert_eq!(world.registry.count(shared.digest.hex()), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_and_removals_at_random_leave_what_they_should() {
    let world = World::new().await;
    let layers: Vec<_> = (0..6).map(|n| layer(&format!("f{n}"), &[n; 2000])).collect();
    for n in 0..6 {
        let image =
            TestImage::new(vec![layers[n].clone(), layers[(n + 1) % 6].clone(), layers[(n * 2) % 6].clone()]);
        world.registry.push(&format!("app{n}"), "latest", &image);
    }
    let tasks = (0..8u64).map(|seed| {
        let store = world.store.clone();
        let references: Vec<_> = (0..6).map(|n| world.reference(&format!("app{n}"))).collect();
        tokio::spawn(async move {
            let mut state = seed + 1;
            for _ in 0..30 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let reference = &references[(state >> 33) as usize % references.len()];
                match (state >> 40) % 3 {
                    0 => {
                        if let Some(image) = store.resolve(&reference.to_string()) {
                            store.remove(&image.id).await.unwrap();
                        }
                    }
                    1 => drop(
                        tokio::time::timeout(Duration::from_millis(3), store.pull(reference, None, None))
                            .await,
                    ),
                    _ => drop(store.pull(reference, None, None).await.unwrap()),
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    for image in world.store.list() {
        for layer in &image.layers {
            assert!(world.store.layers_dir().join(layer).is_dir(), "{} lacks {layer}", image.id);
        }
        world.store.remove(&image.id).await.unwrap();
    }
    // What cancelled pulls left waits for a retry, and goes when the store is opened again.
    let mut world = world;
    world.eventually("quiet", |world| Arc::strong_count(&world.store.inner) == 1).await;
    world.reopen();
    assert_eq!(world.contents(), Vec::<String>::new());
}
