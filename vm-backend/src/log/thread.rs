//! The thread of a log: waits, reads, writes, until both streams have ended.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_logs::{Buffers, LogFile, LogWriter, SWITCH_WAIT, Trouble};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::LogId;
use super::feed::Feed;
use super::post::{Post, Switch};
use crate::virtio::vsock::Dialer;

/// After this long without output the pages of the buffers go back to the kernel.
const IDLE: Duration = Duration::from_secs(1);

/// What a log begins with.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) id: LogId,
    pub(super) post: Arc<Post>,
    pub(super) dialer: Dialer,
    pub(super) feeds: [Feed; 2],
    pub(super) file: OwnedFd,
    pub(super) buffers: Buffers,
}

impl Beginning {
    /// The whole life of a log. Blocks on the disk.
    pub(super) fn run(self) {
        let Self { id, post, dialer, feeds, file, mut buffers } = self;
        // Last, after the file is closed, and after a panic too.
        let _over = Over(Arc::clone(&post));
        let say = |trouble| say(&id, trouble);
        let log = LogWriter::new(&mut buffers, LogFile::opened_blocking(Some(file)), &say);
        let mut writing = Writing { post: &post, dialer: &dialer, feeds, log, switching: None };
        while writing.ask() {
            writing.step();
        }
    }
}

struct Over(Arc<Post>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// To the daemon's log, if it still takes something.
fn say(id: &LogId, trouble: Trouble) {
    let id = id.as_str();
    let mut stderr = std::io::stderr();
    let _ = match trouble {
        Trouble::Begins(error) => {
            writeln!(stderr, "hartpod-vmm: cannot write the log of {id}, dropping lines: {error}")
        }
        Trouble::Over { lines } => {
            writeln!(stderr, "hartpod-vmm: the log of {id} can be written again, {lines} lines were lost")
        }
    };
}

struct Writing<'b> {
    post: &'b Post,
    dialer: &'b Dialer,
    feeds: [Feed; 2],
    log: LogWriter<'b>,
    switching: Option<Switching>,
}

/// A switch that somebody waits for.
struct Switching {
    done: Vec<OwnedFd>,
    until: Instant,
}

impl Writing<'_> {
    /// Asks for the streams that it is time for; false once all have ended.
    fn ask(&mut self) -> bool {
        let now = Instant::now();
        for feed in &mut self.feeds {
            feed.ask(self.dialer, &mut self.log, now);
        }
        !self.feeds.iter().all(Feed::has_ended)
    }

    /// Waits for something and does it.
    fn step(&mut self) {
        let Ready { post, feeds } = self.wait();
        // Before the streams: what waits in them now belongs to the new file.
        if post {
            self.switch();
            if self.post.is_ending() {
                self.feeds.iter_mut().for_each(|feed| feed.end(&mut self.log));
                return;
            }
        }
        for (feed, ready) in self.feeds.iter_mut().zip(feeds) {
            if ready {
                feed.read(&mut self.log);
            }
        }
        let over = |switching: &mut Switching| !self.log.is_switching() || Instant::now() >= switching.until;
        drop(self.switching.take_if(over));
    }

    fn wait(&mut self) -> Ready {
        let now = Instant::now();
        let until = self.feeds.iter().filter_map(Feed::due).chain(self.switching.as_ref().map(|s| s.until));
        let until = until.min().map(|at| at.saturating_duration_since(now));
        let patience = until.or_else(|| self.log.has_used_buffers().then_some(IDLE));
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        let sockets = self.feeds.each_ref().map(Feed::socket);
        // In the place of a socket that is not there nothing is asked of another descriptor.
        let [stdout, stderr] = sockets.map(|socket| match socket {
            Some(socket) => PollFd::from_borrowed_fd(socket, PollFlags::IN),
            None => PollFd::new(self.post, PollFlags::empty()),
        });
        let mut polled = [PollFd::new(self.post, PollFlags::IN), stdout, stderr];
        let count = poll(&mut polled, patience.as_ref());
        let [post, stdout, stderr] = polled.map(|fd| count.is_ok() && !fd.revents().is_empty());
        let ready = Ready { post, feeds: [stdout, stderr] };
        if count == Ok(0) && until.is_none() {
            self.log.release_buffers();
        }
        ready
    }

    fn switch(&mut self) {
        for Switch { file, done } in self.post.take() {
            self.log.switch_blocking(Some(file));
            let switching = self.switching.take();
            let mut all = switching.map(|switching| switching.done).unwrap_or_default();
            all.extend(done);
            self.switching = Some(Switching { done: all, until: Instant::now() + SWITCH_WAIT });
        }
    }
}

struct Ready {
    post: bool,
    /// In the order of the feeds.
    feeds: [bool; 2],
}
