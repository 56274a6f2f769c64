//! ExecSync: output, exit codes, timeouts.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use hartpod_tests::{Lab, Need, Refused, cri, eventually, process, tests};
use tonic::Code;

tests![
    output_and_exit_code_come_back,
    both_streams_are_kept_apart_and_whole,
    an_exec_has_the_containers_surroundings,
    a_timeout_kills_the_whole_tree,
    an_exec_whose_caller_hangs_up_ends,
    an_exec_that_leaves_a_daemon_behind_answers,
    output_is_capped_so_that_the_kubelet_takes_it,
    a_command_that_does_not_exist_is_an_error,
    a_command_that_is_not_executable_is_an_error,
    an_exec_needs_a_running_container,
    a_hundred_execs_leave_nothing needs Need::OfNode("processes"),
    execs_run_side_by_side,
];

async fn output_and_exit_code_come_back(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let output = main.exec(["sh", "-c", "echo out; echo err >&2; exit 42"]).await?;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.exit_code), ("out\n", "err\n", 42));
    let output = main.exec(["true"]).await?;
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.exit_code), ("", "", 0));
    assert_eq!(main.exec(["sh", "-c", "kill -9 $$"]).await?.exit_code, 137);
    Ok(())
}

async fn both_streams_are_kept_apart_and_whole(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // More than any pipe holds, on both streams, the last bytes just before the exit.
    let script = "i=0; while [ $i -lt 3000 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf end";
    let output = main.exec(["sh", "-c", script]).await?;
    let wanted = |word: &str| (0..3000).map(|i| format!("{word} {i}\n")).collect::<String>();
    assert_eq!(output.stdout, wanted("out") + "end");
    assert_eq!(output.stderr, wanted("err"));
    // Bytes are bytes.
    let answer = main.exec_raw(Duration::ZERO, &["printf", "\\377\\000\\001"]).await?;
    assert_eq!(answer.stdout, [0xff, 0, 1]);
    Ok(())
}

async fn an_exec_has_the_containers_surroundings(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main =
        pod.container("main").env("COLOUR", "green").idle().with(|config| config.working_dir = "/opt".into());
    let main = main
        .with_security(|security| security.run_as_user = Some(cri::Int64Value { value: 1000 }))
        .run()
        .await?;
    assert_eq!(main.sh("pwd; echo $COLOUR; id -u; id -g; hostname").await?, "/opt\ngreen\n1000\n1000\nweb\n");
    let init = main.sh("grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|Seccomp:|NoNewPrivs)' /proc/1/status").await?;
    let exec = main.sh("grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|Seccomp:|NoNewPrivs)' /proc/self/status").await?;
    assert_eq!(init, exec, "an exec has other rights than the container");
    let namespaces =
        |who: &str| format!("for n in mnt pid net ipc uts cgroup; do readlink /proc/{who}/ns/$n; done");
    let main = pod.container("root").idle().run().await?;
    assert_eq!(main.sh(&namespaces("1")).await?, main.sh(&namespaces("self")).await?);
    Ok(())
}

async fn a_timeout_kills_the_whole_tree(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let start = Instant::now();
    // A child in a session of its own, one with a closed output, one that ignores TERM.
    let script =
        "setsid sleep 41001 & sleep 41002 >/dev/null 2>&1 & (trap '' TERM; sleep 41003) & sleep 41004";
    let answer = main.exec_within(Duration::from_secs(1), ["sh", "-c", script]).await;
    let status = answer.refused("an exec that runs into its timeout")?;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(950), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    let left = async || {
        let all = main.commands().await?.into_iter();
        Ok(all.filter(|command| command.starts_with("sleep 4100")).collect())
    };
    eventually("the end of the exec's tree", left, Vec::is_empty).await?;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    assert_eq!(main.exec(["echo", "still"]).await?.stdout, "still\n");
    Ok(())
}

async fn an_exec_whose_caller_hangs_up_ends(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let script = "setsid sleep 41020 & (trap '' TERM; exec sleep 41021) & sleep 41022";
    let running = async || {
        Ok(main.commands().await?.into_iter().filter(|command| command.starts_with("sleep 4102")).count())
    };
    tokio::select! {
        answer = main.exec(["sh", "-c", script]) => bail!("the exec ended by itself: {answer:?}"),
        begun = eventually("the exec's processes", running, |count| *count == 3) => begun?,
    };
    eventually("the end of the abandoned exec", running, |count| *count == 0).await?;
    assert_eq!(main.exec(["echo", "still"]).await?.stdout, "still\n");
    Ok(())
}

async fn an_exec_that_leaves_a_daemon_behind_answers(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // A shared pid namespace: it is not its end that ends them.
    let pod = node.pod("web").pid(cri::NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    let other = pod.container("other").idle().run().await?;
    // As after `nginx -s`, a helper that goes to the background and has let go of the output.
    let script = "setsid sleep 41010 </dev/null >/dev/null 2>&1 & echo started";
    let output = main.exec_within(Duration::from_secs(20), ["sh", "-c", script]).await?;
    assert_eq!((output.stdout.as_str(), output.exit_code), ("started\n", 0));
    // What an exec leaves in the background lives until the container ends.
    let daemons = async || Ok(other.commands().await?.into_iter().filter(|one| one == "sleep 41010").count());
    eventually("the daemon to run", daemons, |count| *count == 1).await?;
    main.stop(Duration::from_secs(5)).await?;
    eventually("the end of the daemon", daemons, |count| *count == 0).await?;
    Ok(())
}

async fn output_is_capped_so_that_the_kubelet_takes_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // CRI: the rest of more than 16 MB is dropped and the command goes on. The kubelet takes no message past 16 MiB.
    for size in ["16777216", "20000000"] {
        let script = format!("head -c {size} /dev/zero; echo done >&2; exit 3");
        let answer = main.exec_raw(Duration::from_secs(60), &["sh", "-c", &script]).await?;
        let (out, err) = (answer.stdout.len(), answer.stderr.len());
        assert!(out >= 16_000_000, "only {out} of {size} bytes were kept");
        assert!(out + err < (16 << 20) - 20, "{out} and {err} bytes are a message that the kubelet refuses");
        assert_eq!((answer.stderr.as_slice(), answer.exit_code), (&b"done\n"[..], 3));
    }
    assert_eq!(main.exec(["echo", "still"]).await?.stdout, "still\n");
    Ok(())
}

async fn a_command_that_does_not_exist_is_an_error(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let status = main.exec(["no-such-command"]).await.refused("an exec of a missing command")?;
    assert!(status.message().contains("no-such-command"), "{status:?}");
    assert!(
        status.message().contains("no such file") || status.message().contains("not found"),
        "{status:?}"
    );
    let status = main.exec(["/bin/no-such-command"]).await.refused("an exec of a missing file")?;
    assert!(status.message().contains("/bin/no-such-command"), "{status:?}");
    main.exec_raw(Duration::ZERO, &[]).await.refused("an exec of nothing")?;
    Ok(())
}

async fn a_command_that_is_not_executable_is_an_error(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let status = main.exec(["/etc/not-executable"]).await.refused("an exec of a plain file")?;
    assert!(status.message().to_lowercase().contains("permission denied"), "{status:?}");
    main.exec(["/etc"]).await.refused("an exec of a folder")?;
    Ok(())
}

async fn an_exec_needs_a_running_container(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().create().await?;
    main.exec(["true"]).await.refused("an exec in a created container")?;
    main.start().await?;
    main.exec(["true"]).await?;
    main.stop(Duration::from_secs(5)).await?;
    main.exec(["true"]).await.refused("an exec in an exited container")?;
    main.remove().await?;
    assert_eq!(main.exec(["true"]).await.refused("an exec in a removed container")?.code(), Code::NotFound);
    Ok(())
}

async fn a_hundred_execs_leave_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    // Not by a shell, which would become it after the first look.
    let main = pod.container("main").command(["sleep", "1000"]).run().await?;
    main.exec(["true"]).await?;
    let before = lab.look(&node)?;
    let (daemon, files) = (node.daemon_pid()?, process::open_files(node.daemon_pid()?)?);
    let agent = pod.agent().await?;
    let agent_files = process::open_files(agent.pid)?;
    for number in 0..100 {
        assert_eq!(main.exec(["echo", "x"]).await?.stdout, "x\n", "exec {number}");
    }
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await?;
    eventually("the daemon's files to be closed", async || process::open_files(daemon), |now| *now == files)
        .await?;
    eventually(
        "the agent's files to be closed",
        async || process::open_files(agent.pid),
        |now| *now == agent_files,
    )
    .await?;
    Ok(())
}

async fn execs_run_side_by_side(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // Each waits for the other's file: they end only if they run at the same time.
    let wait_for = |own: &str, other: &str| {
        format!("touch /tmp/{own}; while [ ! -e /tmp/{other} ]; do usleep 10000; done; echo {own}")
    };
    let (one, two) = (wait_for("one", "two"), wait_for("two", "one"));
    let limit = Duration::from_secs(20);
    let (one, two) = tokio::join!(
        main.exec_within(limit, ["sh", "-c", &one]),
        main.exec_within(limit, ["sh", "-c", &two])
    );
    assert_eq!((one?.stdout.as_str(), two?.stdout.as_str()), ("one\n", "two\n"));
    Ok(())
}
