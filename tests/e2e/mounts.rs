//! Volumes: files, folders, links, read-only, propagation.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, Refused, cri, eventually, tests};

tests![
    a_folder_is_shared_with_the_node,
    a_read_only_folder_refuses_writes,
    a_file_is_mounted_over_a_file,
    a_linked_source_is_what_the_link_means,
    a_target_behind_a_link_of_the_image_stays_inside,
    a_missing_target_is_made,
    mounts_of_mounts_come_along,
    all_that_is_below_is_read_only_if_asked,
    a_mount_made_later_on_the_node_arrives_if_asked needs Need::OfNode("mounts that pass on"),
    an_unmount_on_the_node_is_seen_in_a_running_container needs Need::OfNode("mounts that pass on"),
    a_bind_made_after_the_pods_start_is_mounted,
    a_mount_made_in_the_container_reaches_the_node_if_asked needs Need::OfNode("mounts that pass on"),
    the_root_can_be_read_only,
    the_termination_log_of_the_kubelet_works,
    the_node_sees_none_of_a_pods_mounts,
    two_containers_share_a_folder,
];

async fn a_folder_is_shared_with_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    fs::write(source.join("from-node"), "hello\n")?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data/deep/er").run().await?;
    assert_eq!(main.sh("cat /data/deep/er/from-node; echo back >/data/deep/er/from-pod").await?, "hello\n");
    assert_eq!(fs::read_to_string(source.join("from-pod"))?, "back\n");
    fs::write(source.join("later"), "x")?;
    main.sh("[ -e /data/deep/er/later ]").await?;
    pod.stop().await?;
    pod.remove().await?;
    assert_eq!(fs::read_to_string(source.join("from-node"))?, "hello\n", "the volume outlives the pod");
    Ok(())
}

async fn a_read_only_folder_refuses_writes(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "x")?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().read_only_mount(&source, "/data");
    // Not even root with all rights may write: it is a property of the mount.
    let main = main.with_security(|security| {
        security.capabilities =
            Some(cri::Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    });
    let main = main.run().await?;
    let output = main
        .exec(["sh", "-c", "echo y >/data/file; touch /data/new; rm /data/file; chmod 777 /data"])
        .await?;
    assert_ne!(output.exit_code, 0);
    assert_eq!(output.stderr.matches("Read-only file system").count(), 4, "{output:?}");
    assert_eq!(fs::read_to_string(source.join("file"))?, "x");
    Ok(())
}

async fn a_file_is_mounted_over_a_file(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("settings");
    fs::write(&source, "of the node\n")?;
    let pod = node.pod("web").run().await?;
    let main =
        pod.container("main").idle().mount(&source, "/etc/passwd").read_only_mount(&source, "/etc/new/file");
    let main = main.run().await?;
    assert_eq!(main.sh("cat /etc/passwd /etc/new/file").await?, "of the node\nof the node\n");
    main.sh("echo changed >/etc/passwd").await?;
    assert_eq!(fs::read_to_string(&source)?, "changed\n");
    Ok(())
}

async fn a_linked_source_is_what_the_link_means(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let real = lab.dir().join("real");
    fs::create_dir(&real)?;
    fs::write(real.join("file"), "here\n")?;
    let link = lab.dir().join("link");
    symlink(&real, &link)?;
    let relative = lab.dir().join("relative");
    symlink("real/file", &relative)?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&link, "/data").mount(&relative, "/one").run().await?;
    assert_eq!(main.sh("cat /data/file /one").await?, "here\nhere\n");
    Ok(())
}

async fn a_target_behind_a_link_of_the_image_stays_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let outside = lab.dir().join("outside");
    fs::create_dir(&outside)?;
    let layer = hartpod_tests::layer::LayerBuilder::new()
        .symlink("out", &outside.display().to_string())?
        .symlink(
            "up",
            &format!("{}{}", "../".repeat(16), outside.display().to_string().trim_start_matches('/')),
        )?
        .build(hartpod_tests::layer::Packing::Gzip)?;
    let reference = lab.push("links", "1", &hartpod_tests::image::busybox()?.layer(layer).build()?).await?;
    node.client().pull(&reference).await?;
    let source = lab.dir().join("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "x")?;
    let pod = node.pod("web").run().await?;
    for target in ["/out/data", "/up/data", "/out", "/up"] {
        // The link means a place in the container's root. Making it there or refusing it are both right.
        if let Ok(main) = pod.container("main").image(&reference).idle().mount(&source, target).run().await {
            assert_eq!(main.sh(&format!("cat {target}/file")).await?, "x");
            main.remove().await?;
        }
        for container in node.client().containers().await? {
            node.client()
                .remove_container(cri::RemoveContainerRequest { container_id: container.id })
                .await?;
        }
        assert_eq!(fs::read_dir(&outside)?.count(), 0, "{target} was made on the node");
    }
    Ok(())
}

async fn a_missing_target_is_made(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (folder, file) = (lab.dir().join("folder"), lab.dir().join("file"));
    fs::create_dir(&folder)?;
    fs::write(&file, "x")?;
    let pod = node.pod("web").run().await?;
    let main = pod
        .container("main")
        .idle()
        .mount(&folder, "/made/by/mount")
        .mount(&file, "/made/a-file")
        .run()
        .await?;
    assert_eq!(main.sh("stat -c %F /made/by/mount /made/a-file").await?, "directory\nregular file\n");
    Ok(())
}

fn mount_tmpfs(path: &std::path::Path) -> Result<()> {
    fs::create_dir_all(path)?;
    let output =
        Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(path).output().context("run mount")?;
    ensure!(output.status.success(), "mount a tmpfs on {}: {output:?}", path.display());
    Ok(())
}

fn unmount(path: &std::path::Path) -> Result<()> {
    let output = Command::new("umount").arg(path).output().context("run umount")?;
    ensure!(output.status.success(), "umount {}: {output:?}", path.display());
    Ok(())
}

async fn mounts_of_mounts_come_along(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    let inner = source.join("inner");
    mount_tmpfs(&inner)?;
    fs::write(inner.join("file"), "inner\n")?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").run().await?;
    assert_eq!(main.sh("cat /data/inner/file").await?, "inner\n");
    // The container's copy does not keep the node from unmounting.
    unmount(&inner)?;
    Ok(())
}

async fn all_that_is_below_is_read_only_if_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    let inner = source.join("inner");
    mount_tmpfs(&inner)?;
    let pod = node.pod("web").run().await?;
    let with = |name: &str, change: fn(&mut cri::Mount)| {
        let builder = pod.container(name).idle().read_only_mount(&source, "/data");
        builder.with(|config| change(&mut config.mounts[0]))
    };
    let plain = with("plain", |_| {}).run().await?;
    let tried = "for file in /data/new /data/inner/new; do touch $file 2>/dev/null || echo refused; done";
    assert_eq!(plain.sh(tried).await?, "refused\n", "the mount below is as it was");
    let whole = with("whole", |mount| mount.recursive_read_only = true).run().await?;
    assert_eq!(whole.sh(tried).await?, "refused\nrefused\n");
    assert!(whole.status().await?.mounts.iter().all(|mount| mount.recursive_read_only), "it is told");
    // The node's own mount stays as it was.
    fs::write(inner.join("new"), "x")?;
    let writable: fn(&mut cri::Mount) = |mount| (mount.readonly, mount.recursive_read_only) = (false, true);
    let propagated: fn(&mut cri::Mount) = |mount| {
        mount.recursive_read_only = true;
        mount.propagation = cri::MountPropagation::PropagationHostToContainer.into();
    };
    for (name, change) in [("writable", writable), ("propagated", propagated)] {
        let refused = with(name, change).create().await.refused(name)?;
        ensure!(refused.message().contains("recursive_read_only"), "{name}: {refused:?}");
    }
    plain.remove().await?;
    whole.remove().await?;
    unmount(&inner)
}

async fn a_mount_made_later_on_the_node_arrives_if_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let pod = node.pod("web").run().await?;
    let with = |name: &str, propagation: cri::MountPropagation| {
        pod.container(name).idle().mount(&source, "/data").with(|config| {
            config.mounts[0].propagation = propagation.into();
        })
    };
    let listens = with("listens", cri::MountPropagation::PropagationHostToContainer).run().await?;
    let private = with("private", cri::MountPropagation::PropagationPrivate).run().await?;
    let late = source.join("late");
    mount_tmpfs(&late)?;
    fs::write(late.join("file"), "late\n")?;
    assert_eq!(listens.sh("cat /data/late/file").await?, "late\n");
    assert_eq!(private.sh("ls /data/late").await?, "");
    unmount(&late)?;
    assert_eq!(listens.sh("ls /data/late").await?, "");
    Ok(())
}

async fn an_unmount_on_the_node_is_seen_in_a_running_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    let inner = source.join("inner");
    mount_tmpfs(&inner)?;
    fs::write(inner.join("file"), "inner\n")?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().mount(&source, "/data").with(|config| {
        config.mounts[0].propagation = cri::MountPropagation::PropagationHostToContainer.into();
    });
    let main = main.run().await?;
    assert_eq!(main.sh("cat /data/inner/file").await?, "inner\n");
    unmount(&inner)?;
    assert_eq!(main.sh("ls /data/inner").await?, "");
    Ok(())
}

/// The kubelet binds a subPath when the container is to be made, long after the pod's mount namespace was.
async fn a_bind_made_after_the_pods_start_is_mounted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let volume = lab.dir().join("volume");
    mount_tmpfs(&volume)?;
    fs::create_dir(volume.join("sub"))?;
    fs::write(volume.join("sub/file"), "sub\n")?;
    let bound = lab.dir().join("volume-subpaths/0");
    fs::create_dir_all(&bound)?;
    let bind = Command::new("mount").arg("--bind").args([&volume.join("sub"), &bound]).status()?;
    ensure!(bind.success(), "bind: {bind}");
    let main = pod.container("main").idle().mount(&bound, "/data").run().await?;
    assert_eq!(main.sh("cat /data/file").await?, "sub\n");
    unmount(&bound)?;
    unmount(&volume)?;
    assert_eq!(main.sh("cat /data/file").await?, "sub\n");
    Ok(())
}

async fn a_mount_made_in_the_container_reaches_the_node_if_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir_all(source.join("made"))?;
    let pod = node.pod("csi").with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    });
    let pod = pod.run().await?;
    // As a storage driver does.
    let driver = pod.container("driver").idle().mount(&source, "/data").with(|config| {
        config.mounts[0].propagation = cri::MountPropagation::PropagationBidirectional.into();
    });
    let driver = driver.with_security(|security| security.privileged = true).run().await?;
    driver.sh("mount -t tmpfs tmpfs /data/made && echo made >/data/made/file").await?;
    assert_eq!(fs::read_to_string(source.join("made/file"))?, "made\n");
    driver.sh("umount /data/made").await?;
    assert!(!source.join("made/file").exists());
    Ok(())
}

async fn the_root_can_be_read_only(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle();
    let main = main.with_security(|security| security.readonly_rootfs = true).run().await?;
    let output = main.exec(["touch", "/etc/new"]).await?;
    assert!(output.stderr.contains("Read-only file system"), "{output:?}");
    main.sh("touch /dev/shm/new; echo x >/dev/null").await?;
    Ok(())
}

async fn the_termination_log_of_the_kubelet_works(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let log = lab.dir().join("termination-log");
    fs::write(&log, "")?;
    fs::set_permissions(&log, fs::Permissions::from_mode(0o666))?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("echo why >/dev/termination-log").mount(&log, "/dev/termination-log");
    let main = main
        .with_security(|security| security.run_as_user = Some(cri::Int64Value { value: 1000 }))
        .run()
        .await?;
    assert_eq!(main.exited().await?.exit_code, 0);
    assert_eq!(fs::read_to_string(&log)?, "why\n");
    Ok(())
}

async fn the_node_sees_none_of_a_pods_mounts(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let before = lab.look(&node)?.list("mount");
    let pod = node.pod("web").run().await?;
    pod.container("main").idle().mount(&source, "/data").run().await?;
    let after = lab.look(&node)?.list("mount");
    let new: Vec<&String> = after.difference(&before).collect();
    let only_netns = new.iter().all(|line| line.contains("/netns"));
    assert!(only_netns, "the pod shows in the node's mount table: {new:#?}");
    Ok(())
}

async fn two_containers_share_a_folder(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let source = lab.dir().join("volume");
    fs::create_dir(&source)?;
    let pod = node.pod("web").run().await?;
    let writer =
        pod.container("writer").sh("i=0; while :; do echo $i >/out/n; i=$((i+1)); usleep 10000; done");
    let writer = writer.mount(&source, "/out").run().await?;
    let reader = pod.container("reader").idle().read_only_mount(&source, "/in").run().await?;
    let number =
        async || Ok(reader.sh("cat /in/n 2>/dev/null || true").await?.trim().parse::<u32>().unwrap_or(0));
    eventually("the reader to see the writer's numbers", number, |n| *n > 3).await?;
    writer.remove().await?;
    reader.sh("ls /in/n").await?;
    writer.exec(["true"]).await.refused("an exec in a removed container")?;
    Ok(())
}
