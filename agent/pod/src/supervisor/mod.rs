//! The one owner of the pod's state.
//!
//! Calls come in from the service, news from the tasks that wait for something (a pidfd, a report, a log); the supervisor
//! handles one at a time and never waits itself.

mod attach;
mod connect;
mod containers;
mod execs;
mod news;
mod shutdown;
mod stats;
mod updates;

pub(crate) use news::About;

use connect::FORWARDS_MAX;
use news::{News, Newsdesk};

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::Pod;
use hartpod_container::cgroup::Meter;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{DescribeResponse, SetUpPodRequest, SetUpPodResponse};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use crate::board::Board;
use crate::call::{Call, CallError};
use crate::children::{Children, Exit};
use crate::clock::set_clock;
use crate::container::{Container, Workshop};
use crate::guest;
use crate::request::{Place, PodPlan, fingerprint};
use crate::stream::Tokens;
use crate::sys;

/// Containers in one pod. Kubernetes has no limit of its own; this is far beyond any pod that was ever seen.
const CONTAINERS_MAX: usize = 1024;

/// After this long without work, memory that work has used goes back to the kernel.
const IDLE: Duration = Duration::from_millis(500);

/// A pod that was set up.
#[derive(Debug)]
struct SetUp {
    /// Of the request that did it.
    fingerprint: u64,
    pod_id: String,
    warnings: Vec<String>,
    log_directory: Option<PathBuf>,
    pod: Arc<Pod>,
    /// Of the pod's cgroup: made by the first question for statistics, in a guest alone.
    meter: OnceCell<Meter>,
    /// The pod's own interface, which a guest's agent has set up.
    interface: Option<String>,
}

/// How the agent's work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Everything of the pod is gone.
    ShutDown,
    /// This process is no good as an agent any more.
    Broken,
}

/// What the agent has of where it runs.
#[derive(Debug)]
pub(crate) struct Outside {
    /// /dev/null, which the pod's mount namespace will not have.
    pub(crate) null: OwnedFd,
    pub(crate) place: Place,
}

/// The state of the pod.
#[derive(Debug)]
pub(crate) struct Supervisor {
    calls: mpsc::Receiver<Box<Call>>,
    news: mpsc::UnboundedReceiver<Box<News>>,
    /// Lent to tasks; their number bounds the queue.
    newsdesk: Newsdesk,
    children: Children,
    tokens: Tokens,
    null: Arc<OwnedFd>,
    place: Place,
    board: Board,
    set_up: Option<SetUp>,
    /// Waits for the end of the pid namespace's init, where the pod has one.
    holder: Option<JoinHandle<Exit>>,
    /// Setting up failed halfway, or the pod's holder is gone.
    broken: bool,
    /// Boxed, like calls and news: maps and queues make room for many more than there usually are.
    containers: BTreeMap<ContainerId, Box<Container>>,
    lives: u64,
    shutdown: shutdown::ShutDown,
    /// Room for forwarded connections.
    forwards: Arc<Semaphore>,
    /// Held by an update of the pod.
    resizing: Arc<Semaphore>,
}

impl Supervisor {
    pub(crate) fn new(
        calls: mpsc::Receiver<Box<Call>>,
        children: Children,
        tokens: Tokens,
        outside: Outside,
    ) -> Self {
        let (newsdesk, news) = Newsdesk::new();
        let Outside { null, place } = outside;
        Self {
            calls,
            news,
            newsdesk,
            children,
            tokens,
            null: Arc::new(null),
            place,
            board: Board::default(),
            set_up: None,
            holder: None,
            broken: false,
            containers: BTreeMap::new(),
            lives: 0,
            shutdown: shutdown::ShutDown::default(),
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
            resizing: Arc::new(Semaphore::new(1)),
        }
    }

    /// Serves until the pod is shut down, or could not be set up (a process that is half in the pod's namespaces cannot try
    /// again), or has lost its pid namespace.
    pub(crate) async fn run(mut self) -> End {
        let mut used = true;
        while !self.shutdown.is_over() {
            if self.broken {
                return End::Broken;
            }
            let idle = Instant::now() + IDLE;
            tokio::select! {
                biased;
                Some(news) = self.news.recv() => self.on_news(*news),
                call = self.calls.recv() => match call {
                    Some(call) => self.on_call(*call),
                    None => return End::ShutDown,
                },
                Some(exit) = end_of(&mut self.holder) => self.on_holder_end(exit),
                () = sleep_until(idle), if used => {
                    sys::release_free_memory();
                    sys::release_stack();
                    used = false;
                    continue;
                }
            }
            used = true;
            self.advance_shutdown();
        }
        End::ShutDown
    }

    fn on_call(&mut self, call: Call) {
        match call {
            Call::SetUp(request, reply) => {
                let _ = reply.send(self.set_up(request));
            }
            Call::Describe(reply) => {
                let _ = reply.send(Ok(self.describe()));
            }
            Call::Watch(reply) => {
                let _ = reply.send(Ok(self.board.watch()));
            }
            Call::Create(request, reply) => self.create(request, reply),
            Call::Start(id, reply) => self.start(&id, reply),
            Call::Signal(id, signal, reply) => {
                let _ = reply.send(self.signal(&id, signal));
            }
            Call::Update(id, request, reply) => self.update(&id, &request, reply),
            Call::UpdatePod(request, reply) => self.update_pod(&request, reply),
            Call::Remove(id, reply) => self.remove(&id, reply),
            Call::StartExec(id, request, reply) => self.start_exec(&id, request, reply),
            Call::WaitExec(id, exec, reply) => self.wait_exec(&id, &exec, reply),
            Call::Attach(id, request, reply) => {
                let _ = reply.send(self.attach(&id, request));
            }
            Call::ResizeTerminal(id, request, reply) => {
                let _ = reply.send(self.resize_terminal(&id, request));
            }
            Call::Connect(request, reply) => self.connect(request, reply),
            Call::KillExec(id, exec, reply) => {
                let _ = reply.send(self.kill_exec(&id, &exec));
            }
            Call::ReopenLog(id, reply) => self.reopen_log(&id, reply),
            Call::Stats(request, reply) => {
                let _ = reply.send(self.stats(request.depth()));
            }
            Call::ShutDown(reply) => self.shut_down(reply),
        }
    }

    /// Enters the pod's namespaces. Blocks: it is the first call, and nothing else can go on without it.
    fn set_up(&mut self, request: SetUpPodRequest) -> Result<SetUpPodResponse, CallError> {
        // Asked again, the time is another.
        let fingerprint = fingerprint(&SetUpPodRequest { clock_ns: 0, ..request.clone() });
        if self.shutdown.was_asked_for() {
            return Err(CallError::ShuttingDown);
        }
        if let Some(done) = &self.set_up {
            let same = done.fingerprint == fingerprint;
            return if same {
                Ok(SetUpPodResponse { warnings: done.warnings.clone() })
            } else {
                Err(CallError::SetUpDiffers)
            };
        }
        let pod_id = request.pod_id.clone();
        let PodPlan { setup, log_directory, clock, network, files } = PodPlan::new(request, self.place)?;
        if let Some(nanos) = clock {
            set_clock(nanos).map_err(|error| CallError::Clock(Arc::new(error)))?;
        }
        let _starting = self.children.starting();
        self.broken = true;
        // Before the pod's own mounts hide the guest's, and before the pod's parameters, which may be those of the interface.
        guest::write_files(&files).map_err(|error| CallError::Files(Arc::new(error)))?;
        if let Some(interface) = &network {
            guest::set_up_network(interface).map_err(|error| CallError::Network(Arc::new(error)))?;
        }
        let (pod, warnings) = Pod::set_up(setup).map_err(|error| CallError::SetUp(Arc::new(error)))?;
        if let Some(holder) = pod.holder() {
            self.holder = Some(tokio::spawn(self.children.own(holder)));
        }
        info!(pod = pod_id, "pod is set up");
        self.broken = false;
        let answer = SetUpPodResponse { warnings: warnings.clone() };
        let (pod, meter) = (Arc::new(pod), OnceCell::new());
        let interface = network.map(|interface| interface.name);
        self.set_up = Some(SetUp { fingerprint, pod_id, warnings, log_directory, pod, meter, interface });
        Ok(answer)
    }

    /// With its init all of the pid namespace has died, and it takes no new process: the pod is over. When the agent ends, too,
    /// the daemon tells the kubelet, which makes a new pod.
    fn on_holder_end(&mut self, exit: Exit) {
        if !self.shutdown.was_asked_for() {
            error!(code = exit.code, "the holder of the pod's pid namespace ended, so the pod is over");
            self.broken = true;
        }
    }

    fn describe(&self) -> DescribeResponse {
        let set_up = self.set_up.as_ref();
        let holder = set_up.and_then(|set_up| set_up.pod.holder());
        DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            set_up: set_up.is_some(),
            pod_id: set_up.map(|set_up| set_up.pod_id.clone()).unwrap_or_default(),
            agent_pid: rustix::process::getpid().as_raw_nonzero().get(),
            holder_pid: holder.map(hartpod_container::Child::pid).unwrap_or_default(),
            containers: self.board.states(),
        }
    }

    fn is_set_up(&self) -> Result<&SetUp, CallError> {
        if self.shutdown.was_asked_for() {
            return Err(CallError::ShuttingDown);
        }
        self.set_up.as_ref().ok_or(CallError::NotSetUp)
    }

    fn workshop(&self) -> Result<Workshop, CallError> {
        let pod = Arc::clone(&self.is_set_up()?.pod);
        Ok(Workshop { pod, children: self.children.clone(), null: Arc::clone(&self.null) })
    }

    fn container_mut(&mut self, id: &ContainerId) -> Result<&mut Container, CallError> {
        self.containers.get_mut(id).map(Box::as_mut).ok_or_else(|| CallError::UnknownContainer(id.clone()))
    }

    /// Tells watchers how a container is now.
    fn publish(&self, id: &ContainerId) {
        if let Some(state) = self.containers.get(id).and_then(|container| container.state()) {
            self.board.put(state);
        }
    }
}

/// None, at once, when there is no holder (any more).
async fn end_of(holder: &mut Option<JoinHandle<Exit>>) -> Option<Exit> {
    let exit = holder.as_mut()?.await;
    *holder = None;
    exit.ok()
}
