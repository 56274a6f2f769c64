//! `hartpod-bench`: the time of every CRI call, the weight of every process, and what streaming costs, of any CRI endpoint.
//!
//! Without an endpoint it starts hartpod itself, with a registry and a network of its own. With `--against` it measures a second
//! endpoint in the same run, after the first, and prints the ratio. Nothing is asserted unless `--check` asks for the floors.

#![forbid(unsafe_code)]

mod drive;
mod endpoint;
mod own;
mod samples;
mod streams;
mod table;
mod weigh;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use hartpod_tests::guest;

use crate::drive::{Figures, Load};
use crate::endpoint::Endpoint;
use crate::own::{Own, Parts};
use crate::streams::StreamLoad;

/// Times CRI calls and weighs a runtime's processes.
#[derive(Debug, Parser)]
#[command(name = "hartpod-bench")]
struct Args {
    /// CRI socket to measure [default: a hartpod that is started for this]
    #[arg(long, value_name = "SOCKET")]
    endpoint: Option<PathBuf>,
    /// Where that endpoint serves its metrics, e.g. 127.0.0.1:9810 [default: that of a hartpod that is started for this]
    #[arg(long, value_name = "ADDRESS", requires = "endpoint")]
    metrics: Option<String>,
    /// CRI socket to compare with, e.g. containerd's
    #[arg(long, value_name = "SOCKET")]
    against: Option<PathBuf>,
    /// Pods that run at the same time when memory is read; 0 leaves all but streaming out
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// Image with a shell, and busybox's httpd and nc [default: one from a registry that is started for this]
    #[arg(long)]
    image: Option<String>,
    /// Runtime handler of the pods
    #[arg(long, default_value = "")]
    handler: String,
    /// CNI conflist of the hartpod that is started for this: the other endpoint's, or networks are compared rather than runtimes
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    conflist: Option<PathBuf>,
    #[command(flatten)]
    streams: StreamLoad,
    /// Exit with 1 where a floor of the design is missed
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let run = || -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(bench(&Args::parse()))
    };
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("hartpod-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_conflist(file: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not a conflist", file.display()))
}

async fn bench(args: &Args) -> Result<bool> {
    let parts = Parts {
        daemon: args.endpoint.is_none(),
        registry: args.image.is_none(),
        guests: args.handler == guest::HANDLER,
        conflist: args.conflist.as_deref().map(read_conflist).transpose()?,
    };
    let own = Own::start(parts).await?;
    let measured = measure(args, &own).await;
    // Cleaned up even when it failed; the first error is the one that is told.
    let stopped = own.stop().await;
    let (figures, against) = measured?;
    stopped?;
    let other = against.as_ref();
    let streams = figures.streams.as_ref().map(|mine| (mine, other.and_then(|other| other.streams.as_ref())));
    table::print(&figures, other);
    if let Some((mine, theirs)) = streams {
        streams::table::print(mine, theirs);
    }
    if !args.check {
        return Ok(true);
    }
    let mut missed = table::missed_floors(&figures, other);
    if let Some((mine, theirs)) = streams {
        missed.extend(streams::table::missed_floors(mine, theirs, args.handler == guest::HANDLER));
    }
    for line in &missed {
        eprintln!("floor missed: {line}");
    }
    Ok(missed.is_empty())
}

async fn measure(args: &Args, own: &Own) -> Result<(Figures, Option<Figures>)> {
    let load = Load {
        pods: args.pods,
        image: args.image.clone().unwrap_or_else(|| own.image()),
        handler: args.handler.clone(),
        streams: args.streams,
    };
    let socket = args.endpoint.clone().or_else(|| own.socket());
    let mut first = Endpoint::connect(&socket.unwrap_or_default()).await?;
    first.metrics = args.metrics.clone().or_else(|| own.metrics());
    let second = match &args.against {
        Some(socket) => Some(Endpoint::connect(socket).await?),
        None => None,
    };
    // One after the other, so that neither is measured while the other works.
    let figures = drive::measure(&first, &load).await?;
    let against = match &second {
        Some(endpoint) => Some(drive::measure(endpoint, &Load { handler: String::new(), ..load }).await?),
        None => None,
    };
    Ok((figures, against))
}
