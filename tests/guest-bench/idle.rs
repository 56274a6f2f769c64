//! What a guest costs that does nothing: memory and CPU time.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::smaps::Memory;
use hartpod_vm::command_line;

use crate::bench::{Bench, MEMORY_MIB, SETTLED};
use crate::line::wait_for_line;
use crate::qemu::Board;
use crate::samples::Samples;
use crate::table::{Goal, Row, table};

/// Linux reports free memory every other second, a part at a time.
const SETTLE: Duration = Duration::from_secs(15);
/// How long CPU time is counted.
const IDLE: Duration = Duration::from_secs(20);

/// Of one VMM.
#[derive(Debug, Default)]
struct Figures {
    /// MiB of the VMM besides the guest's RAM.
    own: Samples,
    ram_ready: Samples,
    ram_settled: Samples,
    /// Seconds of CPU time in [`IDLE`].
    cpu: Samples,
}

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let (mut hartpod, mut qemu) = (Figures::default(), Figures::default());
    for run in 1..=bench.runs {
        eprintln!("idle: run {run}");
        round(bench, &mut hartpod, &mut qemu)?;
    }
    let row = |what, unit, of: fn(&Figures) -> &Samples, goal| Row {
        what,
        unit,
        hartpod: of(&hartpod),
        qemu: of(&qemu),
        goal,
    };
    Ok(table(&[
        row("VMM besides the guest's RAM (PSS)", "MiB", |f| &f.own, Goal::Value(5.0)),
        row("guest RAM in the host's memory, ready", "MiB", |f| &f.ram_ready, Goal::Value(96.0)),
        row("the same, when free memory was reported", "MiB", |f| &f.ram_settled, Goal::None),
        row(&format!("CPU time in {} s of an idle guest", IDLE.as_secs()), "s", |f| &f.cpu, Goal::Ratio(1.5)),
    ]))
}

/// One guest each, idle side by side.
fn round(bench: &Bench, hartpod: &mut Figures, qemu: &mut Figures) -> Result<()> {
    let (mut guest, _) = bench.start_agent(&command_line::standard())?;
    guest.running()?;
    guest.ready()?;
    let ours = u32::try_from(guest.pid()).context("a pid")?;
    hartpod.ram_ready.add(memory(ours)?.ram_rss_mib());
    let (peer, _) = bench.start_qemu(Board::Plic)?;
    wait_for_line(peer.console(), SETTLED)?;
    qemu.ram_ready.add(memory(peer.pid())?.ram_rss_mib());

    thread::sleep(SETTLE);
    let both = [(ours, &mut *hartpod), (peer.pid(), &mut *qemu)];
    for (pid, figures) in both {
        let memory = memory(pid)?;
        figures.own.add(memory.own_pss_mib());
        figures.ram_settled.add(memory.ram_rss_mib());
    }
    let before = [cpu_seconds(ours)?, cpu_seconds(peer.pid())?];
    thread::sleep(IDLE);
    hartpod.cpu.add(cpu_seconds(ours)? - before[0]);
    qemu.cpu.add(cpu_seconds(peer.pid())? - before[1]);
    Ok(())
}

fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Memory::parse(&text, u64::from(MEMORY_MIB) << 10)
}

/// Of all threads, the guest's time included (proc_pid_stat(5)).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The name in brackets may hold anything; utime is the 14th field, the 12th after it.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    // USER_HZ of every Linux.
    Ok(ticks / 100.0)
}
