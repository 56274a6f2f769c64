use hartpod_proto::pod::v1::{self, RootFs, Stdio};

use super::*;

fn id() -> String {
    "ab".repeat(32)
}

fn create() -> CreateContainerRequest {
    CreateContainerRequest {
        container_id: id(),
        spec_json: br#"{"ociVersion":"1.1.0","process":{"args":["sh"],"cwd":"/","user":{"uid":0,"gid":0}}}"#
            .to_vec(),
        rootfs: Some(RootFs {
            kind: Some(Kind::Overlay(v1::Overlay { layers: vec!["base".to_owned()], scratch: id() })),
        }),
        log_path: "c/0.log".to_owned(),
        ..CreateContainerRequest::default()
    }
}

fn refusal(change: impl FnOnce(&mut CreateContainerRequest)) -> String {
    let mut request = create();
    change(&mut request);
    ContainerPlan::new(request, Some(Path::new("/var/log/pods/p")), Place::Host).unwrap_err().to_string()
}

fn overlay(layer: &str, scratch: &str) -> Option<RootFs> {
    let kind = Kind::Overlay(v1::Overlay { layers: vec![layer.to_owned()], scratch: scratch.to_owned() });
    Some(RootFs { kind: Some(kind) })
}

#[test]
fn a_container_that_makes_sense() {
    let plan = ContainerPlan::new(create(), Some(Path::new("/var/log/pods/p")), Place::Host).unwrap();
    assert_eq!((plan.pid, plan.tty, plan.log.is_some()), (PidPlan::Pod, false, true));
}

#[test]
fn containers_that_make_no_sense() {
    assert_eq!(refusal(|r| r.container_id = "x".to_owned()), "container_id");
    assert_eq!(refusal(|r| r.spec_json = b"{".to_vec()), "spec_json is not an OCI runtime spec");
    assert_eq!(refusal(|r| r.rootfs = None), "rootfs is missing");
    assert!(refusal(|r| r.rootfs = overlay("../../etc", "s")).contains("not the name of a folder"));
    assert!(refusal(|r| r.rootfs = overlay("base", "..")).contains("not the name of a folder"));
    assert!(refusal(|r| r.pid = 9).contains("not a namespace mode"));
    assert_eq!(refusal(|r| r.pid = NamespaceMode::Target as i32), "pid_target");
    assert_eq!(refusal(|r| r.log_path = "../x".to_owned()), "log_path");
    assert!(
        refusal(|r| r.stdio = Some(Stdio { tty: true, ..Stdio::default() })).contains("process.terminal")
    );
    assert!(matches!(ContainerPlan::new(create(), None, Place::Host), Err(InvalidRequest::NoLogDirectory)));
}

#[test]
fn hooks_are_for_pods_on_a_node_and_have_a_bundle() {
    let with = |hooks: &str, bundle: &str| {
        CreateContainerRequest {
        spec_json: format!(
            r#"{{"ociVersion":"1.2.0","process":{{"args":["sh"],"cwd":"/","user":{{"uid":0,"gid":0}}}},"hooks":{hooks}}}"#
        )
        .into_bytes(),
        bundle: bundle.to_owned(),
        log_path: String::new(),
        ..create()
    }
    };
    let plan = |hooks, bundle, place| ContainerPlan::new(with(hooks, bundle), None, place);
    let hooks = r#"{"createRuntime":[{"path":"/x"}]}"#;
    let at = |hooks, bundle| plan(hooks, bundle, Place::Host).unwrap().hooks;
    assert_eq!(at(hooks, "/b").unwrap().hook_point(), Some(Path::new("/b")));
    assert_eq!(at(r#"{"poststart":[{"path":"/x"}]}"#, "/b").unwrap().hook_point(), None);
    assert!(at(r#"{"poststart":[]}"#, "").is_none());
    let refused = |hooks, bundle| plan(hooks, bundle, Place::Host).unwrap_err().to_string();
    assert_eq!(refused(hooks, ""), "bundle: `` is not an absolute path");
    assert_eq!(refused(r#"{"poststop":[{"path":"x"}]}"#, "/b"), "spec_json: hooks: path x is not absolute");
    let disk = v1::root_fs::Kind::Disk(v1::Disk { slot: 4, layers: 1, volume_layers: 0 });
    let in_guest = CreateContainerRequest { rootfs: Some(RootFs { kind: Some(disk) }), ..with(hooks, "/b") };
    let refused = ContainerPlan::new(in_guest, None, Place::Guest).unwrap_err().to_string();
    assert_eq!(refused, "spec_json: hooks is for pods on a node");
}

fn exec() -> StartExecRequest {
    StartExecRequest {
        exec_id: "e-1".to_owned(),
        args: vec!["true".to_owned()],
        ..StartExecRequest::default()
    }
}

#[test]
fn execs_that_make_no_sense() {
    assert!(ExecPlan::try_from(exec()).is_ok());
    for exec_id in ["", "a/b", "..", &"x".repeat(65)] {
        let request = StartExecRequest { exec_id: exec_id.to_owned(), ..exec() };
        assert!(matches!(ExecPlan::try_from(request), Err(InvalidRequest::ExecId(_))), "{exec_id}");
    }
    let request = StartExecRequest { args: Vec::new(), ..exec() };
    assert!(matches!(ExecPlan::try_from(request), Err(InvalidRequest::NoArgs)));
    let request = StartExecRequest { stdout_token: "short".to_owned(), ..exec() };
    assert!(matches!(ExecPlan::try_from(request), Err(InvalidRequest::Token { stream: "stdout", .. })));
    let request = StartExecRequest { tty: true, stderr_token: "0".repeat(32), ..exec() };
    assert!(matches!(ExecPlan::try_from(request), Err(InvalidRequest::StderrWithTty)));
}

#[test]
fn pods_that_make_no_sense() {
    let good = SetUpPodRequest {
        pod_id: id(),
        layers_dir: "/l".to_owned(),
        containers_dir: "/c".to_owned(),
        ..SetUpPodRequest::default()
    };
    assert!(PodPlan::new(good.clone(), Place::Host).is_ok());
    let refused = |request| PodPlan::new(request, Place::Host).unwrap_err();
    let request = SetUpPodRequest { pod_id: "1".to_owned(), ..good.clone() };
    assert!(matches!(refused(request), InvalidRequest::PodId(_)));
    let request = SetUpPodRequest { layers_dir: "l".to_owned(), ..good.clone() };
    assert!(matches!(refused(request), InvalidRequest::RelativePath { field: "layers_dir", .. }));
    let request = SetUpPodRequest { ipc: NamespaceMode::Container as i32, ..good.clone() };
    assert!(matches!(refused(request), InvalidRequest::NamespaceMode { field: "ipc", value: 1 }));
    let ids = vec![v1::IdRange { container_id: 0, host_id: 65536, length: 65536 }];
    let mapped = SetUpPodRequest { uids: ids.clone(), gids: ids, ..good };
    let plan = PodPlan::new(mapped.clone(), Place::Host).unwrap();
    assert_eq!(plan.setup.users.and_then(|maps| maps.host_gid(1)), Some(65537));
    let request = SetUpPodRequest { ipc: NamespaceMode::Node as i32, ..mapped.clone() };
    assert!(matches!(refused(request), InvalidRequest::NodeIpc));
    let request = SetUpPodRequest { gids: Vec::new(), ..mapped.clone() };
    assert_eq!(refused(request).to_string(), "gids: no range of ids");
    let guest = SetUpPodRequest { layers_dir: String::new(), containers_dir: String::new(), ..mapped };
    assert_eq!(PodPlan::new(guest, Place::Guest).unwrap_err().to_string(), "uids is for pods on a node");
}

#[test]
fn signals_are_those_of_linux() {
    assert!([1, 15, 64].into_iter().all(|number| signal(number).is_ok()));
    assert!([-1, 0, 65].into_iter().all(|number| signal(number).is_err()));
}

#[test]
fn a_repeated_request_is_recognised() {
    assert_eq!(fingerprint(&create()), fingerprint(&create()));
    assert_ne!(fingerprint(&create()), fingerprint(&CreateContainerRequest { stdin: true, ..create() }));
}

/// A container in a guest, whose output goes to streams.
fn in_guest(change: impl FnOnce(&mut CreateContainerRequest)) -> Result<ContainerPlan, InvalidRequest> {
    let disk = v1::Disk { slot: 4, layers: 2, volume_layers: 0 };
    let stdio = Stdio { stdout_token: "0".repeat(32), ..Stdio::default() };
    let mut request = CreateContainerRequest {
        rootfs: Some(RootFs { kind: Some(Kind::Disk(disk)) }),
        log_path: String::new(),
        stdio: Some(stdio),
        ..create()
    };
    change(&mut request);
    ContainerPlan::new(request, None, Place::Guest)
}

#[test]
fn a_container_in_a_guest_brings_its_disk() {
    let plan = in_guest(|_| ()).unwrap();
    assert_eq!(plan.slot().map(Slot::number), Some(4));
    assert!(plan.log.is_none() && plan.tokens[0].is_some() && plan.tokens[1].is_none());
    let slot = |slot| Some(RootFs { kind: Some(Kind::Disk(v1::Disk { slot, layers: 1, volume_layers: 0 })) });
    assert!(matches!(in_guest(|r| r.rootfs = slot(32)), Err(InvalidRequest::Slot(32))));
    let many = Some(RootFs { kind: Some(Kind::Disk(v1::Disk { slot: 4, layers: 100, volume_layers: 28 })) });
    assert!(matches!(in_guest(|r| r.rootfs = many), Err(InvalidRequest::Layers(128))));
    let error = in_guest(|r| r.rootfs = overlay("base", "s")).unwrap_err().to_string();
    assert_eq!(error, "rootfs.overlay is for pods on a node");
    assert_eq!(refusal(|r| r.rootfs = slot(4)), "rootfs.disk is for pods in a guest");
}

#[test]
fn a_container_may_set_up_the_network_if_its_spec_says_so() {
    let may = |bounding: &str| {
        let process = format!(
            r#"{{"args":["sh"],"cwd":"/","user":{{"uid":0,"gid":0}},"capabilities":{{"bounding":[{bounding}]}}}}"#
        );
        let spec = format!(r#"{{"ociVersion":"1.1.0","process":{process}}}"#);
        in_guest(|r| r.spec_json = spec.into_bytes()).unwrap().administers_network()
    };
    assert!(may(r#""CAP_CHOWN","CAP_NET_ADMIN""#));
    assert!(!may(r#""CAP_CHOWN""#));
    assert!(!in_guest(|_| ()).unwrap().administers_network());
}

#[test]
fn output_goes_to_a_log_or_to_streams() {
    let streams = |token: &str| {
        let stdio = Stdio { stdout_token: token.to_owned(), ..Stdio::default() };
        move |r: &mut CreateContainerRequest| r.stdio = Some(stdio)
    };
    assert!(refusal(streams(&"0".repeat(32))).contains("without log_path"));
    assert_eq!(refusal(streams("short")), "stdout_token");
    let tty = Stdio { tty: true, stderr_token: "0".repeat(32), ..Stdio::default() };
    let spec = br#"{"ociVersion":"1.1.0","process":{"terminal":true,"args":["sh"],"cwd":"/","user":{"uid":0,"gid":0}}}"#;
    let error = in_guest(|r| (r.stdio, r.spec_json) = (Some(tty), spec.to_vec())).unwrap_err();
    assert!(matches!(error, InvalidRequest::StderrWithTty));
}

#[test]
fn a_guest_has_no_folders_and_a_node_keeps_its_clock() {
    let pod = |place, change: fn(&mut SetUpPodRequest)| {
        let mut request = SetUpPodRequest { pod_id: id(), ..SetUpPodRequest::default() };
        if place == Place::Host {
            (request.layers_dir, request.containers_dir) = ("/l".to_owned(), "/c".to_owned());
        }
        change(&mut request);
        PodPlan::new(request, place)
    };
    let plan = pod(Place::Guest, |r| r.clock_ns = 7).unwrap();
    assert_eq!((plan.clock, plan.setup.cgroup_parent.as_str()), (Some(7), "/pod"));
    assert_eq!(pod(Place::Host, |_| ()).unwrap().clock, None);
    for (place, change, field) in [
        (Place::Host, (|r| r.clock_ns = 7) as fn(&mut SetUpPodRequest), "clock_ns"),
        (Place::Host, |r| r.network = Some(v1::GuestNetwork::default()), "network"),
        (Place::Host, |r| r.files.push(v1::PodFile::default()), "files"),
        (Place::Guest, |r| r.layers_dir = "/l".to_owned(), "layers_dir"),
        (Place::Guest, |r| r.netns_path = "/n".to_owned(), "netns_path"),
        (Place::Guest, |r| r.log_directory = "/v".to_owned(), "log_directory"),
    ] {
        match pod(place, change).unwrap_err() {
            InvalidRequest::Elsewhere { field: told, .. } => assert_eq!(told, field),
            other => panic!("{field}: {other}"),
        }
    }
}
