//! Log lines: to stderr, filtered by RUST_LOG, coloured only for a terminal.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Starts logging at `level` unless RUST_LOG says otherwise. An unreadable RUST_LOG is told once and `level` used.
pub(crate) fn start(level: LevelFilter) {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let parsed = EnvFilter::builder().with_default_directive(level.into()).parse(&wanted);
    let (filter, problem) = match parsed {
        Ok(filter) => (filter, None),
        Err(problem) => (EnvFilter::default().add_directive(level.into()), Some(problem)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    if let Some(problem) = problem {
        tracing::warn!(%problem, rust_log = wanted, "RUST_LOG is not understood and was ignored");
    }
}
