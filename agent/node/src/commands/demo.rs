//! `hartpod demo`: a whole pod from an image inside this program, on any machine that can run pods.
//!
//! Everything is the real thing but for two parts that need no network: the registry is one on the loopback interface with one
//! image (`registry`), and the network plugin gives a pod nothing but its loopback interface (`demo/main.rs`).

mod image;
mod place;
mod registry;
mod show;
mod steps;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};

use super::interrupts::Interrupts;
use image::DemoImage;
use place::Place;
use registry::Registry;

/// Runs a whole pod in a temporary folder, shows what happened, and leaves nothing behind.
pub async fn demo() -> anyhow::Result<ExitCode> {
    if !rustix::process::geteuid().is_root() {
        bail!("the demo must run as root: a pod needs namespaces, mounts and cgroups");
    }
    let mut interrupts = Interrupts::new()?;
    let began = Instant::now();
    let image = tokio::task::spawn_blocking(DemoImage::pack_blocking).await?.context("pack the image")?;
    let registry = Registry::start(image).await.context("start the demo's registry on 127.0.0.1")?;
    let host = registry.host();
    let place = tokio::task::spawn_blocking(move || Place::make_blocking(&host)).await??;
    println!("A pod from start to end, in {}\n", place.dir.display());

    let mut steps = steps::Steps::new(place);
    let outcome = tokio::select! {
        outcome = steps.run(&registry) => outcome,
        () = interrupts.next() => Err(anyhow!("interrupted")),
    };
    let said = outcome.is_err().then(|| steps.failed());
    let cleaned = steps.clean_up().await;
    if let Err(error) = outcome {
        if let Some(said) = said.filter(|s| !s.is_empty()) {
            eprintln!("\nThe daemon's last words:\n{said}\n");
        }
        if let Err(error) = cleaned {
            eprintln!("hartpod: clean up: {error:#}");
        }
        return Err(error);
    }
    cleaned.context("clean up")?;
    println!("\nDone in {}; nothing is left behind.", show::time(began.elapsed()));
    println!("Next: `hartpod check` tells what this machine lacks for `hartpod serve`.");
    Ok(ExitCode::SUCCESS)
}
