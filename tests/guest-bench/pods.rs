//! From RunPodSandbox to the first output of a container, through CRI: pods in guests beside namespace pods.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hartpod_tests::{Lab, Node};
use tempfile::TempDir;

use crate::line::wait_for_line;
use crate::samples::Samples;

/// What the container says.
const WORD: &str = "pod-bench: here";

/// Of one handler's pods, in seconds.
#[derive(Debug, Default)]
struct Times {
    sandbox: Samples,
    output: Samples,
    plugins: Samples,
    without: Samples,
}

pub(crate) fn measure(runs: u32) -> Result<String> {
    let dir = TempDir::with_prefix("pod-bench-").context("make a folder")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let lab = Lab::open(dir.path())?;
        // Which says how long each plugin took.
        let node = lab.start(lab.node_builder()?.log_filter("info,hartpod_cni=debug")).await?;
        lab.registry().await?;
        node.client().pull(node.image()).await.context("pull the test image")?;
        let table = rows(&node, runs).await?;
        lab.close().await?;
        Ok(table)
    })
}

async fn rows(node: &Node, runs: u32) -> Result<String> {
    // The handler of namespace pods, and that of guests.
    let mut all = [("", Times::default()), (hartpod_tests::guest::HANDLER, Times::default())];
    for run in 0..=runs {
        for (handler, times) in &mut all {
            eprintln!("pods: run {run} of handler {handler:?}");
            let mut one = Times::default();
            life(node, handler, &format!("pod-{run}"), &mut one).await?;
            // What is done for the first time (a bridge, the layers' EROFS files) is not counted.
            match run {
                0 => {}
                _ => times.add(&one),
            }
        }
    }
    let [(_, host), (_, guest)] = &all;
    let mut text = "| what | namespace pod | pod in a guest | ratio |\n|---|---|---|---|\n".to_owned();
    let mut row = |what, host: &Samples, guest: &Samples| {
        let ratio = guest.median() / host.median();
        text.push_str(&format!("| {what} | {} | {} | {ratio:.2}x |\n", host.show("s"), guest.show("s")));
    };
    row("RunPodSandbox", &host.sandbox, &guest.sandbox);
    row("RunPodSandbox to the container's first output", &host.output, &guest.output);
    row("of it CNI plugins (bridge, host-local, portmap)", &host.plugins, &guest.plugins);
    row("to the first output, the plugins' time taken off", &host.without, &guest.without);
    Ok(text)
}

impl Times {
    /// `one` has a sample of each.
    fn add(&mut self, one: &Self) {
        self.sandbox.add(one.sandbox.median());
        self.output.add(one.output.median());
        self.plugins.add(one.plugins.median());
        self.without.add(one.without.median());
    }
}

/// A pod from its start to its removal.
async fn life(node: &Node, handler: &str, name: &str, times: &mut Times) -> Result<()> {
    let said = fs::metadata(node.log_file()).context("look at the daemon's log")?.len();
    let begun = Instant::now();
    let pod = node.pod(name).handler(handler).run().await?;
    let sandbox = begun.elapsed();
    let container = pod.container("main").sh(&format!("echo {WORD}; exec sleep 100000")).run().await?;
    wait_for_line(&container.log_path(), WORD)?;
    let output = begun.elapsed();
    let plugins = plugins(&node.log_file(), said)?;
    pod.stop().await?;
    pod.remove().await?;
    times.sandbox.add_time(sandbox);
    times.output.add_time(output);
    times.plugins.add_time(plugins);
    times.without.add_time(output.saturating_sub(plugins));
    Ok(())
}

/// The time of all plugins that ran, by the daemon's log from `offset` on.
fn plugins(log: &Path, offset: u64) -> Result<Duration> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    let text = String::from_utf8_lossy(text.get(usize::try_from(offset)?..).unwrap_or_default()).into_owned();
    let lines = text.lines().filter(|line| line.contains("plugin ran"));
    let took = lines.map(|line| {
        let word = line.split_whitespace().find_map(|word| word.strip_prefix("took="));
        word.and_then(seconds).with_context(|| format!("no time in {line:?}"))
    });
    took.sum::<Result<f64>>().map(Duration::from_secs_f64)
}

/// What a [`Duration`] looks like in a log: `12.3ms`.
fn seconds(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit);
    let scale = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}
