//! What each parameter of the kernel's command line is worth: the time to the agent's readiness without it.

use anyhow::Result;
use hartpod_vm::command_line::{self, PARAMETERS};

use crate::bench::Bench;
use crate::samples::Samples;

/// Without these no agent would be started, or nothing could be seen of it.
const NEEDED: [&str; 1] = ["rdinit=/init"];

pub(crate) fn measure(bench: &Bench, tried: &[String]) -> Result<String> {
    let all = command_line::standard();
    let mut lines = vec![("all of them".to_owned(), all.clone(), Samples::default())];
    for parameter in PARAMETERS.iter().filter(|parameter| !NEEDED.contains(parameter)) {
        let others: Vec<&str> = PARAMETERS.into_iter().filter(|other| other != parameter).collect();
        lines.push((format!("without `{parameter}`"), others.join(" "), Samples::default()));
    }
    for parameter in tried {
        // First, for what must be known early.
        lines.push((format!("with `{parameter}`"), format!("{parameter} {all}"), Samples::default()));
    }
    for run in 1..=bench.runs {
        for (name, line, samples) in &mut lines {
            eprintln!("command line, run {run}: {name}");
            samples.add_time(bench.ready(line)?);
        }
    }
    let base = lines[0].2.median();
    let mut text =
        "| command line | start to the agent's readiness | against all |\n|---|---|---|\n".to_owned();
    for (name, _, samples) in &lines {
        text.push_str(&format!("| {name} | {} | {:.2}x |\n", samples.show("s"), samples.median() / base));
    }
    Ok(text)
}
