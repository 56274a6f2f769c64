//! What tasks tell the supervisor.

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::WaitExecResponse;
use tokio::sync::mpsc;
use tracing::debug;

use super::Supervisor;
use crate::call::CallError;
use crate::children::Exit;
use crate::container::{CreateError, Made, RemoveError, StartError, Started};
use crate::exec::Begun;

/// Which container news are of; its id alone could be that of a later one.
#[derive(Debug, Clone)]
pub(crate) struct About {
    pub(crate) id: ContainerId,
    pub(crate) life: u64,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Happened {
    /// The container waits for its start, or could not be made.
    Made(Result<Box<Made>, CreateError>),
    /// execve succeeded or not.
    Started(Result<Started, StartError>),
    /// Hooks that ran beside the program are over; in words, what failed.
    LateHooksRan(Vec<String>),
    /// A process that is, or was, its init has ended.
    Exited { pid: i32, exit: Exit },
    /// The kernel killed a process of it for want of memory.
    OomKilled,
    /// After the end of init nothing of it runs, and its log is written; in words, what is not as it should be.
    Settled(Vec<String>),
    /// An update of it is over.
    Updated,
    /// Its leaf is gone, or not.
    Removed(Result<(), RemoveError>),
    /// An exec runs, or could not be started.
    ExecBegun(String, Result<Begun, CallError>),
    /// The input of an attacher has ended.
    InputEnded,
    /// All who were at the other ends of an exec's streams are gone.
    ExecDeserted(String),
    /// An exec is over.
    ExecDone(String, WaitExecResponse),
}

/// News of one container.
#[derive(Debug)]
pub(crate) struct News {
    pub(crate) about: About,
    pub(crate) happened: Happened,
}

/// Takes news for the supervisor. Their number is bounded by that of the tasks.
#[derive(Debug, Clone)]
pub(super) struct Newsdesk {
    news: mpsc::UnboundedSender<Box<News>>,
}

impl Newsdesk {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Box<News>>) {
        let (news, reader) = mpsc::unbounded_channel();
        (Self { news }, reader)
    }

    /// Nobody reads them any more once the pod is shut down.
    pub(super) fn tell(&self, about: About, happened: Happened) {
        let _ = self.news.send(Box::new(News { about, happened }));
    }
}

/// Tells at its end that the hooks beside a container are over: a start waits for that word, be it that they broke off.
pub(super) struct LateHooks {
    newsdesk: Newsdesk,
    about: About,
    warnings: Vec<String>,
}

impl LateHooks {
    pub(super) fn new(newsdesk: Newsdesk, about: About) -> Self {
        let warnings = vec!["the container runs on, but its poststart hooks broke off".to_owned()];
        Self { newsdesk, about, warnings }
    }

    /// They have ended by themselves; in words, what failed.
    pub(super) fn are_over(mut self, warnings: Vec<String>) {
        self.warnings = warnings;
    }
}

impl Drop for LateHooks {
    fn drop(&mut self) {
        let warnings = std::mem::take(&mut self.warnings);
        self.newsdesk.tell(self.about.clone(), Happened::LateHooksRan(warnings));
    }
}

impl Supervisor {
    pub(super) fn on_news(&mut self, News { about, happened }: News) {
        let Some(container) = self.containers.get_mut(&about.id).filter(|c| c.life == about.life) else {
            return debug!(container = %about.id, ?happened, "news of a container that is gone");
        };
        match happened {
            Happened::Made(outcome) => self.on_made(&about.id, outcome),
            Happened::Started(outcome) => self.on_started(&about.id, outcome),
            Happened::LateHooksRan(warnings) => self.on_late_hooks(&about.id, warnings),
            Happened::Exited { pid, exit } => self.on_exited(&about.id, pid, exit),
            Happened::OomKilled => {
                container.told.oom_killed = true;
                self.publish(&about.id);
            }
            Happened::Settled(odd) => self.on_settled(&about.id, odd),
            Happened::Updated => container.updating = false,
            Happened::Removed(outcome) => self.on_removed(&about.id, outcome),
            Happened::InputEnded => container.input = None,
            Happened::ExecBegun(exec, outcome) => container.execs.begun(&exec, outcome),
            Happened::ExecDeserted(exec) => self.on_deserted(&about.id, &exec),
            Happened::ExecDone(exec, result) => container.execs.done(&exec, result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hooks_that_panic_are_over_too() {
        let (newsdesk, mut news) = Newsdesk::new();
        let about = About { id: ContainerId::from_bytes([1; 32]), life: 7 };
        LateHooks::new(newsdesk.clone(), about.clone()).are_over(Vec::new());
        let told = news.recv().await.unwrap();
        assert!(
            matches!(&told.happened, Happened::LateHooksRan(warnings) if warnings.is_empty()),
            "{told:?}"
        );
        let ran = LateHooks::new(newsdesk, about);
        let run = tokio::spawn(async move {
            let _ran = ran;
            std::panic::resume_unwind(Box::new("on purpose"))
        });
        let run: Result<(), _> = run.await;
        run.unwrap_err();
        let told = news.recv().await.unwrap();
        let Happened::LateHooksRan(warnings) = told.happened else { panic!("{told:?}") };
        assert!(told.about.life == 7 && warnings[0].ends_with("broke off"), "{warnings:?}");
    }
}
