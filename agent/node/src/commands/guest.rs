//! `hartpod guest`: what guest pods of this node boot.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use hartpod_vm::guest_image::{BuildRequest, Built, NodePaths, build_blocking};

use super::units;
use crate::config::{Config, Overrides};

#[derive(Debug, Args)]
pub struct GuestArgs {
    #[command(subcommand)]
    command: GuestCommand,
}

#[derive(Debug, Subcommand)]
enum GuestCommand {
    /// Build the image of this node's guests: kernel, initramfs with the pod agent, modules, scratch disk. Nothing is done when
    /// it is there already.
    Build(BuildArgs),
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Configuration file [default: /etc/hartpod/config.toml when it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What outlives a reboot; the image goes to `guest` below it [default: /var/lib/hartpod]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// A kernel instead of the node's own: a riscv64 Image, plain or packed
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The folder of its modules [default: /lib/modules/<release of the kernel>]
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// The pod agent, static, for riscv64 [default: that of the configuration]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
}

/// Runs `hartpod guest ..`.
pub fn guest(args: GuestArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        GuestCommand::Build(args) => build(args),
    }
}

fn build(args: BuildArgs) -> anyhow::Result<ExitCode> {
    let overrides = Overrides { root: args.root, ..Overrides::default() };
    let config = Config::load(args.config.as_deref(), overrides)?;
    let agent = match args.agent {
        Some(agent) => agent,
        None => config.pod.agent_path()?,
    };
    let request = BuildRequest {
        root: config.root,
        agent,
        kernel: args.kernel,
        modules: args.modules,
        node: NodePaths::default(),
        running: rustix::system::uname().release().to_string_lossy().into_owned(),
    };
    let built = build_blocking(&request, || eprintln!("waiting for another build to end"))?;
    for warning in &built.warnings {
        eprintln!("warning: {warning}");
    }
    print!("{}", describe(&built));
    Ok(ExitCode::SUCCESS)
}

fn describe(built: &Built) -> String {
    let manifest = &built.image.manifest;
    let mut text = String::new();
    let mut line = |what: &str, file: &str, more: String| {
        let size = manifest.files.get(file).map(|size| units::bytes(*size)).unwrap_or_default();
        text.push_str(&format!("{what:<10} {size:>9}  {more}\n"));
    };
    let kernel_from = manifest.kernel_from.display();
    line("kernel", "kernel", format!("{} from {kernel_from}", manifest.release));
    let stripped = if manifest.stripped { ", stripped" } else { "" };
    line("initramfs", "initramfs", format!("pod agent and {} modules{stripped}", manifest.boot_modules));
    if built.image.modules().is_some() {
        line("modules", "modules.erofs", format!("{} to load on demand", manifest.on_demand_modules));
    }
    line("scratch", "scratch.ext4", "what a container may write at most".to_owned());
    let outcome =
        built.took.map_or("up to date".to_owned(), |took| format!("built in {}", units::time(took)));
    text.push_str(&format!("{outcome}: {}\n", built.image.dir.display()));
    for name in &built.removed {
        text.push_str(&format!("removed {name}\n"));
    }
    text
}
