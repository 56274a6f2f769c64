//! What `hartpod` does besides serving.

pub mod check;
pub mod config;
pub mod demo;
pub mod run;
