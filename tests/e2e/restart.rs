//! The daemon dies, the agent dies, the machine restarts: what must go on, and what must be told.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use hartpod_tests::cgroup::PodCgroup;
use hartpod_tests::eventually::{patient, within};
use hartpod_tests::log_file::text;
use hartpod_tests::{Container, Lab, Node, Pod, Refused, cri, eventually, process, tests};
use nix::sys::signal::Signal;
use tokio::process::Command;

tests![
    pods_run_on_without_a_daemon,
    the_first_answer_has_every_pod_with_its_address,
    exit_codes_of_the_meantime_are_right,
    a_created_container_starts_after_a_crash,
    stopped_pods_stay_stopped_and_removed_ones_removed,
    a_daemon_that_ends_politely_leaves_pods_running,
    an_exec_that_the_daemon_did_not_survive_ends_with_its_container,
    an_image_pulled_before_a_crash_runs_after_it,
    a_dead_agent_makes_the_pod_not_ready,
    an_agent_that_died_with_the_daemon_is_noticed,
    a_stopped_agent_does_not_stop_the_node,
    a_silent_agent_holds_nothing_back_and_its_pod_is_ready_when_it_answers,
    what_a_killed_daemon_had_thrown_away_goes_at_the_next_start,
    a_damaged_record_is_set_aside,
    a_restarted_machine_can_be_cleaned_up,
    others_pods_survive_the_sweep,
    two_daemons_on_one_node_leave_each_other_alone,
];

/// Writes a number to its log every 20 ms.
const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); usleep 20000; done";

/// The numbers that a counter has logged, which must have no gap.
fn counted(container: &Container) -> Result<u64> {
    let lines = container.log()?;
    let said = text(&lines, "stdout");
    for (wanted, line) in said.lines().enumerate() {
        ensure!(line == wanted.to_string(), "line {wanted} of the log is {line:?}");
    }
    Ok(said.lines().count() as u64)
}

async fn grows(container: &Container) -> Result<()> {
    let before = counted(container)?;
    // Read while the writer is within a line, the file has no end of line yet.
    let now = async || Ok(counted(container).unwrap_or(0));
    eventually("the log to go on", now, |count| *count > before + 3).await?;
    Ok(())
}

async fn pods_run_on_without_a_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh(COUNTER).run().await?;
    main.logged("3").await?;
    let before = (main.status().await?, main.pid().await?);
    node.kill().await?;
    grows(&main).await?;
    node.start().await?;
    assert_eq!((main.status().await?, main.pid().await?), before);
    assert!(pod.is_ready().await?);
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    grows(&main).await?;
    // And everything else still works on it.
    fs::rename(main.log_path(), main.log_path().with_extension("old"))?;
    main.reopen_log().await?;
    main.logged("").await?;
    let second = pod.container("second").idle().run().await?;
    assert_eq!(second.sh("hostname").await?, "web\n");
    main.stop(Duration::ZERO).await?;
    assert_eq!(main.exited().await?.exit_code, 137);
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn the_first_answer_has_every_pod_with_its_address(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut wanted = Vec::new();
    for number in 0..5 {
        let pod = node.pod(&format!("web-{number}")).run().await?;
        let main = pod.container("main").idle().run().await?;
        wanted.push((pod.id.clone(), pod.ip().await?, main.id));
    }
    node.kill().await?;
    node.spawn()?;
    // Not "eventually all": the very first call that is answered has all of them.
    let first = async || Ok(node.client().pods().await.map_err(|status| status.code()));
    let Ok(pods) = eventually("the first answer", first, Result::is_ok).await? else {
        anyhow::bail!("no answer")
    };
    assert_eq!(pods.len(), wanted.len());
    for (pod, ip, container) in &wanted {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: false };
        let status = node.client().pod_sandbox_status(request).await?.status.context("no status")?;
        assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
        assert_eq!(&status.network.unwrap_or_default().ip, ip);
        let request = cri::ContainerStatusRequest { container_id: container.clone(), verbose: false };
        let status = node.client().container_status(request).await?.status.context("no status")?;
        assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    }
    Ok(())
}

async fn exit_codes_of_the_meantime_are_right(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    // Each waits for a caller: without a daemon there is no other way to reach it.
    let waits = |name: &str, port: u16, then: &str| {
        pod.container(name).sh(&format!("echo waiting; nc -l -p {port}; echo done; {then}"))
    };
    let seven = waits("seven", 7007, "exit 7").run().await?;
    let zero = waits("zero", 7000, "exit 0").run().await?;
    // No init of a pid namespace, so it may kill itself.
    let killed = waits("killed", 7009, "kill -KILL $$").run().await?;
    let runs = pod.container("runs").idle().run().await?;
    for one in [&seven, &zero, &killed] {
        one.logged("waiting").await?;
    }
    let address = pod.ip().await?;
    node.kill().await?;
    let before = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
    for port in [7007, 7000, 7009] {
        let call = async || Ok(tokio::net::TcpStream::connect((address.as_str(), port)).await.is_ok());
        eventually("the container to be called", call, |called| *called).await?;
    }
    for one in [&seven, &zero, &killed] {
        one.logged("done").await?;
    }
    let after = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() + 2_000_000_000;
    tokio::time::sleep(Duration::from_secs(2)).await;
    node.start().await?;
    for (container, code, reason) in [(&seven, 7, "Error"), (&zero, 0, "Completed"), (&killed, 137, "Error")]
    {
        let status = container.status().await?;
        assert_eq!(status.state(), cri::ContainerState::ContainerExited, "{status:#?}");
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
        let finished = u128::try_from(status.finished_at)?;
        assert!((before..after).contains(&finished), "it ended at {finished}, not when the daemon was back");
    }
    assert_eq!(runs.state().await?, cri::ContainerState::ContainerRunning);
    Ok(())
}

async fn a_created_container_starts_after_a_crash(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("echo started; exit 4").create().await?;
    node.crash().await?;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerCreated);
    main.start().await?;
    assert_eq!(main.exited().await?.exit_code, 4);
    assert_eq!(text(&main.log()?, "stdout"), "started\n");
    Ok(())
}

async fn stopped_pods_stay_stopped_and_removed_ones_removed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let stopped = node.pod("stopped").run().await?;
    let main = stopped.container("main").idle().run().await?;
    let removed = node.pod("removed").run().await?;
    let exited = node.pod("exited").run().await?;
    let job = exited.container("job").sh("exit 3").run().await?;
    let before = job.exited().await?;
    stopped.stop().await?;
    removed.stop().await?;
    removed.remove().await?;
    for _ in 0..2 {
        node.crash().await?;
        assert!(!stopped.is_ready().await?);
        assert_eq!(main.state().await?, cri::ContainerState::ContainerExited);
        removed.status().await.refused("the status of a removed pod")?;
        assert!(exited.is_ready().await?);
        assert_eq!(job.status().await?, before);
    }
    Ok(())
}

async fn a_daemon_that_ends_politely_leaves_pods_running(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh(COUNTER).run().await?;
    main.logged("3").await?;
    let start = Instant::now();
    let status = node.stop().await?;
    assert!(status.success(), "{status}");
    assert!(start.elapsed() < Duration::from_secs(10));
    grows(&main).await?;
    node.start().await?;
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    Ok(())
}

async fn an_exec_that_the_daemon_did_not_survive_ends_with_its_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    let other = pod.container("other").idle().run().await?;
    let exec = main.exec(["sh", "-c", "setsid sleep 5100 & sleep 5101"]);
    let crash = async {
        let running = async || Ok(other.commands().await?.iter().any(|one| one == "sleep 5101"));
        eventually("the exec to run", running, |found| *found).await?;
        node.crash().await
    };
    let (exec, crash) = tokio::join!(exec, crash);
    crash?;
    exec.refused("an exec whose daemon died")?;
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    main.stop(Duration::from_secs(5)).await?;
    main.remove().await?;
    let left =
        async || Ok(other.commands().await?.into_iter().filter(|one| one.starts_with("sleep 510")).count());
    eventually("the end of what the exec left", left, |count| *count == 0).await?;
    Ok(())
}

async fn an_image_pulled_before_a_crash_runs_after_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    node.crash().await?;
    let pod = node.pod("web").run().await?;
    assert_eq!(pod.container("main").idle().run().await?.sh("cat /opt/hidden/above").await?, "seen\n");
    Ok(())
}

async fn a_dead_agent_makes_the_pod_not_ready(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let other = node.pod("other").run().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let pid = main.pid().await?;
    let agent = pod.agent().await?;
    process::signal(agent.pid, Signal::SIGKILL)?;
    let ready = async || Ok(pod.is_ready().await?);
    eventually("the pod not to be ready", ready, |ready| !ready).await?;
    // Its containers are killed: nobody would hold their logs or reap them.
    if !pod.is_guest() {
        let alive = async || Ok(process::is_alive(pid));
        eventually("the container's end", alive, |alive| !alive).await?;
    }
    let status = main.exited().await?;
    assert_ne!(status.exit_code, 0);
    let told = !status.reason.is_empty() || !status.message.is_empty();
    assert!(told, "a reason: {status:#?}");
    main.exec(["true"]).await.refused("an exec in a pod without an agent")?;
    pod.container("new").idle().create().await.refused("a container in a pod without an agent")?;
    assert!(other.is_ready().await?);
    main.remove().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn an_agent_that_died_with_the_daemon_is_noticed(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    let agent = pod.agent().await?;
    node.kill().await?;
    process::signal(agent.pid, Signal::SIGKILL)?;
    node.start().await?;
    let ready = async || Ok(pod.is_ready().await?);
    eventually("the pod not to be ready", ready, |ready| !ready).await?;
    main.exited().await?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

async fn a_stopped_agent_does_not_stop_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let stuck = node.pod("stuck").run().await?;
    let main = stuck.container("main").idle().run().await?;
    let agent = stuck.agent().await?;
    process::signal(agent.pid, Signal::SIGSTOP)?;
    let start = Instant::now();
    let other = node.pod("other").run().await?;
    let second = other.container("main").idle().run().await?;
    assert_eq!(second.exec(["echo", "hi"]).await?.stdout, "hi\n");
    assert_eq!(node.client().pods().await?.len(), 2);
    main.status().await?;
    assert!(start.elapsed() < patient(Duration::from_secs(10)));
    // Stop never depends on a living helper.
    stuck.stop().await?;
    stuck.remove().await?;
    Ok(())
}

async fn a_silent_agent_holds_nothing_back_and_its_pod_is_ready_when_it_answers(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let go = lab.dir().join("go");
    fs::create_dir(&go)?;
    let silent = node.pod("silent").run().await?;
    let main = silent.container("main").idle().run().await?;
    let job = silent.container("job").sh("while [ ! -e /go/now ]; do usleep 20000; done; exit 7");
    let job = job.mount(&go, "/go").run().await?;
    let other = node.pod("other").run().await?;
    let second = other.container("main").idle().run().await?;
    let agent = silent.agent().await?;
    node.kill().await?;
    process::signal(agent.pid, Signal::SIGSTOP)?;
    fs::write(go.join("now"), "")?;
    let start = Instant::now();
    node.start().await?;
    assert!(other.is_ready().await?);
    assert_eq!(second.exec(["echo", "hi"]).await?.stdout, "hi\n");
    assert_eq!(node.client().pods().await?.len(), 2);
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    assert!(start.elapsed() < Duration::from_secs(5), "a silent agent held back the others");
    let ready = async || Ok(silent.is_ready().await?);
    within(Duration::from_secs(30), "the pod not to be ready", ready, |ready| !ready).await?;
    let refused = silent.container("new").idle().create().await.refused("a container of a silent agent")?;
    assert!(refused.message().contains("does not answer"), "{refused:?}");
    process::signal(agent.pid, Signal::SIGCONT)?;
    within(Duration::from_secs(30), "the pod to be ready again", ready, |ready| *ready).await?;
    assert_eq!(job.exited().await?.exit_code, 7);
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    silent.container("new").idle().run().await?;
    Ok(())
}

async fn what_a_killed_daemon_had_thrown_away_goes_at_the_next_start(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("mkdir -p /a/b; echo x >/a/b/c; sleep 1000").run().await?;
    let layer = node.root().join("containers").join(&main.id);
    assert!(layer.is_dir());
    main.remove().await?;
    assert!(!layer.exists(), "removed, and its layer is in its place");
    node.kill().await?;
    for name in ["0", "1", "x"] {
        fs::create_dir_all(node.trash().join(name).join("upper/a/b"))?;
    }
    node.start().await?;
    node.trash_is_empty().await?;
    pod.container("main").idle().run().await?;
    Ok(())
}

async fn a_damaged_record_is_set_aside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let whole = node.pod("whole").run().await?;
    let main = whole.container("main").idle().run().await?;
    let damaged = node.pod("damaged").run().await?;
    damaged.container("main").idle().run().await?;
    node.kill().await?;
    let records = records_of(&node.root().join("pods"), &damaged.id);
    assert!(!records.is_empty(), "no record of the pod below {}", node.root().display());
    for record in &records {
        fs::write(record, "{ \"half a rec")?;
    }
    node.start().await?;
    assert!(whole.is_ready().await?);
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    assert!(node.log_tail(100).to_lowercase().contains("warn"), "a warning: {}", node.log_tail(100));
    // It cannot be named any more, so the sweep must have ended what was left of it; the lab looks.
    let listed = node.client().pods().await?;
    if listed.iter().any(|pod| pod.id == damaged.id) {
        damaged.stop().await?;
        damaged.remove().await?;
    } else if let Some(cgroup) = &damaged.cgroup {
        let empty = async || Ok(cgroup.remove().is_ok());
        eventually("the leaves of the damaged pod to go", empty, |done| *done).await?;
    }
    Ok(())
}

/// Record files of one pod: JSON below the root whose path names the pod.
fn records_of(root: &Path, id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![root.to_owned()];
    while let Some(dir) = queue.pop() {
        for path in fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !["layers", "upper", "work", "images"].contains(&name.as_str()) {
                queue.push(path);
            } else if path.is_file() && path.display().to_string().contains(id) && name.ends_with(".json") {
                found.push(path);
            }
        }
    }
    found
}

/// What a restart of the machine does: all processes, namespaces, firewall rules and /run are gone, what is on disk is not. The daemon is
/// started by the caller.
pub(crate) async fn lose_power(node: &Node, pod: &Pod) -> Result<()> {
    let agent = pod.agent().await?;
    node.kill().await?;
    for one in process::all()? {
        let mine =
            one.pid == 1 || one.pid == i32::try_from(std::process::id())? || one.name == "docker-registry";
        if !mine && one.state != 'Z' {
            let _ = process::signal(one.pid, Signal::SIGKILL);
        }
    }
    let netns = format!("/run/netns/hartpod-{}", pod.id);
    let gone = async || {
        Ok(process::all()?.into_iter().filter(|one| one.pid == agent.pid && one.state != 'Z').count())
    };
    eventually("all processes to be gone", gone, |count| *count == 0).await?;
    for command in [
        format!("umount {netns}"),
        format!("rm -f {netns}"),
        "ip link delete hp0".into(),
        "iptables -t nat -F".into(),
        "iptables -t nat -X".into(),
    ] {
        Command::new("sh").arg("-c").arg(&command).output().await.with_context(|| command.clone())?;
    }
    fs::remove_dir_all(node.state())?;
    fs::create_dir_all(node.state())?;
    match &pod.cgroup {
        Some(cgroup) => hartpod_tests::cgroup::remove_tree(cgroup.path()),
        None => Ok(()),
    }
}

async fn a_restarted_machine_can_be_cleaned_up(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").port(18081, 80).run().await?;
    let main = pod.container("main").idle().run().await?;
    let address = pod.ip().await?;
    lose_power(&node, &pod).await?;

    node.start().await?;
    assert!(!pod.is_ready().await?);
    assert_eq!(main.state().await?, cri::ContainerState::ContainerExited);
    assert_eq!(node.cni().reserved()?, [address], "not cleaned up yet: the kubelet stops the pod first");
    pod.stop().await?;
    assert!(node.cni().reserved()?.is_empty());
    pod.remove().await?;
    let again = node.pod("web").run().await?;
    assert_eq!(again.container("main").idle().run().await?.exec(["echo", "hi"]).await?.stdout, "hi\n");
    Ok(())
}

/// Things of another runtime that look much like ours.
struct Foreign {
    netns: Vec<String>,
    files: Vec<PathBuf>,
    cgroup: String,
    process: tokio::process::Child,
}

impl Foreign {
    async fn make(lab: &Lab, node: &Node) -> Result<Self> {
        let id = "f0e1d2c3".repeat(8);
        let netns = vec![
            format!("cni-{id}"),
            "hartpod".to_owned(),
            format!("nothartpod-{id}"),
            "hartpods-own".to_owned(),
        ];
        for name in &netns {
            let made = Command::new("ip").args(["netns", "add", name]).status().await?;
            ensure!(made.success(), "ip netns add {name}");
        }
        // Another runtime's CNI cache and reservation in the same network.
        let cache = PathBuf::from("/run/foreign-cni/results").join(format!("pods-{id}-eth0"));
        let reservation = node.cni().reservations.join("pods/10.244.7.200");
        let files = vec![cache, reservation];
        for file in &files {
            fs::create_dir_all(file.parent().context("parent")?)?;
            fs::write(file, format!("{id}\r\neth0"))?;
        }
        // A process with our agent's name, in a leaf with a name like ours.
        let program = lab.dir().join("hartpod-pod");
        fs::copy("/bin/sleep", &program)?;
        let process = Command::new(&program).arg("5200").kill_on_drop(true).spawn()?;
        let parent = format!("{}/kubepods", node.cgroup_root());
        PodCgroup::create(&parent)?.put(&id, process.id().context("pid")?)?;
        let cgroup = format!("{parent}/{id}");
        Ok(Self { netns, files, cgroup, process })
    }

    fn must_be_whole(&mut self) -> Result<()> {
        for name in &self.netns {
            ensure!(Path::new("/run/netns").join(name).exists(), "the namespace {name} was removed");
        }
        for file in &self.files {
            ensure!(file.exists(), "{} was removed", file.display());
        }
        ensure!(self.process.try_wait()?.is_none(), "the foreign process was killed");
        let below = self.cgroup.trim_start_matches('/');
        let left = hartpod_tests::cgroup::find(|path| path == below)?;
        ensure!(
            left.len() == hartpod_tests::cgroup::hierarchies()?.len(),
            "foreign cgroups were removed: {left:?}"
        );
        Ok(())
    }

    async fn remove(mut self) -> Result<()> {
        self.process.kill().await?;
        for name in &self.netns {
            Command::new("ip").args(["netns", "delete", name]).status().await?;
        }
        // `ip netns` makes the folder a mount of its own.
        nix::mount::umount("/run/netns").context("umount /run/netns")?;
        for file in &self.files {
            fs::remove_file(file)?;
        }
        fs::remove_dir_all("/run/foreign-cni")?;
        hartpod_tests::cgroup::remove_tree(self.cgroup.trim_end_matches(|c| c != '/').trim_end_matches('/'))
    }
}

async fn others_pods_survive_the_sweep(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let mut foreign = Foreign::make(lab, &node).await?;
    let pod = node.pod("web").run().await?;
    pod.container("main").idle().run().await?;
    node.crash().await?;
    foreign.must_be_whole()?;
    pod.stop().await?;
    pod.remove().await?;
    node.crash().await?;
    foreign.must_be_whole()?;
    foreign.remove().await
}

async fn two_daemons_on_one_node_leave_each_other_alone(lab: &Lab) -> Result<()> {
    // `hartpod demo` on a node where hartpod serves, say.
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let other = lab.node().await?;
    other.pod("other").host_network().run().await?;
    other.crash().await?;
    assert!(
        Path::new(&format!("/run/netns/hartpod-{}", pod.id)).exists(),
        "the other's sweep took the pod's network"
    );
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    node.crash().await?;
    assert!(pod.is_ready().await?);
    assert_eq!(other.client().pods().await?.len(), 1);
    Ok(())
}
