//! The streaming server of CRI: what `kubectl exec`, `attach`, `cp` and `port-forward` come to in the end.
//!
//! What it does: gives out one-time URLs, serves them over HTTP, speaks SPDY/3.1 and WebSocket with clients, and carries bytes between them
//! and what a [`Runtime`] opens, at the pace of the slower side. What it does not: know of pods, agents or CRI's messages.
//!
//! - [`Server`]: listens, makes URLs, serves them.
//! - [`Runtime`]: opens [`Session`]s and [`Connection`]s; the daemon implements it.
//!
//! ```
//! use std::sync::Arc;
//!
//! use hartpod_streaming::{
//!     AttachRequest, Config, Connection, Ending, ExecRequest, Opening, Runtime, Server, Session, Streams,
//!     TerminalSize,
//! };
//!
//! /// Every command says what it is.
//! struct Echo;
//!
//! impl Runtime for Echo {
//!     fn exec(&self, request: ExecRequest, _: Option<TerminalSize>) -> Opening<'_, Session> {
//!         Box::pin(async move {
//!             let stdout = std::io::Cursor::new(request.cmd.join(" "));
//!             let exit = Box::pin(async { Ok(0) });
//!             Ok(Session { stdin: None, stdout: Some(Box::new(stdout)), stderr: None, size: None, exit })
//!         })
//!     }
//!
//!     fn attach(&self, _: AttachRequest) -> Opening<'_, Session> {
//!         Box::pin(async { Err("there are no containers".into()) })
//!     }
//!
//!     fn connect(&self, _: String, port: u16) -> Opening<'_, Connection> {
//!         Box::pin(async move { Err(format!("nobody listens on {port}").into()) })
//!     }
//!
//!     fn gone(&self, _: String) -> Ending<'_> {
//!         Box::pin(std::future::pending())
//!     }
//! }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Server::bind(Config::default(), Arc::new(Echo)).await?;
//! let url = server.exec(ExecRequest {
//!     container_id: "web".to_owned(),
//!     cmd: vec!["uptime".to_owned()],
//!     streams: Streams { stdout: true, ..Streams::default() },
//! })?;
//! assert!(url.as_str().starts_with("http://127.0.0.1:"));
//! server.stop().await;
//! # Ok(())
//! # }
//! ```

#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_entry;
mod request;
mod runtime;
mod serve;
mod server;
mod session;
mod spdy;
#[cfg(test)]
mod tests;
mod tokens;
mod websocket;
mod wire;

pub use request::{AttachRequest, ExecRequest, PortForwardRequest, RequestError, Streams};
pub use runtime::{BoxError, Connection, Ending, Input, Opening, Output, Runtime, Session, TerminalSize};
pub use server::{BindError, Config, Server, TlsError, Url, tls_from_pem};
