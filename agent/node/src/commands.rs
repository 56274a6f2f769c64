//! What `hartpod` does besides serving.

pub mod check;
mod client;
pub mod config;
pub mod demo;
pub mod guest;
mod interrupts;
mod log_lines;
mod proc_paths;
pub mod run;
mod units;
