//! Collecting garbage in networks of fake plugins.

#![allow(clippy::unwrap_used)]

mod fake;

use std::fs;
use std::time::Duration;

use fake::{Fake, pod, told};
use hartpod_cni::{CollectError, Collected};
use serde_json::{Value, json};

/// Speaks 1.1.0, and joins pods.
const MODERN: &str = r#"case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}' ;;
ADD) echo '{"cniVersion": "1.1.0", "ips": [{"address": "10.88.0.5/16"}]}' ;;
esac
exit 0"#;

/// Speaks nothing newer than 1.0.0, as its word has it.
const OLD: &str = r#"[ "$CNI_COMMAND" = VERSION ] && echo '{"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0"]}'
exit 0"#;

fn plugin(name: &str) -> Value {
    json!({ "type": name, "kept": true })
}

fn network(fake: &Fake, name: &str, more: &Value) {
    let mut conf = json!({ "cniVersion": "1.1.0", "name": name, "plugins": [plugin("modern")] });
    conf.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    fs::write(fake.path("conf/10-pods.conflist"), conf.to_string()).unwrap();
}

#[tokio::test]
async fn plugins_are_told_of_the_pods_in_their_network() {
    let fake = Fake::new("1.1.0", &[(plugin("modern"), MODERN), (plugin("second"), MODERN)]);
    let client = fake.client();
    for id in ["a1", "a2"] {
        client.add(&pod(id)).await.unwrap();
    }
    network(&fake, "others", &json!({}));
    client.add(&pod("b1")).await.unwrap();
    client.del(&pod("a1")).await.unwrap();
    fake.forget_calls();
    let collected = client.collect_garbage().await.unwrap();
    assert_eq!(collected, Collected::Yes { network: "others".to_owned(), pods: 1 });
    assert_eq!(fake.names(), ["VERSION modern", "GC modern"]);

    fake.configure("1.1.0", vec![plugin("modern"), plugin("second")]);
    fake.forget_calls();
    let collected = client.collect_garbage().await.unwrap();
    assert_eq!(collected, Collected::Yes { network: "pods".to_owned(), pods: 1 });
    assert_eq!(fake.names(), ["VERSION modern", "VERSION second", "GC modern", "GC second"]);
    let valid = json!([{ "containerID": "a2", "ifname": "eth0" }]);
    let wanted = json!({
        "name": "pods", "cniVersion": "1.1.0", "type": "second", "kept": true,
        "cni.dev/valid-attachments": valid, "cni.dev/attachments": valid,
    });
    let calls = fake.calls();
    assert_eq!(calls[3].stdin, wanted);
    let path = format!("CNI_PATH={}:{}\n", fake.path("none").display(), fake.path("bin").display());
    let wanted = format!("CNI_ARGS=\nCNI_COMMAND=GC\nCNI_CONTAINERID=\nCNI_IFNAME=\nCNI_NETNS=\n{path}");
    assert_eq!(calls[3].env, wanted);
}

#[tokio::test]
async fn a_network_that_has_no_gc_is_left_alone() {
    let fake = Fake::new("1.0.0", &[(plugin("modern"), MODERN), (plugin("old"), OLD)]);
    let why = async || match fake.client().collect_garbage().await.unwrap() {
        Collected::NotOffered { why, .. } => why,
        Collected::Yes { .. } => panic!("collected"),
    };
    assert_eq!(why().await, "its version is below 1.1.0");
    fake.configure("1.1.0", vec![plugin("modern"), plugin("old")]);
    assert_eq!(why().await, "one of its plugins does not know version 1.1.0");
    network(&fake, "pods", &json!({ "disableGC": true }));
    assert_eq!(why().await, "its configuration disables it");
    assert!(!fake.names().iter().any(|name| name.starts_with("GC")), "{:?}", fake.names());
}

#[tokio::test]
async fn pods_of_other_runtimes_in_the_network_forbid_it() {
    let fake = Fake::new("1.1.0", &[(plugin("modern"), MODERN)]);
    let results = fake.path("foreign/results");
    fs::create_dir_all(&results).unwrap();
    fs::write(results.join("elsewhere-f0-eth0"), r#"{"networkName": "elsewhere"}"#).unwrap();
    assert!(matches!(fake.client().collect_garbage().await, Ok(Collected::Yes { .. })));
    fake.forget_calls();
    fs::write(results.join("pods-f0-eth0"), r#"{"networkName": "pods"}"#).unwrap();
    let error = fake.client().collect_garbage().await.unwrap_err();
    let file = results.join("pods-f0-eth0").display().to_string();
    assert_eq!(told(&error), format!("network `pods` has 1 attachments of other runtimes, the first {file}"));
    assert_eq!(fake.names(), ["VERSION modern"]);
}

#[tokio::test]
async fn an_entry_that_cannot_be_read_forbids_it() {
    let fake = Fake::new("1.1.0", &[(plugin("modern"), MODERN)]);
    fake.client().add(&pod("a1")).await.unwrap();
    fs::write(fake.path("cache/a1.json"), "{").unwrap();
    fake.forget_calls();
    assert!(matches!(fake.client().collect_garbage().await, Err(CollectError::Cache(_))));
    assert_eq!(fake.names(), ["VERSION modern"]);
}

#[tokio::test]
async fn a_plugin_that_fails_is_told_and_the_others_are_asked() {
    let failing = format!(
        "[ $CNI_COMMAND = GC ] && {{ echo '{{\"code\": 11, \"msg\": \"no store\"}}'; exit 1; }}\n{MODERN}"
    );
    let fake = Fake::new("1.1.0", &[(plugin("failing"), &failing), (plugin("modern"), MODERN)]);
    let error = fake.client().collect_garbage().await.unwrap_err();
    let text = "collect garbage of network `pods`: CNI GC of plugin `failing`: no store (code 11)";
    assert_eq!(told(&error), text);
    assert_eq!(fake.names()[2..], ["GC failing", "GC modern"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_is_not_taken_for_garbage() {
    let slow = format!(
        "[ $CNI_COMMAND = ADD ] && touch \"$dir/begun\" && while [ ! -e \"$dir/go\" ]; do sleep 0.02; done\n{MODERN}"
    );
    let fake = Fake::new("1.1.0", &[(plugin("slow"), &slow)]);
    let client = fake.client();
    let joining = tokio::spawn({
        let client = client.clone();
        async move { client.add(&pod("a1")).await }
    });
    while !fake.path("begun").exists() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(matches!(client.collect_garbage().await, Err(CollectError::Busy)));
    fs::write(fake.path("go"), "").unwrap();
    joining.await.unwrap().unwrap();
    let collected = client.collect_garbage().await.unwrap();
    assert_eq!(collected, Collected::Yes { network: "pods".to_owned(), pods: 1 });
}
