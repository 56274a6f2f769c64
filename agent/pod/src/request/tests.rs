use hartpod_proto::pod::v1::{self, Stdio};

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
    ContainerPlan::new(request, Some(Path::new("/var/log/pods/p"))).unwrap_err().to_string()
}

fn overlay(layer: &str, scratch: &str) -> Option<RootFs> {
    let kind = Kind::Overlay(v1::Overlay { layers: vec![layer.to_owned()], scratch: scratch.to_owned() });
    Some(RootFs { kind: Some(kind) })
}

#[test]
fn a_container_that_makes_sense() {
    let plan = ContainerPlan::new(create(), Some(Path::new("/var/log/pods/p"))).unwrap();
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
    assert!(refusal(|r| r.stdio = Some(Stdio { tty: true })).contains("process.terminal"));
    assert!(matches!(ContainerPlan::new(create(), None), Err(InvalidRequest::NoLogDirectory)));
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
    assert!(PodPlan::try_from(good.clone()).is_ok());
    let refused = |request| PodPlan::try_from(request).unwrap_err();
    let request = SetUpPodRequest { pod_id: "1".to_owned(), ..good.clone() };
    assert!(matches!(refused(request), InvalidRequest::PodId(_)));
    let request = SetUpPodRequest { layers_dir: "l".to_owned(), ..good.clone() };
    assert!(matches!(refused(request), InvalidRequest::RelativePath { field: "layers_dir", .. }));
    let request = SetUpPodRequest { ipc: NamespaceMode::Container as i32, ..good };
    assert!(matches!(refused(request), InvalidRequest::NamespaceMode { field: "ipc", value: 1 }));
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
