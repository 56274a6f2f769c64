//! What the child of a launch writes into its report pipe, and how the agent reads it.
//!
//! A frame is a tag, a length (u32, little-endian) and that many bytes. Until `HANDED_OVER` the writer is a process that
//! only the agent can touch; after it the writer is P2, which a hostile container may drive, so the only thing believed is
//! that execve failed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::errno::Errno;
use crate::failure::Failure;
use crate::request::ResolvedUser;

/// A failure with its facts; more is a child gone mad.
const MAX_FRAME: usize = 256 * 1024;
const HEADER: usize = 5;

/// A frame that is built without allocation, for the code after the scrub.
pub(crate) struct RawFrame {
    pub(crate) bytes: [u8; HEADER + 4],
    pub(crate) len: usize,
}

impl RawFrame {
    pub(crate) const READY: u8 = b'R';
    pub(crate) const FAILED: u8 = b'F';
    pub(crate) const AT_HOOKS: u8 = b'N';
    pub(crate) const HANDED_OVER: u8 = b'H';
    pub(crate) const EXEC_FAILED: u8 = b'E';
    pub(crate) const SECCOMP_FAILED: u8 = b'S';
    pub(crate) const TERMINAL_FAILED: u8 = b'T';
    pub(crate) const CLONE_FAILED: u8 = b'C';
    pub(crate) const SCRUB_FAILED: u8 = b'M';

    pub(crate) fn handed_over() -> Self {
        Self { bytes: [Self::HANDED_OVER, 0, 0, 0, 0, 0, 0, 0, 0], len: HEADER }
    }

    pub(crate) fn errno(tag: u8, errno: i32) -> Self {
        let [a, b, c, d] = errno.to_le_bytes();
        Self { bytes: [tag, 4, 0, 0, 0, a, b, c, d], len: HEADER + 4 }
    }
}

/// What is known once a container is complete but for its execve.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) user: ResolvedUser,
    /// Home folder of that user, for execs.
    pub(crate) home: String,
    pub(crate) warnings: Vec<String>,
}

/// One thing that the child told.
#[derive(Debug)]
pub(crate) enum Told {
    /// It waits for its hooks.
    AtHooks,
    Ready(Ready),
    Failed(Failure),
    /// From here on it is P2 that may write.
    HandedOver,
    ExecFailed(Errno),
    /// A step of the last stage, which has no facts but an errno.
    LastStage(&'static str, Errno),
    /// Every writing end is closed: execve succeeded, or whoever was to tell is dead.
    End,
}

/// The child's end.
#[derive(Debug)]
pub(crate) struct Reporter {
    pipe: File,
}

impl Reporter {
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: pipe.into() }
    }

    pub(crate) fn pipe(&self) -> &File {
        &self.pipe
    }

    /// An error means that the agent is gone; there is nobody left to tell.
    pub(crate) fn ready(&mut self, ready: &Ready) -> io::Result<()> {
        self.send(RawFrame::READY, &serde_json::to_vec(ready)?)
    }

    /// As [`Self::ready`].
    pub(crate) fn at_hooks(&mut self) -> io::Result<()> {
        self.send(RawFrame::AT_HOOKS, &[])
    }

    pub(crate) fn failed(&mut self, failure: &Failure) -> io::Result<()> {
        self.send(RawFrame::FAILED, &serde_json::to_vec(failure)?)
    }

    fn send(&mut self, tag: u8, payload: &[u8]) -> io::Result<()> {
        let len = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut frame = Vec::with_capacity(HEADER + payload.len());
        frame.push(tag);
        frame.extend_from_slice(&len.to_le_bytes());
        frame.extend_from_slice(payload);
        self.pipe.write_all(&frame)
    }
}

/// The agent's end; never blocks.
#[derive(Debug)]
pub(crate) struct Listener {
    pipe: Arc<File>,
    buffer: Vec<u8>,
    ended: bool,
}

/// The child wrote something that is not a frame, or too much.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Garbled;

impl Listener {
    /// `pipe` is non-blocking.
    pub(crate) fn new(pipe: OwnedFd) -> Self {
        Self { pipe: Arc::new(pipe.into()), buffer: Vec::new(), ended: false }
    }

    pub(crate) fn pipe(&self) -> &Arc<File> {
        &self.pipe
    }

    /// The next frame; `None` if it is not there yet.
    pub(crate) fn next(&mut self) -> io::Result<Result<Option<Told>, Garbled>> {
        loop {
            if let Some(told) = take_frame(&mut self.buffer).transpose() {
                return Ok(told.map(Some));
            }
            if self.ended {
                return Ok(if self.buffer.is_empty() { Ok(Some(Told::End)) } else { Err(Garbled) });
            }
            let mut chunk = [0; 4096];
            match (&*self.pipe).read(&mut chunk) {
                Ok(0) => self.ended = true,
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Ok(None)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

/// The first frame of a report that is complete, if it has one.
pub(crate) fn decode_all(mut report: Vec<u8>) -> Result<Option<Told>, Garbled> {
    match take_frame(&mut report)? {
        None if !report.is_empty() => Err(Garbled),
        told => Ok(told),
    }
}

fn take_frame(buffer: &mut Vec<u8>) -> Result<Option<Told>, Garbled> {
    let Some((&[tag, a, b, c, d], rest)) = buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    if len > MAX_FRAME {
        return Err(Garbled);
    }
    let Some(payload) = rest.get(..len) else { return Ok(None) };
    let told = decode(tag, payload)?;
    buffer.drain(..HEADER + len);
    Ok(Some(told))
}

/// A last stage's step.
pub(crate) const CLONE: &str = "clone into the pid namespace";

fn decode(tag: u8, payload: &[u8]) -> Result<Told, Garbled> {
    let errno = || Ok(Errno::from_raw(i32::from_le_bytes(payload.try_into().map_err(|_| Garbled)?)));
    match tag {
        RawFrame::READY => serde_json::from_slice(payload).map(Told::Ready).map_err(|_| Garbled),
        RawFrame::FAILED => serde_json::from_slice(payload).map(Told::Failed).map_err(|_| Garbled),
        RawFrame::AT_HOOKS if payload.is_empty() => Ok(Told::AtHooks),
        RawFrame::HANDED_OVER if payload.is_empty() => Ok(Told::HandedOver),
        RawFrame::EXEC_FAILED => Ok(Told::ExecFailed(errno()?)),
        RawFrame::SECCOMP_FAILED => Ok(Told::LastStage("load the seccomp profile", errno()?)),
        RawFrame::TERMINAL_FAILED => Ok(Told::LastStage("take the terminal", errno()?)),
        RawFrame::CLONE_FAILED => Ok(Told::LastStage(CLONE, errno()?)),
        RawFrame::SCRUB_FAILED => Ok(Told::LastStage("drop the agent's memory", errno()?)),
        _ => Err(Garbled),
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn ends() -> (Listener, OwnedFd) {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (Listener::new(reader), writer)
    }

    fn next(listener: &mut Listener) -> Result<Option<Told>, Garbled> {
        listener.next().unwrap()
    }

    /// Other tests start processes, which hold a copy of the writing end until they execute.
    fn settled(listener: &mut Listener) -> Result<Option<Told>, Garbled> {
        loop {
            match next(listener) {
                Ok(None) => std::thread::yield_now(),
                told => return told,
            }
        }
    }

    #[test]
    fn a_frame_counts_once_it_is_whole() {
        let (mut listener, writer) = ends();
        assert!(matches!(next(&mut listener), Ok(None)));
        let failure = Failure::Step { step: "x".repeat(9000), errno: Errno::NOENT };
        let payload = serde_json::to_vec(&failure).unwrap();
        let mut frame = vec![RawFrame::FAILED];
        frame.extend(u32::try_from(payload.len()).unwrap().to_le_bytes());
        frame.extend(payload);
        let (first, last) = frame.split_at(4100);
        rustix::io::write(&writer, first).unwrap();
        assert!(matches!(next(&mut listener), Ok(None)));
        rustix::io::write(&writer, last).unwrap();
        assert!(
            matches!(next(&mut listener), Ok(Some(Told::Failed(Failure::Step { step, .. }))) if step.len() == 9000)
        );
        drop(writer);
        assert!(matches!(settled(&mut listener), Ok(Some(Told::End))));
        assert!(matches!(next(&mut listener), Ok(Some(Told::End))));
    }

    #[test]
    fn nonsense_is_refused_without_reading_on() {
        for nonsense in [
            &b"x\0\0\0\0"[..],
            b"R\xff\xff\xff\x7f",
            b"R\x02\0\0\0{}",
            b"F\x01\0\0\0?",
            b"H\x01\0\0\0H",
            b"N\x01\0\0\0N",
            b"E\x03\0\0\0\x01\0\0",
        ] {
            let (mut listener, writer) = ends();
            rustix::io::write(&writer, nonsense).unwrap();
            assert!(matches!(next(&mut listener), Err(Garbled)), "{nonsense:?}");
        }
        // Cut off.
        let (mut listener, writer) = ends();
        rustix::io::write(&writer, b"E\x04\0\0").unwrap();
        drop(writer);
        assert!(matches!(settled(&mut listener), Err(Garbled)));
    }

    #[test]
    fn raw_frames_read_like_others() {
        let (mut listener, writer) = ends();
        for frame in [RawFrame::handed_over(), RawFrame::errno(RawFrame::EXEC_FAILED, libc::ENOEXEC)] {
            rustix::io::write(&writer, &frame.bytes[..frame.len]).unwrap();
        }
        assert!(matches!(next(&mut listener), Ok(Some(Told::HandedOver))));
        assert!(matches!(next(&mut listener), Ok(Some(Told::ExecFailed(e))) if e.raw() == libc::ENOEXEC));
    }
}
