//! Pods with a user namespace of their own.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use hartpod_container::{
    GroupPolicy, IdMaps, IdRange, PidNamespace, PodPid, UserNamespace, VolumeImage, VolumeLayers,
};
use nix::mount::MsFlags;
use serde_json::{Value, json};

use crate::kit::{Agent, Running, add, agent_with, bind, home, new_mount_on_the_host, on_host, shell, spec};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("root_of_a_user_namespace_is_nobody_on_the_node", root_is_nobody),
    ("all_namespaces_of_such_a_pod_are_its_own", || owners(PodPid::PerContainer)),
    ("with_a_shared_pid_namespace_too", || owners(PodPid::Shared)),
    ("files_of_the_image_are_roots_inside_and_the_pods_own_when_changed", image_files),
    ("files_of_the_image_are_roots_inside_on_an_old_kernel", image_files_on_an_old_kernel),
    ("a_volume_with_maps_is_written_to_with_the_nodes_ids", mapped_volume),
    ("an_image_as_a_volume_has_the_pods_ids", image_volume),
    ("what_is_handed_in_stays_as_it_is", || kept_mounts(PodPid::PerContainer)),
    ("what_is_handed_in_stays_as_it_is_beside_others", || kept_mounts(PodPid::Shared)),
    ("what_the_host_mounts_later_reaches_such_a_pod", later_mounts),
    ("containers_of_such_a_pod_share_a_pid_namespace", shared_pids),
    ("the_pid_namespace_of_another_container_of_such_a_pod", target_pids),
    ("devices_in_a_user_namespace_are_the_nodes", devices),
    ("execs_enter_the_user_namespace", || execs(PodPid::PerContainer)),
    ("execs_enter_the_user_namespace_beside_others", || execs(PodPid::Shared)),
    ("kernel_parameters_of_such_a_pod", sysctls),
    ("users_that_are_not_mapped_are_refused", unmapped),
    ("maps_that_are_not_the_pods_are_refused", other_maps),
    ("a_volume_whose_file_system_has_no_maps_is_refused", no_maps),
];

const HOST: u32 = 200_000;
const LENGTH: u32 = 65536;

fn maps() -> IdMaps {
    let ranges = vec![IdRange { container: 0, host: HOST, length: LENGTH }];
    IdMaps::new(ranges.clone(), ranges).unwrap()
}

/// A pod with a user and a network namespace.
fn agent(pid: PodPid) -> Agent {
    let (_users, network) = UserNamespace::make_with_network(maps()).unwrap();
    agent_with(|setup| {
        setup.users = Some(maps());
        setup.netns = Some(format!("/proc/self/fd/{}", network.as_raw_fd()).into());
        setup.pid = pid;
        setup.sysctls = [
            ("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned()),
            ("kernel.shmmni".to_owned(), "77".to_owned()),
            ("fs.mqueue.msg_max".to_owned(), "9".to_owned()),
        ]
        .into();
    })
}

fn mappings() -> Value {
    json!([{"containerID": 0, "hostID": HOST, "size": LENGTH}])
}

fn mapped(mut spec: Value) -> Value {
    spec["linux"]["uidMappings"] = mappings();
    spec["linux"]["gidMappings"] = mappings();
    spec
}

fn sh(agent: &Agent, command: &str) -> String {
    let outcome = agent.run(mapped(shell(command)));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    outcome.out
}

/// A file of the host's; the agent has left its mounts.
fn on_the_host(path: &std::path::Path) -> fs::Metadata {
    let runner = std::os::unix::process::parent_id();
    fs::metadata(format!("/proc/{runner}/root{}", path.display())).unwrap()
}

fn namespace(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().into_os_string().into_string().unwrap()
}

fn root_is_nobody() {
    let agent = agent(PodPid::PerContainer);
    let script = "id -u; id -g; cat /proc/self/uid_map; echo $$; stat -c %u /proc/1; echo up; sleep 1000";
    let mut running = agent.start(mapped(shell(script))).unwrap();
    let lines: Vec<String> = (0..5).map(|_| running.output.line()).collect();
    let told: Vec<&str> = lines.iter().map(|line| line.trim()).collect();
    assert_eq!((told[0], told[1]), ("0", "0"));
    assert_eq!(told[2].split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    assert_eq!((told[3], told[4]), ("1", "0"));
    assert_eq!(running.output.line(), "up");
    let process = format!("/proc/{}", running.child.pid());
    let owner = fs::metadata(format!("{process}/task")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (HOST, HOST));
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    assert!(status.contains("Groups:\t \n"), "{status}");
    running.kill();
}

fn owners(pid: PodPid) {
    let agent = agent(pid);
    let mut asked = mapped(shell("mount -t tmpfs none /tmp && hostname other && echo mounted; sleep 1000"));
    asked["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "mount"}, {"type": "cgroup"}]);
    for set in ["bounding", "effective", "permitted"] {
        add(&mut asked, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
    }
    let mut running = agent.start(asked).unwrap();
    assert_eq!(running.output.line(), "mounted");
    let own = running.child.pid().to_string();
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of_the_node = namespace(&std::os::unix::process::parent_id().to_string(), kind);
        assert_ne!(namespace(&own, kind), of_the_node, "{kind}");
    }
    // The agent stays outside.
    assert_eq!(
        namespace("self", "user"),
        namespace(&std::os::unix::process::parent_id().to_string(), "user")
    );
    running.kill();
}

fn image_files() {
    let agent = agent(PodPid::PerContainer);
    change_image_files(&agent);
}

fn image_files_on_an_old_kernel() {
    let agent = agent(PodPid::PerContainer);
    change_image_files(&agent);
}

fn change_image_files(agent: &Agent) {
    let script = "stat -c '%u %g' / /etc /etc/passwd /bin/busybox && echo more >> /etc/passwd && touch /new && rm /etc/group \
                  && stat -c '%u %g' /etc/passwd /new && mkdir /folder";
    assert_eq!(sh(agent, script), "0 0\n".repeat(6));
    let id = agent.last_leaf();
    let scratch = home().join("containers").join(id.cgroup_path().rsplit('/').next().unwrap());
    for file in ["upper", "upper/etc/passwd", "upper/new", "upper/folder"] {
        assert_eq!(on_the_host(&scratch.join(file)).uid(), HOST, "{file}");
    }
    assert_eq!(on_the_host(&home().join("layers/top/etc/passwd")).uid(), 0);
}

fn volume(spec: &mut Value, source: &std::path::Path, destination: &str) {
    let mount = json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind"],
        "uidMappings": mappings(), "gidMappings": mappings()});
    add(spec, "/mounts", mount);
}

fn mapped_volume() {
    let (with, without) = (home().join("with"), home().join("without"));
    for folder in [&with, &without] {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(folder.join("roots"), "").unwrap();
        fs::write(folder.join("webs"), "").unwrap();
        chown(folder.join("webs"), Some(33), Some(34)).unwrap();
    }
    let agent = agent(PodPid::PerContainer);
    let mut asked = mapped(shell(
        "stat -c %u:%g /with/roots /with/webs /without/roots; touch /with/new /without/new; chown 33:34 /with/new",
    ));
    volume(&mut asked, &with, "/with");
    bind(&mut asked, &without, "/without", &["rbind"]);
    let outcome = agent.run(asked);
    assert_eq!((outcome.out.as_str(), outcome.code), ("0:0\n33:34\n65534:65534\n", 0), "{outcome:?}");
    let owner = |path: &std::path::Path| (on_the_host(path).uid(), on_the_host(path).gid());
    assert_eq!(owner(&with.join("new")), (33, 34));
    assert_eq!(owner(&without.join("new")), (HOST, HOST));
}

fn image_volume() {
    let agent = agent(PodPid::PerContainer);
    for layers in [vec!["bottom".to_owned()], vec!["bottom".to_owned(), "top".to_owned()]] {
        let mut asked = mapped(shell(
            "stat -c '%u %a' /image/etc; mount -o remount,bind,rw /image 2>/dev/null && echo remounted; \
             touch /image/etc/new 2>/dev/null || echo read-only",
        ));
        may_mount(&mut asked);
        add(
            &mut asked,
            "/mounts",
            json!({"destination": "/image", "type": "image", "source": "i", "options": []}),
        );
        let image = VolumeImage { name: "i".into(), layers: VolumeLayers::Folders(layers) };
        let running = agent.start_with(asked, |request| request.images = vec![image]).unwrap();
        let outcome = running.end();
        assert_eq!(outcome.out, "0 755\nread-only\n", "{outcome:?}");
    }
}

fn may_mount(spec: &mut Value) {
    let rights = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"]);
    spec["process"]["capabilities"] = json!({"bounding": rights, "effective": rights, "permitted": rights});
}

fn kept_mounts(pid: PodPid) {
    let plain = new_mount_on_the_host("plain", MsFlags::MS_SHARED);
    let (mapped_one, below) = (home().join("mapped"), plain.join("below"));
    for folder in [&mapped_one, &below] {
        fs::create_dir(folder).unwrap();
    }
    nix::mount::mount(Some("tmpfs"), &below, Some("tmpfs"), MsFlags::empty(), Some("mode=777")).unwrap();
    for folder in [&mapped_one, &plain] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let agent = agent(pid);
    let mut asked = mapped(shell(
        "mkdir /copy; exec 2>/dev/null; \
         for m in /mapped /plain /plain/below /sys; do mount -o remount,bind,rw $m && echo $m; touch $m/new && echo $m; done; \
         mount -o remount,bind,ro,suid,dev,exec /plain && echo exec; \
         mount --rbind /plain /copy && mount -o remount,bind,rw /copy && echo copy; umount /plain/below && echo bared; \
         umount /sys/firmware; ls -A /sys/firmware; \
         mount -t tmpfs none /tmp && mount -o remount,bind,ro /tmp && mount -o remount,bind,rw /tmp && touch /tmp/x && echo its own",
    ));
    may_mount(&mut asked);
    volume(&mut asked, &mapped_one, "/mapped");
    let mounts = asked["mounts"].as_array_mut().unwrap();
    mounts.last_mut().unwrap()["options"] = json!(["rbind", "ro"]);
    bind(&mut asked, &plain, "/plain", &["rbind", "rro", "rslave", "nosuid", "nodev", "noexec", "relatime"]);
    let outcome = agent.run(asked);
    assert_eq!((outcome.out.as_str(), outcome.code), ("its own\n", 0), "{outcome:?}");
    // What one option says of the whole tree, and another of its top.
    let mut asked = mapped(shell("grep -E ' /plain' /proc/self/mounts | cut -d ' ' -f 4 | cut -d , -f 1-2"));
    bind(&mut asked, &plain, "/plain", &["rbind", "rnoatime", "relatime"]);
    let outcome = agent.run(asked);
    assert_eq!((outcome.out.as_str(), outcome.code), ("rw,relatime\nrw,noatime\n", 0), "{outcome:?}");
}

fn later_mounts() {
    let shared = new_mount_on_the_host("shared", MsFlags::MS_SHARED);
    for folder in ["later", "theirs"] {
        fs::create_dir(shared.join(folder)).unwrap();
    }
    let agent = agent(PodPid::PerContainer);
    let container = |option: &str| {
        let mut asked = mapped(shell("echo up; while :; do sleep 1000; done"));
        may_mount(&mut asked);
        bind(&mut asked, &shared, "/v", &["rbind", "ro", option]);
        let mut running = agent.start(asked).unwrap();
        assert_eq!(running.output.line(), "up");
        running
    };
    let (one, none) = (container("rslave"), container("rprivate"));
    on_host(&agent, &|| {
        let later = shared.join("later");
        nix::mount::mount(Some("t"), &later, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        fs::write(later.join("f"), "came\n").unwrap();
        String::new()
    });
    for (running, seen) in [(&one, "came\n"), (&none, "")] {
        assert_eq!(agent.exec(&running.container, &["cat", "/v/later/f"]).unwrap().out, seen);
        // Nothing goes the other way.
        agent.exec(&running.container, &["umount", "/v/later"]).unwrap();
        assert_eq!(
            agent.exec(&running.container, &["mount", "-t", "tmpfs", "t", "/v/theirs"]).unwrap().code,
            0
        );
        let table = on_host(&agent, &|| fs::read_to_string("/proc/self/mounts").unwrap());
        assert!(table.contains("/later ") && !table.contains("/theirs "), "{table}");
    }
    one.kill();
    none.kill();
}

fn shared_pids() {
    let agent = agent(PodPid::Shared);
    let first = agent.start(mapped(spec(&["sleep", "1000"]))).unwrap();
    let out =
        sh(&agent, "ps -o user,comm | grep -E 'holder|sleep'; echo $$; ls -ld /proc/1/root 2>&1 | wc -l");
    assert!(out.contains("hartpod-holder") && out.contains("sleep"), "{out}");
    let holder = agent.pod.holder().unwrap().pid();
    let status = fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    let uid = HOST + 65534;
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}")), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert_eq!(namespace(&holder.to_string(), "user"), namespace(&first.child.pid().to_string(), "user"));
    assert_eq!(fs::read_dir(format!("/proc/{holder}/root/")).unwrap().count(), 0);
    first.kill();
}

fn target_pids() {
    let agent = agent(PodPid::PerContainer);
    let target = agent.start(mapped(spec(&["sleep", "1000"]))).unwrap();
    let debug = mapped(shell("cat /proc/1/comm; stat -c %u /proc/1"));
    let running =
        agent.start_with(debug, |request| request.pid = PidNamespace::Target(&target.container)).unwrap();
    assert_eq!(running.end().out, "sleep\n0\n");
    target.kill();
}

fn devices() {
    let agent = agent(PodPid::PerContainer);
    let mut asked = mapped(shell(
        "echo x > /dev/null && head -c 3 /dev/zero | wc -c && stat -c '%t:%T %a %u' /dev/null /dev/deep/mem /dev/pts/ptmx \
         && head -c 1 /dev/deep/mem; echo $?; ls -l /dev/fd | wc -l; dd if=/dev/urandom bs=1 count=1 of=/dev/shm/x 2>/dev/null; stat -c '%u %a' /dev/shm /dev/mqueue",
    ));
    asked["linux"]["devices"] = json!([{"path": "/dev/deep/mem", "type": "c", "major": 1, "minor": 1, "fileMode": 0o660, "uid": 0, "gid": 0}]);
    asked["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    let outcome = agent.run(asked);
    // Root inside has no right to what is the node's root's.
    assert_eq!(
        outcome.out, "3\n1:3 666 65534\n1:1 660 65534\n5:2 666 0\n1\n1\n0 1777\n0 1777\n",
        "{outcome:?}"
    );
    assert!(outcome.err.contains("Permission denied"), "{outcome:?}");
}

fn execs(pid: PodPid) {
    let agent = agent(pid);
    let mut asked = mapped(spec(&["sleep", "1000"]));
    asked["process"]["user"] = json!({"uid": 33, "gid": 34, "additionalGids": [40, 7]});
    let running = agent.start(asked).unwrap();
    let script = "id -u; id -G; cat /proc/self/gid_map; echo hi > /dev/stdout";
    let outcome = agent.exec(&running.container, &["sh", "-c", script]).unwrap();
    let words: Vec<&str> = outcome.out.split_whitespace().collect();
    assert_eq!(words, ["33", "34", "7", "40", "0", "200000", "65536", "hi"], "{outcome:?}");
    assert_is_of(&running, HOST + 33);
    running.kill();
}

fn assert_is_of(running: &Running, uid: u32) {
    let owner = fs::metadata(format!("/proc/{}/task", running.child.pid())).unwrap().uid();
    assert_eq!(owner, uid);
}

fn sysctls() {
    let agent = agent(PodPid::PerContainer);
    let mut asked = mapped(shell(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni /proc/sys/fs/mqueue/msg_max \
         && echo 90 > /proc/sys/net/ipv4/ip_unprivileged_port_start && cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
         ls /sys/class/net; hostname",
    ));
    asked["linux"]["readonlyPaths"] = json!([]);
    for set in ["bounding", "effective", "permitted"] {
        add(&mut asked, &format!("/process/capabilities/{set}"), json!("CAP_NET_ADMIN"));
    }
    assert_eq!(agent.run(asked).out, "80\n77\n9\n90\nlo\ntest-pod\n");
}

fn unmapped() {
    let agent = agent(PodPid::PerContainer);
    for (user, expected) in [
        (json!({"uid": 70000, "gid": 0}), "user 70000"),
        (json!({"uid": 0, "gid": 65536}), "group 65536"),
        (json!({"uid": 0, "gid": 0, "additionalGids": [5, 99999]}), "group 99999"),
    ] {
        let mut asked = mapped(spec(&["true"]));
        asked["process"]["user"] = user;
        let refused = agent.start_with(asked, |request| request.groups = GroupPolicy::Strict).err().unwrap();
        let why = "has no id on the node: the pod's user namespace does not map it";
        assert_eq!(refused.to_string(), format!("{expected} {why}"));
    }
}

fn other_maps() {
    let agent = agent(PodPid::PerContainer);
    let refused = agent.start(spec(&["true"])).err().unwrap().to_string();
    assert!(refused.ends_with("are not those of the pod's user namespace"), "{refused}");
    let mut other = mapped(spec(&["true"]));
    other["linux"]["gidMappings"][0]["hostID"] = json!(1);
    assert_eq!(agent.start(other).err().unwrap().to_string(), refused);
}

fn no_maps() {
    let agent = agent(PodPid::PerContainer);
    let mut asked = mapped(spec(&["true"]));
    volume(&mut asked, std::path::Path::new("/proc/sys"), "/volume");
    let refused = agent.start(asked).err().unwrap().to_string();
    assert!(
        refused.starts_with("mount of /proc/sys on /volume: show it with the ids of a user namespace"),
        "{refused}"
    );
}
