//! The log writer: one process per container that turns its output into CRI log lines.
//!
//! A disk that hangs stops this container's output and nothing else: neither the agent nor another container ever waits for a
//! log. The writer ends when both streams have ended, whether the agent lives or not.
//!
//! Rotation: kubelet renames the file and asks for a reopen. The writer opens the new file first; each stream goes over to
//! it at the end of a line (`F`), so no line lies in two files, and the reopen is answered when both have. A stream
//! that is within a line for longer than [`SWITCH_WAIT`] stays with the old file until its line ends (or the next
//! reopen), and the answer does not wait for it.

mod control;
mod file;
mod frame;
mod role;
mod stamp;
mod writer;

pub(crate) use control::{ANSWER_WAIT, LogError, LogHandle, Opening};
pub(crate) use file::{InvalidPlace, LogPlace};
pub(crate) use role::{NAME, become_log_writer, main};
pub(crate) use writer::Sources;

use std::time::Duration;

/// How long a reopen waits for a stream that is within a line.
pub(crate) const SWITCH_WAIT: Duration = Duration::from_secs(1);
