//! Execs: more processes in a running container, each with streams, a deadline and a sub-leaf of its own.

mod run;
mod table;

pub(crate) use run::{Begun, Stage, execed, remove_when_empty, run};
pub(crate) use table::{EXECS_MAX, ExecState, Execs};
