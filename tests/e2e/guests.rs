//! Pods in guests: what is different about them. That they are pods like any other is what the rest of the suite says, run with
//! `HARTPOD_E2E_HANDLER=vm`.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hartpod_tests::cri::NamespaceMode;
use hartpod_tests::registry::Http;
use hartpod_tests::{Container, Lab, Need, Node, Refused, cri, eventually, image, tests, tools};
use tonic::Code;

tests![
    a_pod_in_a_guest_does_what_pods_do needs Need::Kvm,
    two_containers_share_a_guests_network_and_not_its_files needs Need::Kvm,
    five_guests_run_at_once needs Need::Kvm,
    both_kinds_of_iptables_work needs Need::Kvm,
    a_guest_is_as_large_as_its_pods_limits needs Need::Kvm,
    annotations_change_a_guest_where_the_operator_allows_it needs Need::Kvm,
    what_only_the_node_has_is_refused needs Need::Kvm,
    a_sysctl_of_the_whole_kernel_is_the_guests_own needs Need::Kvm,
    the_next_daemon_adopts_a_guest needs Need::Kvm,
    no_line_is_lost_while_there_is_no_daemon needs Need::Kvm,
];

/// Answers every question of the test for an address with 192.0.2.53, once the pods' bridge has its own.
async fn name_server() -> Result<()> {
    let socket = async || Ok(UdpSocket::bind("10.244.7.1:53").ok());
    let socket = eventually("an address to answer names at", socket, Option::is_some).await?;
    let socket = socket.context("no socket")?;
    // Ends with the test's process.
    std::thread::spawn(move || {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// RFC 1035, 4.1: the question with flags of an answer, and a record for it if it asks for an IPv4 address.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let name = question.get(HEADER..)?.iter().position(|byte| *byte == 0)?;
    let end = HEADER + name + 5;
    let is_a = question.get(end - 4..end)? == [0, 1, 0, 1];
    let mut answer = question.get(..end)?.to_vec();
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[4..HEADER].copy_from_slice(&[0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    if is_a {
        // A pointer to the name, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53]);
    }
    Some(answer)
}

/// A web server that answers `hello`.
const SERVER: &str = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www";

async fn a_pod_in_a_guest_does_what_pods_do(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    let pod = node.pod("web").in_guest().port(18090, 8080).with(|config| {
        let servers = vec!["10.244.7.1".into()];
        config.dns_config = Some(cri::DnsConfig { servers, ..Default::default() });
    });
    let pod = pod.run().await?;
    let main = pod.container("main").sh(&format!("echo begins; {SERVER}")).run().await?;

    let uname = main.sh("uname -a").await?;
    ensure!(uname.starts_with("Linux web ") && uname.contains("riscv64"), "{uname}");
    let boot_id = "/proc/sys/kernel/random/boot_id";
    ensure!(main.sh(&format!("cat {boot_id}")).await? != fs::read_to_string(boot_id)?, "the node's kernel");
    main.sh("dd if=/dev/urandom of=/big bs=1M count=8 && sync && rm /big; echo text >/etc/new").await?;
    assert_eq!(main.sh("cat /etc/new").await?, "text\n");
    name_server().await?;
    let resolved = main.sh("/bin/busybox nslookup web.example.org || true").await?;
    ensure!(resolved.contains("192.0.2.53"), "{resolved}");
    main.sh("ping -c 1 -W 20 10.244.7.1").await?;
    for address in [format!("{}:8080", pod.ip().await?), "127.0.0.1:18090".into()] {
        let server = Http::new(&address);
        let body = async || Ok(server.get("/").await.unwrap_or_default());
        eventually(&format!("an answer at {address}"), body, |body| body == b"hello\n").await?;
    }
    main.logged("begins").await?;
    let output = main.exec(["sh", "-c", "echo out; echo err >&2; exit 3"]).await?;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.exit_code), ("out\n", "err\n", 3));
    main.stop(Duration::ZERO).await?;
    assert_eq!(main.exited().await?.exit_code, 137);
    pod.stop().await?;
    pod.remove().await?;
    fs::remove_dir_all(pod.log_directory())?;
    node.trash_is_empty().await?;
    // The bridge stays for the next pod, as with every other.
    let left = before.clone().without("network interface").without("file");
    hartpod_tests::world::must_return_to(&left, || {
        Ok(lab.look(&node)?.without("network interface").without("file"))
    })
    .await
}

async fn two_containers_share_a_guests_network_and_not_its_files(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let web = pod.container("web").sh(SERVER).run().await?;
    let other = pod.container("other").idle().run().await?;
    let body = async || Ok(other.exec(["wget", "-qO-", "http://127.0.0.1:8080/"]).await?.stdout);
    eventually("an answer of the neighbour", body, |body| body == "hello\n").await?;
    web.sh("echo one >/mine").await?;
    ensure!(other.exec(["cat", "/mine"]).await?.exit_code != 0, "a file of one is seen by the other");
    let device = |one: &Container| {
        let one = one.clone();
        async move { one.sh("stat -c %d /").await }
    };
    assert_ne!(device(&web).await?, device(&other).await?, "one root for two containers");
    // A slot is used again.
    for _ in 0..3 {
        let third = pod.container("third").sh("exit 5").run().await?;
        assert_eq!(third.exited().await?.exit_code, 5);
        third.remove().await?;
    }
    Ok(())
}

async fn five_guests_run_at_once(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let guest = async |number: u32| {
        let pod = node.pod(&format!("guest-{number}")).in_guest().run().await?;
        let main = pod.container("main").idle().run().await?;
        let boot_id = main.sh("cat /proc/sys/kernel/random/boot_id").await?;
        let agent = pod.agent().await?.pid;
        Ok::<_, anyhow::Error>((boot_id, user_of(agent)?, main))
    };
    // Two at a time: five kernels that boot together take an emulated machine longer than the daemon waits.
    let mut guests = try_join_all([0, 1].map(&guest)).await?;
    guests.extend(try_join_all([2, 3].map(&guest)).await?);
    guests.push(guest(4).await?);
    let kernels: BTreeSet<&String> = guests.iter().map(|(boot_id, ..)| boot_id).collect();
    let users: BTreeSet<u32> = guests.iter().map(|(_, user, _)| *user).collect();
    assert_eq!((kernels.len(), users.len()), (5, 5), "{kernels:?} {users:?}");
    ensure!(!users.contains(&0), "a VMM runs as root");
    for (_, _, main) in &guests {
        assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    }
    Ok(())
}

fn user_of(pid: i32) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).context("no Uid line")?;
    Ok(line.split_whitespace().next().context("an empty Uid line")?.parse()?)
}

async fn both_kinds_of_iptables_work(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let programs = ["/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi"];
    let reference =
        lab.push("tools", "1", &image::busybox()?.layer(tools::layer(&programs)?).build()?).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("web").in_guest().run().await?;
    let main = pod.container("main").image(&reference).idle().with_security(|security| {
        let add_capabilities = vec!["NET_ADMIN".into(), "NET_RAW".into()];
        security.capabilities = Some(cri::Capability { add_capabilities, ..Default::default() });
    });
    let main = main.run().await?;
    for program in programs {
        let iptables = format!("{program} iptables");
        let script = format!(
            "{iptables} -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE && \
             {iptables} -A INPUT -p tcp --dport 81 -m conntrack --ctstate NEW -j REJECT && \
             {iptables} -t nat -S && {iptables} -S"
        );
        let output = main.exec(["sh", "-c", &script]).await?;
        let rules = output.stdout.contains("-j MASQUERADE") && output.stdout.contains("--dport 81");
        ensure!(output.exit_code == 0 && rules, "{program}: {output:?}");
    }
    Ok(())
}

/// MiB of memory and number of processors that a container sees.
async fn seen_size(main: &Container) -> Result<(u64, u64)> {
    let kib = main.sh("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo").await?;
    let cpus = main.sh("grep -c ^processor /proc/cpuinfo").await?;
    Ok((kib.trim().parse::<u64>()? >> 10, cpus.trim().parse()?))
}

async fn a_guest_is_as_large_as_its_pods_limits(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let limited = node.pod("limited").in_guest().with(|config| {
        config.linux.get_or_insert_default().resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 200 << 20,
            cpu_quota: 150_000,
            cpu_period: 100_000,
            ..Default::default()
        });
    });
    let limited = limited.run().await?;
    let vmm = limited.agent().await?.pid;
    let main = limited.container("main").idle().with_resources(|resources| resources.oom_score_adj = 700);
    let limited = main.run().await?;
    // Whom the kernel kills first is a matter of what runs in it.
    assert_eq!(std::fs::read_to_string(format!("/proc/{vmm}/oom_score_adj"))?.trim(), "700");
    // 200 MiB and what a guest itself needs, 128: 328, of which the kernel keeps some.
    let (memory, cpus) = seen_size(&limited).await?;
    ensure!((230..=328).contains(&memory) && cpus == 2, "{memory} MiB, {cpus} vCPUs");
    let unlimited = node.pod("unlimited").in_guest().run().await?.container("main").idle().run().await?;
    let (memory, cpus) = seen_size(&unlimited).await?;
    ensure!((220..=320).contains(&memory) && cpus == 1, "{memory} MiB, {cpus} vCPUs: the node's defaults");
    Ok(())
}

async fn annotations_change_a_guest_where_the_operator_allows_it(lab: &Lab) -> Result<()> {
    let names = ["memory-mib", "vcpus", "kernel-arguments"].map(|name| format!("io.hartpod.vm.{name}"));
    let annotated = |node: &Node, name: &str, value: &str| {
        let (name, value) = (name.to_owned(), value.to_owned());
        node.pod("web").in_guest().with(|config| {
            config.annotations.insert(name, value);
        })
    };
    let plain = lab.node().await?;
    for name in &names {
        let status = annotated(&plain, name, "2").run().await.refused(name)?;
        ensure!(status.code() == Code::InvalidArgument && status.message().contains(name), "{status:?}");
    }
    let settings = format!("[vm]\nallowed_annotations = {names:?}");
    let allowing = lab.start(lab.node_builder()?.settings(&settings)).await?;
    allowing.client().pull(allowing.image()).await?;
    let pod = annotated(&allowing, &names[2], "hartpod.test=yes").with(|config| {
        config.annotations.insert(names[0].clone(), "416".into());
        config.annotations.insert(names[1].clone(), "2".into());
    });
    let main = pod.run().await?.container("main").idle().run().await?;
    let (memory, cpus) = seen_size(&main).await?;
    ensure!((321..=416).contains(&memory) && cpus == 2, "{memory} MiB, {cpus} vCPUs");
    ensure!(main.sh("cat /proc/cmdline").await?.contains(" hartpod.test=yes"), "no argument of the pod");
    for (name, value) in [(&names[0], "lots"), (&names[1], "0"), (&names[2], "a\nb")] {
        let status = annotated(&allowing, name, value).run().await.refused(value)?;
        ensure!(status.code() == Code::InvalidArgument && status.message().contains(name), "{status:?}");
    }
    Ok(())
}

async fn what_only_the_node_has_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    for (builder, what) in [
        (node.pod("net").host_network(), "network"),
        (node.pod("pid").pid(NamespaceMode::Node), "pid"),
        (node.pod("ipc").ipc(NamespaceMode::Node), "ipc"),
    ] {
        let status = builder.in_guest().run().await.refused(what)?;
        ensure!(status.code() == Code::InvalidArgument, "{what}: {status:?}");
        ensure!(status.message().contains(what) && status.message().contains("guest"), "{what}: {status:?}");
    }
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await?;

    let pod = node.pod("web").in_guest().run().await?;
    let device = cri::Device {
        container_path: "/dev/given".into(),
        host_path: "/dev/full".into(),
        permissions: "rw".into(),
    };
    let given = pod.container("device").idle().with(|config| config.devices.push(device));
    let status = given.create().await.refused("a device of the node")?;
    ensure!(status.code() == Code::InvalidArgument && status.message().contains("device"), "{status:?}");
    for propagation in
        [cri::MountPropagation::PropagationHostToContainer, cri::MountPropagation::PropagationBidirectional]
    {
        let passing = pod.container("passing").idle().mount(lab.dir(), "/data");
        let passing = passing.with(|config| config.mounts[0].propagation = propagation.into());
        let status = passing.create().await.refused("a mount that passes on what is mounted")?;
        ensure!(status.message().contains("mounts[0].propagation"), "{status:?}");
    }
    let device = pod.container("device-file").idle().mount(std::path::Path::new("/dev/full"), "/full");
    let status = device.create().await.refused("a device of the node as a volume")?;
    ensure!(status.message().contains("it is a device"), "{status:?}");
    let profile = cri::security_profile::ProfileType::Localhost.into();
    let confined = pod.container("confined").idle().with_security(|security| {
        security.apparmor =
            Some(cri::SecurityProfile { profile_type: profile, localhost_ref: "strict".into() });
    });
    let status = confined.create().await.refused("a profile that the guest does not have")?;
    ensure!(status.message().to_lowercase().contains("apparmor"), "{status:?}");
    ensure!(node.client().containers().await?.is_empty(), "what was refused is listed");
    pod.container("main").idle().run().await?;
    Ok(())
}

async fn a_sysctl_of_the_whole_kernel_is_the_guests_own(lab: &Lab) -> Result<()> {
    let file = "/proc/sys/vm/max_map_count";
    let own = fs::read_to_string(file)?;
    let with = |builder: hartpod_tests::PodBuilder| {
        builder.with(|config| {
            let sysctls = &mut config.linux.get_or_insert_default().sysctls;
            sysctls.insert("vm.max_map_count".into(), "300007".into());
        })
    };
    let node = lab.node().await?;
    with(node.pod("host").handler("")).run().await.refused("a sysctl of the node's kernel")?;
    let pod = with(node.pod("guest").in_guest()).run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh(&format!("cat {file}")).await?, "300007\n");
    assert_eq!(fs::read_to_string(file)?, own, "the node's was changed");
    Ok(())
}

async fn the_next_daemon_adopts_a_guest(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let main = pod.container("main").idle().run().await?;
    let ended = pod.container("ended").sh("exit 4").run().await?;
    ended.exited().await?;
    main.logged("ready").await?;
    let (status, vmm) = (pod.status().await?, pod.agent().await?);
    node.crash().await?;
    assert_eq!(pod.status().await?, status);
    assert_eq!(pod.agent().await?.pid, vmm.pid, "another VMM");
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    assert_eq!(ended.exited().await?.exit_code, 4);
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    main.reopen_log().await?;
    let late = pod.container("late").sh("echo late; exit 6").run().await?;
    assert_eq!(late.exited().await?.exit_code, 6);
    late.logged("late").await?;
    main.stop(Duration::from_secs(5)).await?;
    assert_eq!(main.exited().await?.exit_code, 0);
    node.crash().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn no_line_is_lost_while_there_is_no_daemon(lab: &Lab) -> Result<()> {
    /// A new daemon must be able to come late.
    const ABSENCE: Duration = Duration::from_secs(10);
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let script = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo line $i; usleep 50000; done; echo the last";
    let main = pod.container("main").sh(script).run().await?;
    main.logged("line 3").await?;
    node.kill().await?;
    let written = main.log()?.len();
    tokio::time::sleep(ABSENCE).await;
    ensure!(main.log()?.len() > written + 10, "nothing was written without a daemon");
    node.start().await?;
    main.sh("touch /end").await?;
    main.exited().await?;
    let lines = main.log()?;
    ensure!(lines.last().is_some_and(|line| line.text == "the last"), "{:?}", lines.last());
    for (index, line) in lines[..lines.len() - 1].iter().enumerate() {
        assert_eq!(line.text, format!("line {}", index + 1));
    }
    Ok(())
}
