//! All logs of a guest.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use hartpod_logs::{Buffers, Stream};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use super::feed::Feed;
use super::post::{MAX_AWAITING, Post, Switch};
use super::refused::{check_log, check_pipe};
use super::thread::Beginning;
use super::{LogId, LogRefused, LogToken};
use crate::jail;
use crate::virtio::vsock::Dialer;

/// Logs at a time: as many as a pod may have containers (pod.proto).
pub const MAX_LOGS: usize = 1024;

/// Bytes of a log thread's stack; pages of it exist once they are used. It keeps no buffer there.
const STACK: usize = 64 << 10;

/// What a guest's logs may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// At a time.
    pub(super) logs: usize,
    /// How long a guest that refuses a stream is asked again.
    pub(super) patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // A token is good for 10 seconds (pod.proto).
        Self { logs: MAX_LOGS, patience: Duration::from_secs(10) }
    }
}

/// What the daemon may ask of logs. Nothing here waits for a disk or for the guest.
#[derive(Debug)]
pub struct Logs {
    limits: Limits,
    /// None where the guest has no vsock.
    dialer: Option<Dialer>,
    /// Those that are over stay until the next one begins.
    posts: HashMap<LogId, Arc<Post>>,
}

impl Logs {
    #[must_use]
    pub fn new(dialer: Option<Dialer>) -> Self {
        Self::with_limits(dialer, Limits::default())
    }

    pub(super) fn with_limits(dialer: Option<Dialer>, limits: Limits) -> Self {
        Self { limits, dialer, posts: HashMap::new() }
    }

    /// Begins a log: what the agent gives under these tokens is appended to `file`. Of one that is being written only the file is new.
    ///
    /// # Errors
    /// See [`LogRefused`].
    pub fn begin(
        &mut self,
        id: LogId,
        stdout: Option<LogToken>,
        stderr: Option<LogToken>,
        file: OwnedFd,
    ) -> Result<(), LogRefused> {
        check_log(&file)?;
        self.begin_unchecked(id, stdout, stderr, file)
    }

    pub(super) fn begin_unchecked(
        &mut self,
        id: LogId,
        stdout: Option<LogToken>,
        stderr: Option<LogToken>,
        file: OwnedFd,
    ) -> Result<(), LogRefused> {
        self.posts.retain(|_, post| !post.is_over());
        if let Some(post) = self.posts.get(&id) {
            return post.switch(Switch { file, done: None });
        }
        let dialer = self.dialer.clone().ok_or(LogRefused::NoVsock)?;
        let feed = |stream, token| Feed::new(stream, token, self.limits.patience);
        let feeds = [feed(Stream::Stdout, stdout), feed(Stream::Stderr, stderr)];
        if feeds.iter().all(Feed::has_ended) {
            return Err(LogRefused::NoStreams);
        }
        if self.posts.len() >= self.limits.logs {
            return Err(LogRefused::TooMany { most: self.limits.logs });
        }
        let failed = |what| move |source| LogRefused::Io { what, source };
        let post = Arc::new(Post::new().map_err(failed("make an event"))?);
        let buffers = Buffers::new().map_err(failed("get memory"))?;
        let name = format!("log-{:.8}", id.as_str());
        let beginning = Beginning { id: id.clone(), post: Arc::clone(&post), dialer, feeds, file, buffers };
        let thread = thread::Builder::new().name(name).stack_size(STACK);
        jail::start_thread(jail::Thread::Log, thread, move || beginning.run())?;
        self.posts.insert(id, post);
        Ok(())
    }

    /// Goes over to `file` at a line's end, and closes `done` then. A stream that is within a line for longer than
    /// [`SWITCH_WAIT`](hartpod_logs::SWITCH_WAIT) is not waited for. Of a log that is over there is nothing to do.
    ///
    /// # Errors
    /// See [`LogRefused`].
    pub fn reopen(&mut self, id: &LogId, file: OwnedFd, done: OwnedFd) -> Result<(), LogRefused> {
        check_log(&file)?;
        check_pipe(&done)?;
        match self.posts.get(id) {
            Some(post) => post.switch(Switch { file, done: Some(done) }),
            None => Ok(()),
        }
    }

    /// Has `done` closed once both streams were written to their end: at once where there is no such log.
    ///
    /// # Errors
    /// See [`LogRefused`].
    pub fn at_end(&mut self, id: &LogId, done: OwnedFd) -> Result<(), LogRefused> {
        check_pipe(&done)?;
        match self.posts.get(id) {
            Some(post) => post.at_end(Arc::new(done), MAX_AWAITING),
            None => Ok(()),
        }
    }

    /// Nothing more of this log is written; its file is closed as soon as its disk lets it. Of no such log there is nothing to do.
    pub fn end(&mut self, id: &LogId) {
        if let Some(post) = self.posts.get(id) {
            post.end();
        }
    }

    /// The guest runs no more: what it has said is written, as far as disks do that within `patience`.
    pub fn finish_blocking(&mut self, patience: Duration) {
        let Some(dialer) = &self.dialer else { return };
        dialer.hang_up();
        // Without descriptors nobody is waited for, and what is lost is the end of logs.
        let Ok((all_over, done)) = pipe_with(PipeFlags::CLOEXEC) else { return };
        let done = Arc::new(done);
        for post in self.posts.values() {
            let _ = post.at_end(Arc::clone(&done), usize::MAX);
        }
        drop(done);
        let mut hung_up = [PollFd::new(&all_over, PollFlags::empty())];
        let patience = Timespec::try_from(patience).ok();
        let _ = rustix::io::retry_on_intr(|| poll(&mut hung_up, patience.as_ref()));
    }
}
