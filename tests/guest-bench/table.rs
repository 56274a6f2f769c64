//! Figures side by side, as a markdown table.

use std::fmt;

use crate::samples::Samples;

/// What the design asks for, and whether it is so.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Goal {
    None,
    /// At most so much of QEMU's.
    Ratio(f64),
    /// At most so much, in the row's unit.
    Value(f64),
}

/// A row: the same thing of both.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) what: &'a str,
    pub(crate) unit: &'a str,
    pub(crate) hartpod: &'a Samples,
    pub(crate) qemu: &'a Samples,
    pub(crate) goal: Goal,
}

impl fmt::Display for Row<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, unit, hartpod, qemu, goal } = self;
        let ratio = hartpod.median() / qemu.median();
        write!(out, "| {what} | {} | {} | {ratio:.2}x | ", hartpod.show(unit), qemu.show(unit))?;
        let verdict = |met| if met { "met" } else { "missed" };
        match *goal {
            Goal::None => write!(out, "|"),
            Goal::Ratio(most) => write!(out, "<= {most:.1}x: {} |", verdict(ratio <= most)),
            Goal::Value(most) => write!(out, "<= {most} {unit}: {} |", verdict(hartpod.median() <= most)),
        }
    }
}

/// The whole table.
pub(crate) fn table(rows: &[Row<'_>]) -> String {
    let mut text = "| what | hartpod | QEMU | ratio | goal |\n|---|---|---|---|---|\n".to_owned();
    rows.iter().for_each(|row| text.push_str(&format!("{row}\n")));
    text
}
