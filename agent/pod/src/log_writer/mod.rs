//! The log writer: one process per container that turns its output into CRI log lines.
//!
//! A disk that hangs stops this container's output and nothing else: neither the agent nor another container ever waits for a
//! log. The writer ends when both streams have ended, whether the agent lives or not.
//!
//! Who attaches to the container gets a copy from here, see [`tap`](crate::stream::tap): a pipe of the agent's is handed over, and what is read
//! goes into it before it goes to the disk. Where nobody is attached there is nothing to do.
//!
//! Rotation: kubelet renames the file and asks for a reopen. The writer opens the new file first, each stream goes over to it at the end
//! of a line, and the reopen is answered when both have. It does not wait for a stream that is within a line for longer than
//! [`SWITCH_WAIT`](hartpod_logs::SWITCH_WAIT).

mod control;
mod role;
mod writer;

pub(crate) use control::{ANSWER_WAIT, LogError, LogHandle, Opening};
pub(crate) use role::{NAME, become_log_writer, main};
pub(crate) use writer::Sources;
