//! Container logs in the format of CRI: `2026-11-22T17:36:01.000000042Z stdout F hello`.
//!
//! What it does: cuts what two streams say into lines and pieces of lines, stamps them, appends them to a file, and goes over to
//! another file at a line's end. What it does not: read streams. On a node the pod agent's log writer does that, for a guest
//! the VMM; both lead a [`LogWriter`].
//!
//! - [`LogPlace`]: a path beneath a pod's log folder, and how it is opened.
//! - [`LogFile`]: a file that is appended to; a full disk loses lines and nothing more.
//! - [`LogWriter`]: from bytes to lines, over rotations.
//! - [`Buffers`]: the memory of a writer, which is next to nothing while its container is silent.
//!
//! ```
//! use hartpod_logs::{Buffers, LogFile, LogPlace, LogWriter, Stream};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = std::env::temp_dir().join(format!("hartpod-logs-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! let place = LogPlace::new(&folder, "web/0.log".as_ref())?;
//! let file = LogFile::opened_blocking(Some(place.open_blocking()?));
//! let mut buffers = Buffers::new()?;
//! let mut log = LogWriter::new(&mut buffers, file, &|trouble| eprintln!("{trouble:?}"));
//! log.spare(Stream::Stdout)[..6].copy_from_slice(b"hello\n");
//! log.filled_blocking(Stream::Stdout, 6);
//! # assert!(std::fs::read_to_string(folder.join("web/0.log"))?.ends_with(" stdout F hello\n"));
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok(())
//! # }
//! ```

mod buffers;
mod file;
mod frame;
mod place;
mod stamp;
mod sys;
#[cfg(test)]
mod test_random;
mod writer;

pub use buffers::Buffers;
pub use file::{LogFile, Trouble};
pub use frame::MAX_CONTENT;
pub use place::{InvalidPlace, LogPlace};
pub use stamp::{Stream, now_nanos};
pub use writer::{LogWriter, SWITCH_WAIT};
