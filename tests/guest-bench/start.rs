//! From a VMM's start to the guest's first process, to the agent's word that it is ready, and to a container that runs.

use anyhow::Result;
use hartpod_vm::boot::Interrupts;
use hartpod_vm::command_line;

use crate::bench::Bench;
use crate::guest::interrupts;
use crate::qemu::Board;
use crate::samples::Samples;
use crate::table::{Goal, Row, table};

pub(crate) fn measure(bench: &Bench) -> Result<String> {
    let [mut up, mut ready, mut container, mut qemu, mut qemu_aia]: [Samples; 5] = Default::default();
    let aia = interrupts()? == Interrupts::Aia;
    for run in 1..=bench.runs {
        eprintln!("start: run {run}");
        up.add_time(bench.up()?);
        qemu.add_time(bench.qemu_up(Board::Plic)?);
        ready.add_time(bench.ready(&command_line::standard())?);
        container.add_time(bench.container()?);
        if aia {
            qemu_aia.add_time(bench.qemu_up(Board::Aia)?);
        }
    }
    let row = |what, hartpod, qemu| Row { what, unit: "s", hartpod, qemu, goal: Goal::None };
    let mut rows = vec![
        row("start to the first user process, the same in both", &up, &qemu),
        row("start to the agent's readiness; QEMU: to its first user process", &ready, &qemu),
        Row {
            goal: Goal::Ratio(0.6),
            ..row("start to a running container; QEMU: to its first user process", &container, &qemu)
        },
    ];
    if aia {
        rows.push(row("the same, but QEMU with KVM's AIA (`-M virt,aia=aplic-imsic`)", &ready, &qemu_aia));
    }
    Ok(table(&rows))
}
