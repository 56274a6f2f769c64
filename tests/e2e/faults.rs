//! What befalls guests: the sandbox turns not ready with a reason that names it, Stop and Remove are quick, nothing is left, and other pods go on.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hartpod_tests::cgroup::PodCgroup;
use hartpod_tests::eventually::{eventually, patient, within};
use hartpod_tests::{Container, ContainerBuilder, Lab, Need, Node, Pod, Refused, cri, guest, image, process};
use hartpod_tests::{tests, tools, world};
use nix::sys::signal::Signal;

use crate::attack;

tests![
    a_killed_vmm_is_told needs Need::Kvm,
    a_vmm_that_dies_without_the_daemon_is_told needs Need::Kvm,
    a_killed_vmm_of_an_earlier_daemon_is_told needs Need::Kvm,
    a_panic_of_the_guests_kernel_is_told needs Need::Kvm,
    an_agent_that_is_destroyed_inside_is_told needs Need::Kvm,
    a_guest_that_powers_off_is_told needs Need::Kvm,
    a_stopped_vmm_is_told needs Need::Kvm,
    a_guest_that_spins_is_told needs Need::Kvm,
    a_missing_image_is_told needs Need::Kvm,
    a_truncated_image_is_told needs Need::Kvm,
    a_corrupt_kernel_is_told needs Need::Kvm,
    a_pod_without_memory_for_a_guest_is_told needs Need::Kvm,
    a_node_without_kvm_tells needs Need::Kvm,
    garbage_on_a_guests_sockets_harms_nobody needs Need::Kvm,
    who_poses_as_the_agent_harms_its_own_guest_alone needs Need::Kvm,
    a_daemon_killed_at_each_step_of_a_guests_start_leaves_nothing needs Need::Kvm,
];

/// For StopPodSandbox and RemovePodSandbox of a guest that is beyond help, together.
const STOP: Duration = Duration::from_secs(5);

/// A guest that is to suffer, and a pod beside it that must not.
struct Ward {
    node: Node,
    pod: Pod,
    main: Container,
    bystander: Container,
}

fn privileged(builder: ContainerBuilder) -> ContainerBuilder {
    builder.with_security(|security| {
        security.privileged = true;
        security.masked_paths.clear();
        security.readonly_paths.clear();
    })
}

impl Ward {
    /// The containers may do in their guest what they like.
    async fn open(lab: &Lab, image: Option<&str>) -> Result<Self> {
        let node = lab.node().await?;
        let image = image.unwrap_or(node.image()).to_owned();
        if image != node.image() {
            node.client().pull(&image).await?;
        }
        let bystander = node.pod("bystander").handler("").run().await?;
        let bystander = bystander.container("main").idle().run().await?;
        let pod = node.pod("web").in_guest().with(|config| {
            config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
        });
        let pod = pod.run().await?;
        let main = privileged(pod.container("main").image(&image).idle()).run().await?;
        Ok(Self { node, pod, main, bystander })
    }

    /// Runs something that does not live to tell.
    async fn sabotage(&self, script: &str) {
        let _ = self.main.exec_within(Duration::from_secs(2), ["sh", "-c", script]).await;
    }

    /// The pod is not ready, for a reason with one of these words; it goes in time and the other pod works.
    async fn must_end(self, words: &[&str]) -> Result<()> {
        let info = async || self.pod.info().await;
        let ready = async || Ok(self.pod.is_ready().await?);
        within(Duration::from_secs(40), "the pod not to be ready", ready, |ready| !ready).await?;
        let reason = info().await?["reason"].as_str().unwrap_or_default().to_lowercase();
        println!("reason: {reason}");
        ensure!(words.iter().any(|word| reason.contains(word)), "none of {words:?} in the reason: {reason}");
        self.must_go().await
    }

    async fn must_go(self) -> Result<()> {
        let listed = self.node.client().containers().await?;
        ensure!(listed.iter().any(|one| one.id == self.main.id), "the container is forgotten");
        let start = Instant::now();
        self.pod.stop().await?;
        self.pod.remove().await?;
        let (took, limit) = (start.elapsed(), patient(STOP));
        println!("stop and remove took {took:?}");
        ensure!(took < limit, "stop and remove took {took:?}");
        assert_eq!(self.bystander.exec(["echo", "hi"]).await?.stdout, "hi\n");
        ensure!(self.bystander.pod().is_ready().await?, "the other pod suffers too");
        Ok(())
    }
}

async fn a_killed_vmm_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    process::signal(ward.pod.agent().await?.pid, Signal::SIGKILL)?;
    let ended = ward.main.exited().await?;
    ensure!(ended.exit_code != 0 && !ended.reason.is_empty(), "{ended:?}");
    ward.must_end(&["killed", "signal 9"]).await
}

async fn a_vmm_that_dies_without_the_daemon_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    let vmm = ward.pod.agent().await?.pid;
    ward.node.stop().await?;
    process::signal(vmm, Signal::SIGKILL)?;
    eventually("the end of the VMM", async || Ok(process::is_alive(vmm)), |alive| !alive).await?;
    ward.node.start().await?;
    let ended = ward.main.exited().await?;
    ensure!(ended.exit_code != 0 && !ended.reason.is_empty(), "{ended:?}");
    ward.must_end(&["killed"]).await
}

/// The daemon that sees it end is not its parent.
async fn a_killed_vmm_of_an_earlier_daemon_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    ward.node.crash().await?;
    ensure!(ward.pod.is_ready().await?, "{:?}", ward.pod.info().await?["reason"]);
    process::signal(ward.pod.agent().await?.pid, Signal::SIGKILL)?;
    ward.main.exited().await?;
    ward.must_end(&["killed"]).await
}

async fn a_panic_of_the_guests_kernel_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    ward.sabotage("echo c >/proc/sysrq-trigger").await;
    ward.must_end(&["panic"]).await
}

/// The agent is process 1 of a pid namespace that no container sees. But root in a guest is root of its kernel: a handler of core dumps runs
/// beside the agent, and may write to its memory.
async fn an_agent_that_is_destroyed_inside_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    // Static programs for riscv64 begin at 64 KiB.
    let handler = "|/proc/%P/root/bin/busybox dd if=/dev/zero of=/proc/1/mem bs=65536 seek=1 count=60";
    let script = format!("echo '{handler}' >/proc/sys/kernel/core_pattern; sh -c 'kill -SEGV $$'; sleep 1");
    ward.sabotage(&script).await;
    ward.must_end(&["panic"]).await
}

async fn a_guest_that_powers_off_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    ward.sabotage("echo o >/proc/sysrq-trigger").await;
    ward.must_end(&["powered off"]).await
}

async fn a_stopped_vmm_is_told(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    process::signal(ward.pod.agent().await?.pid, Signal::SIGSTOP)?;
    ward.must_end(&["does not answer"]).await
}

async fn a_guest_that_spins_is_told(lab: &Lab) -> Result<()> {
    let image = image::busybox()?.layer(tools::layer(&["/usr/bin/chrt"])?).build()?;
    let reference = lab.push("spin", "1", &image).await?;
    let ward = Ward::open(lab, Some(&reference)).await?;
    // A real-time loop on the only processor leaves none of it to the agent, once the kernel's two reserves for the others are gone: the
    // second is the fair server's, since Linux 6.12.
    let script = "echo -1 >/proc/sys/kernel/sched_rt_runtime_us; mount -t debugfs none /sys/kernel/debug; \
                  echo 0 >/sys/kernel/debug/sched/fair_server/cpu0/runtime; exec chrt -f 99 sh -c 'while :; do :; done'";
    ward.sabotage(script).await;
    ward.must_end(&["does not answer"]).await
}

/// A copy of the machine's guest image in a node's own root.
fn own_image(node: &Node) -> Result<PathBuf> {
    let (shared, own) = (guest::image_root()?.join("guest"), node.root().join("guest"));
    let copied = Command::new("cp").args(["-a", "--sparse=always"]).args([&shared, &own]).status()?;
    ensure!(copied.success(), "cp of {}: {copied}", shared.display());
    fs::canonicalize(own.join("current")).context("find the copy of the image")
}

/// RunPodSandbox says so with one of these words and leaves nothing; pods that are no guests run.
async fn must_not_start(lab: &Lab, node: &Node, words: &[&str]) -> Result<()> {
    let host = node.pod("host").handler("").run().await?;
    // No shell that starts something when nobody looks.
    let main = host.container("main").command(["sleep", "3600"]).run().await?;
    let before = lab.look(node)?;
    let status = node.pod("web").in_guest().run().await.refused("a guest that cannot start")?;
    println!("refusal: {}", status.message());
    let message = status.message().to_lowercase();
    ensure!(words.iter().any(|word| message.contains(word)), "none of {words:?} in {status:?}");
    ensure!(node.client().pods().await?.len() == 1, "the pod that failed is listed");
    let look = || Ok(lab.look(node)?.without("file"));
    world::must_return_to(&before.without("file"), look).await?;
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    Ok(())
}

async fn a_missing_image_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    fs::create_dir(node.root().join("guest"))?;
    must_not_start(lab, &node, &["hartpod guest build"]).await?;
    // Once it is there, without a restart.
    fs::remove_dir_all(node.root().join("guest"))?;
    node.pod("web").in_guest().run().await?.container("main").idle().run().await?;
    Ok(())
}

async fn a_truncated_image_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let dir = own_image(&node)?;
    for name in ["initramfs", "kernel"] {
        let (path, whole) = (dir.join(name), dir.join("whole"));
        fs::copy(&path, &whole)?;
        let file = fs::File::options().write(true).open(&path)?;
        file.set_len(file.metadata()?.len() / 2)?;
        must_not_start(lab, &node, &[name]).await?;
        fs::rename(&whole, &path)?;
        node.remove_all_pods().await?;
        for cgroup in PodCgroup::all_below(node.cgroup_root())? {
            cgroup.remove()?;
        }
    }
    Ok(())
}

async fn a_corrupt_kernel_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let dir = own_image(&node)?;
    fs::File::options().write(true).open(dir.join("kernel"))?.write_all_at(&[0x5a; 4096], 0)?;
    must_not_start(lab, &node, &["kernel"]).await
}

async fn a_pod_without_memory_for_a_guest_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web").in_guest();
    let parent = builder.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
    PodCgroup::create(&parent)?;
    let limit = Path::new("/sys/fs/cgroup").join(parent.trim_start_matches('/')).join("memory.max");
    fs::write(&limit, (24 << 20).to_string()).with_context(|| format!("write {}", limit.display()))?;
    let status = builder.run().await.refused("a guest without memory")?;
    println!("refusal: {}", status.message());
    let message = status.message().to_lowercase();
    ensure!(["memory", "killed"].iter().any(|word| message.contains(word)), "{status:?}");
    ensure!(node.client().pods().await?.is_empty(), "the pod that failed is listed");
    node.pod("other").in_guest().run().await?;
    Ok(())
}

/// Runs a script of the node's in the test's own mount namespace.
fn sh(script: &str) -> Result<()> {
    let output = Command::new("sh").args(["-euc", script]).output().context("run sh")?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn a_node_without_kvm_tells(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // Made before /dev changes: the image's tools want more of it.
    guest::image_root()?;
    let dev = lab.dir().join("dev").display().to_string();
    // The mount namespace is the test's own; the machine's /dev is not touched.
    sh(&format!(
        "mkdir {dev} && mount -t tmpfs tmpfs {dev} && cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty \
         /dev/fd /dev/stdin /dev/stdout /dev/stderr {dev} && mkdir {dev}/net {dev}/pts {dev}/shm {dev}/mqueue && \
         cp -a /dev/net/tun {dev}/net && mount --rbind /dev/pts {dev}/pts && mount --rbind {dev} /dev"
    ))?;
    // The daemon is of the same mount namespace.
    let told = must_not_start(lab, &node, &["/dev/kvm"]).await;
    let host = node.remove_all_pods().await;
    sh(&format!("umount -l /dev && umount -l {dev}"))?;
    told.and(host)?;
    node.pod("web").in_guest().run().await?.container("main").idle().run().await?;
    Ok(())
}

async fn garbage_on_a_guests_sockets_harms_nobody(lab: &Lab) -> Result<()> {
    let ward = Ward::open(lab, None).await?;
    let dir = PathBuf::from(ward.pod.info().await?["agentFolder"].as_str().context("no folder")?);
    let sockets: Vec<PathBuf> = fs::read_dir(&dir)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    ensure!(!sockets.is_empty(), "no socket in {}", dir.display());
    let garbage: Vec<Vec<u8>> = vec![
        b"\n".to_vec(),
        vec![0xff; 70_000],
        b"CONNECT 99999999999999999999\n".to_vec(),
        b"CONNECT 1024\nGET / HTTP/1.1\r\n\r\n".to_vec(),
        b"CONNECT 1025\nno such token\n".to_vec(),
        b"CONNECT 1025\n".to_vec(),
        b"CONNECT".to_vec(),
        Vec::new(),
    ];
    let mut held = Vec::new();
    for path in &sockets {
        for garbage in garbage.iter().cycle().take(40) {
            // One that is full refuses: as well.
            let Ok(mut stream) = UnixStream::connect(path) else { continue };
            stream.set_write_timeout(Some(Duration::from_secs(1)))?;
            let _ = stream.write_all(garbage);
            if held.len() < 8 {
                held.push(stream);
            }
        }
    }
    assert_eq!(ward.main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    ensure!(ward.pod.is_ready().await?, "{:?}", ward.pod.info().await?["reason"]);
    drop(held);
    ward.pod.container("new").idle().run().await?;
    ward.must_go().await
}

async fn who_poses_as_the_agent_harms_its_own_guest_alone(lab: &Lab) -> Result<()> {
    const ATTACK: Duration = Duration::from_secs(4);
    let reference = attack::attacker_image(lab).await?;
    let ward = Ward::open(lab, Some(&reference)).await?;
    let seconds = patient(ATTACK).as_secs().to_string();
    let builder = ward.pod.container("poser").image(&reference).command(["attacker", "pose", &seconds]);
    let poser = privileged(builder).create().await?;
    // It may be in the way of its own start's answer.
    let _ = poser.start().await;
    let end = Instant::now() + patient(ATTACK);
    while Instant::now() < end {
        // Whatever these come to: the daemon answers, for this guest in its time and for others at once.
        let _ = ward.main.exec_within(Duration::from_secs(1), ["true"]).await;
        let _ = ward.pod.container("new").sh("exit 0").run().await;
        assert_eq!(ward.bystander.exec(["echo", "hi"]).await?.stdout, "hi\n");
    }
    println!("{:?}, ready: {}", poser.log(), ward.pod.is_ready().await?);
    ward.must_go().await
}

async fn a_daemon_killed_at_each_step_of_a_guests_start_leaves_nothing(lab: &Lab) -> Result<()> {
    /// More than there are steps.
    const MOMENTS: u32 = 8;
    let node = lab.node().await?;
    let life = async |name: &str| {
        let pod = node.pod(name).in_guest().run().await?;
        let main = pod.container("main").idle().run().await?;
        ensure!(main.exec(["echo", "hi"]).await?.stdout == "hi\n");
        Ok::<_, anyhow::Error>(pod)
    };
    let first = life("first").await?;
    first.stop().await?;
    first.remove().await?;
    let start = Instant::now();
    let bystander = life("bystander").await?;
    let whole = start.elapsed();
    node.trash_is_empty().await?;
    let before = lab.look(&node)?.without("file");
    for moment in 0..MOMENTS {
        let after = whole * moment / MOMENTS;
        let step = format!("kill -9 {after:?} after the start, which takes {whole:?}");
        let kill = async {
            tokio::time::sleep(after).await;
            node.kill().await
        };
        let name = format!("pod-{moment}");
        let (_, killed) = tokio::join!(life(&name), kill);
        killed.with_context(|| step.clone())?;
        node.start().await.with_context(|| step.clone())?;
        for pod in node.client().pods().await?.into_iter().filter(|pod| pod.id != bystander.id) {
            let id = pod.id.clone();
            let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id };
            node.client().stop_pod_sandbox(stop).await.with_context(|| step.clone())?;
            let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id };
            node.client().remove_pod_sandbox(remove).await.with_context(|| step.clone())?;
        }
        let kept = bystander.cgroup.as_ref().map(PodCgroup::path).unwrap_or_default();
        for cgroup in PodCgroup::all_below(node.cgroup_root())? {
            if cgroup.path() != kept {
                cgroup.remove().with_context(|| step.clone())?;
            }
        }
        node.trash_is_empty().await?;
        let look = || Ok(lab.look(&node)?.without("file"));
        world::must_return_to(&before, look).await.with_context(|| step.clone())?;
        ensure!(bystander.is_ready().await?, "{step}: the other pod suffers");
    }
    Ok(())
}
