//! Pods joining and leaving a network of fake plugins.

#![allow(clippy::unwrap_used)]

mod fake;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use fake::{Fake, NETNS, pod, told};
use hartpod_cni::{
    Attachment, Bandwidth, Capabilities, Checked, CniError, Dns, Failure, PortMapping, Protocol,
};
use serde_json::{Value, json};

/// Prints a result as `bridge` would, when it is asked to ADD.
const BRIDGE: &str = r#"[ "$CNI_COMMAND" = ADD ] && cat <<END
{"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "0a:58:0a:58:00:05", "sandbox": "$CNI_NETNS"}],
 "ips": [{"address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 1}, {"address": "fd00::5/64", "interface": 1}]}
END
exit 0"#;

/// Prints the result before it, as chained plugins do.
const CHAINED: &str = r#"[ "$CNI_COMMAND" = ADD ] && sed 's/.*"prevResult":\(.*\),"runtimeConfig".*/\1/' "$n-ADD $(basename "$0").json"
exit 0"#;

/// Refuses the verb in `$refused`, the way the spec wants it.
fn refusing(verb: &str, msg: &str, otherwise: &str) -> String {
    format!(
        r#"if [ "$CNI_COMMAND" = {verb} ]; then echo '{{"code": 101, "msg": "{msg}", "details": "from $0"}}'; exit 1; fi
{otherwise}"#
    )
}

fn bridge() -> Value {
    json!({"type": "bridge", "isGateway": true, "ipam": {"type": "host-local", "subnet": "10.88.0.0/16"}})
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": true, "dns": false}})
}

fn result() -> Value {
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "mac": "0a:58:0a:58:00:05", "sandbox": NETNS}],
        "ips": [
            {"address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 1},
            {"address": "fd00::5/64", "interface": 1},
        ],
    })
}

fn with_capabilities(id: &str) -> Attachment {
    let mapping = PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: Protocol::Tcp,
        host_ip: "127.0.0.1".to_owned(),
    };
    let capabilities = Capabilities {
        port_mappings: vec![mapping],
        bandwidth: Some(Bandwidth {
            ingress_rate: 1000,
            ingress_burst: 4_294_967_295,
            ..Bandwidth::default()
        }),
        dns: Some(Dns { servers: vec!["10.96.0.10".to_owned()], ..Dns::default() }),
        aliases: vec!["web".to_owned()],
        cgroup_path: Some("/kubepods/pod1".to_owned()),
        pod_annotations: BTreeMap::from([("team".to_owned(), "blue".to_owned())]),
    };
    Attachment { capabilities, ..pod(id) }
}

#[tokio::test]
async fn plugins_are_told_what_containerd_tells_them() {
    let everything = json!({"type": "all", "capabilities": {
        "portMappings": true, "bandwidth": true, "dns": true, "aliases": true, "cgroupPath": true,
        "io.kubernetes.cri.pod-annotations": true, "ipRanges": true}});
    let plugins = [(bridge(), BRIDGE), (portmap(), CHAINED), (everything.clone(), CHAINED)];
    let fake = Fake::new("1.0.0", &plugins);
    let attached = fake.client().add(&with_capabilities("c0ffee")).await.unwrap();

    let env = |verb: &str| {
        format!(
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;\
             K8S_POD_INFRA_CONTAINER_ID=c0ffee;K8S_POD_UID=1234-5678\n\
             CNI_COMMAND={verb}\nCNI_CONTAINERID=c0ffee\nCNI_IFNAME=eth0\nCNI_NETNS={NETNS}\nCNI_PATH={}:{}\n",
            fake.path("none").display(),
            fake.path("bin").display()
        )
    };
    let first = json!({
        "name": "pods", "cniVersion": "1.0.0", "type": "bridge", "isGateway": true,
        "ipam": {"type": "host-local", "subnet": "10.88.0.0/16"},
    });
    let mappings = json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "127.0.0.1"}]);
    let bandwidth =
        json!({"IngressRate": 1000, "IngressBurst": 4_294_967_295_u32, "EgressRate": 0, "EgressBurst": 0});
    let second = json!({
        "name": "pods", "cniVersion": "1.0.0", "type": "portmap", "capabilities": portmap()["capabilities"],
        "prevResult": result(), "runtimeConfig": {"portMappings": mappings, "bandwidth": bandwidth},
    });
    let third = json!({
        "name": "pods", "cniVersion": "1.0.0", "type": "all", "capabilities": everything["capabilities"],
        "prevResult": result(),
        "runtimeConfig": {
            "portMappings": mappings,
            "bandwidth": bandwidth,
            "dns": {"Servers": ["10.96.0.10"], "Searches": null, "Options": null},
            "aliases": ["web"],
            "cgroupPath": "/kubepods/pod1",
            "io.kubernetes.cri.pod-annotations": {"team": "blue"},
        },
    });
    let calls = fake.calls();
    assert_eq!(fake.names(), ["ADD bridge", "ADD portmap", "ADD all"]);
    for (call, stdin) in calls.iter().zip([&first, &second, &third]) {
        assert_eq!((&call.env, &call.stdin), (&env("ADD"), stdin), "{}", call.name);
    }
    assert_eq!(attached.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.88.0.5", "fd00::5"]);
    assert_eq!(attached.mac.as_deref(), Some("0a:58:0a:58:00:05"));
    assert_eq!(attached.raw, result());

    fake.forget_calls();
    fake.client().del(&pod("c0ffee")).await.unwrap();
    let calls = fake.calls();
    assert_eq!(fake.names(), ["DEL all", "DEL portmap", "DEL bridge"]);
    let mut first = first;
    first["prevResult"] = result();
    for (call, stdin) in calls.iter().zip([third, second, first]) {
        assert_eq!((&call.env, &call.stdin), (&env("DEL"), &stdin), "{}", call.name);
    }
    assert_eq!(fake.cache_files(), 0);
}

#[tokio::test]
async fn leaving_uses_what_joining_was_told_whatever_changed_since() {
    let fake = Fake::new("0.3.1", &[(bridge(), BRIDGE)]);
    fake.client().add(&with_capabilities("a1")).await.unwrap();
    fake.install("other", "exit 1");
    fake.configure("1.0.0", vec![json!({"type": "other"})]);
    fake.forget_calls();

    fake.client().del_cached("a1").await.unwrap();
    let calls = fake.calls();
    assert_eq!(fake.names(), ["DEL bridge"]);
    assert!(
        calls[0].env.contains("K8S_POD_UID=1234-5678")
            && calls[0].env.contains(&format!("CNI_NETNS={NETNS}\n"))
    );
    assert_eq!(calls[0].stdin["cniVersion"], "0.3.1");
    assert_eq!(calls[0].stdin.get("prevResult"), None, "only versions since 0.4.0 have it on DEL");

    fake.client().del_cached("a1").await.unwrap();
    fake.client().del(&pod("never-joined")).await.unwrap();
    assert_eq!(fake.names(), ["DEL bridge"], "nothing to leave, so nothing is run");
}

#[tokio::test]
async fn a_network_namespace_that_is_gone_is_told_as_an_empty_name() {
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE)]);
    let netns = fake.path("netns");
    fs::write(&netns, "").unwrap();
    let pod = Attachment { netns: Some(netns), ..pod("a2") };
    fake.client().add(&pod).await.unwrap();
    fake.client().del(&pod).await.unwrap();
    assert!(fake.calls()[1].env.contains("CNI_NETNS=\n"), "{:?}", fake.calls()[1]);
}

#[tokio::test]
async fn when_a_plugin_refuses_the_ones_before_it_are_undone() {
    let tuning = refusing("ADD", "no such sysctl", "exit 0");
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE), (json!({"type": "tuning"}), &tuning)]);
    let error = fake.client().add(&pod("b1")).await.unwrap_err();
    assert_eq!(
        told(&error),
        "join network `pods`: CNI ADD of plugin `tuning`: no such sysctl (code 101): from $0"
    );
    assert_eq!(fake.names(), ["ADD bridge", "ADD tuning", "DEL tuning", "DEL bridge"]);
    assert_eq!(fake.cache_files(), 0);
}

#[tokio::test]
async fn when_undoing_fails_too_a_later_leave_finishes_it() {
    let broken = "[ $CNI_COMMAND = DEL ] && [ -e \"$dir/fixed\" ] && exit 0\necho oops >&2; exit 3";
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE), (json!({"type": "broken"}), broken)]);
    let error = fake.client().add(&pod("b2")).await.unwrap_err();
    assert!(
        matches!(&error, CniError::Add { undo: Some(undo), .. } if undo.contains("DEL of plugin `broken`"))
    );
    let text = told(&error);
    assert!(text.contains("exit status: 3 without a CNI error; stdout \"\", stderr \"oops\""), "{text}");
    assert_eq!(fake.names()[2..], ["DEL broken", "DEL bridge"], "the others leave all the same");
    assert_eq!(fake.client().cached_ids(), ["b2"]);

    let error = fake.client().del(&pod("b2")).await.unwrap_err();
    assert!(matches!(&error, CniError::Del { source, .. } if matches!(source.failure, Failure::Died { .. })));
    assert_eq!(fake.client().cached_ids(), ["b2"], "kept for the next try");

    fs::write(fake.path("fixed"), "").unwrap();
    fake.client().del(&pod("b2")).await.unwrap();
    assert_eq!(fake.cache_files(), 0);
}

#[tokio::test]
async fn a_plugin_that_refuses_everything_does_not_keep_a_pod_that_never_joined() {
    let refuse = r#"echo '{"code": 1, "msg": "incompatible CNI versions"}'; exit 1"#;
    let fake = Fake::new("1.1.0", &[(bridge(), refuse), (portmap(), refuse)]);
    let error = fake.client().add(&pod("b6")).await.unwrap_err();
    let others = "(also: CNI DEL of plugin `bridge`: incompatible CNI versions (code 1))";
    assert!(matches!(&error, CniError::Add { undo: Some(undo), .. } if undo.contains(others)), "{error}");
    fake.client().del(&pod("b6")).await.unwrap();
    assert_eq!(fake.names(), ["ADD bridge", "DEL portmap", "DEL bridge", "DEL portmap", "DEL bridge"]);
    assert_eq!(fake.cache_files(), 0);

    fake.install("bridge", BRIDGE);
    fake.install("portmap", &refusing("DEL", "busy", CHAINED));
    fake.client().add(&with_capabilities("b7")).await.unwrap();
    assert!(fake.client().del(&pod("b7")).await.is_err(), "a pod that joined has something to take away");
    assert_eq!(fake.client().cached_ids(), ["b7"]);
}

#[tokio::test]
async fn output_that_is_no_result_is_an_error_and_undone() {
    for (body, wanted) in [
        ("echo hello", "unusable output \"hello\": expected value at line 1"),
        ("exit 0", "unusable output \"\": EOF"),
        ("echo null", "unusable output \"null\": not a JSON object"),
        (r#"echo '{"cniVersion": "0.2.0"}'"#, "a result of version \"0.2.0\""),
        (r#"echo '{"ips": [{"address": "10.0.0.1/8", "interface": 7}]}'"#, "belongs to interface 7 of 0"),
        (r#"echo '{"interfaces": [{"name": "eth0"}]}'"#, "no address for eth0"),
        ("head -c 2000000 /dev/zero", "more than 1048576 bytes of output"),
        ("kill -9 $$", "signal: 9 (SIGKILL) without a CNI error"),
        ("echo '{\"code\": \"x\"}'; exit 1", "without a CNI error; stdout \"{\\\"code\\\""),
    ] {
        let fake = Fake::new(
            "1.0.0",
            &[(json!({"type": "odd"}), &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}"))],
        );
        let error = told(&fake.client().add(&pod("b3")).await.unwrap_err());
        assert!(error.contains(wanted), "{body}: {error}");
        assert_eq!(fake.names(), ["ADD odd", "DEL odd"], "{body}");
        assert_eq!(fake.cache_files(), 0);
    }
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_what_it_started() {
    let hang = "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! > \"$dir/pid\"; wait";
    let fake = Fake::new("1.0.0", &[(json!({"type": "hang"}), hang)]);
    let error = told(&fake.hasty_client().add(&pod("b4")).await.unwrap_err());
    assert!(error.ends_with("CNI ADD of plugin `hang`: no answer within 500ms"), "{error}");
    assert_eq!(fake.names(), ["ADD hang", "DEL hang"]);
    let child = fs::read_to_string(fake.path("pid")).unwrap();
    eventually("the plugin's child is gone", || !is_running(child.trim())).await;
}

#[tokio::test]
async fn a_child_that_keeps_stdout_open_does_not_hold_the_plugin_up() {
    let body = format!("if [ $CNI_COMMAND = ADD ]; then sleep 1000 & echo $! > \"$dir/pid\"; fi\n{BRIDGE}");
    let fake = Fake::new("1.0.0", &[(bridge(), &body)]);
    let attached = fake.client().add(&pod("b5")).await;
    let child = fs::read_to_string(fake.path("pid")).unwrap();
    let child = nix::unistd::Pid::from_raw(child.trim().parse().unwrap());
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(attached.unwrap().ips.len(), 2);
}

#[tokio::test]
async fn a_crash_in_the_middle_of_joining_can_be_undone_by_the_next_daemon() {
    let slow = "[ $CNI_COMMAND = DEL ] && exit 0\necho $$ > \"$dir/pid\"; sleep 1000";
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE), (json!({"type": "slow"}), slow)]);
    let (client, attachment) = (fake.client(), pod("c1"));
    let joining = tokio::spawn(async move { client.add(&attachment).await });
    eventually("the second plugin runs", || {
        fs::read_to_string(fake.path("pid")).is_ok_and(|p| !p.is_empty())
    })
    .await;
    let plugin = fs::read_to_string(fake.path("pid")).unwrap();
    joining.abort();
    assert!(joining.await.unwrap_err().is_cancelled());
    eventually("the plugin is gone", || !is_running(plugin.trim())).await;

    let next = fake.client();
    assert_eq!(next.cached_ids(), ["c1"]);
    next.del_cached("c1").await.unwrap();
    assert_eq!(fake.names()[2..], ["DEL slow", "DEL bridge"]);
    assert_eq!(fake.calls()[2].stdin.get("prevResult"), None, "there was no result yet");
    assert_eq!((next.cached_ids().len(), fake.cache_files()), (0, 0));
}

#[tokio::test]
async fn a_damaged_cache_entry_still_lets_the_pod_leave() {
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE)]);
    fake.client().add(&pod("c2")).await.unwrap();
    fs::write(fake.path("cache/c2.json"), "").unwrap();
    fake.forget_calls();
    fake.client().del_cached("c2").await.unwrap();
    assert_eq!(fake.names(), ["DEL bridge"]);
    assert!(fake.calls()[0].env.contains("CNI_CONTAINERID=c2\nCNI_IFNAME=eth0\nCNI_NETNS=\n"));
    assert_eq!(fake.cache_files(), 0);
}

#[tokio::test]
async fn without_a_network_or_a_plugin_nothing_is_run_and_nothing_is_left() {
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE)]);
    assert_eq!(fake.client().status(), Ok("pods".to_owned()));
    fs::remove_file(fake.path("bin/bridge")).unwrap();
    let why = fake.client().status().unwrap_err().to_string();
    assert_eq!(
        why,
        format!(
            "plugin `bridge` of network `pods` is in none of {0}/none, {0}/bin",
            fake.path("").display().to_string().trim_end_matches('/')
        )
    );
    let error = told(&fake.client().add(&pod("d1")).await.unwrap_err());
    assert_eq!(error, format!("the pod network is not ready: {why}"));

    fs::write(fake.path("conf/10-pods.conflist"), "{").unwrap();
    let error = told(&fake.client().add(&pod("d1")).await.unwrap_err());
    assert!(error.contains("conf/10-pods.conflist: not JSON"), "{error}");

    let no_netns = Attachment { netns: None, ..pod("d1") };
    let error = told(&fake.client().add(&no_netns).await.unwrap_err());
    assert_eq!(error, "invalid network attachment: no network namespace given");
    let error = told(&fake.client().del_cached("../../etc/passwd").await.unwrap_err());
    assert!(error.starts_with("invalid network attachment: container id \"../../etc/passwd\""), "{error}");
    assert_eq!((fake.calls().len(), fake.cache_files()), (0, 0));
}

#[tokio::test]
async fn what_is_already_gone_does_not_keep_a_pod_from_leaving() {
    let gone = refusing("DEL", "Link not found", BRIDGE);
    let fake = Fake::new("1.0.0", &[(bridge(), &gone), (json!({"type": "last"}), BRIDGE)]);
    fake.client().add(&pod("e1")).await.unwrap();
    fake.client().del(&pod("e1")).await.unwrap();
    assert_eq!(fake.names()[2..], ["DEL last", "DEL bridge"]);

    // Without its network namespace a pod cannot be told from one that left; with it, the error counts.
    fake.install("bridge", &refusing("DEL", "no such file or directory", BRIDGE));
    fake.client().add(&pod("e2")).await.unwrap();
    assert!(fake.client().del(&pod("e2")).await.is_err());
    let gone = Attachment { netns: Some("/nowhere".into()), ..pod("e2") };
    fake.client().del(&gone).await.unwrap();
    assert_eq!(fake.cache_files(), 0);
}

#[tokio::test]
async fn status_asks_plugins_only_where_the_version_has_it_and_not_all_the_time() {
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE)]);
    assert_eq!(fake.client().probe().await, Ok("pods".to_owned()));
    assert_eq!(fake.names(), Vec::<String>::new());

    fake.configure("1.1.0", vec![bridge()]);
    let client = fake.client();
    assert_eq!(client.probe().await, Ok("pods".to_owned()));
    assert_eq!(client.probe().await, Ok("pods".to_owned()));
    assert_eq!(fake.names(), ["STATUS bridge"]);
    let call = &fake.calls()[0];
    assert!(
        call.env.starts_with("CNI_ARGS=\nCNI_COMMAND=STATUS\nCNI_CONTAINERID=\nCNI_IFNAME=\nCNI_NETNS=\n")
    );
    assert_eq!(call.stdin["cniVersion"], "1.1.0");

    fake.install("bridge", &refusing("STATUS", "daemon not up", BRIDGE));
    let why = fake.client().probe().await.unwrap_err().to_string();
    assert_eq!(why, "network `pods`: CNI STATUS of plugin `bridge`: daemon not up (code 101): from $0");
}

#[tokio::test]
async fn check_shows_plugins_their_result_and_tells_what_they_find() {
    let fake = Fake::new("1.0.0", &[(bridge(), BRIDGE)]);
    let client = fake.client();
    assert_eq!(client.check("f1").await.unwrap(), Checked::NotOffered);
    client.add(&pod("f1")).await.unwrap();
    assert_eq!(client.check("f1").await.unwrap(), Checked::Yes);
    assert_eq!((fake.names()[1].as_str(), &fake.calls()[1].stdin["prevResult"]), ("CHECK bridge", &result()));
    fake.install("bridge", &refusing("CHECK", "address is gone", BRIDGE));
    let error = told(&client.check("f1").await.unwrap_err());
    assert!(
        error.starts_with("check network `pods`: CNI CHECK of plugin `bridge`: address is gone"),
        "{error}"
    );
}

fn is_running(pid: &str) -> bool {
    // A zombie waits for its parent, and does nothing more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..400 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("never: {what}");
}
