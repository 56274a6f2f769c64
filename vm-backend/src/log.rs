//! Logs of a guest's containers: streams of the guest on one side, files on the host on the other.
//!
//! The daemon hands over a log file, open for appending, and the tokens under which the agent in the guest gives a container's stdout
//! and stderr. From then on the log is the VMM's: the daemon may die, and no line is lost or split. [`Logs`] is what it asks.
//!
//! Each log has one thread, which reads both streams and writes the lines. A disk that hangs stops that thread and nothing else: its
//! socket fills up, then the stream's room, then the guest has no more credit, and at last the container waits in write(2).
//!
//! A log ends with its streams. The file is closed then, everybody who awaited that is told, and the thread is gone.

mod digits;
mod feed;
mod post;
mod refused;
mod table;
mod thread;

pub use digits::{LogId, LogToken, NotDigits};
pub use refused::LogRefused;
pub use table::{Logs, MAX_LOGS};

#[cfg(test)]
mod tests;
