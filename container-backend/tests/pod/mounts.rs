//! What a container finds in its file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use nix::mount::MsFlags;
use serde_json::json;

use crate::kit::{
    Agent, add, agent, agent_sharing_pids, agent_with, bind, finish, home, new_mount_on_the_host, on_host,
    set, shell, streams,
};

pub(crate) const SCENARIOS: &[(&str, fn())] = &[
    ("dev_has_the_usual_nodes_and_links", dev),
    ("the_usual_file_systems_are_mounted", || usual(&agent())),
    ("the_usual_file_systems_are_mounted_with_shared_pids", || usual(&agent_sharing_pids())),
    ("proc_and_sys_are_masked_and_read_only", || masked(&agent())),
    ("proc_and_sys_are_masked_and_read_only_with_shared_pids", || masked(&agent_sharing_pids())),
    ("a_container_sees_nothing_of_the_agent", || nothing_of_the_agent(&agent())),
    (
        "a_container_sees_nothing_of_the_agent_with_shared_pids",
        || nothing_of_the_agent(&agent_sharing_pids()),
    ),
    ("what_a_container_writes_is_its_own", own_writes),
    ("a_read_only_root_is_read_only", read_only_root),
    ("volumes_files_and_folders_read_only_and_not", volumes),
    ("a_host_path_that_is_a_symlink_is_followed", symlinked_source),
    ("mounts_below_a_volume_come_along_and_can_be_read_only_too", recursive),
    ("propagation_goes_both_ways_or_one_or_none", propagation),
    ("symlinks_of_the_image_cannot_lead_a_mount_out", escapes),
    ("a_dangling_symlink_as_mount_point_gets_its_target", dangling),
    ("tmpfs_mounts_have_their_options", tmpfs),
    ("cgroups_are_the_containers_own", cgroups),
    ("devices_of_the_spec_are_made", devices),
    ("the_working_directory_is_made", working_directory),
];

fn dev() {
    let agent = agent();
    let out =
        agent.sh("cd /dev; for d in null zero full random urandom tty; do stat -c '%n %F %a %t,%T' $d; done");
    let expected = "null character special file 666 1,3\nzero character special file 666 1,5\n\
        full character special file 666 1,7\nrandom character special file 666 1,8\n\
        urandom character special file 666 1,9\ntty character special file 666 5,0\n";
    assert_eq!(out, expected);
    let links =
        agent.sh("cd /dev; for l in fd stdin stdout stderr core ptmx; do echo $l $(readlink $l); done");
    let expected = "fd /proc/self/fd\nstdin /proc/self/fd/0\nstdout /proc/self/fd/1\nstderr /proc/self/fd/2\ncore /proc/kcore\nptmx pts/ptmx\n";
    assert_eq!(links, expected);
    assert_eq!(
        agent.sh("echo lost > /dev/null; head -c 3 /dev/zero | wc -c; echo seen > /dev/stdout"),
        "3\nseen\n"
    );
}

fn usual(agent: &Agent) {
    let table = agent.sh("cat /proc/self/mountinfo");
    let find = |at: &str| {
        let line = table.lines().rev().find(|line| line.split(' ').nth(4) == Some(at));
        line.unwrap_or_else(|| panic!("{at}: {table}"))
    };
    for (at, options, fstype) in [
        ("/", "rw", " - overlay "),
        ("/proc", "rw,nosuid,nodev,noexec", " - proc "),
        ("/dev", "rw,nosuid", " - tmpfs "),
        ("/dev/pts", "rw,nosuid,noexec", " - devpts "),
        ("/dev/mqueue", "rw,nosuid,nodev,noexec", " - mqueue "),
        ("/dev/shm", "rw,nosuid,nodev,noexec", " - tmpfs "),
        ("/sys", "ro,nosuid,nodev,noexec", " - sysfs "),
    ] {
        let line = find(at);
        assert!(line.contains(&format!(" {options}")) && line.contains(fstype), "{line}");
        // None of them is tied to the host's.
        assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    }
    assert!(find("/").contains("volatile"), "{table}");
}

fn masked(agent: &Agent) {
    let mut probe = shell(
        "cat /proc/kcore /proc/keys /proc/timer_list; ls -A /proc/scsi /proc/acpi /sys/firmware; \
         for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/x /sys/x; do echo h 2>/dev/null > $f && echo wrote $f; done; \
         stat -c %t,%T /proc/keys; exit 0",
    );
    set(&mut probe, "/process", "noNewPrivileges", json!(true));
    let outcome = agent.run(probe);
    let out: Vec<&str> =
        outcome.out.lines().filter(|line| !line.is_empty() && !line.ends_with(':')).collect();
    assert_eq!(out, ["1,3"], "{outcome:?}");
    let exec = agent.start(shell("sleep 1000")).unwrap();
    let seen = agent.exec(&exec.container, &["sh", "-c", "cat /proc/keys | wc -c"]).unwrap();
    assert_eq!(seen.out, "0\n");
    exec.kill();
}

fn nothing_of_the_agent(agent: &Agent) {
    let table = agent.sh("cat /proc/self/mountinfo; ls /");
    for ours in ["/layers", "/containers", "/rootfs", "/pod-proc", "hartpod "] {
        let seen = table.lines().any(|line| !line.contains(" - overlay ") && line.contains(ours));
        assert!(!seen, "{ours}: {table}");
    }
    assert_eq!(agent.sh("ls /"), "bin\ndev\netc\nproc\nroot\nsys\ntmp\n");
    // pivot_root, not chroot: above the root there is nothing.
    assert_eq!(agent.sh("cd /; cd ../../..; pwd; ls -d etc/passwd"), "/\netc/passwd\n");
}

fn own_writes() {
    let agent = agent();
    assert_eq!(agent.sh("echo changed > /etc/passwd; rm /etc/group; ls /etc"), "passwd\n");
    assert_eq!(agent.sh("ls /etc; head -n 1 /etc/passwd"), "group\npasswd\nroot:x:0:0::/root:/bin/sh\n");
}

fn read_only_root() {
    let agent = agent();
    let mut sealed = shell("touch /x; touch /dev/x; echo y > /dev/shm/y; echo $?");
    set(&mut sealed, "/root", "readonly", json!(true));
    set(&mut sealed, "/process", "cwd", json!("/made/all/the/same"));
    let outcome = agent.run(sealed);
    assert_eq!(outcome.out, "0\n");
    assert!(outcome.err.contains("/x: Read-only file system"), "{outcome:?}");
    assert!(!outcome.err.contains("/dev/x"), "{outcome:?}");
}

fn volumes() {
    let (folder, file) = (home().join("folder"), home().join("file"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("inside"), "in folder\n").unwrap();
    fs::write(&file, "a file\n").unwrap();
    let agent = agent();
    let mut volumes = shell(
        "cat /data/deep/inside /etc/hosts; echo more >> /etc/hosts; touch /data/deep/new /ro/new; echo x > /ro-file; cat /ro-file",
    );
    bind(&mut volumes, &folder, "/data/deep", &["rbind", "rprivate", "rw"]);
    bind(&mut volumes, &file, "/etc/hosts", &["rbind", "rprivate", "rw"]);
    bind(&mut volumes, &folder, "/ro", &["rbind", "rprivate", "ro"]);
    bind(&mut volumes, &file, "/ro-file", &["rbind", "rprivate", "ro"]);
    let outcome = agent.run(volumes);
    assert_eq!(outcome.out, "in folder\na file\na file\nmore\n", "{outcome:?}");
    assert!(outcome.err.contains("/ro/new: Read-only file system"), "{outcome:?}");
    assert!(outcome.err.contains("can't create /ro-file: Read-only file system"), "{outcome:?}");
    // A folder cannot go on a file, nor a file on a folder.
    for (source, destination, errno) in [(&folder, "/etc/passwd", 20), (&file, "/tmp", 21)] {
        let mut wrong = shell("true");
        bind(&mut wrong, source, destination, &["rbind"]);
        let error = agent.start(wrong).map(|r| r.end()).unwrap_err();
        assert_eq!(error.to_string(), format!("mount point {destination}"));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, hartpod_container::Errno::from_raw(errno).to_string());
    }
}

fn symlinked_source() {
    let folder = home().join("real");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("f"), "real\n").unwrap();
    symlink(&folder, home().join("link")).unwrap();
    let agent = agent();
    let mut linked = shell("cat /a/f /b");
    bind(&mut linked, &home().join("link"), "/a", &["rbind"]);
    bind(&mut linked, &home().join("link/f"), "/b", &["bind"]);
    assert_eq!(agent.run(linked).out, "real\nreal\n");
}

fn recursive() {
    let outer = new_mount_on_the_host("outer", MsFlags::MS_PRIVATE);
    let inner = outer.join("inner");
    fs::create_dir(&inner).unwrap();
    nix::mount::mount(Some("t"), &inner, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(inner.join("f"), "deep\n").unwrap();
    let agent = agent();
    for (options, out, err) in [
        (&["rbind", "ro"][..], "deep\n", "/v/x: Read-only"),
        (&["rbind", "rro"], "deep\n", "/v/inner/x: Read-only"),
        (&["bind"], "", "/v/inner/f"),
    ] {
        let mut volume = shell("cat /v/inner/f; touch /v/inner/x /v/x");
        bind(&mut volume, &outer, "/v", options);
        let outcome = agent.run(volume);
        assert!(outcome.out == out && outcome.err.contains(err), "{options:?}: {outcome:?}");
    }
}

fn propagation() {
    let shared = new_mount_on_the_host("shared", MsFlags::MS_SHARED);
    for folder in ["later", "theirs"] {
        fs::create_dir(shared.join(folder)).unwrap();
    }
    let agent = agent();
    let container = |option: &str| {
        let mut volume = shell("echo up; while :; do sleep 1000; done");
        for set in ["bounding", "effective", "permitted"] {
            add(&mut volume, &format!("/process/capabilities/{set}"), json!("CAP_SYS_ADMIN"));
        }
        bind(&mut volume, &shared, "/v", &["rbind", option]);
        agent.start(volume).unwrap()
    };
    let (both, one, none) = (container("rshared"), container("rslave"), container("rprivate"));
    on_host(&agent, &|| {
        nix::mount::mount(Some("t"), &shared.join("later"), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .unwrap();
        fs::write(shared.join("later/f"), "came\n").unwrap();
        String::new()
    });
    for (running, seen) in [(&both, "came\n"), (&one, "came\n"), (&none, "")] {
        assert_eq!(agent.exec(&running.container, &["cat", "/v/later/f"]).unwrap().out, seen);
        let mount = ["sh", "-c", "mount -t tmpfs t /v/theirs && touch /v/theirs/$1", "sh", "x"];
        assert_eq!(agent.exec(&running.container, &mount).unwrap().code, 0);
        let shared = shared.clone();
        let count = move || fs::read_dir(shared.join("theirs")).unwrap().count().to_string();
        assert_eq!(on_host(&agent, &count), if std::ptr::eq(running, &both) { "1" } else { "0" });
        assert_eq!(agent.exec(&running.container, &["umount", "/v/theirs"]).unwrap().code, 0);
    }
    both.kill();
    one.kill();
    none.kill();
}

fn escapes() {
    let outside = home().join("outside");
    fs::create_dir(&outside).unwrap();
    let target = outside.clone();
    let mut agent = agent_with(move |setup| {
        let layer = setup.layers_dir.join("evil");
        fs::create_dir_all(layer.join("a")).unwrap();
        symlink("../../../../../../../../..", layer.join("a/up")).unwrap();
        symlink(&target, layer.join("abs")).unwrap();
        symlink("/proc/self/root", layer.join("magic")).unwrap();
    });
    agent.layers.push("evil".into());
    let mut evil = shell("true");
    bind(&mut evil, &outside, "/a/up/tmp/one", &["rbind"]);
    bind(&mut evil, &outside, "/abs/two", &["rbind"]);
    bind(&mut evil, &outside, "/../../../three", &["rbind"]);
    bind(&mut evil, &outside, "/magic/four", &["rbind"]);
    let error = agent.start(evil.clone()).map(|r| r.end()).unwrap_err();
    assert_eq!(error.to_string(), "mount point /magic/four");
    evil["mounts"].as_array_mut().unwrap().pop();
    set(&mut evil, "/process", "args", json!(["sh", "-c", "ls -d /tmp/one /three; ls $(readlink /abs)"]));
    let outcome = agent.run(evil);
    assert_eq!(outcome.out, "/three\n/tmp/one\ntwo\n", "{outcome:?}");
    // Nothing was made where the links point to outside.
    let left = agent.run({
        let mut look = shell("ls -A /look");
        bind(&mut look, &outside, "/look", &["rbind", "ro"]);
        look
    });
    assert_eq!(left.out, "");
}

fn dangling() {
    let file = home().join("resolv");
    fs::write(&file, "nameserver\n").unwrap();
    let mut agent = agent_with(|setup| {
        let layer = setup.layers_dir.join("link/etc");
        fs::create_dir_all(&layer).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", layer.join("resolv.conf")).unwrap();
    });
    agent.layers.push("link".into());
    let mut linked = shell("cat /etc/resolv.conf /run/systemd/resolve/stub-resolv.conf");
    bind(&mut linked, &file, "/etc/resolv.conf", &["rbind", "ro"]);
    assert_eq!(agent.run(linked).out, "nameserver\nnameserver\n");
}

fn tmpfs() {
    let agent = agent();
    let mut with = shell("stat -c '%a %u' /scratch; stat -f -c '%b %S' /scratch; touch /scratch/x /sealed/x");
    let options = json!(["nosuid", "mode=1770", "size=64k", "uid=33"]);
    add(
        &mut with,
        "/mounts",
        json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": options}),
    );
    add(
        &mut with,
        "/mounts",
        json!({"destination": "/sealed", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
    );
    let outcome = agent.run(with);
    assert_eq!(outcome.out, "1770 33\n16 4096\n");
    assert!(outcome.err.contains("/sealed/x: Read-only"), "{outcome:?}");
}

fn cgroups() {
    let agent = agent();
    let running = agent.start(shell("sleep 1000")).unwrap();
    let path = running.container.leaf().cgroup_path().to_owned();
    // In every hierarchy that it was put in, it is in its leaf, and it finds that leaf at the usual place.
    let own = fs::read_to_string(format!("/proc/{}/cgroup", running.child.pid())).unwrap();
    assert!(own.contains(&format!("0::{path}\n")), "{own}");
    let pids = agent.exec(
        &running.container,
        &["sh", "-c", "cat /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/cgroup.procs"],
    );
    assert!(pids.unwrap().out.lines().any(|pid| pid == "1"));
    let write = agent.exec(
        &running.container,
        &["sh", "-c", "echo 1 > /sys/fs/cgroup/pids/pids.max || echo 1 > /sys/fs/cgroup/pids.max"],
    );
    assert!(write.unwrap().err.contains("Read-only"));
    running.kill();
}

fn devices() {
    let agent = agent();
    let mut with = shell(
        "stat -c '%F %a %t,%T %u:%g' /dev/deep/own /dev/tty; dd if=/dev/deep/own bs=3 count=1 2>/dev/null | wc -c",
    );
    with["linux"]["devices"] = json!([
        {"path": "/dev/deep/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o4640, "uid": 7, "gid": 8},
        {"path": "/dev/tty", "type": "c", "major": 5, "minor": 0, "fileMode": 0o600},
    ]);
    add(
        &mut with,
        "/linux/resources/devices",
        json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"}),
    );
    let outcome = agent.run(with);
    let expected = "character special file 4640 1,5 7:8\ncharacter special file 600 5,0 0:0\n3\n";
    assert_eq!(outcome.out, expected, "{outcome:?}");
}

fn working_directory() {
    let private = home().join("private");
    fs::create_dir(&private).unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let agent = agent();
    let mut there = shell("pwd");
    set(&mut there, "/process", "cwd", json!("/new/../new/place"));
    assert!(agent.start(there.clone()).map(|r| r.end()).is_err());
    set(&mut there, "/process", "cwd", json!("/new/place"));
    assert_eq!(agent.run(there.clone()).out, "/new/place\n");
    // One that only root can enter, for a user: entered before the rights are given up, as by runc.
    set(&mut there, "/process", "cwd", json!("/private"));
    bind(&mut there, &private, "/private", &["rbind"]);
    let (stdio, _stdin, output) = streams().split();
    let mut request = agent.request(there, stdio);
    request.user = "web".into();
    let created = agent.create(request).unwrap();
    let mut starting = created.waiting.open_gate().unwrap();
    let child = finish(&mut starting, |s| s.poll()).unwrap();
    assert_eq!(crate::kit::wait(&child).code(), 0);
    assert_eq!(output.rest().0, "/private\n");
}
