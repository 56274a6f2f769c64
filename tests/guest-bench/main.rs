//! What guests cost, in one run against QEMU with KVM: start, memory, CPU time, and what each parameter of the kernel's command line is worth;
//! and pods in guests beside namespace pods.
//!
//! `make lab-bench` runs it in the riscv64 machine. Both VMMs boot the same kernel with the same initramfs and command line, one after the
//! other, again and again; every figure is a median with its extremes. The tables are markdown, on stdout; what it is doing comes on stderr.

#![forbid(unsafe_code)]

mod bench;
mod idle;
mod line;
mod parameters;
mod pods;
mod qemu;
mod samples;
mod start;
mod table;

// The guest tests' own.
#[path = "../guest/disk.rs"]
#[expect(dead_code, reason = "see above")]
mod disk;
#[path = "../guest/guest.rs"]
#[expect(dead_code, reason = "tests need more of a guest than its figures")]
mod guest;
#[path = "../guest/initramfs.rs"]
#[expect(dead_code, reason = "see above")]
mod initramfs;
#[path = "../guest/pod.rs"]
#[expect(dead_code, reason = "see above")]
mod pod;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use hartpod_tests::Need;

use crate::bench::Bench;

/// Takes the figures of guests against QEMU with KVM.
#[derive(Debug, Parser)]
struct Options {
    /// Runs of everything.
    #[arg(long, default_value_t = 5)]
    runs: u32,
    /// Only this part.
    #[arg(long)]
    only: Vec<Part>,
    /// Measure this kernel parameter too, added to the command line.
    #[arg(long = "try", value_name = "PARAMETER")]
    tried: Vec<String>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A table each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Start,
    Idle,
    Parameters,
    Pods,
}

fn main() -> Result<()> {
    let options = Options::parse();
    for need in [Need::Root, Need::Kvm, Need::Busybox] {
        if let Some(missing) = need.missing() {
            println!("skipped: {missing}");
            return Ok(());
        }
    }
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let bench = Bench::new(options.runs)?;
    println!("{}", bench.describe()?);
    bench.warm_up()?;
    if wanted(Part::Start) {
        println!("{}", start::measure(&bench)?);
    }
    if wanted(Part::Idle) {
        println!("{}", idle::measure(&bench)?);
    }
    if wanted(Part::Parameters) {
        println!("{}", parameters::measure(&bench, &options.tried)?);
    }
    if wanted(Part::Pods) {
        println!("{}", pods::measure(options.runs)?);
    }
    Ok(())
}
