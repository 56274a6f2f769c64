use super::*;
use crate::random;

fn pod() -> PodRecord {
    let dir = tempfile::tempdir().unwrap();
    PodRecord {
        version: VERSION,
        id: SandboxId::from_bytes(random::bytes().unwrap()),
        stage: PodStage::Up,
        delivered: false,
        handler: String::new(),
        created_at: 17,
        epoch: Epoch::read_blocking(dir.path()).unwrap(),
        agent: Some(AgentRecord { pid: 12, start_time: 34 }),
        netns: Some("/var/run/netns/hartpod-x".into()),
        ips: vec!["10.1.2.3".parse().unwrap(), "fd00::1".parse().unwrap()],
        config: cri::PodSandboxConfig { hostname: "h".into(), ..Default::default() },
        vmm_uid: None,
        guest: None,
        resources: None,
        selinux_level: None,
    }
}

fn container() -> ContainerRecord {
    ContainerRecord {
        version: VERSION,
        id: ContainerId::from_bytes(random::bytes().unwrap()),
        delivered: true,
        created_at: 18,
        started_at: 0,
        exit: Some(ExitRecord {
            finished_at: 3,
            exit_code: 137,
            reason: "OOMKilled".into(),
            message: "m".into(),
        }),
        user: Some(UserRecord { uid: 1, gid: 2, groups: vec![3] }),
        image_id: "sha256:0".into(),
        image_ref: "a@sha256:1".into(),
        stop_signal: 15,
        config: cri::ContainerConfig { tty: true, ..Default::default() },
        slot: None,
        image_volumes: Vec::new(),
        resources: None,
    }
}

fn open(dir: &Path) -> (Records, Loaded) {
    Records::open_blocking(dir).unwrap()
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let (records, empty) = open(dir.path());
    assert!(empty.pods.is_empty() && empty.lost_pods.is_empty());
    let (pod, container) = (pod(), container());
    records.write_pod_blocking(&pod).unwrap();
    records.write_container_blocking(&pod.id, &container).unwrap();
    records.write_spec_blocking(&pod.id, &container.id, b"{}").unwrap();

    let (_, loaded) = open(dir.path());
    assert_eq!(loaded.pods.len(), 1);
    assert_eq!(loaded.pods[0].record, pod);
    assert_eq!(loaded.pods[0].containers, [container]);
    assert!(loaded.pods[0].lost_containers.is_empty());
}

#[test]
fn records_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let (records, _) = open(dir.path());
    let (pod, container) = (pod(), container());
    records.write_pod_blocking(&pod).unwrap();
    records.write_container_blocking(&pod.id, &container).unwrap();
    records.write_spec_blocking(&pod.id, &container.id, b"{}").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&records.pod_dir(&pod.id)), 0o700);
    for entry in std::fs::read_dir(records.pod_dir(&pod.id)).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
}

#[test]
fn an_unreadable_container_is_set_aside_and_its_pod_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (records, _) = open(dir.path());
    let (pod, container) = (pod(), container());
    records.write_pod_blocking(&pod).unwrap();
    records.write_container_blocking(&pod.id, &container).unwrap();
    let file = records.container_file(&pod.id, &container.id);
    std::fs::write(&file, "{\"version\": 1, \"trunc").unwrap();

    let (_, loaded) = open(dir.path());
    assert_eq!(loaded.pods[0].lost_containers, std::slice::from_ref(&container.id));
    let loaded_id = container.id;
    let aside = dir.path().with_extension("bad");
    assert!(
        !file.exists()
            && aside.join(format!("{}-{}.json", &pod.id.as_str()[..12], &loaded_id.as_str()[..12])).exists()
    );
    std::fs::remove_dir_all(aside).unwrap();
}

#[test]
fn a_pod_of_an_unknown_version_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (records, _) = open(dir.path());
    let pod = PodRecord { version: VERSION + 1, ..pod() };
    records.write_pod_blocking(&pod).unwrap();

    let (_, loaded) = open(dir.path());
    assert!(loaded.pods.is_empty());
    assert_eq!(loaded.lost_pods, std::slice::from_ref(&pod.id));
    let aside = dir.path().with_extension("bad");
    assert!(aside.join(format!("{}-pod.json", &pod.id.as_str()[..12])).exists());
    std::fs::remove_dir_all(aside).unwrap();
}

#[test]
fn removing_what_is_gone_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let (records, _) = open(dir.path());
    let (pod, container) = (pod(), container());
    records.write_pod_blocking(&pod).unwrap();
    records.write_container_blocking(&pod.id, &container).unwrap();
    for _ in 0..2 {
        records.remove_container_blocking(&pod.id, &container.id).unwrap();
        records.remove_pod_blocking(&pod.id).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_was_set_aside_does_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let pods = dir.path().join("pods");
    std::fs::create_dir(&pods).unwrap();
    let (records, _) = open(&pods);
    for _ in 0..load::ASIDE_MAX + 5 {
        let pod = pod();
        records.write_pod_blocking(&pod).unwrap();
        std::fs::write(records.pod_dir(&pod.id).join(POD_FILE), "{").unwrap();
    }
    let (_, loaded) = open(&pods);
    assert_eq!(loaded.lost_pods.len(), load::ASIDE_MAX + 5);
    assert_eq!(std::fs::read_dir(dir.path().join("pods.bad")).unwrap().count(), load::ASIDE_MAX);
}
