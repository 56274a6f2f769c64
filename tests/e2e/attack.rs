//! A container that may trace everything in its pod attacks whatever shows there.
//!
//! With a shared pid namespace and SYS_PTRACE it may own its neighbours: Kubernetes says so. It must not get further: not to the
//! node's files, not to the agent's memory and not to its open files, whatever the agent makes inside while it watches.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::cri::NamespaceMode;
use hartpod_tests::eventually::patient;
use hartpod_tests::{Container, Lab, Need, Pod, cri, image, layer, node, process, tests};

tests![
    a_tracer_in_a_shared_pid_namespace_gets_no_further needs Need::Attacker,
    a_tracer_does_not_reach_an_exec_into_itself needs Need::Attacker,
    a_tracer_in_a_target_namespace_gets_no_further needs Need::Attacker,
    the_attacker_finds_what_is_there_to_find needs Need::Attacker,
    a_container_without_rights_sees_nothing_of_the_agent,
];

/// How long the attacker looks; the tests exec and create containers meanwhile.
const ATTACK: Duration = Duration::from_secs(6);

/// The attacker's image: busybox and the attacker, which needs no library.
pub(crate) async fn attacker_image(lab: &Lab) -> Result<String> {
    let program = node::bin_dir().join("hartpod-attacker");
    let program = std::fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let extra =
        layer::LayerBuilder::new().file("bin/attacker", 0o755, &program)?.build(layer::Packing::Gzip)?;
    lab.push("attacker", "1", &image::busybox()?.layer(extra).build()?).await
}

/// The path of a file on the node. The attacker is given it backwards, so that no memory but its own holds it as it is:
/// wherever else it turns up, the agent's memory has leaked.
fn bait(lab: &Lab) -> Result<(String, String)> {
    let path = lab.dir().join("secret-of-the-node").display().to_string();
    std::fs::write(&path, "bait")?;
    let backwards = lab.dir().display().to_string().chars().rev().collect();
    Ok((path, backwards))
}

async fn attacker(
    lab: &Lab,
    pod: &Pod,
    reference: &str,
    options: Option<cri::NamespaceOption>,
) -> Result<Container> {
    let (_, backwards) = bait(lab)?;
    let seconds = patient(ATTACK).as_secs().to_string();
    let builder = pod.container("attacker").image(reference).command(["attacker", &seconds, &backwards]);
    let builder = builder.with_security(|security| {
        // What holds has to hold where there is no AppArmor, whose profile denies tracing.
        let profile_type = cri::security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(cri::SecurityProfile { profile_type, localhost_ref: String::new() });
        security.capabilities =
            Some(cri::Capability { add_capabilities: vec!["SYS_PTRACE".into()], ..Default::default() });
        if options.is_some() {
            security.namespace_options = options;
        }
    });
    Ok(builder.run().await?)
}

/// Reads the attacker's report: it must have seen much and reached nothing.
async fn judge(attacker: &Container, agent: &process::Process) -> Result<()> {
    let status = attacker.exited().await?;
    let said = hartpod_tests::log_file::text(&attacker.log()?, "stdout");
    let errors = hartpod_tests::log_file::text(&attacker.log()?, "stderr");
    println!("{said}");
    ensure!(status.exit_code == 0, "the attacker ended with {}: {said}{errors}", status.exit_code);
    let reached: Vec<&str> = said.lines().filter(|line| line.starts_with("reached: ")).collect();
    ensure!(reached.is_empty(), "the attacker got out:\n{}", reached.join("\n"));
    let number = |word: &str| -> Result<u64> {
        let line = said
            .lines()
            .find_map(|line| line.strip_prefix(word))
            .with_context(|| format!("no {word:?} in {said}"))?;
        line.trim().parse().context("a count")
    };
    ensure!(number("traced:")? > 3, "the attack hit nothing: {said}");
    ensure!(process::is_alive(agent.pid), "the agent did not survive");
    // Nothing that showed inside was in the agent's or the node's mount namespace.
    let forbidden = [
        process::namespace(agent.pid, "mnt")?,
        process::namespace(i32::try_from(std::process::id())?, "mnt")?,
    ];
    for line in said.lines().filter_map(|line| line.strip_prefix("mount namespace: ")) {
        ensure!(!forbidden.contains(&line.trim().to_owned()), "a process of {line} showed inside");
    }
    Ok(())
}

/// Execs into `container` and makes containers in its pod until the attack is over.
async fn be_busy(container: &Container, reference: &str) -> Result<u32> {
    let end = tokio::time::Instant::now() + patient(ATTACK);
    let mut execs = 0;
    while tokio::time::Instant::now() < end {
        // A tracer may hold up or kill what it traces, but never for longer than the timeout.
        let limit = patient(Duration::from_secs(5));
        let runs = (0..4)
            .map(|_| container.exec_within(limit, ["sh", "-c", "cat /proc/self/stat >/dev/null; echo hi"]));
        let answers = futures_util::future::join_all(runs).await;
        execs +=
            u32::try_from(answers.into_iter().flatten().filter(|output| output.stdout == "hi\n").count())?;
        let name = format!("extra-{execs}");
        if let Ok(extra) = container.pod().container(&name).image(reference).sh("exit 0").run().await {
            extra.remove().await?;
        }
    }
    Ok(execs)
}

async fn a_tracer_in_a_shared_pid_namespace_gets_no_further(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let reference = attacker_image(lab).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("shared").pid(NamespaceMode::Pod).run().await?;
    let victim = pod.container("victim").idle().run().await?;
    let agent = pod.agent().await?;
    let attacker = attacker(lab, &pod, &reference, None).await?;
    let execs = be_busy(&victim, &reference).await?;
    judge(&attacker, &agent).await?;
    ensure!(execs > 3, "only {execs} execs came through");
    Ok(())
}

async fn a_tracer_does_not_reach_an_exec_into_itself(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let reference = attacker_image(lab).await?;
    node.client().pull(&reference).await?;
    // The container's own pid namespace: the exec must join it.
    let pod = node.pod("own").run().await?;
    let attacker = attacker(lab, &pod, &reference, None).await?;
    let agent = pod.agent().await?;
    let execs = be_busy(&attacker, &reference).await?;
    judge(&attacker, &agent).await?;
    ensure!(execs > 3, "only {execs} execs came through");
    Ok(())
}

async fn a_tracer_in_a_target_namespace_gets_no_further(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let reference = attacker_image(lab).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("target").run().await?;
    let victim = pod.container("victim").idle().run().await?;
    let agent = pod.agent().await?;
    let options = cri::NamespaceOption {
        pid: NamespaceMode::Target.into(),
        target_id: victim.id.clone(),
        ..Default::default()
    };
    let attacker = attacker(lab, &pod, &reference, Some(options)).await?;
    be_busy(&victim, &reference).await?;
    judge(&attacker, &agent).await
}

/// Would it tell? In the node's pid namespace the agent does show, and CRI asked for that.
async fn the_attacker_finds_what_is_there_to_find(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let reference = attacker_image(lab).await?;
    node.client().pull(&reference).await?;
    let pod = node.pod("host").pid(NamespaceMode::Node).run().await?;
    let attacker = attacker(lab, &pod, &reference, None).await?;
    let agent = pod.agent().await?.pid;
    attacker.exited().await?;
    let said = hartpod_tests::log_file::text(&attacker.log()?, "stdout");
    let reached = |what: &str| said.lines().any(|line| line.starts_with("reached: ") && line.contains(what));
    ensure!(reached(&format!("the node's path in the memory of {agent} ")), "not the agent's memory: {said}");
    ensure!(reached("the node's files through root of "), "not the node's files: {said}");
    ensure!(reached(&format!(" of {agent} (")), "not the agent: {said}");
    Ok(())
}

async fn a_container_without_rights_sees_nothing_of_the_agent(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("shared").pid(NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    // The holder is pid 1: it may be seen, and that is all.
    for file in ["environ", "mem", "maps"] {
        let output = main.exec(["sh", "-c", &format!("cat /proc/1/{file} | head -c 100 | wc -c")]).await?;
        assert_eq!(output.stdout.trim(), "0", "/proc/1/{file}: {output:?}");
    }
    let output = main.exec(["sh", "-c", "ls /proc/1/root/ /proc/1/cwd/ /proc/1/fd/"]).await?;
    assert_eq!(output.stdout.split_whitespace().filter(|word| !word.ends_with(':')).count(), 0, "{output:?}");
    let lines = main.sh("grep -E '^(CapEff|CapPrm|Seccomp):' /proc/1/status | cut -f2").await?;
    assert_eq!(lines, "0000000000000000\n0000000000000000\n2\n");
    Ok(())
}
