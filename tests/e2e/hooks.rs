//! OCI hooks, which containers get by CDI files: when and where they run, what they see, what their failures do.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hartpod_tests::container::ContainerBuilder;
use hartpod_tests::eventually::patient;
use hartpod_tests::skip::BUSYBOX;
use hartpod_tests::{Container, Lab, Need, Node, Pod, Refused, cri, eventually, process, tests, world};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

tests![
    every_hook_runs_at_its_moment_in_its_place needs Need::OfNode("hooks"),
    a_hook_changes_the_root_before_the_container_sees_it needs Need::OfNode("hooks"),
    hooks_of_containers_that_share_a_pid_namespace_run needs Need::OfNode("hooks"),
    a_container_whose_hook_fails_is_not_made needs Need::OfNode("hooks"),
    a_container_whose_hook_fails_is_not_started needs Need::OfNode("hooks"),
    a_hook_that_hangs_is_killed_with_all_that_it_started needs Need::OfNode("hooks"),
    hooks_after_the_start_and_the_end_may_fail needs Need::OfNode("hooks"),
    a_container_lives_while_hooks_run_beside_it needs Need::OfNode("hooks"),
    a_removal_ends_the_hooks_beside_a_container needs Need::OfNode("hooks"),
    hooks_after_the_end_have_a_mask_and_a_score_of_their_own needs Need::OfNode("hooks"),
    hooks_before_the_start_need_the_nodes_users needs Need::OfNode("user namespaces"),
    hooks_after_the_end_run_whoever_has_died needs Need::OfNode("hooks"),
    a_hook_whose_daemon_or_agent_dies_is_killed_and_undone needs Need::OfNode("hooks"),
];

/// A node with one CDI device, and where its hooks tell what they saw.
struct World {
    node: Node,
    told: PathBuf,
    specs: PathBuf,
}

impl World {
    async fn new(lab: &Lab) -> Result<Self> {
        let (specs, told) = (lab.dir().join("cdi"), lab.dir().join("told"));
        fs::create_dir(&specs)?;
        fs::create_dir(&told)?;
        let node = lab.node_with(&format!("[cdi]\nspec_dirs = [{specs:?}]\n")).await?;
        Ok(Self { node, told, specs })
    }

    /// Makes these the hooks of the device.
    fn write(&self, hooks: &[Value]) -> Result<()> {
        let devices = json!([{"name": "0", "containerEdits": {"hooks": hooks}}]);
        let spec = json!({"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "devices": devices});
        Ok(fs::write(self.specs.join("gpu.json"), spec.to_string())?)
    }

    /// A hook that notes that it ran, what it read, and where it is.
    fn noting(&self, moment: &str, mark: &str) -> Value {
        let script = r#"state=$(cat); dir=$1; name=$2; cd "$PWD"
            printf '%s' "$state" >"$dir/$name.state"
            { readlink /proc/self/ns/mnt; readlink /proc/self/ns/net; pwd; ls -A rootfs | sort | tr '\n' ' '; echo; } >"$dir/$name.place"
            cat /proc/self/cgroup >"$dir/$name.cgroup"
            echo "$name" >>"$dir/order""#;
        let args = json!(["sh", "-c", script, "sh", self.told, format!("{moment}{mark}")]);
        json!({"hookName": moment, "path": "/bin/sh", "args": args})
    }

    /// Names of the hooks that noted that they ran, in their order.
    fn order(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.told.join("order")).unwrap_or_default();
        Ok(text.lines().map(str::to_owned).collect())
    }

    fn state(&self, name: &str) -> Result<Value> {
        let text = fs::read(self.told.join(format!("{name}.state")))?;
        serde_json::from_slice(&text).context("a state that is no JSON")
    }

    /// Mount namespace, network namespace, folder, and what is in `rootfs` there.
    fn place(&self, name: &str) -> Result<[String; 4]> {
        let text = fs::read_to_string(self.told.join(format!("{name}.place")))?;
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.try_into().map_err(|lines| anyhow::anyhow!("{name} noted {lines:?}"))
    }
}

fn shell(moment: &str, script: &str) -> Value {
    json!({"hookName": moment, "path": "/bin/sh", "args": ["sh", "-c", script]})
}

fn main_of(pod: &Pod) -> ContainerBuilder {
    pod.container("main")
        .idle()
        .with(|config| config.cdi_devices = vec![cri::CdiDevice { name: "vendor.com/gpu=0".into() }])
}

async fn every_hook_runs_at_its_moment_in_its_place(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let pod = world.node.pod("web").run().await?;
    let before = lab.look(&world.node)?;
    let inside =
        shell("startContainer", "cat >/state; readlink /proc/self/ns/mnt >/ns; pwd >/pwd; id -u >/uid");
    // What looks for the root by way of the container's process, as hooks of old do.
    let by_pid = format!(
        r#"state=$(cat); pid=${{state#*\"pid\":}}; pid=${{pid%%[!0-9]*}}; ls /proc/$pid/root"$PWD"/rootfs >{}"#,
        world.told.join("by-pid").display()
    );
    world.write(&[
        world.noting("poststop", "1"),
        world.noting("poststart", ""),
        world.noting("createContainer", ""),
        world.noting("createRuntime", ""),
        shell("createRuntime", &by_pid),
        world.noting("prestart", ""),
        inside,
        world.noting("poststop", "2"),
    ])?;
    let main = main_of(&pod).create().await?;
    let made = ["prestart", "createRuntime", "createContainer"];
    assert_eq!(world.order()?, made);
    let pid = main.pid().await?;
    let bundle = world.node.root().join("pods").join(&pod.id).join(format!("{}.bundle", main.id));
    for name in made {
        let state = world.state(name)?;
        let told = [&state["status"], &state["id"], &state["bundle"], &state["pid"], &state["ociVersion"]];
        assert_eq!(told, [&json!("creating"), &json!(main.id), &json!(bundle), &json!(pid), &json!("1.2.0")]);
        assert_eq!(state["annotations"]["io.kubernetes.cri.container-name"], "main");
        let cgroup = fs::read_to_string(world.told.join(format!("{name}.cgroup")))?;
        assert!(!cgroup.contains(&format!("/{}\n", main.id)), "{name} was in the container's: {cgroup}");
    }
    let daemon = world.node.daemon_pid()?;
    let ours = [process::namespace(daemon, "mnt")?, process::namespace(daemon, "net")?];
    for name in ["prestart", "createRuntime"] {
        let [mounts, network, folder, root] = world.place(name)?;
        assert_eq!([mounts, network], ours);
        assert_eq!((Path::new(&folder), &*root), (bundle.as_path(), ""));
    }
    let [mounts, network, folder, root] = world.place("createContainer")?;
    assert_eq!([mounts, network], [process::namespace(pid, "mnt")?, process::namespace(pid, "net")?]);
    assert_eq!(Path::new(&folder), bundle);
    assert!(root.contains("bin ") && root.contains("proc "), "{root}");
    let by_pid = fs::read_to_string(world.told.join("by-pid"))?;
    assert!(by_pid.lines().any(|name| name == "bin"), "{by_pid}");
    // Hooks find the spec, and so do people.
    let config: Value = serde_json::from_slice(&fs::read(bundle.join("config.json"))?)?;
    assert_eq!(config["root"]["path"], "rootfs");
    let info: Value = serde_json::from_str(&main.verbose_status(true).await?.info["info"])?;
    assert_eq!(info["runtimeSpec"]["hooks"], config["hooks"]);
    assert_eq!(info["runtimeSpec"]["hooks"]["poststop"].as_array().map(Vec::len), Some(2));

    main.start().await?;
    assert_eq!(world.order()?.last().map(String::as_str), Some("poststart"));
    let state = world.state("poststart")?;
    assert_eq!((&state["status"], &state["pid"]), (&json!("running"), &json!(main.pid().await?)));
    assert_eq!(world.place("poststart")?[..2], ours);
    let inside: Value = serde_json::from_str(&main.sh("cat /state").await?)?;
    assert_eq!((&inside["status"], &inside["pid"]), (&json!("created"), &json!(pid)));
    let seen = main.sh("cat /ns /pwd /uid; readlink /proc/self/ns/mnt").await?;
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!((seen[0], seen[1], seen[2]), (seen[3], "/", "0"));

    main.stop(Duration::ZERO).await?;
    assert_eq!(world.order()?.len(), 4, "the container is still there");
    main.remove().await?;
    assert_eq!(world.order()?[4..], ["poststop1", "poststop2"]);
    let state = world.state("poststop1")?;
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &Value::Null));
    assert_eq!(world.place("poststop1")?[..2], ours);
    ensure!(!bundle.exists(), "{} is still there", bundle.display());
    for entry in fs::read_dir(&world.told)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_file(world.specs.join("gpu.json"))?;
    world.node.trash_is_empty().await?;
    world::must_return_to(&before, || lab.look(&world.node)).await
}

async fn a_hook_changes_the_root_before_the_container_sees_it(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let library = lab.dir().join("library");
    fs::create_dir(&library)?;
    fs::write(library.join("so"), "of the node\n")?;
    let script = format!(
        "mkdir rootfs/gpu && mount --bind {0} rootfs/gpu && echo hooked >rootfs/etc/hooked && mount -t tmpfs none {0}/../told",
        library.display()
    );
    world.write(&[shell("createContainer", &script)])?;
    let pod = world.node.pod("web").run().await?;
    let mounts = || fs::read_to_string("/proc/self/mountinfo");
    let before = mounts()?;
    let main = main_of(&pod).with_security(|security| security.readonly_rootfs = true).run().await?;
    assert_eq!(main.sh("cat /gpu/so /etc/hooked").await?, "of the node\nhooked\n");
    let table = main.sh("cat /proc/mounts").await?;
    assert_eq!(table.lines().filter(|line| line.contains(" /gpu ")).count(), 1, "{table}");
    assert!(!table.contains("told"), "a mount of the hook's elsewhere: {table}");
    let written = main.exec(["sh", "-c", "echo x >/etc/hooked"]).await?;
    assert!(written.stderr.contains("Read-only file system"), "{written:?}");
    assert_eq!(mounts()?, before, "the host's mounts");
    Ok(())
}

async fn hooks_of_containers_that_share_a_pid_namespace_run(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let inside = shell("startContainer", "echo $A >/a");
    let mut inside = inside;
    inside["env"] = json!(["A=inside"]);
    world.write(&[world.noting("createContainer", ""), inside, world.noting("poststart", "")])?;
    let pod = world.node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    let main = main_of(&pod).run().await?;
    assert_eq!(main.sh("cat /a").await?, "inside\n");
    assert_eq!(world.state("poststart")?["pid"], json!(main.pid().await?));
    let root = &world.place("createContainer")?[3];
    assert!(root.contains("bin "), "{root}");
    main.stop(Duration::ZERO).await?;
    Ok(main.remove().await?)
}

async fn a_container_whose_hook_fails_is_not_made(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let pod = world.node.pod("web").run().await?;
    let before = lab.look(&world.node)?;
    for moment in ["prestart", "createRuntime", "createContainer"] {
        let bad = shell(moment, "sleep 1000 & echo not today >&2; exit 7");
        world.write(&[bad, world.noting(moment, "-later"), world.noting("poststop", "")])?;
        let status = main_of(&pod).create().await.refused(moment)?;
        let expected = format!("{moment} hook /bin/sh: it ended with code 7: not today");
        assert!(status.message().ends_with(&expected), "{status:?}");
        assert_eq!(status.code(), Code::Internal);
        // What the hooks before it have begun is for those of the end to undo.
        assert_eq!(world.order()?, ["poststop"]);
        for entry in fs::read_dir(&world.told)? {
            fs::remove_file(entry?.path())?;
        }
        fs::remove_file(world.specs.join("gpu.json"))?;
        world.node.trash_is_empty().await?;
        world::must_return_to(&before, || lab.look(&world.node)).await?;
    }
    world.write(&[json!({"hookName": "createRuntime", "path": "/none/such"})])?;
    let status = main_of(&pod).create().await.refused("a hook that is missing")?;
    assert!(status.message().contains("createRuntime hook /none/such: exec \"/none/such\": "), "{status:?}");
    Ok(())
}

async fn a_container_whose_hook_fails_is_not_started(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let pod = world.node.pod("web").run().await?;
    world.write(&[shell("startContainer", "echo no >&2; exit 3"), world.noting("poststart", "")])?;
    let main = main_of(&pod).create().await?;
    let status = main.start().await.refused("a start whose hook fails")?;
    assert!(
        status.message().ends_with("startContainer hook /bin/sh: it ended with code 3: no"),
        "{status:?}"
    );
    let ended = main.exited().await?;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (128, "StartError"), "{ended:?}");
    assert!(ended.message.contains("startContainer hook"), "{ended:?}");
    assert!(world.order()?.is_empty());
    Ok(main.remove().await?)
}

async fn a_hook_that_hangs_is_killed_with_all_that_it_started(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let pod = world.node.pod("web").run().await?;
    let before = lab.look(&world.node)?;
    for moment in ["createRuntime", "createContainer"] {
        let mut hook = shell(moment, "echo waiting >&2; setsid sleep 1234 & sleep 1234");
        hook["timeout"] = json!(1);
        hook["env"] = json!(["PATH=/usr/bin:/bin"]);
        world.write(&[hook])?;
        let began = Instant::now();
        let status = main_of(&pod).create().await.refused("a hook that hangs")?;
        assert!(
            status.message().ends_with("it was killed: it did not end within 1 s: waiting"),
            "{status:?}"
        );
        assert!(began.elapsed() < patient(Duration::from_secs(10)), "{:?}", began.elapsed());
        fs::remove_file(world.specs.join("gpu.json"))?;
        world.node.trash_is_empty().await?;
        world::must_return_to(&before, || lab.look(&world.node)).await?;
    }
    Ok(())
}

async fn hooks_after_the_start_and_the_end_may_fail(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let pod = world.node.pod("web").run().await?;
    world.write(&[
        shell("poststart", "echo too late >&2; exit 5"),
        world.noting("poststart", ""),
        shell("poststop", "echo much too late >&2; exit 6"),
        json!({"hookName": "poststop", "path": "/none/such"}),
        json!({"hookName": "poststop", "path": world.told}),
        world.noting("poststop", ""),
    ])?;
    let main = main_of(&pod).run().await?;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    main.stop(Duration::ZERO).await?;
    main.remove().await?;
    assert_eq!(world.order()?, ["poststart", "poststop"]);
    let log = async || Ok(fs::read_to_string(world.node.log_file())?);
    for expected in [
        "it ended with code 5: too late",
        "it ended with code 6: much too late",
        "it ended with code 127: execute /none/such: No such file or directory",
        "it ended with code 126: execute /",
    ] {
        eventually("a warning of the hook", log, |log| log.contains(expected)).await?;
    }
    Ok(())
}

/// A hook that waits for the file `go`, having made `begun`.
fn waiting(world: &World, moment: &str) -> Value {
    let script = "touch $1/begun; while [ ! -e $1/go ]; do sleep 0.05; done; echo $2 >>$1/order";
    let args = json!(["sh", "-c", script, "sh", world.told, moment]);
    json!({"hookName": moment, "path": "/bin/sh", "args": args})
}

/// A start that goes on, of which a hook has made the file `begun`.
async fn start_until(main: &Container, begun: &Path) -> Result<JoinHandle<Result<(), Status>>> {
    let started = main.clone();
    let start = tokio::spawn(async move { started.start().await });
    eventually("the hook to begin", async || Ok(begun.exists()), |begun| *begun).await?;
    Ok(start)
}

async fn a_container_lives_while_hooks_run_beside_it(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    world.write(&[waiting(&world, "poststart")])?;
    let (begun, go) = (world.told.join("begun"), world.told.join("go"));
    let pod = world.node.pod("web").run().await?;
    let main = main_of(&pod).create().await?;
    let start = start_until(&main, &begun).await?;
    eventually(
        "the container to run",
        async || Ok(main.state().await?),
        |state| *state == cri::ContainerState::ContainerRunning,
    )
    .await?;
    assert_eq!(main.sh("echo here").await?, "here\n");
    ensure!(!start.is_finished(), "the start was answered before its hooks had run");
    // Its end is told, and the start still waits.
    process::signal(main.pid().await?, Signal::SIGKILL)?;
    assert_eq!(main.exited().await?.exit_code, 137);
    ensure!(!start.is_finished(), "the start was answered before its hooks had run");
    fs::write(go, "")?;
    start.await??;
    assert_eq!(world.order()?, ["poststart"]);
    Ok(())
}

async fn a_removal_ends_the_hooks_beside_a_container(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    world.write(&[waiting(&world, "poststart"), world.noting("poststop", "")])?;
    let begun = world.told.join("begun");
    let pod = world.node.pod("web").run().await?;
    let main = main_of(&pod).create().await?;
    let start = start_until(&main, &begun).await?;
    main.remove().await?;
    start.await?.refused("a start whose container was removed")?;
    let hooks = async || Ok(process::all()?.into_iter().filter(|one| one.command.contains("begun")).count());
    eventually("the hook to be killed", hooks, |count| *count == 0).await?;
    assert_eq!(world.order()?, ["poststop"]);
    Ok(())
}

async fn hooks_after_the_end_have_a_mask_and_a_score_of_their_own(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let out = world.told.join("own");
    let script = r#"read score </proc/self/oom_score_adj; echo "$0 $1 $(umask) $score $A ${HOME-none}" >$2"#;
    // Its libraries are for the hook, which needs none, and not for the daemon's program, which becomes the hook.
    let libraries = world.told.join("libraries");
    fs::create_dir(&libraries)?;
    fs::write(libraries.join("libc.so.6"), "none")?;
    world.write(&[json!({"hookName": "poststop", "path": BUSYBOX,
        "args": ["sh", "-c", script, "named", "--help", out],
        "env": ["A=b=c", format!("LD_LIBRARY_PATH={}", libraries.display())]})])?;
    // As a unit of systemd may give it to the daemon; it is raised, for lowering takes a right that not every place has.
    fs::write(format!("/proc/{}/oom_score_adj", world.node.daemon_pid()?), "7")?;
    let pod = world.node.pod("web").run().await?;
    let main = main_of(&pod).run().await?;
    main.stop(Duration::ZERO).await?;
    main.remove().await?;
    let told = fs::read_to_string(&out)?;
    assert_eq!(told.trim(), "named --help 0022 0 b=c none");
    Ok(())
}

async fn hooks_before_the_start_need_the_nodes_users(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let ids = vec![cri::IdMapping { host_id: 327_680, container_id: 0, length: 65536 }];
    let users = cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: ids.clone(), gids: ids };
    let pod = world.node.pod("web").with(|config| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().userns_options = Some(users);
    });
    let pod = pod.run().await?;
    for moment in ["prestart", "createRuntime", "createContainer"] {
        world.write(&[world.noting(moment, "")])?;
        let status = main_of(&pod).create().await.refused(moment)?;
        assert!(status.message().contains("user namespace"), "{moment}: {status:?}");
    }
    assert!(world.order()?.is_empty());
    world.write(&[world.noting("poststart", ""), world.noting("poststop", "")])?;
    let main = main_of(&pod).run().await?;
    main.stop(Duration::ZERO).await?;
    main.remove().await?;
    assert_eq!(world.order()?, ["poststart", "poststop"]);
    Ok(())
}

async fn hooks_after_the_end_run_whoever_has_died(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    world.write(&[world.noting("poststop", "")])?;
    // The daemon.
    let pod = world.node.pod("web").run().await?;
    let main = main_of(&pod).run().await?;
    world.node.kill().await?;
    world.node.start().await?;
    main.stop(Duration::ZERO).await?;
    main.remove().await?;
    assert_eq!(world.order()?, ["poststop"]);
    // The agent, and then the daemon; the pod goes with its container.
    let main = main_of(&pod).run().await?;
    process::signal(pod.agent().await?.pid, Signal::SIGKILL)?;
    eventually("the pod to be not ready", async || Ok(pod.is_ready().await?), |ready| !ready).await?;
    world.node.kill().await?;
    world.node.start().await?;
    pod.stop().await?;
    assert_eq!(world.order()?.len(), 1);
    pod.remove().await?;
    assert_eq!(world.order()?, ["poststop"; 2]);
    assert_eq!(world.state("poststop")?["id"], json!(main.id));
    Ok(())
}

async fn a_hook_whose_daemon_or_agent_dies_is_killed_and_undone(lab: &Lab) -> Result<()> {
    let world = World::new(lab).await?;
    let begun = world.told.join("begun");
    let wait = format!("touch {0}; while [ -e {0} ]; do sleep 0.1; done", begun.display());
    let has_begun = async || Ok(begun.exists());
    world.write(&[shell("createRuntime", &wait), world.noting("poststop", "")])?;
    let pod = world.node.pod("web").run().await?;
    let creation = tokio::spawn(main_of(&pod).create());
    eventually("the hook to begin", has_begun, |begun| *begun).await?;
    world.node.kill().await?;
    creation.await?.refused("a creation that its daemon did not survive")?;
    assert!(world.order()?.is_empty());
    // The next daemon undoes what nobody was told of.
    world.node.start().await?;
    let hooks = async || Ok(process::all()?.into_iter().filter(|one| one.command.contains("begun")).count());
    eventually("the hook to be killed", hooks, |count| *count == 0).await?;
    pod.stop().await?;
    pod.remove().await?;
    assert_eq!(world.order()?, ["poststop"]);

    fs::remove_file(&begun)?;
    let pod = world.node.pod("other").run().await?;
    let creation = tokio::spawn(main_of(&pod).create());
    eventually("the hook to begin", has_begun, |begun| *begun).await?;
    process::signal(pod.agent().await?.pid, Signal::SIGKILL)?;
    creation.await?.refused("a creation whose agent has died")?;
    eventually("the hook to be killed", hooks, |count| *count == 0).await?;
    assert_eq!(world.order()?, ["poststop"; 2]);
    pod.stop().await?;
    Ok(pod.remove().await?)
}
