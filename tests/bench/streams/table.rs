//! The figures of streaming, for people; and its floors.

use super::{Bulk, Carried, Streams};

/// ExecSync of `true` against the other's; see the specification.
const EXEC_RATIO: f64 = 0.15;
/// MiB of an exec's output in a second, of a pod that is no guest.
const OUTPUT_RATE: f64 = 1024.0;
/// KiB of the daemon over what it has when idle.
const DAEMON_KIB: u64 = 8192;

/// Figures of one line.
struct Line {
    name: String,
    unit: &'static str,
    /// What was promised.
    floor: String,
    mine: Option<f64>,
    theirs: Option<f64>,
}

/// Prints everything, with ratios when there is something to compare with.
pub(crate) fn print(streams: &Streams, against: Option<&Streams>) {
    println!();
    let lines = lines(streams, against);
    for Line { name, unit, floor, mine, theirs } in &lines {
        let cell = |figure: &Option<f64>| match figure {
            Some(figure) => format!("{figure:.2} {unit:5}"),
            None => "not served      ".into(),
        };
        let mut line = format!("{name:46}{:>18}", cell(mine));
        if against.is_some() {
            line += &format!("{:>18}", cell(theirs));
            line += &match (mine, theirs) {
                (Some(mine), Some(theirs)) if *theirs > 0.0 => format!("{:8.2}x", mine / theirs),
                _ => " ".repeat(9),
            };
        }
        println!("{}", format!("{line}  {floor}").trim_end());
    }
}

fn lines(streams: &Streams, against: Option<&Streams>) -> Vec<Line> {
    let line = |name: String, unit, floor: &str, figure: &dyn Fn(&Streams) -> Option<f64>| Line {
        name,
        unit,
        floor: floor.to_owned(),
        mine: figure(streams),
        theirs: against.and_then(figure),
    };
    let ratio = format!("<= {EXEC_RATIO:.2}x");
    let mut lines = vec![
        line("ExecSync of true, median".into(), "ms", &ratio, &|one| Some(one.exec_sync.median())),
        line("ExecSync of true, CPU".into(), "ms", "", &|one| Some(one.exec_sync_cpu * 1e3)),
    ];
    let (mib, sessions) = (streams.load.stream_mib, streams.load.sessions);
    for (place, (transport, _)) in streams.transports.iter().enumerate() {
        let mut add = |what: String, unit, floor: &str, figure: &dyn Fn(&Carried) -> Option<f64>| {
            let of = |one: &Streams| one.transports.get(place).and_then(|(_, carried)| figure(carried));
            lines.push(line(format!("{transport}: {what}"), unit, floor, &of));
        };
        let memory = format!("<= {DAEMON_KIB} KiB");
        add("exec of true, median".into(), "ms", &ratio, &|one| Some(one.exec.median()));
        add(format!("exec output, {mib} MiB"), "MiB/s", &format!(">= {OUTPUT_RATE} MiB/s"), &|one| {
            Some(one.output.mib_per_second)
        });
        add("  CPU".into(), "s", "", &|one| Some(one.output.cpu_seconds));
        add("  daemon above idle".into(), "KiB", &memory, &|one| Some(one.output.memory as f64));
        add(format!("{sessions} sessions at once"), "s", "", &|one| Some(one.sessions.0));
        add("  daemon above idle".into(), "KiB", "", &|one| Some(one.sessions.1 as f64));
        let port = |figure: fn(&Bulk) -> f64| move |one: &Carried| one.port.as_ref().map(figure);
        add(format!("port output, {mib} MiB"), "MiB/s", "", &port(|bulk| bulk.mib_per_second));
        add("  CPU".into(), "s", "", &port(|bulk| bulk.cpu_seconds));
        add("  daemon above idle".into(), "KiB", &memory, &port(|bulk| bulk.memory as f64));
        let connections = streams.load.connections;
        add(format!("connection to a port, median of {connections}"), "ms", "", &|one| {
            one.connections.as_ref().map(crate::samples::Samples::median)
        });
    }
    lines
}

/// Sentences about every floor that is missed; ratios need something to compare with.
pub(crate) fn missed_floors(streams: &Streams, against: Option<&Streams>, is_guest: bool) -> Vec<String> {
    let mut missed = Vec::new();
    if let Some(other) = against {
        let ratio = streams.exec_sync.median() / other.exec_sync.median();
        if ratio > EXEC_RATIO {
            missed
                .push(format!("ExecSync takes {ratio:.2} of the other's time, {EXEC_RATIO:.2} are promised"));
        }
    }
    for (transport, carried) in &streams.transports {
        let rate = carried.output.mib_per_second;
        if rate < OUTPUT_RATE && !is_guest {
            missed.push(format!("{transport}: {rate:.0} MiB/s of exec output, {OUTPUT_RATE} are promised"));
        }
        let memory = carried.port.iter().map(|bulk| bulk.memory).fold(carried.output.memory, u64::max);
        if memory > DAEMON_KIB {
            missed.push(format!("{transport}: the daemon grows by {memory} KiB, {DAEMON_KIB} are promised"));
        }
    }
    missed
}
