//! Volumes as the kubelet has them, and what a hostile container may try with them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::within;
use hartpod_tests::{Container, Lab, Need, Pod, eventually, process, tests};
use nix::sys::signal::Signal;

tests![
    a_pod_of_the_kubelets_has_its_files,
    a_large_file_goes_both_ways_as_it_is,
    what_one_container_writes_another_reads_at_once,
    files_are_mapped_linked_and_renamed_as_on_a_node,
    who_makes_a_file_owns_it_on_the_node,
    links_of_a_container_stay_inside,
    a_volume_goes_with_its_last_container,
    a_guest_without_its_file_server_is_not_ready needs Need::Kvm,
    a_guest_has_no_file_server_without_volumes needs Need::Kvm,
];

/// A projected volume as the kubelet writes it: `..data` is swapped for another generation as a whole.
fn publish(volume: &Path, generation: &str, content: &str) -> Result<()> {
    let folder = volume.join(generation);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("token"), content)?;
    symlink(generation, volume.join("..data_tmp"))?;
    fs::rename(volume.join("..data_tmp"), volume.join("..data"))?;
    if !volume.join("token").exists() {
        symlink("..data/token", volume.join("token"))?;
    }
    Ok(())
}

async fn a_pod_of_the_kubelets_has_its_files(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let [hosts, log, token, shared] =
        ["etc-hosts", "termination-log", "token", "empty-dir"].map(|name| lab.dir().join(name));
    fs::write(&hosts, "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")?;
    fs::write(&log, "")?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
    fs::create_dir(&token)?;
    publish(&token, "..2026_1", "first")?;
    fs::create_dir(&shared)?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
    let pod = node.pod("web").run().await?;
    let volumes = |name: &str| {
        pod.container(name)
            .mount(&hosts, "/etc/hosts")
            .mount(&log, "/dev/termination-log")
            .read_only_mount(&token, "/var/run/secrets/kubernetes.io/serviceaccount")
            .mount(&shared, "/cache")
    };
    let main = volumes("main").idle().run().await?;
    let side = volumes("side").idle().run().await?;
    assert_eq!(main.sh("head -n 1 /etc/hosts").await?, "# Kubernetes-managed hosts file.\n");
    let read = "cat /var/run/secrets/kubernetes.io/serviceaccount/token";
    assert_eq!(main.sh(read).await?, "first");
    publish(&token, "..2026_2", "second")?;
    assert_eq!(main.sh(read).await?, "second", "a new generation is there at once");
    let refused =
        main.exec(["sh", "-c", "echo x >/var/run/secrets/kubernetes.io/serviceaccount/token"]).await?;
    ensure!(refused.stderr.contains("Read-only file system"), "{refused:?}");
    main.sh("echo from main >/cache/a; mkdir /cache/d; mv /cache/a /cache/d/b").await?;
    assert_eq!(side.sh("cat /cache/d/b && echo side >>/cache/d/b").await?, "from main\n");
    assert_eq!(fs::read_to_string(shared.join("d/b"))?, "from main\nside\n");
    main.sh("echo -n done >/dev/termination-log").await?;
    assert_eq!(fs::read_to_string(&log)?, "done");
    Ok(())
}

async fn a_large_file_goes_both_ways_as_it_is(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    // Ten megabytes in which no two blocks are the same.
    let bytes: Vec<u8> =
        (0..10_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(source.join("in"), &bytes)?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").run().await?;
    main.sh("cp /data/in /copy && cp /copy /data/out && sync && cmp /data/in /data/out").await?;
    ensure!(fs::read(source.join("out"))? == bytes, "what was written is not what was read");
    let sums = main.sh("md5sum </data/in; md5sum </copy; md5sum </data/out").await?;
    let sums: Vec<&str> = sums.lines().collect();
    ensure!(sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    for (what, script) in [
        (
            "32 MiB written to the volume",
            "dd if=/dev/zero of=/data/zeros bs=1M count=32 conv=fsync 2>/dev/null",
        ),
        ("32 MiB written to the root", "dd if=/dev/zero of=/zeros bs=1M count=32 conv=fsync 2>/dev/null"),
        ("32 MiB read of the volume", "dd if=/data/zeros of=/dev/null bs=1M 2>/dev/null"),
        ("100 files made in the volume", "mkdir /data/f; for n in $(seq 100); do echo >/data/f/$n; done"),
        ("100 files made in the root", "mkdir /f; for n in $(seq 100); do echo >/f/$n; done"),
    ] {
        let begun = Instant::now();
        main.sh(script).await?;
        println!("{what}: {:?}", begun.elapsed());
    }
    Ok(())
}

async fn what_one_container_writes_another_reads_at_once(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let pod = node.pod("web").run().await?;
    let writer = pod.container("writer").idle().mount(&source, "/data").run().await?;
    let reader = pod.container("reader").idle().read_only_mount(&source, "/data").run().await?;
    for length in [1, 3, 2, 5000, 1] {
        // Read before too, so that there is something to be out of date.
        reader.sh("cat /data/file 2>/dev/null || true").await?;
        let text = "x".repeat(length);
        writer.sh(&format!("head -c {length} /dev/zero | tr '\\0' x >/data/file")).await?;
        assert_eq!(reader.sh("cat /data/file").await?, text);
        fs::write(source.join("file"), format!("node {length}"))?;
        assert_eq!(reader.sh("cat /data/file").await?, format!("node {length}"));
        assert_eq!(writer.sh("cat /data/file").await?, format!("node {length}"));
    }
    fs::remove_file(source.join("file"))?;
    assert_eq!(reader.sh("ls /data").await?, "");
    Ok(())
}

async fn files_are_mapped_linked_and_renamed_as_on_a_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").run().await?;
    // A program is mapped, and its name means the busybox in it.
    main.sh("cp /bin/busybox /data/echo && chmod 755 /data/echo").await?;
    assert_eq!(main.sh("/data/echo mapped").await?, "mapped\n");
    main.sh("touch /data/lock; ln -s lock /data/link; ln /data/lock /data/hard").await?;
    assert_eq!(main.sh("readlink /data/link; stat -c %h /data/lock").await?, "lock\n2\n");
    main.sh(
        "mkdir -p /data/a/b && touch /data/a/b/c && mv /data/a /data/z && rm -r /data/z && mkfifo /data/p",
    )
    .await?;
    main.sh("exec 3>/data/open; rm /data/open; echo x >&3").await?;
    main.sh("for n in $(seq 200); do echo $n >/data/f$n; done; [ $(ls /data | grep -c ^f) = 200 ]").await?;
    ensure!(fs::read_dir(&source)?.count() == 205, "{:?}", fs::read_dir(&source)?.collect::<Vec<_>>());
    main.sh("truncate -s 5M /data/f1; [ $(stat -c %s /data/f1) = 5242880 ]; df /data >/dev/null").await?;
    assert_eq!(fs::metadata(source.join("f1"))?.len(), 5 << 20);
    Ok(())
}

async fn who_makes_a_file_owns_it_on_the_node(lab: &Lab) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;

    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    fs::set_permissions(&source, fs::Permissions::from_mode(0o777))?;
    fs::write(source.join("roots"), "")?;
    fs::set_permissions(source.join("roots"), fs::Permissions::from_mode(0o600))?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").with_security(|security| {
        security.run_as_user = Some(hartpod_tests::cri::Int64Value { value: 1234 });
        security.run_as_group = Some(hartpod_tests::cri::Int64Value { value: 2345 });
    });
    let main = main.run().await?;
    main.sh("umask 027; touch /data/file; mkdir /data/folder").await?;
    for (name, mode) in [("file", 0o640), ("folder", 0o750)] {
        let made = fs::metadata(source.join(name))?;
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 2345, mode), "{name}");
    }
    let refused = main.exec(["cat", "/data/roots"]).await?;
    ensure!(refused.stderr.contains("Permission denied"), "{refused:?}");
    let refused = main.exec(["chown", "0", "/data/file"]).await?;
    ensure!(refused.exit_code != 0, "a file was given away");
    Ok(())
}

async fn links_of_a_container_stay_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let [secret, source, other] = ["secret", "volume", "other"].map(|name| lab.dir().join(name));
    fs::write(&secret, "of the node")?;
    fs::create_dir(&source)?;
    fs::create_dir(&other)?;
    fs::write(other.join("file"), "of another volume")?;
    symlink(&secret, source.join("made-on-the-node"))?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").read_only_mount(&other, "/other");
    let main = main.run().await?;
    main.sh(&format!(
        "ln -s {} /data/absolute; ln -s ../../../../../../../..{0} /data/climbs",
        secret.display()
    ))
    .await?;
    for link in ["absolute", "climbs", "made-on-the-node"] {
        let read = main.exec(["cat", &format!("/data/{link}")]).await?;
        ensure!(read.exit_code != 0 && !read.stdout.contains("of the node"), "{link}: {read:?}");
        main.exec(["sh", "-c", &format!("echo overwritten >/data/{link}")]).await?;
    }
    let linked = main.exec(["ln", "/other/file", "/data/stolen"]).await?;
    ensure!(linked.exit_code != 0, "a file of another volume was linked");
    main.exec(["mv", "/other/file", "/data/moved"]).await?;
    assert_eq!(fs::read_to_string(&secret)?, "of the node");
    assert_eq!(fs::read_to_string(other.join("file"))?, "of another volume");
    let up = main.sh("cd /data && ls -a .. && cat ../../secret 2>/dev/null || true").await?;
    ensure!(!up.contains("of the node"), "{up}");
    Ok(())
}

async fn a_volume_goes_with_its_last_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let mount = |arguments: &[&str]| -> Result<()> {
        let output = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&source).output()?;
        ensure!(output.status.success(), "{arguments:?}: {output:?}");
        Ok(())
    };
    mount(&["mount", "-t", "tmpfs", "tmpfs"])?;
    fs::write(source.join("file"), "x")?;
    let pod = node.pod("web").run().await?;
    let first = pod.container("first").idle().mount(&source, "/data").run().await?;
    let second = pod.container("second").idle().mount(&source, "/data").run().await?;
    first.sh("cat /data/file").await?;
    first.remove().await?;
    assert_eq!(second.sh("cat /data/file").await?, "x");
    second.remove().await?;
    mount(&["umount"])?;
    let third = pod.container("third").idle().mount(&source, "/data").run().await?;
    assert_eq!(third.sh("ls /data").await?, "", "another mount at the same path is another volume");
    Ok(())
}

fn file_servers() -> Result<Vec<i32>> {
    let is_server = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.split(|byte| *byte == 0).next() == Some(b"hartpod-fs"))
    };
    Ok(process::all()?.into_iter().map(|process| process.pid).filter(is_server).collect())
}

async fn served(lab: &Lab) -> Result<(Pod, Container)> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "x")?;
    let pod = node.pod("web").in_guest().run().await?;
    let begun = Instant::now();
    let main = pod.container("main").idle().mount(&source, "/data").run().await?;
    println!("the first container with a volume: {:?}", begun.elapsed());
    main.sh("cat /data/file").await?;
    let begun = Instant::now();
    pod.container("second").idle().mount(&source, "/data").run().await?;
    println!("the second container with a volume: {:?}", begun.elapsed());
    Ok((pod, main))
}

async fn a_guest_without_its_file_server_is_not_ready(lab: &Lab) -> Result<()> {
    let (pod, main) = served(lab).await?;
    let servers = file_servers()?;
    let [server] = servers[..] else { anyhow::bail!("file servers: {servers:?}") };
    // What nothing in the guest uses it has forgotten, or will.
    main.sh("for n in $(seq 200); do echo >/data/f$n; done; cat /data/f* >/dev/null").await?;
    let held = async || Ok(process::open_files(server)?.values().sum::<usize>());
    eventually("files that nothing uses to be closed", held, |held| *held < 100).await?;
    process::signal(server, Signal::SIGKILL)?;
    let failed = main.exec(["cat", "/data/file"]).await?;
    ensure!(failed.stderr.contains("I/O error") || failed.stderr.contains("Input/output"), "{failed:?}");
    let ready = async || Ok(pod.is_ready().await?);
    within(Duration::from_secs(40), "the pod not to be ready", ready, |ready| !ready).await?;
    let info = pod.info().await?;
    let reason = info["reason"].as_str().context("a reason")?;
    ensure!(reason.contains("hartpod-fs"), "{reason}");
    main.remove().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn a_guest_has_no_file_server_without_volumes(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("plain").in_guest().run().await?;
    for name in ["main", "side"] {
        let begun = Instant::now();
        pod.container(name).idle().run().await?;
        println!("a container without volumes: {:?}", begun.elapsed());
    }
    assert_eq!(file_servers()?, Vec::<i32>::new());
    Ok(())
}
