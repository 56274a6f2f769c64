//! What a process in a container is and may: users, groups, capabilities, system calls, hidden files.

use anyhow::Result;
use hartpod_tests::{ContainerBuilder, Lab, Need, cri, tests};

tests![
    users_are_found_by_name_and_number,
    groups_of_the_image_and_of_the_pod_add_up,
    strict_groups_leave_the_images_out,
    the_default_capabilities_are_fourteen,
    capabilities_are_added_and_dropped,
    a_user_without_root_has_no_effective_capabilities,
    ambient_capabilities_reach_a_plain_user,
    no_new_privs_is_set_when_asked,
    the_default_profile_blocks_dangerous_calls,
    an_unconfined_container_may_call_anything,
    a_filter_of_the_nodes_does_what_it_says,
    masked_paths_are_empty_and_read_only_paths_refuse,
    proc_is_unmasked_when_no_path_is_listed,
    a_privileged_container_sees_the_nodes_devices needs Need::OfNode("devices"),
    a_privileged_container_has_no_devices_where_the_operator_keeps_them needs Need::OfNode("devices"),
    the_devices_are_the_usual_ones,
    a_device_of_the_node_is_given needs Need::OfNode("devices"),
    limits_and_oom_score_are_set,
    nothing_of_the_node_is_left_open,
];

fn user(builder: ContainerBuilder, uid: i64) -> ContainerBuilder {
    builder.with_security(|security| security.run_as_user = Some(cri::Int64Value { value: uid }))
}

async fn users_are_found_by_name_and_number(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let ids = "echo $(id -u) $(id -g) $HOME";
    let by_name =
        pod.container("name").idle().with_security(|security| security.run_as_username = "app".into());
    let by_name = by_name.run().await?;
    assert_eq!(by_name.sh(ids).await?, "1000 1000 /home/app\n");
    let status = by_name.status().await?.user.and_then(|user| user.linux).unwrap_or_default();
    assert_eq!((status.uid, status.gid), (1000, 1000));
    // A number that the image knows brings its group, one that it does not gets group 0.
    let known = user(pod.container("known").idle(), 1000).run().await?;
    assert_eq!(known.sh("echo $(id -u) $(id -g)").await?, "1000 1000\n");
    let unknown = user(pod.container("unknown").idle(), 4711).run().await?;
    assert_eq!(unknown.sh("echo $(id -u) $(id -g)").await?, "4711 0\n");
    let both = user(pod.container("both").idle(), 4711);
    let both = both
        .with_security(|security| security.run_as_group = Some(cri::Int64Value { value: 42 }))
        .run()
        .await?;
    assert_eq!(both.sh("echo $(id -u) $(id -g)").await?, "4711 42\n");

    let image =
        |who: &str| -> Result<_> { hartpod_tests::image::busybox()?.with("User", who.into()).build() };
    for (who, wanted) in [
        ("app", "1000 1000"),
        ("app:audio", "1000 29"),
        ("12:34", "12 34"),
        ("12", "12 0"),
        ("1000:games", "1000 60"),
    ] {
        let name = who.replace(':', "-");
        let reference = lab.push("users", &name, &image(who)?).await?;
        node.client().pull(&reference).await?;
        let main = pod.container(&name).image(&reference).idle().run().await?;
        assert_eq!(main.sh("echo $(id -u) $(id -g)").await?.trim(), wanted, "User {who}");
        // The kubelet reads it to enforce runAsNonRoot.
        let image = node.client().image(&reference).await?.unwrap_or_default();
        let name = who.split(':').next().unwrap_or_default();
        match name.parse::<i64>() {
            Ok(uid) => assert_eq!(image.uid.map(|value| value.value), Some(uid), "User {who}"),
            Err(_) => assert_eq!(image.username, name, "User {who}"),
        }
    }
    Ok(())
}

fn sorted_groups(text: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

async fn groups_of_the_image_and_of_the_pod_add_up(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = user(pod.container("main").idle(), 1000);
    let main = main.with_security(|security| security.supplemental_groups = vec![7000, 7001]).run().await?;
    assert_eq!(sorted_groups(&main.sh("id -G").await?), [29, 60, 1000, 7000, 7001]);
    let status = main.status().await?.user.and_then(|user| user.linux).unwrap_or_default();
    let mut groups = status.supplemental_groups;
    groups.sort_unstable();
    groups.dedup();
    groups.retain(|group| *group != 1000);
    assert_eq!(groups, [29, 60, 7000, 7001]);
    // Root of the image is in a group, too.
    let root = pod.container("root").idle().run().await?;
    assert!(sorted_groups(&root.sh("id -G").await?).contains(&60));
    Ok(())
}

async fn strict_groups_leave_the_images_out(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = user(pod.container("main").idle(), 1000).with_security(|security| {
        security.supplemental_groups = vec![7000];
        security.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
    });
    let main = main.run().await?;
    assert_eq!(sorted_groups(&main.sh("id -G").await?), [1000, 7000]);
    Ok(())
}

const CAPABILITIES: &str = "grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t'";

/// Containerd's default set, as a bit mask: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const DEFAULT_SET: u64 = 0xa804_25fb;

async fn the_default_capabilities_are_fourteen(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let set = format!("{DEFAULT_SET:016x}");
    let wanted = format!("CapInh:{:016x}\nCapPrm:{set}\nCapEff:{set}\nCapBnd:{set}\nCapAmb:{:016x}\n", 0, 0);
    assert_eq!(main.sh(CAPABILITIES).await?, wanted);
    Ok(())
}

async fn capabilities_are_added_and_dropped(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let effective = |add: &[&str], drop: &[&str]| {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let capabilities = cri::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        };
        let name = format!("c{}-{}", add.join("-"), drop.join("-")).to_lowercase();
        let builder = pod.container(&name).idle();
        builder.with_security(|security| security.capabilities = Some(capabilities))
    };
    let mask = async |builder: ContainerBuilder| -> Result<u64> {
        let main = builder.run().await?;
        let text = main.sh("grep ^CapEff /proc/self/status | cut -f2").await?;
        Ok(u64::from_str_radix(text.trim(), 16)?)
    };
    let bit = |number: u32| 1_u64 << number;
    assert_eq!(mask(effective(&["NET_ADMIN"], &["CHOWN"])).await?, (DEFAULT_SET | bit(12)) & !bit(0));
    assert_eq!(mask(effective(&["NET_BIND_SERVICE"], &["ALL"])).await?, bit(10));
    assert_eq!(
        mask(effective(&["CAP_SYS_TIME"], &[])).await?,
        DEFAULT_SET | bit(25),
        "the prefix may be written"
    );
    assert_eq!(mask(effective(&[], &["ALL"])).await?, 0);
    let all = mask(effective(&["ALL"], &["SYS_ADMIN"])).await?;
    assert_eq!(all & bit(21), 0);
    assert_eq!(all & (bit(12) | bit(19) | bit(0)), bit(12) | bit(19) | bit(0));
    Ok(())
}

async fn a_user_without_root_has_no_effective_capabilities(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = user(pod.container("main").idle(), 1000).run().await?;
    let seen = main.sh(CAPABILITIES).await?;
    let zero = format!("{:016x}", 0);
    assert_eq!(
        seen,
        format!("CapInh:{zero}\nCapPrm:{zero}\nCapEff:{zero}\nCapBnd:{DEFAULT_SET:016x}\nCapAmb:{zero}\n")
    );
    Ok(())
}

async fn ambient_capabilities_reach_a_plain_user(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = user(pod.container("main").idle(), 1000).with_security(|security| {
        security.capabilities = Some(cri::Capability {
            add_ambient_capabilities: vec!["NET_BIND_SERVICE".into()],
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            ..Default::default()
        });
    });
    let main = main.run().await?;
    assert_eq!(
        main.sh("grep -E '^Cap(Eff|Amb)' /proc/self/status | cut -f2").await?,
        format!("{:016x}\n", 1 << 10).repeat(2)
    );
    Ok(())
}

async fn no_new_privs_is_set_when_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (wanted, name) in [(true, "with"), (false, "without")] {
        let main =
            pod.container(name).idle().with_security(|security| security.no_new_privs = wanted).run().await?;
        let text = main.sh("grep NoNewPrivs /proc/self/status | cut -f2").await?;
        assert_eq!(text.trim(), if wanted { "1" } else { "0" });
    }
    Ok(())
}

async fn the_default_profile_blocks_dangerous_calls(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("grep Seccomp: /proc/self/status | cut -f2").await?, "2\n");
    for command in ["unshare -U true", "mount -t tmpfs tmpfs /tmp", "unshare -n true", "nsenter -t 1 -m true"]
    {
        let output = main.exec(["sh", "-c", command]).await?;
        assert_ne!(output.exit_code, 0, "{command} succeeded");
    }
    // With the capability the profile lets it through; AppArmor's, where there is one, does not.
    let admin = pod.container("admin").idle().with_security(|security| {
        let profile = cri::security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(cri::SecurityProfile { profile_type: profile, ..Default::default() });
        security.capabilities =
            Some(cri::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    });
    admin.run().await?.sh("mount -t tmpfs tmpfs /mnt 2>/dev/null || mount -t tmpfs tmpfs /tmp").await?;
    Ok(())
}

async fn an_unconfined_container_may_call_anything(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        let profile = cri::security_profile::ProfileType::Unconfined.into();
        security.seccomp = Some(cri::SecurityProfile { profile_type: profile, ..Default::default() });
    });
    let main = main.run().await?;
    assert_eq!(main.sh("grep Seccomp: /proc/self/status | cut -f2").await?, "0\n");
    main.sh("unshare -U true").await?;
    Ok(())
}

async fn masked_paths_are_empty_and_read_only_paths_refuse(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c").await?.trim(), "0");
    assert_eq!(
        main.sh("ls /sys/firmware /proc/scsi 2>/dev/null | grep -v :").await.unwrap_or_default().trim(),
        ""
    );
    for path in ["/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run"] {
        let output = main.exec(["sh", "-c", &format!("echo h >{path}")]).await?;
        assert_ne!(output.exit_code, 0, "{path} can be written");
    }
    Ok(())
}

/// OCI JSON: a default, an errno, arguments, two actions, and the architectures of both machines that hartpod runs on.
async fn a_filter_of_the_nodes_does_what_it_says(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let path = lab.dir().join("filter.json");
    std::fs::write(
        &path,
        r#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": []}
            ],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
                {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30,
                    "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]},
                {"names": ["sync"], "action": "SCMP_ACT_KILL_PROCESS"}
            ]
        }"#,
    )?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.seccomp = Some(cri::SecurityProfile {
            profile_type: cri::security_profile::ProfileType::Localhost.into(),
            localhost_ref: path.display().to_string(),
        });
    });
    let main = main.run().await?;
    let made = main.exec(["mkdir", "/tmp/x"]).await?;
    assert!(made.exit_code != 0 && made.stderr.contains("No space left on device"), "{made:?}");
    // USR1 is what the argument names; others pass.
    let sent = main.exec(["sh", "-c", "trap : USR1 USR2; kill -USR2 $$ && kill -USR1 $$"]).await?;
    assert!(sent.exit_code != 0 && sent.stderr.contains("Read-only file system"), "{sent:?}");
    assert_eq!(main.exec(["sync"]).await?.exit_code, 128 + 31, "killed by SIGSYS");
    Ok(())
}

/// How the kubelet's `procMount: Unmasked` arrives.
async fn proc_is_unmasked_when_no_path_is_listed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.masked_paths.clear();
        security.readonly_paths.clear();
    });
    let main = main.run().await?;
    let table =
        main.sh("grep -c ' /proc/' /proc/self/mountinfo || true; wc -c </proc/keys >/dev/null").await?;
    assert_eq!(table, "0\n", "nothing is mounted over parts of /proc");
    Ok(())
}

async fn a_privileged_container_has_no_devices_where_the_operator_keeps_them(lab: &Lab) -> Result<()> {
    let node = lab.node_with("[pod]\nprivileged_without_host_devices = true\n").await?;
    let pod = node.pod("web").with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().privileged = true;
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().with_security(|security| security.privileged = true);
    let main = main.run().await?;
    assert_eq!(main.sh("ls /dev/kmsg /dev/mem 2>/dev/null || true").await?, "");
    // Not by making it, either.
    let made = main.exec(["sh", "-c", "mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg"]).await?;
    assert!(made.stderr.contains("Operation not permitted"), "{made:?}");
    Ok(())
}

async fn a_privileged_container_sees_the_nodes_devices(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").with(|config| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.privileged = true;
        security.masked_paths.clear();
        security.readonly_paths.clear();
    });
    let main = main.run().await?;
    assert_eq!(main.sh("grep Seccomp: /proc/self/status | cut -f2").await?, "0\n");
    let own = std::fs::read_to_string("/proc/self/status")?;
    let bounding = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap_or_default();
    let eff = main.sh("grep ^CapEff /proc/self/status | cut -f2").await?;
    assert_eq!(eff.trim(), bounding, "all that the node itself may");
    main.sh("echo 1 >/proc/sys/net/ipv4/ip_forward; mount -t tmpfs tmpfs /tmp").await?;
    if std::path::Path::new("/dev/kvm").exists() {
        main.sh("[ -c /dev/kvm ]").await?;
    }
    // In a pod that is not, a privileged container is a contradiction.
    let plain = node.pod("plain").run().await?;
    let refused = plain.container("main").idle().with_security(|security| security.privileged = true);
    assert!(refused.run().await.is_err(), "a privileged container in a pod that is not privileged");
    Ok(())
}

async fn the_devices_are_the_usual_ones(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let seen = main.sh("cd /dev; for d in *; do [ -c $d ] && [ ! -L $d ] && echo $d; done; true").await?;
    let mut seen: Vec<&str> = seen.split_whitespace().collect();
    seen.retain(|name| !["console", "ptmx"].contains(name));
    assert_eq!(seen, ["full", "null", "random", "tty", "urandom", "zero"]);
    assert_eq!(
        main.sh("readlink /dev/fd; readlink /dev/stdin; readlink /dev/ptmx").await?,
        "/proc/self/fd\n/proc/self/fd/0\npts/ptmx\n"
    );
    main.sh("echo x >/dev/null; head -c 4 /dev/zero /dev/urandom /dev/random >/dev/null; ls /dev/pts/ptmx /dev/mqueue /dev/shm").await?;
    // A device node that the container makes itself is of no use: a disk, say.
    let output = main.exec(["sh", "-c", "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk"]).await?;
    assert_ne!(output.exit_code, 0, "a disk of the node can be read");
    Ok(())
}

async fn a_device_of_the_node_is_given(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let give = |name: &str, path: &str, permissions: &str| {
        pod.container(name).idle().with(|config| {
            config.devices.push(cri::Device {
                container_path: "/dev/given".into(),
                host_path: path.into(),
                permissions: permissions.into(),
            });
        })
    };
    let main = give("main", "/dev/full", "rw").run().await?;
    let output = main.exec(["sh", "-c", "echo x >/dev/given"]).await?;
    assert!(output.stderr.contains("No space left"), "{output:?}");
    let missing = give("missing", "/dev/no-such-device", "rwm").run().await;
    let Err(status) = missing else { anyhow::bail!("a device that is not there was given") };
    assert!(status.message().contains("/dev/no-such-device"), "{status:?}");
    Ok(())
}

async fn limits_and_oom_score_are_set(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main =
        pod.container("main").idle().with_resources(|resources| resources.oom_score_adj = 900).run().await?;
    assert_eq!(main.sh("cat /proc/1/oom_score_adj; cat /proc/self/oom_score_adj").await?, "900\n900\n");
    // A node that may not lower it must not refuse the pod.
    let low =
        pod.container("low").idle().with_resources(|resources| resources.oom_score_adj = -998).run().await?;
    assert_eq!(low.exec(["true"]).await?.exit_code, 0);
    Ok(())
}

async fn nothing_of_the_node_is_left_open(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // The container's init, and a process that is exec'd; `ls` itself opens the folder that it lists.
    for folder in ["/proc/1/fd", "/proc/self/fd"] {
        let seen = main.exec(["ls", "-l", folder]).await?.stdout;
        for line in seen.lines() {
            let Some((name, target)) = line.split_once(" -> ") else { continue };
            let number = name.rsplit(' ').next().unwrap_or_default();
            let usual = ["pipe:", "/dev/null", "socket:"].iter().any(|kind| target.starts_with(kind));
            let its_own = target.starts_with("/proc/");
            assert!((["0", "1", "2"].contains(&number) && usual) || its_own, "{folder}: {line}");
        }
    }
    let leaks = main.sh("tr '\\0' '\\n' </proc/1/environ | sort").await?;
    assert!(!leaks.contains("RUST_LOG") && !leaks.contains("HARTPOD"), "the daemon's environment: {leaks}");
    Ok(())
}
