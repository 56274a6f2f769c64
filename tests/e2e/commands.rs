//! The commands that people type: demo, check, config, run.

use std::os::unix::fs::symlink;
use std::process::Output;

use anyhow::{Context, Result};
use hartpod_tests::eventually::eventually;
use hartpod_tests::{Lab, Node, node, tests};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

tests![
    the_demo_runs_a_pod_and_cleans_up,
    check_finds_the_node_fit,
    config_prints_every_default_and_checks_files,
    run_shows_the_output_and_passes_the_exit_code_on,
    an_unknown_command_is_refused,
    a_daemon_that_nobody_can_hear_serves,
];

async fn hartpod(args: &[&str]) -> Result<Output> {
    let mut command = Command::new(node::bin_dir().join("hartpod"));
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), command.output());
    output.await.with_context(|| format!("hartpod {args:?} goes on"))?.context("run hartpod")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn the_demo_runs_a_pod_and_cleans_up(_lab: &Lab) -> Result<()> {
    // The lab looks for leftovers when the test is over.
    let output = hartpod(&["demo"]).await?;
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    assert!(said.contains("ms"), "how long each step took: {said}");
    assert!(
        said.lines().count() < 80 && said.lines().all(|line| line.len() <= 120),
        "made for people: {said}"
    );
    assert_eq!(text(&output.stderr), "", "no log noise");
    Ok(())
}

async fn check_finds_the_node_fit(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let config = node.dir().join("config.toml").display().to_string();
    let output = hartpod(&["check", "--config", &config]).await?;
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).lines().count() > 3, "{}", text(&output.stdout));
    Ok(())
}

async fn config_prints_every_default_and_checks_files(lab: &Lab) -> Result<()> {
    let output = hartpod(&["config", "--default"]).await?;
    assert!(output.status.success());
    let sample = text(&output.stdout);
    let shipped = include_str!("../../deploy/config.toml");
    assert_eq!(sample, shipped, "deploy/config.toml is `hartpod config --default`");
    let file = lab.dir().join("config.toml");
    std::fs::write(&file, &sample)?;
    let path = file.display().to_string();
    let output = hartpod(&["config", "--check", &path]).await?;
    assert!(output.status.success(), "{}", text(&output.stderr));
    std::fs::write(&file, "root = \"relative\"\n[cni]\nplugin_timeout_s = 0\n")?;
    let output = hartpod(&["config", "--check", &path]).await?;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("root") && said.contains("plugin_timeout_s"), "all problems at once: {said}");
    Ok(())
}

/// `hartpod run` goes to the default socket; /run is the test's own.
fn at_the_default_socket(node: &Node) -> Result<()> {
    std::fs::create_dir_all("/run/hartpod")?;
    symlink(node.socket(), "/run/hartpod/hartpod.sock").context("link the socket")
}

async fn run_shows_the_output_and_passes_the_exit_code_on(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    at_the_default_socket(&node)?;
    let output =
        hartpod(&["run", node.image(), "sh", "-c", "echo to stdout; echo to stderr >&2; exit 9"]).await?;
    assert_eq!(output.status.code(), Some(9), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("to stdout"));
    assert!(text(&output.stderr).contains("to stderr"), "{}", text(&output.stderr));
    assert!(node.client().pods().await?.is_empty(), "the pod is removed");
    let output = hartpod(&["run", "registry.test/no-such-image:1"]).await?;
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("no-such-image"), "{}", text(&output.stderr));
    std::fs::remove_dir_all("/run/hartpod")?;
    Ok(())
}

async fn an_unknown_command_is_refused(_lab: &Lab) -> Result<()> {
    let output = hartpod(&["dance"]).await?;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("dance"));
    Ok(())
}

async fn a_daemon_that_nobody_can_hear_serves(lab: &Lab) -> Result<()> {
    let path = |name: &str| lab.dir().join(name);
    let config = ["root", "state", "socket"].map(|key| format!("{key} = {:?}\n", path(key)));
    std::fs::write(path("config.toml"), config.concat() + "[metrics]\nenabled = false\n")?;
    let mut command = Command::new(node::bin_dir().join("hartpod"));
    command.arg("serve").arg("--config").arg(path("config.toml")).kill_on_drop(true);
    // As a disk that is full.
    command.stderr(std::fs::OpenOptions::new().write(true).open("/dev/full")?);
    let mut daemon = command.spawn()?;
    eventually("its socket", async || Ok(path("socket").exists()), |there| *there).await?;
    let pid = daemon.id().context("it has ended")?;
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)?;
    assert!(daemon.wait().await?.success());
    Ok(())
}
