//! Seccomp: OCI profiles compiled to BPF, and the profile of containers that bring none.
//!
//! A compiler of our own because profiles need several actions, several interfaces of one kernel and ENOSYS for calls that their
//! author could not know: see [`Program::compile`] for what it makes of a profile. No listener (`SCMP_ACT_NOTIFY`).
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hartpod_container::seccomp::{Program, default_profile};
//!
//! let program = Program::compile(&default_profile(&Default::default()))?;
//! // In the process that is about to exec:
//! program.load()?;
//! # Ok(())
//! # }
//! ```

mod abi;
mod code;
mod default;
mod program;
mod rules;
mod sys;

pub use default::default_profile;
pub use program::Program;
pub use rules::ProfileError;

#[cfg(test)]
mod tests;
